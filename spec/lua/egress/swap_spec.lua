-- Placeholders in headers, and what must not come of swapping them.
local secrets = require("tidepool.egress.secrets")

describe("swapping placeholders", function()
  local store

  local function set(name, value)
    store:set({ name = name, value = value, placeholder = "placeholder-of-" .. name, hosts = { "a.test" } })
  end

  local function swap(value)
    local headers = { { "Authorization", value } }
    local count, message = store:swap(headers, "a.test", true)
    return count, message, headers[1][2]
  end

  before_each(function()
    store = secrets.new()
  end)

  it("puts the secret in its place, as often as it is there", function()
    set("one", "the value of one")
    local count, _, value = swap("Bearer placeholder-of-one, placeholder-of-one")
    assert.same({ 1, "Bearer the value of one, the value of one" }, { count, value })
  end)

  it("refuses a secret that would end the header, so that none is made of what follows", function()
    for _, value in ipairs({ "first line\nsecond line", "carriage\rreturn", "a zero \0 byte" }) do
      set("key", value)
      local count, message = swap("Bearer placeholder-of-key: injected")
      assert.is_nil(count)
      assert.matches("secret key holds a line break", message)
    end
  end)

  it("lets such a secret into Basic authentication, which encodes it", function()
    local digest = require("tidepool.proxy").digest
    set("key", "first line\nsecond line")
    local count, _, value = swap("Basic " .. digest.base64("me:placeholder-of-key"))
    assert.same({ 1, "Basic " .. digest.base64("me:first line\nsecond line") }, { count, value })
  end)

  it("ends, though two secrets hold each other's placeholders", function()
    set("one", "see placeholder-of-two")
    set("two", "see placeholder-of-one")
    local count, message = swap("Bearer placeholder-of-one")
    assert.is_nil(count)
    assert.matches("too many placeholders", message)
  end)
end)

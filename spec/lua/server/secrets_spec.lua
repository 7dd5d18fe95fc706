-- Secrets: sealed at rest, told to nobody but egress processes.
local placeholder = require("tidepool.server.placeholder")
local secrets = require("tidepool.server.secrets")
local state = require("tidepool.server.state")
local support = require("spec.support")
local uv = require("luv")

local VALUE = "ghp_abcdefghijklmnopqrstuvwxyz0123456789"

describe("secrets", function()
  local directory, db, store, told
  local function open()
    store = assert(secrets.open({
      db = db.db, directory = directory,
      on_change = function(secret)
        told[#told + 1] = secret.name
      end,
      on_remove = function(name)
        told[#told + 1] = "-" .. name
      end,
    }))
  end
  local function reopen()
    db:close()
    db = assert(state.open(directory .. "/state.db"))
    open()
  end
  before_each(function()
    directory, told = support.scratch(), {}
    db = assert(state.open(directory .. "/state.db"))
    open()
  end)
  after_each(function()
    db:close()
  end)

  it("are there for egress processes after a reopening, and for no client", function()
    local made = assert(store:set({ name = "github", value = VALUE, hosts = { "github.com", "*.github.com" } }))
    assert.is_nil(made.value)
    reopen()
    assert.same({ "github.com", "*.github.com" }, store:list()[1].hosts)
    assert.is_nil(store:list()[1].value)
    assert.is_nil(store:list()[1].sealed)
    assert.same({ { name = "github", value = VALUE, hosts = { "github.com", "*.github.com" }, placeholder = made.placeholder } },
      store:for_egress())
    assert.equal(made.placeholder, store:placeholder("github"))
  end)

  it("are nowhere in the state directory in plain", function()
    assert(store:set({ name = "github", value = VALUE }))
    db.db:rows("PRAGMA wal_checkpoint(TRUNCATE)")
    local found = support.run({ "grep", "-rl", "-e", "abcdefghijkl", "-e", "YWJjZGVmZ2hpamts", "-e", "6162636465666768", directory })
    assert.equal("", found.stdout)
    assert.equal(tonumber("100600", 8), uv.fs_stat(directory .. "/secret.key").mode)
  end)

  it("keep hosts and placeholder when only the value changes", function()
    local made = assert(store:set({ name = "a", value = VALUE, hosts = { "a.test" } }))
    local again = assert(store:set({ name = "a", value = VALUE .. "x" }))
    assert.equal(made.placeholder, again.placeholder)
    assert.same({ "a.test" }, again.hosts)
    assert.same({ "a", "a" }, told)
  end)

  it("are refused when they can't be masked, or have no good name or host", function()
    for message, params in pairs({
      ["less than 8"] = { name = "a", value = "1234567" },
      ["limit is 4096"] = { name = "a", value = ("x"):rep(4097) },
      ["name is"] = { name = "../a", value = VALUE },
      ["not a host"] = { name = "a", value = VALUE, hosts = { "a b" } },
      ["16 to 255"] = { name = "a", value = VALUE, placeholder = "short" },
      ["made of letters"] = { name = "a", value = VALUE, placeholder = ("x y"):rep(10) },
      ["must not hold"] = { name = "a", value = VALUE, placeholder = VALUE .. "x" },
    }) do
      local made, why, code = store:set(params)
      assert.is_nil(made)
      assert.matches(message, why, 1, true)
      assert.is_nil(why:find(params.value, 1, true))
      assert.equal("EINVAL", code)
    end
    assert.same({}, store:list())
    assert(store:set({ name = "a", value = "12345678", hosts = { "http://a.test:80", "*" } }))
  end)

  it("are as many as can be masked, and no more", function()
    local egress = require("tidepool.egress.secrets").new()
    for i = 1, 240 do
      assert(store:set({ name = "s" .. i, value = "value number " .. i }))
    end
    local _, message, code = store:set({ name = "more", value = "value of more" })
    assert.equal("ENOSPC", code)
    assert.matches("240 secrets", message)
    assert(store:set({ name = "s1", value = "another value" }))
    for _, secret in ipairs(store:for_egress()) do
      egress:set(secret)
    end
    for i = 1, 20 do -- with as many former ones as are kept
      egress:set({ name = "s2", value = "former value " .. i, placeholder = "placeholder-of-s2" })
    end
    for _, text in ipairs({ "another value", "value number 240", "former value 20", "former value 5" }) do
      assert.equal(("*"):rep(#text), egress:redact(text))
    end
  end)

  it("have placeholders that can be told apart", function()
    assert(store:set({ name = "a", value = VALUE, placeholder = "PLACEHOLDER_OF_MINE" }))
    local made, _, code = store:set({ name = "b", value = VALUE, placeholder = "X-PLACEHOLDER_OF_MINE" })
    assert.is_nil(made)
    assert.equal("EEXIST", code)
  end)

  it("go when they are removed", function()
    assert(store:set({ name = "a", value = VALUE }))
    assert.is_true(store:remove("a"))
    assert.same({ "a", "-a" }, told)
    for _, method in ipairs({ "remove", "placeholder" }) do
      local _, _, code = store[method](store, "a")
      assert.equal("ENOSECRET", code)
    end
    reopen()
    assert.same({}, store:list())
  end)

  it("note when they were used", function()
    assert(store:set({ name = "a", value = VALUE }))
    store:mark_used("a", 1234567890)
    store:mark_used("a", 1234567900)
    store:mark_used("nobody", 1)
    reopen()
    assert.equal(1234567890, store:list()[1].used)
  end)

  describe("whose key file", function()
    local key
    before_each(function()
      key = directory .. "/secret.key"
      assert(store:set({ name = "a", value = VALUE }))
    end)

    local function expect_unreadable(message, code)
      reopen()
      assert.matches(message, store:list()[1].problem, 1, true)
      assert.same({}, store:for_egress())
      local made, _, why = store:set({ name = "b", value = VALUE })
      assert.is_nil(made)
      assert.equal(code, why)
    end

    it("is gone say so, until all are removed", function()
      os.remove(key)
      expect_unreadable("is gone", "ENOKEY")
      assert.is_nil(uv.fs_stat(key))
      assert(store:remove("a"))
      assert(store:set({ name = "b", value = VALUE }))
    end)

    it("can be read by others say so", function()
      uv.fs_chmod(key, tonumber("644", 8))
      expect_unreadable("mode 644", "EPERM")
    end)

    it("is cut short say so", function()
      local file = assert(io.open(key, "w"))
      file:write("short")
      file:close()
      expect_unreadable("must have 32", "EBADMSG")
    end)

    it("is another one are not taken for anything else", function()
      local file = assert(io.open(key, "w"))
      file:write(("k"):rep(32))
      file:close()
      reopen()
      assert.matches("was not sealed with", store:list()[1].problem)
      assert.same({}, store:for_egress())
    end)
  end)

  it("seal other things for the state directory, each for its own purpose", function()
    local sealed = assert(store:seal("a key", "of 1"))
    assert.equal("a key", store:unseal(sealed, "of 1"))
    local bytes, _, code = store:unseal(sealed, "of 2")
    assert.is_nil(bytes)
    assert.equal("EBADMSG", code)
  end)
end)

describe("a placeholder", function()
  it("has the shape of its secret", function()
    for value, pattern in pairs({
      [VALUE] = "^ghp_tidepool%w+$",
      ["sk-proj-" .. ("aB3_"):rep(20)] = "^sk%-proj%-TIDEPOOL",
      ["sk-ant-api03-" .. ("aB3-"):rep(20)] = "^sk%-ant%-api03%-TIDEPOOL",
      ["AKIAIOSFODNN7EXAMPLE"] = "^AKIATIDEPOOL[2-7A-Z]+$",
      [("0123456789abcdef"):rep(4)] = "^[%da-f]+$",
      ["123e4567-e89b-12d3-a456-426614174000"] = "^%x+%-%x+%-%x+%-%x+%-%x+$",
      ["a pass phrase, with spaces\n"] = "^TIDEPOOL%w+$",
      [("lower0case"):rep(5)] = "^tidepool[%l%d]+$",
    }) do
      local made = placeholder.make(value)
      assert.matches(pattern, made)
      assert.not_equal(made, placeholder.make(value))
      assert.is_truthy(placeholder.check(made))
      if #value >= 40 then
        assert.equal(#value, #made)
      end
    end
  end)

  it("tells nothing of the secret but its beginning and where its separators are", function()
    local made = placeholder.make("github_pat_" .. ("A"):rep(22) .. "_" .. ("b"):rep(59))
    assert.equal("_", made:sub(34, 34))
    assert.equal(93, #made)
    assert.is_nil(made:find("AAAA", 1, true))
  end)

  it("can't be guessed, however short the secret is", function()
    local seen = {}
    for _ = 1, 200 do
      local made = placeholder.make("12345678")
      assert.is_nil(seen[made])
      seen[made] = true
      assert.is_true(#made >= 24)
    end
    assert.is_true(#placeholder.make(("x"):rep(4096)) <= 255)
  end)
end)

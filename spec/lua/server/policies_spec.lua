-- Policies by name, and the chain of a sandbox as data.
local policies = require("tidepool.server.policies")
local support = require("spec.support")
local uv = require("luv")

local function write(path, text)
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
end

describe("policies", function()
  local server
  before_each(function()
    server = { directory = support.scratch() }
    uv.fs_mkdir(server.directory .. "/policies", 448)
  end)

  it("are found by name: those of the state directory before those that come with us", function()
    local text, path = assert(policies.text(server, "deny_all"))
    assert.matches("policy", text)
    assert.matches("/policies/deny_all.lua$", path)
    write(server.directory .. "/policies/deny_all.lua", "-- mine")
    assert.equal("-- mine", (policies.text(server, "deny_all")))
  end)

  it("are not found outside of their directories", function()
    write(server.directory .. "/secret.lua", "x")
    for _, name in ipairs({ "../secret", "nosuch", "", "a/b", ".", "deny_all.lua", ("x"):rep(65) }) do
      local text, _, code = policies.text(server, name)
      assert.is_nil(text, name)
      assert.equal("ENOPOLICY", code, name)
    end
  end)

  it("are listed with what they say about themselves", function()
    write(server.directory .. "/policies/mine.lua", 'return policy {\n  name = "mine",\n  about = "Says \\"no\\".",\n}')
    local by_name = {}
    for _, item in ipairs(policies.list(server)) do
      by_name[item.name] = item
    end
    assert.equal('Says "no".', by_name.mine.about)
    assert.is_truthy(by_name.deny_all.about)
    assert.matches("Says", policies.show(server, "mine").text)
  end)

  it("without any deny everything", function()
    assert.equal("deny_all", policies.chain({})[1].name)
    assert.same({ "x" }, { policies.with(policies.DEFAULT, { name = "x" })[1].name })
    assert.equal(policies.DEFAULT, policies.without({ { name = "x" } }, "x"))
  end)

  it("are added at the end, or changed where they are", function()
    local chain = { { name = "a", options = {} }, { name = "b", options = {} } }
    local more = policies.with(chain, { name = "c" })
    assert.same({ "a", "b", "c" }, { more[1].name, more[2].name, more[3].name })
    local changed = policies.with(chain, { name = "a", options = { x = 1 } })
    assert.equal(2, #changed)
    assert.equal(1, changed[1].options.x)
    assert.same({}, chain[1].options)
    local less, _, code = policies.without(chain, "z")
    assert.is_nil(less)
    assert.equal("ENOPOLICY", code)
  end)

  it("are refused twice, under wrong names, too many or too large", function()
    local many = {}
    for i = 1, 257 do
      many[i] = { name = "p" .. i }
    end
    for _, given in ipairs({
      { { name = "a" }, { name = "a" } }, { { name = "../a" } }, many, { { name = "a", text = ("x"):rep(300000) } },
      { { name = "a", options = { x = ("x"):rep(300000) } } },
      { { name = "a", options = { x = 0 / 0 } } },
    }) do
      local chain, message, code = policies.chain(given)
      assert.is_nil(chain)
      assert.is_string(message)
      assert.equal("EINVAL", code)
    end
  end)

  it("get their texts when an egress process is told of them", function()
    local list = assert(policies.resolved(server, { { name = "deny_all", options = {} }, { name = "mine", text = "T", options = { a = 1 } } }))
    assert.matches("policy", list[1].text)
    assert.same({ name = "mine", text = "T", options = { a = 1 } }, list[2])
    local none, _, code = policies.resolved(server, { { name = "nosuch" } })
    assert.is_nil(none)
    assert.equal("ENOPOLICY", code)
  end)
end)

describe("policies as people write them", function()
  local written = require("tidepool.client.policy")

  it("are names with options", function()
    assert.same({ name = "a", options = { x = "1", hosts = "a.test,b.test" } }, written.parse("a,x=1,hosts=a.test,b.test"))
    assert.same({ name = "a", options = {} }, written.parse("a"))
    assert.same({ { name = "a", options = {} }, { name = "b", options = { x = { 1 } } } }, written.list({ "a", { "b", x = { 1 } } }))
    assert.same({ { name = "a", options = {} } }, written.list("a"))
  end)

  it("are files, read where they are written down", function()
    local directory = support.scratch()
    write(directory .. "/mine.lua", "TEXT")
    assert.same({ name = "mine", options = { x = "1" }, text = "TEXT" }, written.parse(directory .. "/mine.lua,x=1"))
    local made, _, code = written.one(directory .. "/none.lua")
    assert.is_nil(made)
    assert.equal("ENOENT", code)
  end)

  it("take the bytes of a file as an option's value", function()
    local path = support.scratch() .. "/ca.pem"
    write(path, "A,B\n")
    assert.equal("A,B", written.parse("a,ca=@" .. path).options.ca)
    assert.equal("@x", written.parse("a,ca=@@x").options.ca)
    local made, message, code = written.parse("a,ca=@/nowhere")
    assert.is_nil(made)
    assert.matches("option ca", message)
    assert.equal("ENOENT", code)
  end)

  it("say what is wrong with them", function()
    for _, text in ipairs({ "", ",x=1", "a,b" }) do
      local made, _, code = written.parse(text)
      assert.is_nil(made)
      assert.equal("EINVAL", code)
    end
    local list, _, code = written.list({ { x = 1 } })
    assert.is_nil(list)
    assert.equal("EINVAL", code)
  end)
end)

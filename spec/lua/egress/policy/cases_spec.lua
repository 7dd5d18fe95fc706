local cases = require("tidepool.egress.policy.cases")
local paths = require("tidepool.paths")

local function run(text)
  return cases.run("return policy { name = \"p\", about = \"a\", " .. text .. " }", "p")
end

local function only(text)
  local results = assert(run(text))
  assert.equal(1, #results)
  return results[1]
end

describe("a policy's cases", function()
  it("hold when the verdict is as expected", function()
    local result = only("connect = function() return allow { headers = { a = secret(\"k\") } } end, cases = { { \"works\", secrets = { k = \"v\" }, "
      .. "event = { host = \"a\" }, expect = { action = \"allow\", headers = { a = \"v\", b = false } } } }")
    assert.same({ name = "works", ok = true }, result)
  end)

  it("fail with what differs and why", function()
    local result = only("connect = function() return deny(\"no\") end, cases = { { \"x\", event = { host = \"a\" }, expect = \"allow\" } }")
    assert.is_false(result.ok)
    assert.equal("action: expected \"allow\", got \"deny\" (no)", result.message)
    result = only("connect = function() return deny(\"no\") end, cases = { { \"x\", expect = { reason = \"yes\" } } }")
    assert.equal("reason: expected \"yes\", got \"no\"", result.message)
    result = only("connect = function() end, cases = { { \"x\" } }")
    assert.equal("expect is missing", result.message)
    result = only("connect = function() end, cases = { { \"x\", evnet = {} } }")
    assert.equal("evnet is not understood in a case", result.message)
  end)

  it("share state between the steps of one", function()
    local result = only([[connect = function() state.n = (state.n or 0) + 1; return deny("n" .. state.n) end,
      log = function() state.logged = true end,
      cases = { { "x", state = { n = 4 }, steps = {
        { hook = "connect", expect = { reason = "n5" } },
        { hook = "log", expect = { state = { logged = true } } },
        { hook = "connect", expect = { reason = "n6", state = { n = 6 } } },
      } } }]])
    assert.is_nil(result.message)
  end)

  it("answer fetch from the case", function()
    local result = only([[connect = function() return deny(fetch { url = "https://t/" }.body) end,
      cases = { { "x", fetch = { ["https://t/"] = { status = 200, body = "tok" } }, expect = { reason = "tok" } } }]])
    assert.is_nil(result.message)
  end)

  it("may expect that options are refused", function()
    assert.is_true(only("cases = { { \"x\", options = { a = 1 }, expect = { refused = \"unknown option a\" } } }").ok)
    assert.is_false(only("cases = { { \"x\", expect = { refused = \"unknown\" } } }").ok)
  end)
end)

describe("policy test", function()
  local function test(word)
    local script = ("os.exit(require('tidepool.cli').main({'policy', 'test', %q}))"):format(word)
    local pipe = io.popen(("luajit -e \"%s\" 2>&1; echo status $?"):format(script:gsub("\"", "\\\"")))
    local text = pipe:read("*a")
    pipe:close()
    return text
  end

  local function file_with(text)
    local path = os.tmpname() .. ".lua"
    local file = assert(io.open(path, "w"))
    file:write(text)
    file:close()
    finally(function() os.remove(path); os.remove((path:gsub("%.lua$", ""))) end)
    return path
  end

  it("runs a file's cases, and ends in 0 when they hold", function()
    local text = test(paths.repo() .. "/policies/deny_all.lua")
    assert.matches("ok      nothing is connected to\n", text)
    assert.matches("deny_all: %d+ cases, 0 failed\nstatus 0\n$", text)
  end)

  it("takes the name of one of ours", function()
    assert.matches("deny_all: %d+ cases, 0 failed\nstatus 0\n$", test("deny_all"))
  end)

  it("ends in 1 when one fails, and tells what", function()
    local path = file_with([[return policy { name = "p", about = "a", cases = { { "is open", event = { host = "a" }, expect = "allow" } } }]])
    local text = test(path)
    assert.matches("FAILED  is open: action: expected \"allow\", got \"deny\"", text)
    assert.matches(": 1 cases, 1 failed\nstatus 1\n$", text)
  end)

  it("ends in 1 with the line of what is wrong in the file", function()
    assert.matches(":2%) %(EINVAL%)\nstatus 1\n$", test(file_with("local x = 1\nx.y.z = 1\n")))
  end)

  it("ends in 125 when there is no such policy", function()
    assert.matches("no such policy %(ENOENT%)\nstatus 125\n$", test("nothing_like_it"))
  end)
end)

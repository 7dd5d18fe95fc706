local async = require("tidepool.async")
local policy = require("tidepool.egress.policy")
local budget = require("tidepool.egress.policy.budget")

local SANDBOX = { id = "1", name = "box" }

local function chain_of(body, services)
  local text = "return policy { name = \"p\", about = \"a\", connect = function(event) " .. body .. " end }"
  local definition = assert(policy.load(text, "p"))
  services = services or {}
  services.now = services.now or os.clock
  return assert(policy.chain({ { definition = definition, options = {} } }, SANDBOX, services))
end

local function reason(body, services)
  local verdict = chain_of(body, services):decide("connect", { host = "a" })
  assert.equal("deny", verdict.action)
  return verdict.reason
end

describe("the instruction budget", function()
  local OVER = "policy p exceeded its instruction budget in connect"

  it("ends a loop", function()
    assert.equal(OVER, reason("while true do end"))
    assert.equal(OVER, reason("local function f() return f() end return f()"))
    assert.equal(OVER, reason("for i = 1, 1e9 do local t = { i } end"))
  end)

  it("ends a loop that catches errors", function()
    assert.equal(OVER, reason("while true do pcall(function() while true do end end) end"))
    assert.equal(OVER, reason("pcall(pcall, function() while true do end end) return allow()"))
    assert.equal(OVER, reason("while true do pcall(error, 1) end"))
  end)

  it("ends a loop inside a library function's callback", function()
    assert.equal(OVER, reason("(\"x\"):gsub(\"x\", function() while true do end end)"))
    assert.equal(OVER, reason("table.sort({ 1, 2, 3 }, function() while true do end end)"))
  end)

  it("ends a loop of calls to services", function()
    assert.equal(OVER, reason("while true do log(\"x\") end", { log = function() end }))
    assert.equal(OVER, reason("while true do now() end"))
    assert.equal(OVER, reason("while true do pcall(allow, 1) end"))
    -- Few instructions from one call to the next: the hook alone would never fire.
    assert.equal(OVER, reason("for i = 1, 1e5 do log(\"x\" .. i) end", { log = function() end }))
  end)

  it("suffices for ten thousand hosts", function()
    assert.equal("done", reason("local n = 0 for i = 1, 1e4 do if match(\"*.example\", \"a.example\") then n = n + 1 end end return deny(\"done\")"))
  end)

  it("is each hook's own", function()
    local chain = chain_of("for i = 1, 3e5 do end return deny(\"done\")")
    for _ = 1, 5 do
      assert.equal("done", chain:decide("connect", {}).reason)
    end
  end)

  it("leaves no hook and no other string functions behind", function()
    reason("while true do end")
    reason("error(1)")
    assert.is_nil((debug.gethook()))
    assert.equal(string, getmetatable("").__index)
    assert.is_nil(budget.current())
  end)

  it("takes a few microseconds a hook", function()
    local chain = chain_of("return allow()")
    local event = { host = "a", port = 443, headers = {} }
    local started = os.clock()
    for _ = 1, 20000 do
      chain:decide("connect", event)
    end
    assert.is_true((os.clock() - started) / 20000 < 500e-6)
  end)
end)

describe("the time budget", function()
  it("ends what is slow without many instructions", function()
    local body = "local s = (\"x\"):rep(1000000) while true do s:reverse() end"
    assert.equal("policy p exceeded its time budget in connect", reason(body))
  end)

  it("is watched from outside for what no hook interrupts", function()
    local calls = {}
    budget.watch({
      arm = function(text) calls[#calls + 1] = text end,
      disarm = function() calls[#calls + 1] = "disarmed" end,
    })
    reason("now() return deny()")
    budget.watch()
    assert.same({ "policy p of sandbox box, connect", "disarmed", "policy p of sandbox box, connect", "disarmed" },
      { calls[#calls - 3], calls[#calls - 2], calls[#calls - 1], calls[#calls] })
  end)
end)

describe("the watchdog", function()
  local CHILD = [[
    local core, proxy, policy = require("tidepool.core"), require("tidepool.proxy"), require("tidepool.egress.policy")
    assert(proxy.watchdog.start({ seconds = 0.3, fd = assert(core.fd.open(arg[1], "rw")) }))
    local text = "return policy { name = \"p\", about = \"a\", connect = function() "
      .. "return (\"a\"):rep(30000):find((\".-\"):rep(20) .. \"b\") end }"
    local chain = policy.chain({ { definition = assert(policy.load(text, "slow")), options = {} } }, { id = "1", name = "box" }, { now = os.time })
    chain:decide("connect", {})
  ]]

  local function write(text)
    local path = os.tmpname()
    local file = assert(io.open(path, "w"))
    file:write(text)
    file:close()
    return path
  end

  it("ends the process when a policy does not come back from one call, and knows whose it was", function()
    local script, page = write(CHILD), write(("\0"):rep(4096))
    finally(function() os.remove(script); os.remove(page) end)
    local result = async.run(function()
      return assert(async.command({ "luajit", script, page, stdout = "pipe", stderr = "pipe" }))
    end)
    assert.equal(99, result.code, result.stderr)
    local proxy, core = require("tidepool.proxy"), require("tidepool.core")
    local file = assert(core.fd.open(page, "r"))
    assert.equal("policy slow of sandbox box, connect", (proxy.watchdog.read(file)))
    file:close()
  end)
end)

describe("policy code", function()
  it("can't name what would let it out", function()
    for _, name in ipairs({
      "load", "loadstring", "loadfile", "dofile", "require", "module", "package", "io", "os", "debug", "ffi", "jit", "coroutine",
      "setmetatable", "getmetatable", "rawset", "rawget", "rawequal", "setfenv", "getfenv", "collectgarbage", "newproxy", "xpcall",
      "print", "_G", "string.dump", "table.foreach", "math.randomseed", "gcinfo",
    }) do
      assert.equal("nil", reason("return deny(tostring(" .. name .. "))"), name)
    end
  end)

  it("can't set a global, nor a function of ours or of another policy", function()
    assert.matches("has no globals", reason("x = 1"))
    assert.matches("has no globals", reason("allow = deny"))
    reason("string.find = nil; table.insert = nil; math.floor = nil; bit.band = nil; json.encode = nil return deny()")
    assert.equal("1", reason("return deny(tostring((\"a\"):find(\"a\")))"))
    assert.is_function(string.find)
    assert.is_function(table.insert)
  end)

  it("gets bounded strings by method too", function()
    assert.matches("string.rep: more than 1048576 bytes %(p.lua:1%)", reason("return (\"x\"):rep(1e9)"))
    assert.matches("string.rep: more than", reason("return string.rep(\"x\", 1e9)"))
    assert.equal("nil", reason("return deny(tostring((\"x\").dump))"))
  end)

  it("catches its own errors", function()
    assert.equal("false p.lua:1: x", reason("local ok, m = pcall(error, \"p.lua:1: x\") return deny(tostring(ok) .. \" \" .. m)"))
    assert.equal("true 2", reason("local ok, m = pcall(function(a) return a + 1 end, 1) return deny(tostring(ok) .. \" \" .. m)"))
  end)

  it("reads and writes JSON of bounded depth", function()
    assert.equal("b nil", reason("local t = json.decode('{\"a\":\"b\"}') return deny(t.a .. \" \" .. tostring(json.decode(\"{\")))"))
    assert.equal("nil", reason("return deny(tostring(json.decode((\"[\"):rep(1000) .. (\"]\"):rep(1000))))"))
    assert.equal("[1,2]", reason("return deny(json.encode({ 1, 2 }))"))
    assert.matches("p failed: .*p.lua:1", reason("return deny(json.encode({ allow }))"))
  end)

  it("logs with no secret in it", function()
    local lines = {}
    reason("log(\"key \" .. secret(\"k\")) return deny()", {
      secret = function() return "hunter2hunter2" end,
      log = function(name, text) lines[#lines + 1] = name .. " " .. text end,
    })
    assert.same({ "p key [secret k]" }, lines)
  end)

  it("has no secret and no network while it is loaded", function()
    local _, message = policy.load("local s = secret(\"k\") return policy { name = \"p\", about = \"a\" }", "p")
    assert.matches("secret is not available here", message)
    _, message = policy.load("fetch { url = \"x\" } return policy { name = \"p\", about = \"a\" }", "p")
    assert.matches("fetch is not available here", message)
  end)
end)

describe("fetch", function()
  local function service(seconds)
    return function(request)
      async.sleep(seconds)
      return { status = 200, headers = {}, body = request.url }
    end
  end

  local function wall()
    return require("luv").hrtime() / 1e9
  end

  it("waits without its time being counted, while others run", function()
    async.run(function()
      local slow = chain_of("return deny(fetch { url = event.host }.body)", { fetch = service(0.25), now = wall })
      local first, second
      local task = async.spawn(function() first = slow:decide("connect", { host = "one" }).reason end)
      local other = async.spawn(function() second = slow:decide("connect", { host = "two" }).reason end)
      assert.is_nil((debug.gethook()))
      assert.equal("quick", chain_of("return deny(\"quick\")"):decide("connect", {}).reason)
      task:join()
      other:join()
      assert.same({ "one", "two" }, { first, second })
    end)
  end)

  it("gives the failure as a value, and raises what is asked wrongly", function()
    local failing = { fetch = function() return nil, "refused", "ECONNREFUSED" end }
    assert.equal("nil refused", reason("local r, m = fetch { url = \"x\" } return deny(tostring(r) .. \" \" .. m)", failing))
    assert.matches("needs a table with a url", reason("fetch()", failing))
    assert.matches("fetch: mehtod is not understood", reason("fetch { url = \"x\", mehtod = \"GET\" }", failing))
    assert.matches("p failed: boom", reason("fetch { url = \"x\" }", { fetch = function() error("boom", 0) end }))
  end)

  it("is bounded in number and in seconds", function()
    local many = { fetch = function() return {} end }
    assert.equal("policy p exceeded its fetch budget in connect", reason("while true do pcall(fetch, { url = \"x\" }) end", many))
    local asked, time = {}, 0
    local slow = {
      now = function() return time end,
      fetch = function(request)
        asked[#asked + 1] = request.timeout
        time = time + 4
        return {}
      end,
    }
    assert.equal("policy p exceeded its fetch budget in connect", reason("while true do fetch { url = \"x\", timeout = 9 } end", slow))
    assert.same({ 9, 6, 2 }, asked)
  end)
end)

-- The watchdog, in processes of their own: it ends them.
local core = require("tidepool.core")
local proxy = require("tidepool.proxy")
local support = require("spec.support")

local PAGE = os.tmpname()

--- Runs a script as another process with the page as descriptor 5: its exit code and what it printed.
local function run(script, seconds)
  local file = assert(io.open(PAGE, "w"))
  file:write(("\0"):rep(4096))
  file:close()
  local path = os.tmpname()
  file = assert(io.open(path, "w"))
  file:write('local uv = require("luv"); local proxy = require("tidepool.proxy")\n',
    ("assert(proxy.watchdog.start({ seconds = %g, fd = 5 }))\n"):format(seconds or 0.3), script)
  file:close()
  local result = support.run({ "sh", "-c", ("exec 5<>%s; exec luajit %s"):format(PAGE, path) })
  os.remove(path)
  return result
end

local function who()
  local page = assert(core.fd.open(PAGE, "r"))
  local text, running = proxy.watchdog.read(page)
  page:close()
  return text, running
end

describe("the watchdog", function()
  teardown(function()
    os.remove(PAGE)
  end)

  it("ends a process that does not come back out of a C function, and names the run", function()
    local result = run([[
      proxy.watchdog.arm("policy slow, sandbox b1")
      proxy.watchdog.disarm()
      proxy.watchdog.arm("policy evil, sandbox b2\27")
      local text = ("a"):rep(30000)
      text:find((".-"):rep(20) .. "b")
    ]])
    assert.equal(99, result.code, result.stderr)
    assert.same({ "policy evil, sandbox b2?" }, { who() })
  end)

  it("ends compiled loops too", function()
    local result = run([[proxy.watchdog.arm("loop") while true do end]])
    assert.equal(99, result.code)
    assert.same({ "loop" }, { who() })
  end)

  it("leaves many short runs alone, however long they take together", function()
    local result = run([[
      local start = os.clock()
      while os.clock() - start < 0.6 do
        proxy.watchdog.arm("short")
        for _ = 1, 1000 do end
        proxy.watchdog.disarm()
      end
      while os.clock() - start < 1 do end
    ]], 0.2)
    assert.equal(0, result.code, result.stderr)
    assert.same({}, { who() })
  end)

  it("counts CPU time: waiting is no sin, and timers and errors go on as ever", function()
    local result = run([[
      proxy.watchdog.arm("waits")
      local timer, fired = uv.new_timer(), 0
      timer:start(20, 20, function() fired = fired + 1; if fired == 30 then timer:close() end end)
      uv.run()
      proxy.watchdog.disarm()
      assert(fired == 30 and not pcall(error, "x"))
    ]], 0.1)
    assert.equal(0, result.code, result.stderr)
  end)

  it("tells who ran when the process ended by another cause", function()
    local result = run([[proxy.watchdog.arm("crashed") uv.kill(uv.os_getpid(), "sigkill")]])
    assert.equal(9, result.signal or (result.code - 128))
    assert.same({ n = 2, nil, "crashed" }, { n = select("#", who()), who() })
  end)

  it("costs next to nothing a run, and cuts a long text", function()
    local result = run([[
      local arm, disarm, text = proxy.watchdog.arm, proxy.watchdog.disarm, ("x"):rep(80)
      local start = os.clock()
      for _ = 1, 1e6 do arm(text) disarm() end
      assert(os.clock() - start < 10, "slow: " .. os.clock() - start)
      arm(("y"):rep(600))
      os.exit(0, false)
    ]], 3)
    assert.equal(0, result.code, result.stderr)
    assert.equal(("y"):rep(512), (select(2, who())))
  end)

  -- Lua unloads its modules first, then frees what they left, which takes the longer.
  it("lets a process end by itself, though it ticks to the last", function()
    local result = run([[
      kept = {}
      for i = 1, 1e6 do kept[i] = { i } end
    ]], 0.01)
    assert.equal(0, result.signal, "ended by a signal")
    assert.equal(0, result.code, result.stderr)
  end)

  it("starts once, with a page that is one", function()
    local result = run([[
      local _, _, code = proxy.watchdog.start({ seconds = 1, fd = 5 })
      assert(code == "EALREADY", code)
      assert(not pcall(proxy.watchdog.start, { seconds = 0, fd = 5 }))
    ]])
    assert.equal(0, result.code, result.stderr)
    local empty = assert(core.fd.open("/dev/null", "r"))
    assert.equal("EINVAL", (select(3, proxy.watchdog.start({ fd = empty }))))
    assert.equal("EBADMSG", (select(3, proxy.watchdog.read(empty))))
    empty:close()
    proxy.watchdog.arm("nothing was started")
    proxy.watchdog.disarm()
  end)

  it("caps memory so that Lua code gets an error that it can catch", function()
    local result = run([[
      assert(proxy.watchdog.limit_memory(96 * 2 ^ 20))
      for _ = 1, 3 do
        local ok, message = pcall(function()
          local list = {}
          for i = 1, 1e6 do list[i] = ("x"):rep(1000) .. i end
        end)
        assert(not ok and message == "not enough memory", message)
        collectgarbage()
        ok, message = pcall(string.rep, "x", 2 ^ 28)
        assert(not ok and message == "not enough memory", message)
      end
      local sum = 0
      for i = 1, 1e6 do sum = sum + #tostring(i % 10) end
      assert(sum == 1e6)
    ]], 20)
    assert.equal(0, result.code, result.stderr)
    assert.has_error(function()
      proxy.watchdog.limit_memory(1)
    end)
  end)
end)

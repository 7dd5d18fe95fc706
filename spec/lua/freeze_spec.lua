-- Freezing: a sandbox that stands still, and everything that wakes it.
local support = require("spec.support")
local async = require("tidepool.async")
local uv = require("luv")

describe("a frozen sandbox", function()
  local server, box
  setup(function()
    support.needs_root()
    server = support.server()
    box = server:sandbox({ cpu = 2 })
  end)

  local function frozen()
    return support.read(support.cgroup_of(box) .. "/cgroup.events"):find("frozen 1") ~= nil
  end

  local function freeze()
    assert.equal("frozen", assert(box:freeze()).state)
    assert.is_true(frozen())
  end

  it("uses no CPU, is said to be frozen, and freezing it again changes nothing", function()
    local process = assert(box:start("while :; do :; done", { name = "busy" }))
    freeze()
    local before = box:info().usage.cpu_seconds
    -- The kernel calls a cgroup frozen a few µs before the last of its tasks is off its processor.
    local slack = 0.001
    async.run(async.sleep, 0.3)
    local info = assert(box:freeze())
    assert.equal("frozen", info.state)
    assert.is_true(box:info().usage.cpu_seconds - before < slack)
    assert.is_true(frozen())
    assert.equal(1, box:info().processes)
    assert(box:wake())
    assert.equal("running", box:info().state)
    assert.is_true(support.eventually(function()
      return box:info().usage.cpu_seconds > before + slack
    end))
    process:kill(0)
  end)

  local sleeper
  local verbs = {
    exec = function() assert.equal("hi\n", box:exec("echo hi").stdout) end,
    start = function() assert(box:start({ "true" })) end,
    ps = function() assert(box:ps()) end,
    read = function() assert(box:read("/etc/hostname")) end,
    logs = function() assert(sleeper:logs()) end,
    signal = function() assert(sleeper:signal("WINCH")) end,
    ["wait"] = function() sleeper:wait(0.05) end,
    open = function() assert(server.client:call("open", { name = box.name })) end,
  }
  for name, call in pairs(verbs) do
    it("is woken by " .. name, function()
      sleeper = sleeper or assert(box:start({ "sleep", "1000" }, { name = "sleeper" }))
      freeze()
      call()
      assert.equal("running", box:info().state)
      assert.is_false(frozen())
    end)
  end

  it("is not woken by who only looks, or stops, snapshots or forks it", function()
    freeze()
    assert(server.client:call("ls", {}))
    assert(box:egress_show())
    assert(box:snapshot("asleep"))
    local branch = assert(box:fork(1))[1]
    assert.equal("running", branch:info().state)
    assert(branch:destroy())
    assert.is_true(frozen())
    assert.equal("stopped", assert(box:stop()).state)
    assert(box:wake())
  end)

  it("is woken by a key in a terminal, which is not lost", function()
    local terminal = assert(box:terminal({ name = "term" }))
    assert(terminal:write("echo before-$((1+1))\n"))
    assert(terminal:expect("before%-2"))
    freeze()
    assert(terminal:write("echo after-$((2+2))\n"))
    assert(terminal:expect("after%-4", { timeout = 60 }))
    assert.equal("running", box:info().state)
    freeze()
    server:kill() -- the next server looks for input as well
    assert.equal("frozen", box:info().state)
    assert(terminal:write("echo again-$((3+3))\n"))
    assert(terminal:expect("again%-6", { timeout = 60 }))
    terminal:kill(0)
  end)

  it("is woken by bytes for a process's input, and not by a client that goes", function()
    local cat = assert(box:start({ "cat" }, { name = "cat", stdin = true }))
    assert(cat:attach({ input = true }))
    freeze()
    cat:detach()
    async.run(async.sleep, 0.2)
    assert.equal("frozen", box:info().state)
    assert(box:wake())
    assert(cat:attach({ input = true }))
    freeze()
    assert(cat:write("bytes\n"))
    assert.is_true(support.eventually(function()
      return box:info().state == "running"
    end))
    cat:kill(0)
  end)

  it("is woken by a file request on a connection that was there", function()
    assert(box:write("/workspace/file", "content")) -- opens an agent
    freeze()
    assert.equal("content", box:read("/workspace/file"))
    assert.equal("running", box:info().state)
  end)

  it("is woken once, however many ask at a time, and all are answered", function()
    for _ = 1, 5 do
      freeze()
      async.run(function()
        local tasks = {}
        for i = 1, 50 do
          tasks[i] = function()
            assert.equal(i .. "\n", assert(box:exec("echo " .. i)).stdout)
          end
        end
        async.all(tasks)
      end)
    end
    local log, count = support.read(server.state .. "/server.log"), 0
    local frozen_count = 0
    for line in log:gmatch("[^\n]+") do
      count = count + (line:find('"sandbox_thawed"', 1, true) and 1 or 0)
      frozen_count = frozen_count + (line:find('"sandbox_frozen"', 1, true) and 1 or 0)
    end
    assert.is_true(count <= frozen_count)
  end)

  it("that is frozen and woken all the time answers everybody", function()
    async.run(function()
      local done
      local freezer = async.spawn(function()
        while not done do
          assert(box:freeze())
          async.sleep(0.001)
          assert(box:wake())
        end
      end)
      for i = 1, 60 do
        assert.equal(i .. "\n", assert(box:exec("echo " .. i, { timeout = 60 })).stdout)
      end
      done = true
      freezer:join()
    end)
    assert(box:wake())
  end)

  it("has time limits that stand still with it", function()
    local bounded = assert(box:start({ "sleep", "100" }, { name = "bounded", timeout = 4 }))
    async.run(async.sleep, 0.3)
    freeze()
    async.run(async.sleep, 4.2)
    assert(box:wake())
    assert.equal("running", bounded:info().status)
    assert.is_true(assert(bounded:wait(60)).timed_out)

    bounded = assert(box:start({ "sleep", "100" }, { name = "bounded", timeout = 4 }))
    freeze()
    server:kill()
    async.run(async.sleep, 4.2)
    assert(box:wake())
    assert.equal("running", bounded:info().status)
    assert.is_true(assert(bounded:wait(60)).timed_out)
  end)

  it("is still frozen, with its processes, for the next server", function()
    local counter = assert(box:start("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done", { name = "counter" }))
    counter:wait_log("^5$")
    local pid = box:info().pid
    freeze()
    server:kill()
    local info = box:info()
    assert.equal("frozen", info.state)
    assert.equal(pid, info.pid)
    assert.is_true(frozen())
    assert.equal("running", counter:info().status) -- wakes it
    assert.equal("running", box:info().state)
    counter:kill(0)
  end)

  it("is destroyed and stopped as any other, also by the next server", function()
    for _, verb in ipairs({ "stop", "destroy" }) do
      local other = server:sandbox()
      assert(other:start({ "sleep", "1000" }))
      local pid = other:info().pid
      assert(other:freeze())
      server:kill()
      assert(other[verb](other))
      assert.is_true(support.eventually(function()
        return not support.alive(pid)
      end))
    end
  end)

  it("whose init is killed is reported stopped", function()
    local other = server:sandbox()
    assert(other:freeze())
    assert(uv.kill(other:info().pid, "sigkill"))
    assert.is_true(support.eventually(function()
      return other:info().state == "stopped"
    end))
    assert.equal("ok\n", other:exec("echo ok").stdout)
    assert(other:stop())
    assert.equal("ESTOPPED", (select(3, other:freeze())))
  end)

  for _, name in ipairs({ "frozen", "thawed" }) do
    it("is running again after a server that was killed at " .. name, function()
      local other = server:sandbox()
      if name == "thawed" then
        assert(other:freeze())
      end
      server:kill()
      uv.os_setenv("TIDEPOOL_STEP", name)
      server:pid()
      uv.os_unsetenv("TIDEPOOL_STEP")
      local client = require("tidepool.client").new({ state = server.state, run = server.run, start = false })
      client:call(name == "frozen" and "freeze" or "wake", { name = other.name })
      assert.equal("running", other:info().state)
      assert.equal("ok\n", assert(other:exec("echo ok", { timeout = 60 })).stdout)
    end)
  end

  it("costs the server no descriptor once it was woken", function()
    assert(box:exec({ "true" }))
    local pid = server:pid()
    local before = support.fd_count(pid)
    for _ = 1, 20 do
      freeze()
      assert(box:exec({ "true" }))
    end
    assert.is_true(support.eventually(function()
      return support.fd_count(pid) <= before + 1
    end))
  end)
end)

-- What survives: the server killed at any instant, init killed, a thousand cycles.
local support = require("spec.support")
local async = require("tidepool.async")
local uv = require("luv")

describe("a server that is killed", function()
  local server, box
  setup(function()
    server = support.server()
    box = server:sandbox({ cpu = 2 })
  end)

  it("is started again by the next verb, which finds every sandbox and process", function()
    local process = assert(box:start("while :; do date +%s%N; sleep 0.01; done", { name = "clock" }))
    process:wait_log("%d")
    local pid = box:info().pid
    local before = server:kill()
    local info = assert(box:info())
    assert.equal("running", info.state)
    assert.equal(pid, info.pid)
    assert.not_equal(before, server:pid())
    assert.equal("running", box:process("clock"):info().status)
    assert.equal("hi\n", box:exec("echo hi").stdout)
    process:kill(0)
  end)

  it("loses no output and no exit code of what ended meanwhile", function()
    local process = assert(box:start("i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.002; done; exit 7", { name = "counter" }))
    process:wait_log("^20$")
    server:kill()
    async.run(function()
      async.sleep(1.5) -- it ends while no server runs
    end)
    assert.equal(7, process:wait(60).exit_code)
    local expected = {}
    for i = 1, 300 do
      expected[i] = i .. "\n"
    end
    local log = process:logs()
    assert.equal(0, log.lost)
    assert.equal(table.concat(expected), log.text)
  end)

  it("does not interrupt an exec, its output or its timeout", function()
    async.run(function()
      local seen = {}
      local task = async.spawn(function()
        return box:exec("echo begin; sleep 1; echo end; exit 4", {
          on_output = function(_, bytes)
            seen[#seen + 1] = bytes
          end,
        })
      end)
      local bounded = async.spawn(function()
        return box:exec("sleep 100", { timeout = 2 })
      end)
      async.sleep(0.3)
      server:kill()
      local _, result = task:join()
      assert.equal(4, result.exit_code)
      assert.equal("begin\nend\n", table.concat(seen))
      local _, cut = bounded:join()
      assert.is_true(cut.timed_out)
    end)
  end)

  it("leaves time limits of background processes in force", function()
    local bounded = assert(box:start({ "sleep", "100" }, { name = "bounded", timeout = 1 }))
    local other = assert(box:start({ "sleep", "100" }, { name = "unbounded" }))
    server:kill()
    local ended = assert(bounded:wait(60))
    assert.is_true(ended.timed_out)
    assert.is_true(ended.wall_seconds < 60)
    assert.equal("running", other:info().status)
    other:kill(0)
  end)

  it("leaves terminals open, and what they show goes on", function()
    local terminal = assert(box:terminal({ cols = 90, rows = 30, name = "term" }))
    assert(terminal:write("echo before-$((1+1))\n"))
    assert(terminal:expect("before%-2"))
    server:kill()
    assert(terminal:write("echo after-$((2+2))\n"))
    assert(terminal:expect("after%-4"))
    terminal:detach()
    local again = assert(box:process("term"))
    assert(again:attach({ input = true }))
    assert(again:expect("after%-4"))
    assert(again:write("exit 6\n"))
    assert.equal(6, again:wait(60).exit_code)
  end)

  it("in the middle of creating or destroying leaves a sandbox whole or gone", function()
    for i = 1, 6 do
      async.run(function()
        local name = ("torn-%d"):format(i)
        local task = async.spawn(function()
          return server.client:call("create", { name = name, image = "minimal" })
        end)
        async.sleep(0.001 * i)
        local pid = server.pid_now
        if pid then
          uv.kill(pid, "sigkill")
        end
        task:join()
        server.pid_now = assert(server.client:call("info", {})).pid
        local info, _, code = server.client:call("info", { name = name })
        if info then
          assert.is_true(info.state == "running" or info.state == "stopped")
          assert(server.client:call("exec", { name = name, argv = { "true" } }))
          assert(server.client:call("destroy", { name = name }))
        else
          assert.equal("ENOSANDBOX", code)
        end
      end)
    end
    assert.equal("ok\n", box:exec("echo ok").stdout)
  end)
end)

describe("a server that a client starts", function()
  it("holds none of the client's descriptors (core.fd.close_from), and leads a session of its own", function()
    local server = support.server()
    local inherited = support.run({
      "sh", "-c", 'exec 9</etc/os-release; exec "$0" info --json',
      require("tidepool.paths").launcher(),
      env = { "PATH=" .. os.getenv("PATH"), "TIDEPOOL_STATE=" .. server.state, "TIDEPOOL_RUN=" .. server.run,
        "TIDEPOOL_BUILD=" .. require("tidepool.paths").build() },
    })
    assert.equal(0, inherited.code, inherited.stderr)
    local pid = server:pid()
    local held = support.run({ "sh", "-c", "readlink /proc/" .. pid .. "/fd/*" }).stdout
    assert.is_nil(held:find("os-release", 1, true))
    assert.equal(pid, tonumber(support.run({ "ps", "-o", "sid=", "-p", tostring(pid) }).stdout))
  end)

  it("is started anew while an earlier one still goes down", function()
    local server = support.server()
    for _ = 1, 10 do
      local pid = server:pid()
      assert(server.client:call("shutdown", {}))
      -- The old one may still take a call or two.
      assert(support.eventually(function()
        return server:pid() ~= pid
      end))
    end
  end)

  it("removes what an image job of an earlier server left", function()
    local server = support.server()
    server:kill()
    assert(uv.fs_mkdir(server.state .. "/work-left", 448))
    server:pid()
    assert(support.eventually(function()
      return not uv.fs_stat(server.state .. "/work-left")
    end))
  end)
end)

describe("a sandbox whose init is killed", function()
  it("is reported stopped with the reason, keeps its files, and opens again", function()
    local server = support.server()
    local box = server:sandbox()
    assert(box:write("/workspace/file", "still here"))
    local waiter
    async.run(function()
      waiter = async.spawn(function()
        return box:exec("sleep 1000")
      end)
      assert(support.eventually(function()
        return #assert(box:ps()) == 1
      end))
      assert(uv.kill(box:info().pid, "sigkill"))
      local _, result, message, code = waiter:join()
      assert.is_nil(result)
      assert.equal("ESTOPPED", code)
      assert.matches("signal 9", message)
    end)
    local info = box:info()
    assert.equal("stopped", info.state)
    assert.matches("killed by signal 9", info.reason)
    assert(server.client:call("open", { name = box.name }))
    assert.equal("running", box:info().state)
    assert.equal("still here", box:read("/workspace/file"))
  end)

  it("is found stopped by a server that was not there either", function()
    local server = support.server()
    local box = server:sandbox()
    local pid = box:info().pid
    server:kill()
    assert(uv.kill(pid, "sigkill"))
    local info = box:info()
    assert.equal("stopped", info.state)
    assert.matches("while no server ran", info.reason)
    assert.equal("back\n", box:exec("echo back").stdout)
  end)
end)

describe("create, exec and destroy a thousand times", function()
  it("leave no mount, namespace, cgroup, descriptor or memory behind", function()
    local server = support.server()
    server:sandbox():destroy()
    local client = server.client

    local function cycle(count)
      async.run(function()
        local n = 0
        local tasks = {}
        for i = 1, 4 do
          tasks[i] = function()
            while n < count do
              n = n + 1
              local name = "cycle-" .. n
              assert(client:call("create", { name = name, image = "minimal" }))
              assert(client:call("exec", { name = name, argv = { "true" } }).exit_code == 0)
              assert(client:call("destroy", { name = name }))
            end
          end
        end
        async.all(tasks)
      end)
    end

    local function measure()
      local pid = server:pid()
      local file = io.open(("/proc/%d/status"):format(pid))
      local rss = tonumber(file:read("*a"):match("VmRSS:%s+(%d+)"))
      file:close()
      local mounts = 0
      for _ in io.lines(("/proc/%d/mountinfo"):format(pid)) do
        mounts = mounts + 1
      end
      return { fds = support.fd_count(pid), mounts = mounts, rss = rss }
    end

    cycle(100)
    local before = measure()
    cycle(900)
    local after
    support.eventually(function() -- what is removed in the background
      after = measure()
      return after.fds <= before.fds + 3 and after.mounts <= before.mounts
    end)
    assert.is_true(after.fds <= before.fds + 3, ("descriptors: %d, then %d"):format(before.fds, after.fds))
    assert.is_true(after.mounts <= before.mounts, ("mounts: %d, then %d"):format(before.mounts, after.mounts))
    assert.is_true(after.rss < before.rss + 8192, ("memory: %d KiB, then %d"):format(before.rss, after.rss))
    assert.same({}, assert(client:call("ls", {})))
  end)
end)

describe("create over a lost connection", function()
  it("makes one sandbox and says so, since its key tells that it is the same request", function()
    local server = support.server()
    server:sandbox():destroy()
    assert(server.client:call("create", { name = "once", image = "minimal", key = "k1" }))
    assert.equal("running", assert(server.client:call("create", { name = "once", image = "minimal", key = "k1" })).state)
    local _, _, code = server.client:call("create", { name = "once", image = "minimal", key = "k2" })
    assert.equal("EEXIST", code)
    async.run(function()
      for i = 1, 8 do
        local pid = server:pid()
        local task = async.spawn(function()
          return server.client:call("create", { name = "made-" .. i, image = "minimal" })
        end)
        async.sleep(0.0007 * i)
        uv.kill(pid, "sigkill")
        local _, info, message = task:join()
        assert(info, message)
        local box = require("tidepool.client.box").new(server.client, "made-" .. i)
        assert.equal(0, assert(box:exec({ "true" })).exit_code)
      end
    end)
  end)
end)

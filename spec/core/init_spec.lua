local uv = require("luv")
local core = require("tidepool.core")
package.path = "spec/core/?.lua;" .. package.path
local harness = require("init_harness")

describe("the codec of init's messages", function()
  it("refuses kinds, fields and sizes that are none", function()
    local function raises(...)
      local ok, message = pcall(core.init.encode, ...)
      assert.is_false(ok)
      return message
    end
    assert.match("no such kind", raises("dance", 1, {}))
    assert.match("no such kind", raises("welcome", 1, {}))
    assert.match("argv: empty", raises("start", 1, {}))
    assert.match("argv: list of strings", raises("start", 1, { argv = { "a", {} } }))
    assert.match("argv: list of strings", raises("start", 1, { argv = { 5 } }))
    assert.match("zero byte", raises("start", 1, { argv = { "a\0b" } }))
    assert.match("cwd: has a zero byte", raises("start", 1, { argv = { "a" }, cwd = "/\0" }))
    assert.match("env: table expected", raises("start", 1, { argv = { "a" }, env = "A=b" }))
    assert.match("ring: number expected", raises("start", 1, { argv = { "a" }, ring = "big" }))
    assert.match("ring: number out of range", raises("start", 1, { argv = { "a" }, ring = -1 }))
    assert.match("out of range", raises("signal", 1, { id = 1, signal = 65 }))
    local bytes, _, code = core.init.encode("start", 1, { argv = { ("x"):rep(5000000) } })
    assert.same({ nil, "E2BIG" }, { bytes, code })
  end)

  it("decodes nothing that is cut or longer", function()
    local whole = "\67\0\0\0\7\0\0\0\1\0\0\0\42\0\0\0"
    assert.same({ type = "started", serial = 7, id = 1, pid = 42 }, core.init.decode(whole))
    for size = 0, #whole - 1 do
      assert.equal("EBADMSG", (select(3, core.init.decode(whole:sub(1, size)))))
    end
    assert.equal("EBADMSG", (select(3, core.init.decode(whole .. "x"))))
    assert.equal("EBADMSG", (select(3, core.init.decode("\1\0\0\0\7\0\0\0"))))
    assert.equal("EBADMSG", (select(3, core.agent.decode("\1"))))
  end)

  it("leaks nothing while the collector runs at every step", function()
    collectgarbage("setpause", 0)
    collectgarbage("setstepmul", 100000)
    local argv, env = {}, {}
    for i = 1, 300 do
      argv[i] = "argument " .. i
      env["NAME" .. i] = "value " .. i
    end
    local first = core.init.encode("start", 1, { argv = argv, env = env, user = "agent" })
    for _ = 1, 100 do
      assert.equal(first, core.init.encode("start", 1, { argv = argv, env = env, user = "agent" }))
      pcall(core.init.encode, "start", 1, { argv = { "a", false } })
      core.init.decode("\66\0\0\0\7\0\0\0\3\0\0\0\2\0\0\0\2\0\0\0no")
    end
    collectgarbage("setpause", 200)
    collectgarbage("setstepmul", 200)
  end)

  it("finds no init where there is none", function()
    assert.equal("ENOENT", (select(3, core.init.connect(uv.os_getpid()))))
    assert.equal("ENOENT", (select(3, core.init.connect(999999999))))
  end)
end)

describe("init", function()
  local init

  if not harness.available() then
    pending("needs root and tidepool-init")
    return
  end

  before_each(function()
    init = harness.start()
  end)

  after_each(function()
    init:stop()
  end)

  describe("starting", function()
    it("runs a program as the user, at home, with the usual environment", function()
      local result = init:sh("id -un; id -Gn; pwd; echo $HOME $USER $LOGNAME $SHELL $PATH")
      assert.equal(
        "agent\nagent adm staff\n/workspace\n/workspace agent agent /bin/bash "
          .. "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
        result.stdout
      )
      assert.same({ "code", 0 }, { result.exit.kind, result.exit.code })
    end)

    it("keeps the environment, the directory and the id that were asked for", function()
      local result = init:sh("id -u; id -g; pwd; echo $HOME-$A", {
        user = "4711",
        cwd = "/usr",
        env = { "HOME=/nowhere", A = "b c" },
      })
      assert.equal("4711\n4711\n/usr\n/nowhere-b c\n", result.stdout)
    end)

    it("tells apart what can't be started from what fails", function()
      local function failure(fields)
        local answer, stream = init:start(fields)
        stream:close()
        return answer.type == "failed" and answer.step .. " " .. answer.code or answer.type
      end
      assert.equal("exec ENOENT", failure({ argv = { "no-such-program" } }))
      assert.equal("exec ENOENT", failure({ argv = { "/no/such/program" } }))
      assert.equal("exec EACCES", failure({ argv = { "/etc/passwd" } }))
      assert.equal("exec EACCES", failure({ argv = { "/etc" } }))
      assert.equal("user ENOENT", failure({ argv = { "true" }, user = "nobody-at-all" }))
      assert.equal("cwd ENOENT", failure({ argv = { "true" }, cwd = "/no/such/directory" }))
      init:sh("chmod 700 /root", { user = "root" })
      assert.equal("cwd EACCES", failure({ argv = { "true" }, cwd = "/root" }))
      assert.equal("cwd ENOTDIR", failure({ argv = { "true" }, cwd = "/etc/passwd" }))
      assert.equal(127, init:sh("no-such-program").exit.code)
    end)

    it("leaves no trace of a start that failed", function()
      local before = init:fd_count()
      for _ = 1, 20 do
        local _, stream = init:start({ argv = { "no-such-program" } })
        assert.same({}, { select(4, stream:read()) })
        stream:close()
      end
      assert.same({}, init:request("list").processes_listed)
      assert.equal(before, init:fd_count())
    end)

    it("lets a user open the streams that it has", function()
      assert.equal("again\n", init:sh("echo again > /dev/stdout").stdout)
    end)

    it("refuses to attach to what is not a socket", function()
      local file = assert(core.fd.open("/dev/null", "r"))
      local answer = init:request("start", { argv = { "true" }, attach = true }, { file })
      assert.same({ "failed", "request", "ENOTSOCK" }, { answer.type, answer.step, answer.code })
      file:close()
    end)

    it("gives a script without an interpreter line to the shell", function()
      init:sh("printf 'echo script $0 $1' > /tmp/script; chmod +x /tmp/script")
      local _, stream = init:start({ argv = { "/tmp/script", "one" } })
      assert.equal("script /tmp/script one\n", harness.collect(stream).stdout)
    end)

    it("survives hostile user databases", function()
      init:sh("rm /etc/passwd; mkfifo /etc/passwd", { user = "0" })
      local answer, stream = init:start({ argv = { "true" } })
      stream:close()
      assert.same({ "failed", "user", "EINVAL" }, { answer.type, answer.step, answer.code })
      assert.equal("ok", init:request("list").type)
    end)

    it("lets root and ids in to repair a hostile user database", function()
      assert.equal("0\n", init:sh("id -u", { user = "root" }).stdout)
      assert.equal("0\n", init:sh("id -u", { user = "0" }).stdout)
      assert.equal("1000\n", init:sh("id -u", { user = "1000" }).stdout)
    end)

    it("resets signals, caps and the oom score in children", function()
      local status = init:sh("grep -E '^(Sig(Blk|Ign)|Cap)' /proc/self/status; cat /proc/self/oom_score_adj").stdout
      assert.match("SigBlk:%s0+\n", status)
      assert.match("SigIgn:%s0+\n", status)
      assert.match("CapPrm:%s0+\n", status)
      assert.match("CapBnd:%s00000000a00425fb\n", status)
      assert.match("\n50\n$", status)
      status = init:sh("grep -E '^Cap' /proc/self/status", { user = "root" }).stdout
      assert.match("CapEff:%s00000000a00425fb\n", status)
      assert.match("CapInh:%s0+\n", status)
    end)

    it("can't be traced, read or killed by its root", function()
      local result = init:sh("cat /proc/1/environ; cat /proc/1/mem; readlink /proc/1/fd/3; kill -9 1; kill -STOP 1", { user = "root" })
      assert.equal("", result.stdout)
      assert.match("Permission denied", result.stderr)
      assert.equal("ok", init:request("list").type)
    end)

    it("installs the filter in every child and not in itself", function()
      if not core.seccomp then
        return pending("needs core.seccomp")
      end
      init:stop()
      local path = os.tmpname()
      local file = assert(io.open(path, "wb"))
      file:write(core.seccomp.filter())
      file:close()
      init = harness.start({ filter = path })
      os.remove(path)
      assert.match("Seccomp:%s2\n", init:sh("grep ^Seccomp: /proc/self/status").stdout)
      assert.match("Seccomp:%s2\n", init:sh("grep ^Seccomp: /proc/self/status", { user = "root" }).stdout)
      assert.match("Seccomp:%s0\n", (io.open("/proc/" .. init:pid() .. "/status"):read("*a")))
    end)

    it("starts a request that is repeated only once", function()
      local first = init:start_detached({ argv = { "sleep", "60" }, key = "k1", name = "n" })
      local again = init:start_detached({ argv = { "sleep", "60" }, key = "k1", name = "n" })
      assert.same({ "started", first.id, first.pid }, { again.type, again.id, again.pid })
      assert.equal(1, #init:request("list").processes_listed)
    end)

    it("starts many at once", function()
      local serials = {}
      for i = 1, 100 do
        serials[i] = init:send("start", { argv = { "true" }, user = "agent", key = "n" .. i }, {})
      end
      local started, exits = 0, 0
      while started < 100 or exits < 100 do
        local message = assert(init:receive())
        started = started + (message.type == "started" and 1 or 0)
        exits = exits + (message.type == "exit" and 1 or 0)
      end
      assert.equal(100, started)
    end)

    it("enters the cgroup that came with the request", function()
      local base = uv.fs_stat("/sys/fs/cgroup/unified") and "/sys/fs/cgroup/unified" or "/sys/fs/cgroup"
      local path = ("%s/tidepool-spec-%d"):format(base, uv.os_getpid())
      if not uv.fs_mkdir(path, tonumber("755", 8)) then
        return pending("needs cgroup v2")
      end
      local directory = assert(core.fd.open(path, "rd"))
      local ours, theirs = assert(core.fd.pair())
      local answer = init:request("start", {
        argv = { "cat", "/proc/self/cgroup" },
        user = "agent",
        attach = true,
        lossless = true,
        follow = true,
      }, { directory, theirs })
      theirs:close()
      assert.equal("started", answer.type)
      local result = harness.collect(core.stream.open(ours))
      directory:close()
      init:exit_of(answer.id)
      assert.is_true(harness.eventually(function()
        return uv.fs_rmdir(path)
      end))
      assert.match("0::.*tidepool%-spec", result.stdout)
    end)
  end)

  it("gives up on a start that does not come to exec within ten seconds", function()
    local base = uv.fs_stat("/sys/fs/cgroup/unified") and "/sys/fs/cgroup/unified" or "/sys/fs/cgroup"
    local path = ("%s/tidepool-spec-frozen-%d"):format(base, uv.os_getpid())
    if not uv.fs_mkdir(path, tonumber("755", 8)) or not uv.fs_stat(path .. "/cgroup.freeze") then
      return pending("needs cgroup v2")
    end
    local freeze = assert(io.open(path .. "/cgroup.freeze", "w"))
    freeze:write("1")
    freeze:close()
    local directory = assert(core.fd.open(path, "rd"))
    local before, began = init:fd_count(), uv.hrtime()
    local serial = init:send("start", { argv = { "true" }, user = "agent" }, { directory })
    assert.equal(0, init:sh("true").exit.code)
    local answer
    repeat
      answer = assert(init:receive())
    until answer.serial == serial
    directory:close()
    assert.same({ "failed", "ETIMEDOUT" }, { answer.type, answer.code })
    local took = (uv.hrtime() - began) / 1e9
    assert.is_true(took > 8 and took < 60, tostring(took))
    assert.equal(before, init:fd_count())
    assert.is_true(harness.eventually(function()
      return uv.fs_rmdir(path)
    end))
  end)

  describe("ending", function()
    it("tells exit code, signal, times and peak memory", function()
      local result = init:sh("exit 7")
      local exit = init:exit_of(result.id)
      assert.same({ "code", 7 }, { exit.kind, exit.code })
      assert.is_true(exit.wall > 0 and exit.cpu_seconds > 0 and exit.memory > 100000)
      result = init:sh("kill -SEGV $$")
      assert.same({ "signal", 11 }, { result.exit.kind, result.exit.code })
      exit = init:exit_of(result.id)
      assert.same({ "signal", 11 }, { exit.kind, exit.code })
    end)

    it("delivers signals to the main process", function()
      local started = init:start_detached({ argv = { "sleep", "60" } })
      assert.equal("ok", init:request("signal", { id = started.id, signal = 15 }).type)
      assert.same({ "signal", 15 }, { init:exit_of(started.id).kind, 15 })
      assert.equal("ESRCH", init:request("signal", { id = started.id, signal = 15 }).code)
      assert.equal("ESRCH", init:request("signal", { id = 999, signal = 15 }).code)
      assert.equal("EINVAL", init:request("signal", { id = started.id, signal = 0 }).code)
    end)

    it("does not wait for a child that keeps the pipe open", function()
      local result = init:sh("echo early; (until [ -e /tmp/go ]; do sleep 0.05; done; echo late) & exit 4")
      assert.equal("early\n", result.stdout)
      assert.equal(4, result.exit.code)
      init:sh("touch /tmp/go")
      assert.is_true(harness.eventually(function()
        local _, stream = init:attach(result.id, {})
        local text = harness.collect(stream).stdout
        stream:close()
        return text == "early\nlate\n"
      end))
    end)

    it("reaps orphans", function()
      init:sh("for i in 1 2 3 4 5; do (sleep 0.1 & ) ; done")
      assert.is_true(harness.eventually(function()
        return init:sh("ps -eo stat=,args= | grep -e ^Z -e '[s]leep'").stdout == ""
      end))
    end)

    it("lists what runs and what has ended, until it is forgotten", function()
      local running = init:start_detached({ argv = { "sleep", "60" }, name = "web", cwd = "/tmp", key = "x" })
      local ended = init:sh("echo out; exit 2")
      init:exit_of(ended.id)
      local list = init:request("list").processes_listed
      assert.equal(2, #list)
      local first, second = list[1], list[2]
      assert.same({ running.id, running.pid, "web", "agent", "/tmp", "x", true }, {
        first.id, first.pid, first.name, first.user, first.cwd, first.key, first.running,
      })
      assert.same({ "sleep", "60" }, first.argv)
      assert.is_true(math.abs(first.started - os.time()) < 300)
      assert.same({ ended.id, "code", 2, 0, 4 }, {
        second.id, second.kind, second.code, second.start_offset, second.end_offset,
      })
      assert.equal("EBUSY", init:request("forget", { id = running.id }).code)
      assert.equal("ok", init:request("forget", { id = ended.id }).type)
      assert.equal("ESRCH", init:request("forget", { id = ended.id }).code)
      assert.equal(1, #init:request("list").processes_listed)
    end)

    it("keeps the last 64 that ended, and named ones longer", function()
      local named = init:start_detached({ argv = { "true" }, name = "keep" })
      for _ = 1, 80 do
        init:exit_of(init:start_detached({ argv = { "true" } }).id)
      end
      local list = init:request("list").processes_listed
      assert.is_true(#list >= 64 and #list <= 66)
      assert.equal(named.id, list[1].id)
    end)

    it("forgets in the order of the ends, not of the starts", function()
      local early = init:start_detached({ argv = { "sleep", "60" } })
      for _ = 1, 70 do
        init:exit_of(init:start_detached({ argv = { "true" } }).id)
      end
      init:request("signal", { id = early.id, signal = 9 })
      init:exit_of(early.id)
      local list = init:request("list").processes_listed
      assert.same({ early.id, "signal" }, { list[#list].id, list[#list].kind })
    end)

    it("cuts no reader off when its process is forgotten", function()
      local answer, stream = init:start({ argv = { "head", "-c", "2000000", "/dev/zero" }, ring = 2000000 })
      init:exit_of(answer.id)
      local before = init:fd_count()
      assert.equal("ok", init:request("forget", { id = answer.id }).type)
      assert.equal("ESRCH", init:request("forget", { id = answer.id }).code)
      local result = harness.collect(stream)
      assert.same({ 2000000, 0 }, { #result.stdout, result.exit.code })
      stream:close()
      assert.is_true(init:fd_count() < before)
    end)

    it("ends when told to, after a grace for those who ignore TERM", function()
      init:sh("trap '' TERM; sleep 60 & echo", {})
      local stubborn
      for _, line in ipairs({ "trap 'exit 3' TERM; echo up; sleep 60 & wait", "trap '' TERM; echo up; while :; do sleep 1; done" }) do
        local answer, stream = init:start({ argv = { "sh", "-c", line }, lossless = false })
        assert(harness.expect(stream, "up"))
        stream:close()
        stubborn = answer
      end
      local before = uv.hrtime()
      assert.equal("ok", init:request("shutdown", { grace = 500 }).type)
      local codes = {}
      while true do
        local message = init:receive()
        if not message then
          break
        end
        codes[message.id] = message.code
      end
      local took = (uv.hrtime() - before) / 1e9
      assert.is_true(took >= 0.4 and took < 60, tostring(took))
      assert.is_nil(codes[stubborn.id])
      assert.equal(3, codes[stubborn.id - 1])
      assert.is_true(harness.eventually(function()
        uv.run("nowait")
        return init.exited.code == 0
      end))
    end)

    it("ends at once when everybody leaves at TERM", function()
      init:start_detached({ argv = { "sleep", "60" } })
      local before = uv.hrtime()
      init:request("shutdown", { grace = 600000 })
      while init:receive() do
      end
      assert.is_true(uv.hrtime() - before < 100e9)
    end)
  end)

  describe("connections", function()
    it("asks for hello and knows its version", function()
      local old = init.channel
      init:connect()
      assert.equal("EPROTO", init:request("list").code)
      assert.equal("EPROTONOSUPPORT", init:request("hello", { version = 99 }).code)
      local welcome = init:request("hello")
      assert.equal("0123456789abcdef", welcome.nonce)
      old:close()
    end)

    it("outlives a server that vanishes and tells the next one what happened", function()
      local started, stream = init:start({ argv = { "sh", "-c", "sleep 0.2; echo done; exit 5" }, lossless = false })
      init.channel:close()
      init:connect()
      init:request("hello")
      local list
      assert.is_true(harness.eventually(function()
        list = init:request("list").processes_listed
        return not list[1].running
      end))
      assert.same({ started.id, "code", 5 }, { list[1].id, list[1].kind, list[1].code })
      assert.equal("done\n", harness.collect(stream).stdout)
    end)

    it("accepts nobody from inside", function()
      local result = init:sh([[perl -MSocket -e '
        socket(S, PF_UNIX, SOCK_STREAM, 0);
        print connect(S, sockaddr_un("/outside.sock")) ? "connected" : "refused"']])
      assert.is_not.equal("connected", result.stdout)
    end)

    it("takes eight control connections and closes the ninth", function()
      local channels = {}
      for _ = 1, 8 do
        channels[#channels + 1] = assert(core.channel.connect(init.path))
      end
      harness.poll(channels[8]:number(), false)
      assert.equal("EPIPE", (select(3, channels[8]:receive())))
      for _, channel in ipairs(channels) do
        channel:close()
      end
      assert.equal("ok", init:request("list").type)
    end)

    it("closes a connection that sends garbage, and no other", function()
      math.randomseed(42)
      for round = 1, 200 do
        local bytes = {}
        for i = 1, math.random(1, 60) do -- with nothing it may be a request that closes all
          bytes[i] = string.char(math.random(0, 255))
        end
        local bad = assert(core.channel.connect(init.path))
        if round % 2 == 0 then
          bad:send(core.init.encode("hello", 1))
        end
        bad:send(string.char(math.random(1, 10), 0, 0, 0, 1, 0, 0, 0) .. table.concat(bytes))
        bad:close()
      end
      assert.equal("ok", init:request("list").type)
    end)

    it("closes descriptors that nobody asked for", function()
      local before = init:fd_count()
      local one, two = assert(core.fd.pair())
      for _ = 1, 20 do
        assert.equal("ok", init:request("list", {}, { one, two }).type)
        assert.equal("EBADMSG", init:request("attach", { id = 1 }, { one, two }).code)
        assert.equal("EBADMSG", init:request("start", { argv = { "true" } }, { one, two, one }).code)
        assert.equal("EBADMSG", init:request("agent", { user = "agent" }, { one, two, one }).code)
      end
      assert.equal(before, init:fd_count())
    end)

    it("lets go of the outside when told to be quiet, and of nothing else", function()
      local before = init:fd_count()
      local started, stream = init:start({ argv = { "sh", "-c", "echo one; read line; echo $line" }, stdin = true, lossless = false })
      assert.equal("one\n", harness.frame(stream).bytes)
      assert.equal("ok", init:request("quiesce").type)
      assert.equal("EPIPE", select(3, init:receive()))
      assert.equal("EPIPE", select(3, harness.frame(stream)))
      stream:close()

      init:connect()
      assert.equal("welcome", init:request("hello").type)
      local answer, again = init:attach(started.id, { offset = 4, input = true, follow = true })
      assert.equal("ok", answer.type)
      again:write("two\n")
      again:flush()
      assert.equal("two\n", harness.collect(again).stdout)
      again:close()
      assert.is_true(harness.eventually(function()
        return init:fd_count() == before
      end))
    end)

    it("connects to a port inside", function()
      assert.equal("EINVAL", init:request("connect", { port = 0 }).code)
      init:sh("ip link set lo up", { user = "root" })
      assert.equal("ECONNREFUSED", init:request("connect", { port = 65000 }).code)
    end)
  end)

  it("has the descriptors and the memory that it began with, after 500 processes", function()
    init:sh("echo warm")
    local before = init:fd_count()
    for i = 1, 500 do
      local _, stream = init:start({ argv = { "echo", tostring(i) } })
      assert.equal(i .. "\n", harness.collect(stream).stdout)
      stream:close()
    end
    assert.is_true(harness.eventually(function()
      return init:fd_count() == before
    end))
    local status = io.open("/proc/" .. init:pid() .. "/status"):read("*a")
    assert.is_true(tonumber(status:match("VmRSS:%s+(%d+)")) < 1000)
  end)
end)

-- What is left to a process that has confined itself, tried from inside it.
local uv = require("luv")
local proxy = require("tidepool.proxy")
local support = require("spec.support")

local PREAMBLE = [[
local uv = require("luv")
local ffi = require("ffi")
local core = require("tidepool.core")
local proxy = require("tidepool.proxy")
require("tidepool.async")
ffi.cdef("long syscall(long number, ...); int getpid(void);")
local null = ffi.cast("void *", 0)

-- 0, or the errno with which the call failed.
local function try(number, ...)
  local list = {}
  for i = 1, select("#", ...) do
    local value = select(i, ...)
    list[i] = type(value) == "number" and ffi.cast("long", value) or value
  end
  local result = ffi.C.syscall(number, unpack(list))
  return tonumber(result) < 0 and ffi.errno() or 0
end
]]

--- Runs the script as a process of its own: exit code, output, errors.
local function run(script)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(PREAMBLE, script)
  file:close()
  local result = support.run({ "luajit", path })
  os.remove(path)
  return result
end

local function passes(script)
  local result = run("assert(proxy.confine.enter({ uid = 54321, gid = 54322, memory = 256 * 2 ^ 20 }))\n" .. script)
  assert.equal(0, result.code, result.stderr)
  return result
end

describe("a confined process", function()
  if uv.getuid() ~= 0 then
    return pending("needs root")
  end

  it("has another user's id, no capability, no file", function()
    passes([[
      assert(uv.getuid() == 54321 and uv.getgid() == 54322)
      assert(not io.open("/etc/passwd") and not io.open("/proc/self/status") and not io.open("/new", "w"))
      assert(not uv.fs_scandir("/") and not uv.fs_stat("/etc"))
      local ok = pcall(require, "tidepool.facade")
      assert(not ok)
    ]])
  end)

  it("is no more than that to those outside", function()
    local path = os.tmpname()
    local file = assert(io.open(path, "w"))
    file:write(PREAMBLE, [[
      assert(proxy.confine.enter({ uid = 54321, gid = 54322 }))
      io.stdout:write("ready\n") io.stdout:flush()
      uv.new_timer():start(20000, 0, function() end)
      uv.run()
    ]])
    file:close()
    local pipe, ready = uv.new_pipe(false), false
    local child = assert(uv.spawn("luajit", { args = { path }, stdio = { nil, pipe, 2 } }, function() end))
    local pid = child:get_pid()
    pipe:read_start(function()
      ready = true
      uv.stop()
    end)
    uv.run()
    assert.is_true(ready)
    local status = support.read(("/proc/%d/status"):format(pid))
    for _, set in ipairs({ "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb" }) do
      assert.equal("0000000000000000", status:match(set .. ":%s*(%x+)"), set)
    end
    assert.equal("1", status:match("NoNewPrivs:%s*(%d)"))
    assert.equal("2", status:match("Seccomp:%s*(%d)"))
    assert.is_truthy(status:find("Groups:[ \t]*\n"))
    local mounts = support.read(("/proc/%d/mountinfo"):format(pid))
    assert.equal(1, select(2, mounts:gsub("\n", "")))
    assert.is_truthy(mounts:find(" / / ro,nosuid,nodev,noexec", 1, true), mounts)
    -- Undumpable: what is its own in /proc belongs to root.
    assert.equal(0, uv.fs_stat(("/proc/%d/mem"):format(pid)).uid)
    child:kill("sigkill")
    child:close()
    pipe:close()
    uv.run("nowait")
    os.remove(path)
  end)

  it("is refused every system call that leads elsewhere", function()
    if jit.arch ~= "x64" then
      return pending("the numbers are x86-64's")
    end
    passes([[
      local one = ffi.new("int[8]")
      local path = ffi.cast("const char *", "/")
      local calls = {
        open = { 2, path, 0 }, openat = { 257, -100, path, 0 }, openat2 = { 437, -100, path, one, 24 }, creat = { 85, path, 0 },
        stat = { 4, path, one }, readlink = { 89, path, one, 8 }, mkdir = { 83, path, 0 }, unlink = { 87, path }, chdir = { 80, path },
        chroot = { 161, path }, name_to_handle_at = { 303, -100, path, one, one, 0 }, open_by_handle_at = { 304, -1, one, 0 },
        execve = { 59, path, null, null }, execveat = { 322, -100, path, null, null, 0 }, fork = { 57 }, vfork_clone = { 56, 17, 0, 0, 0, 0 },
        clone3 = { 435, one, 88 }, unshare = { 272, 0x10000000 }, setns = { 308, 0, 0 }, mount = { 165, path, path, path, 0, null },
        umount2 = { 166, path, 0 }, pivot_root = { 155, path, path }, open_tree = { 428, -100, path, 0 }, fsopen = { 430, path, 0 },
        move_mount = { 429, 0, path, 0, path, 0 }, mount_setattr = { 442, 0, path, 0, one, 0 },
        ptrace = { 101, 16, 1, 0, 0 }, process_vm_readv = { 310, 1, one, 1, one, 1, 0 }, process_vm_writev = { 311, 1, one, 1, one, 1, 0 },
        kill_parent = { 62, 1, 0 }, kill_self = { 62, ffi.C.getpid(), 0 }, tgkill_other = { 234, 1, 1, 0 }, tkill = { 200, 1, 0 },
        rt_sigqueueinfo = { 129, 1, 9, one }, pidfd_open = { 434, 1, 0 }, pidfd_send_signal = { 424, 0, 0, null, 0 },
        pidfd_getfd = { 438, 0, 0, 0 }, process_madvise = { 440, 0, one, 1, 21, 0 }, bpf = { 321, 0, one, 128 },
        perf_event_open = { 298, one, 0, -1, -1, 0 }, userfaultfd = { 323, 1 }, io_uring_setup = { 425, 1, one }, io_uring_enter = { 426, 0, 0, 0, 0, null, 0 },
        io_setup = { 206, 1, one }, keyctl = { 250, 0, 0, 0, 0, 0 }, add_key = { 248, path, path, one, 1, 0 }, memfd_create = { 319, path, 0 },
        setuid = { 105, 0 }, setresuid = { 117, 0, 0, 0 }, setgid = { 106, 0 }, setgroups = { 116, 0, null }, capset = { 126, one, one },
        prctl = { 157, 4, 1, 0, 0, 0 }, seccomp = { 317, 1, 0, one }, personality = { 135, 0 }, setrlimit = { 160, 7, one },
        prlimit_set = { 302, 0, 7, one, null }, prlimit_other = { 302, 1, 7, null, one }, reboot = { 169, 0, 0, 0, null }, sethostname = { 170, path, 1 },
        socket_unix = { 41, 1, 1, 0 }, socket_netlink = { 41, 16, 3, 0 }, socket_packet = { 41, 17, 3, 0 }, socket_vsock = { 41, 40, 1, 0 },
        socket_raw = { 41, 2, 3, 1 }, socket_raw6 = { 41, 10, 3, 58 }, socket_ping = { 41, 2, 2, 1 }, socket_sctp = { 41, 2, 1, 132 }, socket_mptcp = { 41, 2, 1, 262 },
        socketpair = { 53, 1, 1, 0, one }, bind = { 49, 0, one, 16 }, listen = { 50, 0, 1 },
        setsockopt_filter = { 54, 0, 1, 26, one, 16 }, setsockopt_bpf = { 54, 0, 1, 50, one, 4 }, setsockopt_transparent = { 54, 0, 0, 19, one, 4 },
        setsockopt_ulp = { 54, 0, 6, 31, one, 4 }, setsockopt_mark = { 54, 0, 1, 36, one, 4 }, setsockopt_device = { 54, 0, 1, 25, one, 4 },
        fcntl_setown = { 72, 0, 8, 1 }, fcntl_lease = { 72, 0, 1024, 0 }, ioctl_tiocsti = { 16, 0, 0x5412, one }, inotify = { 294, 0 },
        lseek = { 8, 2, 0, 0 }, pread64 = { 17, 0, one, 1, 0 }, pwrite64 = { 18, 2, one, 1, 0 }, sendfile = { 40, 1, 0, null, 1 }, splice = { 275, 0, null, 1, null, 1, 0 }, shmget = { 29, 0, 4096, 512 }, msgget = { 68, 0, 512 },
        timer_create = { 222, 0, null, one }, kcmp = { 312, 1, 1, 0, 0, 0 }, landlock = { 444, null, 0, 1 }, sched_setaffinity = { 203, 0, 4, one },
      }
      local wrong = {}
      for name, call in pairs(calls) do
        local code = try(unpack(call))
        if code ~= 1 then wrong[#wrong + 1] = name .. "=" .. code end
      end
      assert(#wrong == 0, table.concat(wrong, " "))
    ]])
  end)

  it("still waits, connects, accepts, compiles, collects, fails and draws random numbers", function()
    passes([[
      local fired = 0
      local timer = uv.new_timer()
      timer:start(5, 5, function() fired = fired + 1; if fired == 5 then timer:close() end end)
      uv.run()
      assert(fired == 5)
      local async = require("tidepool.async")
      async.run(function() async.sleep(0.01) end)

      local ok, trace = xpcall(function() error({}) end, debug.traceback)
      assert(not ok)
      assert(not pcall(error, "x"))
      assert(#proxy.digest.random(32) == 32)

      local before = collectgarbage("count")
      for round = 1, 3 do
        local list = {}
        for i = 1, 300000 do list[i] = { i, tostring(i) } end
        collectgarbage()
      end
      local traces = 0
      require("jit").attach(function(what) if what == "stop" then traces = traces + 1 end end, "trace")
      for _, source in ipairs({ "local s = 0 for i = 1, 1e6 do s = s + i % 7 end return s", "local s = '' for i = 1, 1e4 do s = tostring(i) end" }) do
        loadstring(source)()
      end
      assert(traces > 0, "nothing was compiled")
      assert(not pcall(string.rep, "x", 2 ^ 30))
      assert(uv.now() > 0 and os.time() > 0 and os.clock() > 0 and os.date("%Y"))
      io.stderr:write("")
    ]])
  end)

  it("reaches out over TCP and UDP, serves what it was given, resolves, and passes descriptors", function()
    local result = run([[
      local listener = uv.new_tcp()
      listener:bind("127.0.0.1", 0)
      local got = {}
      listener:listen(8, function()
        local peer = uv.new_tcp()
        listener:accept(peer)
        peer:read_start(function(_, bytes)
          if bytes then peer:write(bytes:upper()) else peer:close() end
        end)
      end)
      local dns = uv.new_udp()
      dns:bind("127.0.0.1", 0)
      dns:recv_start(function(_, query, from)
        if query then
          local question = query:sub(13, (query:find("\0", 13, true)) + 4)
          dns:send(query:sub(1, 2) .. "\129\131\0\1\0\0\0\0\0\0" .. question, from.ip, from.port, function() end)
        end
      end)
      local one, other = core.fd.pair()
      local mine, theirs = core.channel.wrap(one), core.channel.wrap(other)
      assert(proxy.confine.enter({ uid = 54321, gid = 54322, memory = 256 * 2 ^ 20, files = 5000 }))

      local client = uv.new_tcp()
      client:connect("127.0.0.1", listener:getsockname().port, function(err)
        assert(not err, err)
        client:read_start(function(_, bytes) got[1] = bytes; client:close(); uv.stop() end)
        client:write("hello")
      end)
      uv.run()
      assert(got[1] == "HELLO", tostring(got[1]))

      local resolver = assert(proxy.resolver.new({ servers = { "127.0.0.1:" .. dns:getsockname().port } }))
      local id = assert(resolver:query("nothing.test"))
      local answers = {}
      local timer = uv.new_timer()
      timer:start(10, 10, function()
        answers = resolver:run()
        if answers[1] then uv.stop() end
      end)
      uv.run()
      assert(answers[1][1] == id and answers[1][4] == "ENOENT", tostring(answers[1][4]))

      assert(mine:send("take", { listener:fileno() }))
      local bytes, fds = theirs:receive()
      assert(bytes == "take" and #fds == 1)
      local limits = ffi.new("uint64_t[2]")
      assert(try(302, 0, 7, null, limits) == 0 and limits[0] == 5000)
    ]])
    assert.equal(0, result.code, result.stderr)
  end)

  it("makes certificates and speaks TLS and HTTP through the pump", function()
    local result = run([=[
      local listener = uv.new_tcp()
      listener:bind("127.0.0.1", 0)
      listener:listen(8, function() end)
      assert(proxy.confine.enter({ uid = 54321, gid = 54322, memory = 256 * 2 ^ 20 }))
      local certificate, key = proxy.ca.generate("Tidepool test")
      local identity = assert(assert(proxy.ca.open(certificate, key)):identity("box.test"))
      local flow = assert(proxy.flow.new())
      local results = {}
      local function wait(token, now)
        local deadline = uv.hrtime() + 60e9
        while token ~= 0 and not results[token] and uv.hrtime() < deadline do
          for _, one in ipairs(flow:run()) do results[one[1]] = one end
        end
        return token == 0 and now or results[token][2], token ~= 0 and results[token][3] or nil
      end

      local client, connecting = flow:connect("127.0.0.1", listener:getsockname().port, 5)
      assert(wait(connecting))
      local server = flow:adopt(assert(proxy.socket.accept(listener:fileno())))
      local accepting = server:accept_tls(identity, 5)
      assert(wait(client:connect_tls(assert(proxy.tls.trust(certificate)), "box.test", 5)))
      assert(wait(accepting))
      assert(wait(client:write("GET /x HTTP/1.1\r\nHost: box.test\r\n\r\n", 5)))
      local head, message = wait(server:read_head("request", 5))
      assert(head and head.target == "/x", message)
      client:close()
      server:reset()
    ]=])
    assert.equal(0, result.code, result.stderr)
  end)

  it("can't be had from a process that isn't root, becomes root, or has threads", function()
    local result = run([[
      local function refused(code, options)
        local ok, message, got = proxy.confine.enter(options)
        assert(not ok and got == code, tostring(message))
      end
      assert(not pcall(proxy.confine.enter, { uid = 0, gid = 1 }))
      assert(not pcall(proxy.confine.enter, { uid = 1 }))
      assert(not pcall(proxy.confine.enter, { uid = 1, gid = 1, memory = 5 }))
      uv.new_work(function() end, function() end):queue()
      uv.run()
      refused("EBUSY", { uid = 54321, gid = 54322 })
    ]])
    assert.equal(0, result.code, result.stderr)
    result = run([[
      uv.setgid(54322) uv.setuid(54321) assert(uv.getuid() == 54321)
      local ok, message, code = proxy.confine.enter({ uid = 54321, gid = 54322 })
      assert(not ok and code == "EPERM", message)
    ]])
    assert.equal(0, result.code, result.stderr)
    assert.is_function(proxy.confine.enter)
  end)
end)

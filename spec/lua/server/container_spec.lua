-- Containers: what a sandbox is from inside, and that nothing of it stays outside.
local uv = require("luv")
local ffi = require("ffi")
local async = require("tidepool.async")
local core = require("tidepool.core")
local steering = require("tidepool.server.steering")
local container = require("tidepool.server.container")
local cgroup = require("tidepool.server.cgroup")
local containers = require("spec.support.container")
local support = require("spec.support")

ffi.cdef("int ioctl(int, unsigned long, ...);")

local function task(fn)
  return function()
    async.run(fn)
  end
end

describe("a container", function()
  local box, root

  lazy_setup(task(function()
    root = assert(containers.root())
    box = assert(containers.start({ root = root, machine_id = ("c"):rep(32) }))
  end))

  lazy_teardown(task(function()
    box:stop()
  end))

  local function out(line, user)
    local result = assert(box:run(line, { user = user }))
    return result.stdout, result
  end

  it("has namespaces of its own", task(function()
    for name in ("user pid mnt net ipc uts cgroup time"):gmatch("%S+") do
      local ours = uv.fs_readlink("/proc/self/ns/" .. name)
      local theirs = uv.fs_readlink(("/proc/%d/ns/%s"):format(box.pid, name))
      assert.truthy(theirs)
      assert.are_not.equal(ours, theirs, name)
    end
  end))

  it("is root inside and nobody outside", task(function()
    assert.equal("0\n", (out("id -u")))
    local status = support.read("/proc/" .. box.pid .. "/status")
    assert.equal(tostring(box.spec.range.base), status:match("Uid:%s+(%d+)"))
    assert.equal(("         0 %10d      65536\n"):format(box.spec.range.base), (out("cat /proc/self/uid_map")))
  end))

  it("writes files with its own ids, which are 0 to 65535 on the disk", task(function()
    out("touch /workspace/by-root; chmod 600 /workspace/by-root")
    out("touch /workspace/by-agent", "agent")
    assert.equal(0, uv.fs_stat(root .. "/workspace/by-root").uid)
    assert.equal(1000, uv.fs_stat(root .. "/workspace/by-agent").uid)
  end))

  it("sees its own root and nothing of the host's", task(function()
    assert.equal(out("ls /"), out("ls /.."))
    assert.equal("127.0.0.1\tlocalhost\n", (out("head -n 1 /etc/hosts")))
    assert.equal("box\n", (out("cat /etc/hostname; ")))
    assert.equal("box\n", (out("hostname")))
    assert.equal("nameserver 10.200.0.1\n", (out("cat /etc/resolv.conf")))
    assert.equal(("c"):rep(32) .. "\n", (out("cat /etc/machine-id")))
    local roots = 0
    for line in out("cat /proc/self/mountinfo"):gmatch("[^\n]+") do
      roots = roots + (line:match("^%d+ %d+ %S+ %S+ / ") and 1 or 0)
    end
    assert.equal(1, roots)
  end))

  it("sees its own processes only, init first", task(function()
    local pids = {}
    for pid in out("ls /proc"):gmatch("%f[%w](%d+)\n") do
      pids[#pids + 1] = tonumber(pid)
    end
    table.sort(pids)
    assert.equal(1, pids[1])
    assert.is_true(#pids <= 4)
  end))

  it("has a network of lo alone, and lo is up", task(function()
    local links = out("ip -o link")
    assert.truthy(links:find("lo:.*[<,]UP[,>]"))
    assert.equal(1, select(2, links:gsub("\n", "\n")))
  end))

  it("has the usual devices and no other", task(function()
    assert.equal("fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n", (out("ls /dev")))
    local _, result = out("echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c && ! echo x > /dev/full", "agent")
    assert.equal("4\n4\n", result.stdout)
    assert.equal(0, result.code)
    _, result = out("mknod /tmp/disk b 254 0")
    assert.are_not.equal(0, result.code)
  end))

  it("can't read what /proc and /sys tell of the host", task(function()
    for _, path in ipairs({ "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug" }) do
      local bytes, result = out("head -c 16 " .. path)
      assert.is_true(bytes == "" or result.code ~= 0, path)
    end
    assert.equal("", (out("ls /sys/firmware")))
  end))

  it("sees nothing of the pools, where they are and what others hold in them", task(function()
    assert.equal("", (out("ls /sys/fs/btrfs /sys/devices/virtual/block | grep -v '^/sys.*:$' | grep -v '^$'")))
    assert.equal("", (out("cat /sys/block/loop*/loop/backing_file /sys/fs/btrfs/*/qgroups/*/referenced 2>/dev/null")))
  end))

  it("can't fill its memory with what outlives a process", task(function()
    local kilobytes = 0
    for size in out("df -k /tmp /dev/shm /run"):gmatch("tmpfs%s+(%d+)") do
      kilobytes = kilobytes + tonumber(size)
    end
    assert.is_true(kilobytes > 0)
    local pages = tonumber((out("cat /proc/sys/kernel/shmall")))
    if pages > 2 ^ 40 then
      pending("needs a kernel where an ipc namespace limits its own shared memory")
    end
    assert.is_true(kilobytes * 1024 + pages * 4096 < 0.95 * box.spec.limits.memory)
  end))

  it("can't write to /proc/sys, /sys, the cgroup tree or its own machinery", task(function()
    for _, path in ipairs({ "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
      "/sys/kernel/mm/ksm/run", "/sys/fs/cgroup/cgroup.freeze", "/.tidepool/init", "/.tidepool/new" }) do
      local _, result = out("echo 1 > " .. path)
      assert.are_not.equal(0, result.code, path)
    end
  end))

  it("keeps the nonce and the socket of init from users", task(function()
    local _, result = out("cat /.tidepool/nonce", "agent")
    assert.are_not.equal(0, result.code)
    assert.equal("-rwxr-xr-x", (out("stat -c %A /.tidepool/init"):gsub("\n", "")))
    assert.equal("srw-------", (out("stat -c %A /.tidepool/init.sock"):gsub("\n", "")))
  end))

  it("sees itself as the root of the cgroup tree", task(function()
    for line in out("cat /proc/self/cgroup"):gmatch("[^\n]+") do
      local path = line:match("^%d+:[^:]*:(.*)$")
      assert.truthy(path == "/" or path:find("^/p%d+$"), line)
    end
  end))

  it("has private, writable /tmp, /run and /dev/shm", task(function()
    assert.equal("drwxrwxrwt\ndrwxrwxrwt\ndrwxr-xr-x\n", (out("stat -c %A /tmp /dev/shm /run")))
    local _, result = out("echo x > /tmp/a && echo x > /dev/shm/a", "agent")
    assert.equal(0, result.code)
    assert.is_nil(uv.fs_stat("/tmp/a"))
  end))

  it("leaves no descriptor of the host in init", task(function()
    for _, number in ipairs(support.names("/proc/" .. box.pid .. "/fd")) do
      local target = uv.fs_readlink("/proc/" .. box.pid .. "/fd/" .. number)
      assert.truthy(target:find("^socket:") or target:find("^anon_inode:") or target == "/dev/null" or target:find("^pipe:"), target)
    end
  end))

  it("is charged to the first id of its range, so that kernel limits are its own", task(function()
    local namespace = assert(core.fd.open("/proc/" .. box.pid .. "/ns/user"))
    local owner = ffi.new("uint32_t[1]")
    assert.equal(0, ffi.C.ioctl(namespace:number(), 0xb704, owner)) -- NS_GET_OWNER_UID
    assert.equal(box.spec.range.base, owner[0])
    namespace:close()
  end))
end)

describe("a container's limits", function()
  it("stop a fork bomb", task(function()
    local box = assert(containers.start({ limits = { cpu = 1, memory = 128 * 1048576, pids = 20 } }))
    local result = assert(box:run("i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; true"))
    assert.truthy(result.stderr:find("fork"), result.stderr)
    assert.is_true(cgroup.usage(box.host.cgroups, box.spec.cgroup).pids <= 20)
    box:stop()
  end))

  it("end a process that takes too much memory, and count it", task(function()
    local box = assert(containers.start({ limits = { cpu = 1, memory = 24 * 1048576, pids = 64 } }))
    local result = assert(box:run("head -c 100000000 /dev/zero | dd of=/dev/null bs=90M iflag=fullblock"))
    assert.are_not.equal(0, result.code)
    assert.is_true(cgroup.oom_kills(box.host.cgroups, box.spec.cgroup) >= 1)
    assert.is_true(support.alive(box.pid))
    assert.is_true(cgroup.usage(box.host.cgroups, box.spec.cgroup).memory_peak <= 25 * 1048576)
    box:stop()
  end))

  it("hold a busy loop to its share of a CPU", task(function()
    local box = assert(containers.start({ limits = { cpu = 0.2, memory = 64 * 1048576, pids = 64 } }))
    local before, began = cgroup.cpu_seconds(box.host.cgroups, box.spec.cgroup), uv.hrtime()
    async.spawn(function()
      box:run("while :; do :; done")
    end)
    local used, allowed
    repeat
      async.sleep(1)
      used = cgroup.cpu_seconds(box.host.cgroups, box.spec.cgroup) - before
      allowed = 0.2 * (uv.hrtime() - began) / 1e9
    until used > 0.05
    assert.is_true(used < 2 * allowed, ("used %g, allowed %g"):format(used, allowed))
    box:stop()
  end))
end)

describe("starting a container", function()
  local host, root

  lazy_setup(task(function()
    host = containers.host()
    root = assert(containers.root())
  end))

  local function groups_of(spec)
    local found = {}
    for _, path in pairs(host.cgroups.limits) do
      found[#found + 1] = uv.fs_stat(path .. "/" .. spec.cgroup) and path
    end
    found[#found + 1] = uv.fs_stat(cgroup.directory(host.cgroups, spec.cgroup)) and "v2"
    return found
  end

  it("undoes everything, whichever step fails", task(function()
    local length = #container.plan(containers.spec(host, { root = root }))
    local fds = {}
    for i = 1, 2 do
      fds[i] = support.settled(function()
        return support.fd_count(host.pool.members[i].pid)
      end)
    end
    for at = 1, length do
      local spec = containers.spec(host, { root = root })
      local plan = container.plan(spec)
      local after = plan[at][1]
      -- Neither may the clone be parted from its exec, nor is anything undone after the last step.
      table.insert(plan, at, { "write", "/no-such-file", "x" })
      local answer, message = host.pool:execute(plan)
      assert.is_nil(answer, "before " .. after)
      assert.truthy(message:find(("plan step %d: open /no-such-file"):format(at), 1, true), message)
      assert.same({}, groups_of(spec), "before " .. after)
    end
    for i = 1, 2 do
      local pid = host.pool.members[i].pid
      assert(support.eventually(function()
        return support.fd_count(pid) <= fds[i] and support.read(("/proc/%d/task/%d/children"):format(pid, pid)) == ""
      end), "a spawner has kept something")
    end
  end))

  it("says what is missing", task(function()
    local _, message, code = container.start(host.pool, containers.spec(host, { root = "/no/such/root" }))
    assert.equal("ENOENT", code)
    assert.truthy(message:find("/no/such/root", 1, true))
    _, message, code = container.start(host.pool, containers.spec(host, { root = root, init = "/no/such/init" }))
    assert.equal("ENOENT", code)
    assert.truthy(message:find("/no/such/init", 1, true))
  end))

  it("follows no link that the sandbox has left", task(function()
    local trap, outside = assert(containers.root()), support.scratch()
    for _, name in ipairs({ "proc", "sys", "dev", "tmp", "run", ".tidepool" }) do
      uv.fs_rmdir(trap .. "/" .. name)
      assert(uv.fs_symlink("/../../../../.." .. outside, trap .. "/" .. name))
    end
    assert(uv.fs_symlink(outside .. "/hosts", trap .. "/etc/hosts"))
    assert(uv.fs_symlink("/../.." .. outside .. "/hostname", trap .. "/etc/hostname"))
    local box = assert(containers.start({ root = trap }))
    assert.equal("box\n", (assert(box:run("cat /etc/hostname")).stdout))
    assert.equal("file\n", (assert(box:run("test -h /etc/hosts || echo file")).stdout))
    box:stop()
    assert.same({}, support.names(outside))
    local plain = assert(containers.root())
    assert(uv.fs_rename(plain .. "/etc", plain .. "/etc2"))
    assert(uv.fs_symlink("/../.." .. outside, plain .. "/etc"))
    local other = assert(containers.start({ root = plain }))
    other:stop()
    assert.same({}, support.names(outside))
  end))

  it("leaves nothing behind after 200 of them", task(function()
    local function mounts()
      return select(2, support.read("/proc/self/mountinfo"):gsub("\n", ""))
    end
    local fds, before = support.fd_count(), mounts()
    for _ = 1, 200 do
      local spec = containers.spec(host, { root = root })
      local made = assert(container.start(host.pool, spec))
      assert(cgroup.kill(host.cgroups, spec.cgroup))
      assert(async.readable(made.pidfd:number(), 60))
      made.pidfd:close()
      steering.close(made.steering)
      assert(cgroup.remove(host.cgroups, spec.cgroup))
      assert.same({}, groups_of(spec))
    end
    assert.equal(fds, support.fd_count())
    assert.equal(before, mounts())
    assert.same({}, cgroup.names(host.cgroups))
    for i = 1, 2 do
      assert(support.eventually(function()
        return support.fd_count(host.pool.members[i].pid) <= 16
      end))
    end
  end))

  it("is undone for a sandbox whose init nobody knows any more", task(function()
    local spec = containers.spec(host, { root = root })
    local made = assert(container.start(host.pool, spec))
    assert(container.destroy(host.pool, host.cgroups, spec.cgroup))
    assert.is_true(async.readable(made.pidfd:number(), 60))
    made.pidfd:close()
    steering.close(made.steering)
    assert.same({}, groups_of(spec))
  end))
end)

--- Starting one sandbox: the plan that turns a root subvolume into a machine of its own.
--
-- Runs in the server, which only composes the plan; a spawner executes it (core/spawn.c). Steps before
-- `child` are the host's, steps from there to `exec` run inside the new namespaces, as its root, and
-- nothing in the sandbox's files is trusted on the way: whoever lived there may have left any link.
local uv = require("luv")
local core = require("tidepool.core")
local steering = require("tidepool.server.steering")

local container = {}

local slot = { cgroup = 0, init = 1, root = 2, socket = 3, steering = 4, none = 15 }

--- The directory of init inside; see core/init/protocol.h.
local own = "/.tidepool"

-- Parts of /proc and /sys that tell of, or change, more than the sandbox. Those that this kernel has.
local masked = {
  "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
  "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
  "/sys/devices/virtual/powercap",
  "/sys/devices/virtual/block", -- loops: where on the host the pools are
  "/sys/fs/btrfs", -- how much each sandbox of each pool holds
}
local protected = { "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger" }

-- Whether a path is there does not change while the host is up, so we look once.
local present = setmetatable({}, {
  __index = function(known, path)
    known[path] = uv.fs_lstat(path) ~= nil
    return known[path]
  end,
})

local devices = { "null", "zero", "full", "random", "urandom", "tty" }

local links = {
  { "/proc/self/fd", "/dev/fd" },
  { "/proc/self/fd/0", "/dev/stdin" },
  { "/proc/self/fd/1", "/dev/stdout" },
  { "/proc/self/fd/2", "/dev/stderr" },
  { "pts/ptmx", "/dev/ptmx" },
}

local mode = { root = 493, sticky = 1023, secret = 256, plain = 420 } -- 0755, 01777, 0400, 0644

local function append(plan, steps)
  for _, step in ipairs(steps) do
    plan[#plan + 1] = step
  end
end

-- Bytes that outlive the process that wrote them, as shares of the memory limit. Together they stay below
-- it: else a sandbox can fill its memory with what no kill frees, and then not run the `rm` that would.
local lasting = { tmp = 1 / 2, shm = 1 / 4, run = 1 / 16, sysv = 1 / 8 }

-- `share` of the limit, or of 1 GiB where there is none.
local function bytes(limits, share)
  return math.floor((limits.memory or 1073741824) * share)
end

local function add_devices(plan, limits)
  append(plan, {
    { "dir", "/dev", mode.root },
    { "mount", "tmpfs", "/dev", "tmpfs", "nosuid,noexec", "mode=0755,size=64k,nr_inodes=512" },
    { "mkdir", "/dev/pts", mode.root },
    -- All instances draw on one number of the host, kernel.pty.max, 4096 by default.
    { "mount", "devpts", "/dev/pts", "devpts", "nosuid,noexec", "newinstance,ptmxmode=0666,mode=0620,gid=5,max=256" },
    { "mkdir", "/dev/shm", mode.sticky },
    { "mount", "tmpfs", "/dev/shm", "tmpfs", "nosuid,nodev", "mode=1777,size=" .. bytes(limits, lasting.shm) },
  })
  for _, name in ipairs(devices) do
    plan[#plan + 1] = { "device", name, "/dev/" .. name }
  end
  for _, link in ipairs(links) do
    plan[#plan + 1] = { "symlink", link[1], link[2] }
  end
end

local function add_kernel_files(plan, limits)
  append(plan, {
    { "dir", "/proc", mode.root },
    { "mount", "proc", "/proc", "proc", "nosuid,nodev,noexec", "" },
    -- Pages of 4 KiB. The ipc namespace's own root may write it since Linux 6.2 or so.
    { "write?", "/proc/sys/kernel/shmall", ("%d"):format(bytes(limits, lasting.sysv) / 4096) },
    { "dir", "/sys", mode.root },
    { "mount", "sysfs", "/sys", "sysfs", "ro,nosuid,nodev,noexec", "" },
  })
  for _, path in ipairs(masked) do
    if present[path] then
      plan[#plan + 1] = { "mask?", path }
    end
  end
  for _, path in ipairs(protected) do
    if present[path] then
      plan[#plan + 1] = { "protect", path }
    end
  end
end

local function hosts(hostname)
  return ("127.0.0.1\tlocalhost\n127.0.1.1\t%s\n::1\tlocalhost ip6-localhost ip6-loopback\n"):format(hostname)
end

-- Where a sandbox's own names are kept. spec: hostname, machine_id (nil: not written).
local function own_names(spec)
  local steps = {
    { "replace?", "/etc/hostname", mode.plain, spec.hostname .. "\n" },
    { "replace?", "/etc/hosts", mode.plain, hosts(spec.hostname) },
  }
  if spec.machine_id then
    steps[3] = { "replace?", "/etc/machine-id", 292, spec.machine_id .. "\n" }
  end
  return steps
end

--- The file inside that says which sandbox this is; programs watch it to learn that they go on in another.
container.CARD = own .. "/sandbox"

-- card: { name, id, of = what its processes were captured of, since = when they went on here }, or nil.
local function card_text(card)
  local text = ("NAME=%s\nID=%d\n"):format(card.name, card.id)
  if card.of then
    text = text .. ("OF=%s\nSINCE=%d\n"):format(card.of, card.since)
  end
  return text
end

--- What makes processes that were captured in another sandbox, or earlier in this one, this sandbox's: the
-- steps of a plan, carried out inside. spec: hostname, machine_id, card.
function container.rename(spec)
  local steps = own_names(spec)
  steps[#steps + 1] = { "replace?", container.CARD, mode.plain, card_text(spec.card) }
  return steps
end

local function add_files(plan, spec)
  append(plan, own_names(spec))
  plan[#plan + 1] = { "replace?", "/etc/resolv.conf", mode.plain, "nameserver " .. steering.nameserver .. "\n" }
  if spec.trust then
    plan[#plan + 1] = { "trust?", spec.trust:match("^(.-)%s*$") .. "\n" }
  end
end

local bundle = "/etc/ssl/certs/ca-certificates.crt"

--- The variables by which programs that bring a bundle of their own are told of the sandbox's. Some
-- replace theirs by what they name, so they name the whole bundle; Node's adds to its own.
function container.trust_environment()
  return {
    SSL_CERT_FILE = bundle,
    CURL_CA_BUNDLE = bundle,
    GIT_SSL_CAINFO = bundle,
    REQUESTS_CA_BUNDLE = bundle,
    PIP_CERT = bundle,
    AWS_CA_BUNDLE = bundle,
    CARGO_HTTP_CAINFO = bundle,
    DENO_CERT = bundle,
    NODE_EXTRA_CA_CERTS = "/usr/local/share/ca-certificates/tidepool.crt",
  }
end

local function add_own(plan, spec)
  append(plan, {
    { "dir", own, mode.root },
    { "mount", "tmpfs", own, "tmpfs", "nosuid,nodev", "mode=0755,size=2m,nr_inodes=16" },
    { "copy", slot.init, own .. "/init", mode.root },
    { "file", own .. "/nonce", mode.secret, spec.nonce },
    { "listen", slot.socket, own .. "/init.sock" },
  })
  if spec.card then
    plan[#plan + 1] = { "file", container.CARD, mode.plain, card_text(spec.card) }
  end
  if spec.filter then
    plan[#plan + 1] = { "file", own .. "/filter", mode.plain, spec.filter }
  end
  plan[#plan + 1] = { "mount", "", own, "", "bind,remount,ro,nosuid,nodev", "" }
end

-- The root's own steps, before the clone and after its ids are mapped.
local function mounting(spec)
  if spec.mounting then
    return spec.mounting(slot.root)
  end
  return { { "tree", slot.root, spec.root, "nodev" } }, { { "idmap", slot.root } }
end

--- The plan for `spec`, see container.start; for specs that look at it or break it. nil, message, code when
-- the storage can't mount its files.
function container.plan(spec)
  local base, count = spec.range.base, spec.range.count
  local limits = spec.limits or {}
  local cgroup = require("tidepool.server.cgroup")
  local create, join = cgroup.steps(spec.cgroups, spec.cgroup, base, limits)
  local before, mapped, code = mounting(spec)
  if not before then
    return nil, mapped, code
  end
  local plan = {}
  append(plan, create)
  append(plan, {
    { "open", slot.cgroup, cgroup.directory(spec.cgroups, spec.cgroup) },
    { "open", slot.init, spec.init },
  })
  append(plan, before)
  append(plan, {
    { "clone", "user,pid,mount,net,ipc,uts", base, slot.cgroup },
    { "idmaps", base, count },
    steering.step(slot.steering, slot.none, spec.steer or steering.mode()),
  })
  append(plan, mapped)
  append(plan, {
    { "child" },
    { "identity" },
    { "private" },
    { "root", slot.root },
  })
  add_devices(plan, limits)
  add_kernel_files(plan, limits)
  append(plan, {
    { "dir", "/tmp", mode.sticky },
    { "mount", "tmpfs", "/tmp", "tmpfs", "nosuid,nodev", "mode=1777,size=" .. bytes(limits, lasting.tmp) },
    { "dir", "/run", mode.root },
    { "mount", "tmpfs", "/run", "tmpfs", "nosuid,nodev", "mode=0755,size=" .. bytes(limits, lasting.run) },
    { "detach" },
    { "hostname", spec.hostname },
  })
  add_files(plan, spec)
  add_own(plan, spec)
  append(plan, join)
  append(plan, {
    { "joined" }, -- a cgroup namespace shows what the child is in when it is made
    { "unshare", "cgroup" },
    { "unshare?", "time" },
    { "mount?", "cgroup2", "/sys/fs/cgroup", "cgroup2", "ro,nosuid,nodev,noexec", "" },
    { "rlimit?", 7, 1024, 524288 }, -- RLIMIT_NOFILE
    { "exec", own .. "/init", slot.socket },
  })
  return plan
end

-- Ends a sandbox in which nothing has run yet.
local function undo(pool, spec, made, message, code)
  steering.close(made.steering)
  container.destroy(pool, spec.cgroups, spec.cgroup)
  made.pidfd:close()
  return nil, message, code
end

--- Starts a sandbox's init. Waits for its exec, not for its first answer.
-- spec: hostname; mounting(slot), the steps that put its files there, before and after
-- its ids are mapped (storage), or root, the path of files whose mount can map ids; range = { base, count }; cgroups, of cgroup.open, and
-- cgroup, its key there; limits = { cpu, memory, pids }; init, the program's path; filter, of
-- core.seccomp; nonce, 16 bytes; card, { name, id } for the file that tells them inside; machine_id, 32 hexadecimal digits, if its file is to be written; steer,
-- "bpf" or "tproxy", unless this machine's is wanted; trust, a certificate in PEM.
-- Returns { pid, pidfd, steering } | nil, message, code; a failure leaves nothing behind. The steering is
-- shut, and the caller's to close (steering.lua).
function container.start(pool, spec)
  local way = spec.steer or steering.mode()
  local plan, message, code = container.plan(spec)
  local answer
  if plan then
    answer, message, code = pool:execute(plan)
  end
  if not answer then
    return nil, message, code
  end
  local made = { pid = answer.pid, pidfd = answer.pidfd, steering = steering.take(answer, way) }
  if way == "tproxy" then
    local ok
    ok, message, code = steering.rule(made.pid)
    if not ok then
      return undo(pool, spec, made, message, code)
    end
  end
  return made
end

--- The steering of a sandbox that runs, made anew where nobody holds it any more: shut.
-- { tcp4, ... } as of container.start | nil, message, code
function container.resteer(pool, pid, way)
  local pidfd, message, code = core.fd.pidfd(pid)
  if not pidfd then
    return nil, message, code
  end
  local made
  made, message, code = steering.renew(pool, pidfd, pid, way)
  pidfd:close()
  return made, message, code
end

--- Ends what may be left of a sandbox whose init nobody knows, and removes its groups.
function container.destroy(pool, cgroups, key)
  local cgroup = require("tidepool.server.cgroup")
  local plan = { { "killgroup", cgroup.directory(cgroups, key) }, { "ungroup", cgroup.directory(cgroups, key) } }
  for _, below in pairs(cgroups.limits) do
    plan[#plan + 1] = { "ungroup", below .. "/" .. key }
  end
  return pool:execute(plan)
end

return container

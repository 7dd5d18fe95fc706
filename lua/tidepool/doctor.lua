--- What this machine offers, what each lack costs, and what to do about it.
--
-- Runs as anyone, before anything is installed but LuaJIT, and changes nothing: it reads /proc and
-- /sys and makes two harmless system calls. What only root can find out, it says so.
local ffi = require("ffi")
local bootstrap = require("tidepool.bootstrap")
local choice = require("tidepool.server.storage.choice")
local paths = require("tidepool.paths")
local read_file = require("tidepool.file").read

local doctor = {}

ffi.cdef [[
long syscall(long number, ...);
int getpid(void);
int access(const char *path, int mode);
struct tp_bpf_load {
  uint32_t type, count;
  uint64_t instructions, license;
  uint32_t log_level, log_size;
  uint64_t log;
  uint32_t kernel_version, flags;
  char name[16];
  uint32_t interface, attach;
};
]]

local GiB = 2 ^ 30
local root = ffi.C.geteuid() == 0
local numbers = ({
  x64 = { bpf = 321, pidfd_open = 434, close_range = 436 },
  arm64 = { bpf = 280, pidfd_open = 434, close_range = 436 },
})[jit.arch] or {}

local function capture(command)
  local pipe = io.popen("LC_ALL=C " .. command .. " 2>/dev/null")
  local out = pipe and pipe:read("*a") or ""
  if pipe then
    pipe:close()
  end
  return out
end

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

local function exists(path)
  return ffi.C.access(path, 0) == 0
end

local function on_path(program)
  for directory in ((os.getenv("PATH") or "") .. ":/usr/sbin:/sbin"):gmatch("[^:]+") do
    local file = io.open(directory .. "/" .. program, "rb")
    if file then
      file:close()
      return directory .. "/" .. program
    end
  end
end

local release = (read_file("/proc/sys/kernel/osrelease") or "unknown"):gsub("%s+$", "")
local major, minor = release:match("^(%d+)%.(%d+)")
local version = tonumber(major or 0) * 1000 + tonumber(minor or 0)

local function kernel_at_least(a, b)
  return version >= a * 1000 + b
end

local function ok(found)
  return { status = "ok", found = found }
end

local function warn(found, cost, fix)
  return { status = "warn", found = found, cost = cost, fix = fix }
end

local function fail(found, cost, fix)
  return { status = "fail", found = found, cost = cost, fix = fix }
end

local function gib(bytes)
  return string.format("%.1f GiB", bytes / GiB)
end

-- One row a function, in the order in which they are shown -----------------------------------------

local rows = {}

local function row(name, fn)
  rows[#rows + 1] = { name, fn }
end

row("kernel", function()
  if kernel_at_least(5, 15) then
    return ok(release)
  end
  return fail(release, "sandboxes can't start: idmapped mounts of btrfs came with 5.15",
    "install a newer kernel (Debian 12 has 6.1)")
end)

-- Whether this process has a capability, by its number.
local function capable(number)
  local mask = (read_file("/proc/self/status") or ""):match("CapEff:%s*(%x+)") or "0"
  local digit = tonumber(mask:sub(-1 - math.floor(number / 4), -1 - math.floor(number / 4)), 16) or 0
  return bit.band(digit, bit.lshift(1, number % 4)) ~= 0
end
local CAP_SYS_ADMIN = 21

row("privilege", function()
  if not root then
    return warn("not root", "the server can't be started, and some rows below could not be checked",
      "run it again with sudo")
  elseif not capable(CAP_SYS_ADMIN) then
    return fail("root without CAP_SYS_ADMIN", "sandboxes can't start",
      "this is a container that forbids it: give it --privileged, or use the host")
  end
  return ok("root")
end)

local function cgroups()
  local found = { v1 = {} }
  for line in (read_file("/proc/self/mountinfo") or ""):gmatch("[^\n]+") do
    local point, kind, options = line:match("^%S+ %S+ %S+ %S+ (%S+) .- %- (%S+) %S+ (%S+)")
    if kind == "cgroup2" then
      found.v2 = found.v2 or point
    elseif kind == "cgroup" then
      for option in options:gmatch("[^,]+") do
        found.v1[option] = point
      end
    end
  end
  for controller in (read_file((found.v2 or "") .. "/cgroup.controllers") or ""):gmatch("%S+") do
    found[controller] = "v2"
  end
  for _, controller in ipairs { "memory", "cpu", "pids" } do
    if not found[controller] and found.v1[controller] then
      found[controller] = "v1"
    end
  end
  return found
end

row("cgroups", function()
  local found = cgroups()
  local v1 = next(found.v1) ~= nil
  if not found.v2 then
    return fail(v1 and "v1 alone" or "not mounted", "sandboxes can't start: killing and freezing a tree of processes need v2",
      "mount -t cgroup2 none /sys/fs/cgroup (beside v1: /sys/fs/cgroup/unified)")
  elseif not kernel_at_least(5, 14) then
    return fail("v2 without cgroup.kill", "process trees can't be killed at once", "install a kernel of 5.14 or newer")
  end
  return ok((v1 and "hybrid, v2 at " or "v2 at ") .. found.v2)
end)

-- In a container the root of the v2 tree is a group like others, which hands no controller down while
-- it holds processes.
local function in_the_way(path, controller)
  return exists(path .. "/cgroup.type")
    and not (" " .. (read_file(path .. "/cgroup.subtree_control") or "")):find("%s" .. controller .. "%s")
    and (read_file(path .. "/cgroup.procs") or ""):find("%d") ~= nil
end

for _, limit in ipairs({ { "memory limits", "memory" }, { "CPU limits", "cpu" }, { "process limits", "pids" } }) do
  local name, controller = unpack(limit)
  row(name, function()
    local found = cgroups()
    local kind = found[controller]
    if kind == "v2" and in_the_way(found.v2, controller) then
      return warn("cgroup v2, with processes in the way", name .. " are not enforced (`info` says so)",
        ("cd %s && mkdir -p init && for p in $(cat cgroup.procs); do echo $p > init/cgroup.procs; done"):format(found.v2))
    elseif kind then
      return ok("cgroup " .. kind)
    end
    return warn("no " .. controller .. " controller", name .. " are not enforced (`info` says so)",
      controller == "memory" and "boot with cgroup_enable=memory" or "use a kernel that has it, cgroups v2 alone if you can")
  end)
end

row("user namespaces", function()
  local most = tonumber(read_file("/proc/sys/user/max_user_namespaces") or "")
  if not exists("/proc/self/ns/user") or most == nil or most == 0 then
    return fail(most == 0 and "switched off" or "none", "sandboxes can't start",
      "sysctl -w user.max_user_namespaces=65536")
  elseif most < 1000 then
    return warn("at most " .. most, "no more sandboxes than that", "sysctl -w user.max_user_namespaces=65536")
  end
  return ok("at most " .. most)
end)

-- Tables that all sandboxes and the host share, whatever the limits of one.
row("host-wide tables", function()
  local small, advice = {}, {}
  for name, least in pairs({ ["kernel.pid_max"] = 1000000, ["fs.file-max"] = 10000000 }) do
    local most = tonumber(read_file("/proc/sys/" .. name:gsub("%.", "/")) or "")
    if most and most < least then
      small[#small + 1] = ("%s is %d"):format(name, most)
      advice[#advice + 1] = ("sysctl -w %s=%d"):format(name, name == "kernel.pid_max" and 4194304 or 2 ^ 53)
    end
  end
  table.sort(small)
  table.sort(advice)
  if #small > 0 then
    return warn(table.concat(small, ", "), "a few sandboxes at their limits can use them up for all", table.concat(advice, "; "))
  end
  return ok("large enough")
end)

row("other namespaces", function()
  local lack = {}
  for _, name in ipairs { "pid", "mnt", "net", "ipc", "uts", "cgroup" } do
    if not exists("/proc/self/ns/" .. name) then
      lack[#lack + 1] = name
    end
  end
  if #lack > 0 then
    return fail("without " .. table.concat(lack, ", "), "sandboxes can't start", "use a kernel that has them")
  end
  return ok("pid, mnt, net, ipc, uts, cgroup")
end)

row("time namespace", function()
  if exists("/proc/self/ns/time") then
    return ok("there")
  end
  return warn("none", "a sandbox that sleeps over a reboot sees its clocks jump", "use a kernel with CONFIG_TIME_NS")
end)

row("seccomp", function()
  local actions = read_file("/proc/sys/kernel/seccomp/actions_avail")
  if actions and actions:find("errno", 1, true) then
    return ok("filters")
  end
  return fail("none", "sandboxes can't start: system calls can't be filtered", "use a kernel with CONFIG_SECCOMP_FILTER")
end)

row("pidfd", function()
  if not numbers.pidfd_open then
    return warn("not checked on " .. jit.arch, "only x86_64 and aarch64 are supported", "use one of them")
  end
  local fd = tonumber(ffi.C.syscall(numbers.pidfd_open, ffi.cast("int", ffi.C.getpid()), ffi.cast("int", 0)))
  if fd >= 0 then
    ffi.C.close(fd)
    return ok("there")
  end
  return fail("refused, errno " .. ffi.errno(), "sandboxes can't start: their ends go unseen",
    "an outer container's seccomp filter is too old for this kernel; loosen it")
end)

-- The directory that holds the state, or will.
local function state_place()
  local place = paths.state()
  while not exists(place) do
    place = place:match("^(.*)/[^/]*$")
    place = place == "" and "/" or place
  end
  return place
end

local function pick_storage()
  local kind = capture("stat -f -c %T " .. quote(state_place()))
  return choice.pick(paths.state(), kind:find("^btrfs") ~= nil, os.getenv("TIDEPOOL_STORAGE"))
end

row("storage", function()
  local kind, why = pick_storage()
  if not kind then
    return fail(why, "no files for sandboxes", "apt-get install btrfs-progs, on a kernel with btrfs and loop devices, or correct TIDEPOOL_STORAGE")
  end
  local text = ("%s: %s"):format(choice.about[kind], why)
  if kind == "overlay" then
    return warn(text, "no disk limits; a snapshot of a running sandbox stops it for as long as copying its changes takes",
      "a new state directory on btrfs, or on a host with btrfs and loop devices")
  end
  return ok(text)
end)

row("btrfs", function()
  local state, mkfs = choice.module("btrfs", "btrfs"), on_path("mkfs.btrfs")
  if not state then
    return warn("not in this kernel", "no btrfs pool: overlayfs takes its place", "install a kernel with btrfs (Debian's have it)")
  elseif not mkfs then
    return warn(state .. ", no mkfs.btrfs", "the pool can't be made", "apt-get install btrfs-progs (the first run does)")
  end
  return ok(state .. ", " .. mkfs)
end)

row("loop devices", function()
  if exists("/dev/loop-control") then
    return ok("/dev/loop-control")
  elseif choice.module("loop") then
    return warn("a module, not loaded", "the pool's image file can't be mounted until it is", "modprobe loop")
  end
  return warn("none", "the pool can't live in an image file",
    "put the state directory (TIDEPOOL_STATE) on a btrfs file system")
end)

row("disk limits", function()
  local kind = pick_storage()
  if kind and kind ~= "pool" then
    return warn("none on " .. choice.about[kind], "disk limits are not enforced: one sandbox can fill the disk",
      "a state directory of its own with a btrfs pool (TIDEPOOL_STORAGE=pool)")
  elseif kernel_at_least(6, 7) then
    return ok("simple quotas (kernel 6.7 or newer)")
  end
  return warn("no simple quotas before kernel 6.7", "disk limits are not enforced: one sandbox can fill the pool",
    "install a newer kernel, from backports for instance")
end)

row("idmapped mounts", function()
  if kernel_at_least(5, 15) then
    return ok("btrfs has them (kernel 5.15 or newer)")
  end
  return fail("not for btrfs", "sandboxes can't start", "install a newer kernel")
end)

row("overlayfs", function()
  local state = choice.module("overlay", "overlay")
  if state then
    return ok(state .. (pick_storage() == "overlay" and "" or ", not used while btrfs is there"))
  end
  return warn("none", "nothing where btrfs is: it is for hosts without", "nothing, while btrfs is there")
end)

-- Loads "return SK_PASS" as an SK_LOOKUP program: the whole way through the verifier, attached to
-- nothing, gone when its descriptor is closed.
local function try_sk_lookup()
  local code = ffi.new("uint64_t[2]", 0x00000001000000b7ULL, 0x0000000000000095ULL)
  local license = ffi.new("char[4]", "MIT")
  local load = ffi.new("struct tp_bpf_load")
  load.type, load.count, load.attach = 30, 2, 36 -- BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP
  load.instructions = ffi.cast("uint64_t", ffi.cast("uintptr_t", code))
  load.license = ffi.cast("uint64_t", ffi.cast("uintptr_t", license))
  local fd = tonumber(ffi.C.syscall(numbers.bpf, ffi.cast("int", 5), ffi.cast("void *", load),
    ffi.cast("unsigned", ffi.sizeof(load))))
  if fd < 0 then
    return nil, ffi.errno()
  end
  ffi.C.close(fd)
  return true
end

row("bpf", function()
  local cost = "sandboxes are steered by nftables instead, which adds some 10 ms to each start"
  if not numbers.bpf then
    return warn("not checked on " .. jit.arch, cost, "nothing")
  end
  local loaded, errno = try_sk_lookup()
  if loaded then
    return ok("SK_LOOKUP programs load")
  elseif errno == 1 and not root then
    return warn("could not be checked without root", cost, "run doctor with sudo")
  end
  return warn("an SK_LOOKUP program is refused, errno " .. errno, cost, "use a kernel with CONFIG_BPF_SYSCALL, 5.9 or newer")
end)

-- A rule of the kind that steers, in a network namespace that goes at once.
local try_tproxy = "unshare -n nft 'table inet t { chain c { type filter hook prerouting priority mangle; "
  .. "meta nfproto ipv4 meta l4proto tcp tproxy ip to 192.0.2.1:1; }; }' 2>/dev/null && echo yes"

-- Only what is missing where the kernel refuses bpf costs anything.
row("nftables", function()
  local nft = on_path("nft")
  if not root then
    return warn("not checked", "nothing, while bpf works", "run doctor with sudo")
  elseif nft and capture(try_tproxy) == "yes\n" then
    return ok("tproxy rules load; only used where bpf is not")
  elseif numbers.bpf and try_sk_lookup() then
    return ok("no tproxy, which nothing needs while bpf works")
  end
  return fail(nft and "tproxy rules are refused" or "no nft program", "sandboxes can't start: neither this nor bpf steers them",
    nft and "use a kernel with CONFIG_BPF_SYSCALL, or CONFIG_NF_TABLES and CONFIG_NFT_TPROXY" or "apt-get install nftables")
end)

row("certificates", function()
  for _, path in ipairs({ "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt" }) do
    if exists(path) then
      return ok(path)
    end
  end
  return warn("no bundle", "egress trusts no server on the internet, only those that policies name with a `ca`",
    "apt-get install ca-certificates")
end)

-- Dumps a process of its own and restores it, as fast as that goes, and within 20 s at the latest. The
-- restored one needs its number again, so the shell that started it has to have noticed its end.
local prove_criu = [[
directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
cd /
setsid sleep 60 </dev/null >/dev/null 2>&1 &
pid=$!
sleep 0.05
timeout -s KILL 10 %s dump --tree $pid --images-dir "$directory" || { kill -9 $pid; echo dump; exit 1; }
wait $pid
timeout -s KILL 10 %s restore --images-dir "$directory" --restore-detached || { echo restore; exit 1; }
kill -9 $pid && echo proved
]]

-- What our caller left open (a lock's file, a socket) is not for the process that is dumped to inherit: CRIU
-- may refuse it. Kernel 5.11; before it, the proof may fail for what is nothing to sandboxes.
local function keep_descriptors()
  local CLOEXEC = 4
  if numbers.close_range then
    ffi.C.syscall(numbers.close_range, ffi.cast("unsigned", 3), ffi.cast("unsigned", -1), ffi.cast("unsigned", CLOEXEC))
  end
end

-- Where `memory install` puts it (server/memory/criu.lua), or an installed one.
local function find_criu()
  local triplet = ({ x64 = "x86_64-linux-gnu", arm64 = "aarch64-linux-gnu" })[jit.arch] or "unknown"
  local loader = ({ x64 = "ld-linux-x86-64.so.2", arm64 = "ld-linux-aarch64.so.1" })[jit.arch] or "unknown"
  local directory = paths.state() .. "/criu"
  local libraries = ("%s/usr/lib/%s"):format(directory, triplet)
  if exists(directory .. "/usr/sbin/criu") then
    return ("'%s/%s' --library-path '%s' '%s/usr/sbin/criu'"):format(libraries, loader, libraries, directory)
  end
  return on_path("criu")
end

row("CRIU", function()
  local cost = "sandboxes can't hibernate: their memory can't go to disk"
  local fix = "./sandbox.lua memory install"
  local program = find_criu()
  local text = program and capture(program .. " --version"):match("Version: ([%d.]+)")
  if not text then
    return warn("not found", cost, fix)
  end
  local a, b = text:match("^(%d+)%.?(%d*)")
  if tonumber(a) * 1000 + (tonumber(b) or 0) < 4002 then
    return warn(text .. ", too old for newer kernels", cost, fix)
  elseif not root then
    return ok(text .. " (only root can prove it)")
  end
  keep_descriptors()
  local outcome = capture("sh -c " .. quote(prove_criu:format(program, program)))
  if not outcome:find("proved", 1, true) then
    return warn(("%s fails to %s a process"):format(text, outcome:match("%l+") or "dump"), cost, "a newer kernel or CRIU")
  end
  return ok(text .. ", has dumped and restored a process")
end)

local function package_row(name, groups, only, cost)
  row(name, function()
    if capture("command -v dpkg-query") == "" then
      return warn("no dpkg", "packages can't be looked up or installed", "install by hand what lua/tidepool/bootstrap.lua lists")
    end
    local missing, names = {}, {}
    for _, package in ipairs(bootstrap.missing(groups)) do
      if only[package[2]] then
        missing[#missing + 1] = package
        names[#names + 1] = package[1]
      end
    end
    if #missing == 0 then
      return ok("all there")
    end
    return warn("missing: " .. table.concat(names, ", "), cost, bootstrap.install_command(missing))
  end)
end

package_row("packages", { "image", "example" }, { run = true, build = true, image = true, example = true },
  "the first run as root installs them")
package_row("packages for test", { "test" }, { test = true }, "`test` as root installs them")
package_row("packages for bench", { "bench" }, { bench = true },
  "`bench` leaves these peers out, unless told --install-peers")

row("build", function()
  if exists(paths.build() .. "/tidepool/core.so") then
    return ok(paths.build())
  end
  return warn("not built", "the first run takes a few seconds more", "./sandbox.lua run, as root, does it")
end)

row("memory", function()
  local info = read_file("/proc/meminfo") or ""
  local total = (tonumber(info:match("MemTotal:%s*(%d+)")) or 0) * 1024
  local available = (tonumber(info:match("MemAvailable:%s*(%d+)")) or 0) * 1024
  local text = gib(available) .. " of " .. gib(total) .. " available"
  if available < GiB then
    return warn(text, "a build in a sandbox may be killed for lack of memory", "end something, or add memory")
  end
  return ok(text)
end)

row("disk", function()
  local place = state_place()
  local free = tonumber(capture("df -Pk '" .. place .. "'"):match("\n%S+%s+%d+%s+%d+%s+(%d+)"))
  if not free then
    return warn("could not be checked", "unknown", "look at " .. place .. " yourself")
  end
  local text = gib(free * 1024) .. " free at " .. place
  if free * 1024 < 10 * GiB then
    return warn(text, "images and builds may fill it", "free some, or set TIDEPOOL_STATE to a larger disk")
  end
  return ok(text)
end)

row("swap", function()
  local swaps = read_file("/proc/swaps") or ""
  local _, count = swaps:gsub("\n/", "\n/")
  if count == 0 then
    return warn("none", "idle sandboxes stay in memory", "add zram (apt-get install zram-tools) or a swap file")
  end
  return ok(swaps:find("zram", 1, true) and "zram" or count .. " area(s)")
end)

row("fuse", function()
  return ok((exists("/dev/fuse") and "there" or "none") .. ", not needed")
end)

row("KVM", function()
  return ok((exists("/dev/kvm") and "there" or "none") .. ", not needed")
end)

--- Checks the machine.
---@return { name: string, status: "ok"|"warn"|"fail", found: string, cost: string?, fix: string? }[]
function doctor.check()
  local list = {}
  for _, entry in ipairs(rows) do
    local done, result = pcall(entry[2])
    if not done then
      result = warn("could not be checked: " .. tostring(result), "unknown", "report this")
    end
    result.name = entry[1]
    list[#list + 1] = result
  end
  return list
end

-- lua-cjson may not be installed yet; these are flat tables of strings.
local function json(list)
  local out = {}
  for _, result in ipairs(list) do
    local fields = {}
    for _, key in ipairs { "name", "status", "found", "cost", "fix" } do
      if result[key] then
        local text = result[key]:gsub('[%c"\\]', function(char)
          return string.format("\\u%04x", char:byte())
        end)
        fields[#fields + 1] = string.format('"%s": "%s"', key, text)
      end
    end
    out[#out + 1] = "  { " .. table.concat(fields, ", ") .. " }"
  end
  return "[\n" .. table.concat(out, ",\n") .. "\n]\n"
end

local colours = { ok = "\27[32m", warn = "\27[33m", fail = "\27[31m" }

--- The table for a human: a row each, and under what is not well, its cost and its cure.
function doctor.render(list, coloured)
  local width, out = 0, {}
  for _, result in ipairs(list) do
    width = math.max(width, #result.name)
  end
  for _, result in ipairs(list) do
    local status = string.format("%-4s", result.status)
    if coloured then
      status = colours[result.status] .. status .. "\27[0m"
    end
    out[#out + 1] = string.format("%s  %-" .. width .. "s  %s", status, result.name, result.found)
    if result.status ~= "ok" then
      local margin = string.rep(" ", 8 + width)
      out[#out + 1] = margin .. "costs: " .. result.cost
      out[#out + 1] = margin .. "do:    " .. result.fix
    end
  end
  return table.concat(out, "\n") .. "\n"
end

local usage = [[
Usage: ./sandbox.lua doctor [--json]

Lists what this machine offers, what each lack costs, and what to do about it.
Changes nothing. The exit status is 1 when something is missing that sandboxes can't do without.
]]

--- `./sandbox.lua doctor`. Returns the exit status.
function doctor.main(args)
  local as_json = false
  for _, word in ipairs(args) do
    if word == "--json" then
      as_json = true
    elseif word == "--help" or word == "-h" then
      io.write(usage)
      return 0
    else
      io.stderr:write("tidepool: doctor: unknown option: ", word, " (EINVAL)\n")
      return 125
    end
  end
  local list = doctor.check()
  io.write(as_json and json(list) or doctor.render(list, ffi.C.isatty(1) == 1))
  for _, result in ipairs(list) do
    if result.status == "fail" then
      return 1
    end
  end
  return 0
end

return doctor

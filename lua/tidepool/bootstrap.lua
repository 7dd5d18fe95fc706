--- From a bare Debian to a built checkout: installs the packages that are missing, builds what is
-- stale, and says what it does. Runs in the client's process, as whoever called; only the package
-- step needs root. A second run costs a few hundred stat calls.
--
-- Written for LuaJIT alone (ffi, popen), since luv is one of the packages that it installs.
local ffi = require("ffi")
local paths = require("tidepool.paths")
local read_file = require("tidepool.file").read

local bootstrap = {}

--- Every package that Tidepool uses, why, and for which of the groups: "run" and "build" always,
-- the others when a verb asks for them. `service`: what the package would start at boot, which a
-- test's dependency has no business to do.
bootstrap.packages = {
  { "luajit", "run", "runs everything that is Lua" },
  { "lua-luv", "run", "the event loop" },
  { "lua-mpack", "run", "messages between client and server" },
  { "lua-cjson", "run", "--json, image manifests" },
  { "lua-dbi-sqlite3", "run", "the server's state" },
  { "btrfs-progs", "run", "mkfs.btrfs, once, for the pool" },
  { "gcc", "build", "the compiler" },
  { "libc6-dev", "build", "the C library's headers" },
  { "make", "build", "runs the build" },
  { "cmake", "build", "describes the build" },
  { "pkgconf", "build", "finds the libraries", provides = "pkg-config" },
  { "libluajit-5.1-dev", "build", "LuaJIT's headers, for the C module" },
  { "libseccomp-dev", "build", "composes the system call filter" },
  { "libarchive-dev", "build", "unpacks images" },
  { "nettle-dev", "build", "the digests of image layers" },
  { "libbearssl-dev", "build", "TLS, in the egress process" },
  { "libmbedtls-dev", "build", "certificates: mints and verifies them" },
  { "libc-ares-dev", "build", "resolves names without files" },
  { "node-llhttp", "build", "parses HTTP, shipped as C sources" },
  { "musl-tools", "build", "links the sandbox's pid 1, static and small" },
  { "mmdebstrap", "image", "builds Debian images" },
  { "busybox-static", "image", "the minimal image's programs" },
  { "skopeo", "image", "pulls images from registries" },
  { "ca-certificates", "image", "verifies registries and mirrors" },
  { "dpkg-dev", "example", "apt-get source, in examples/01_first_light.lua" },
  { "git", "example", "clones and pushes, and is the server of examples/04_credentials.lua" },
  { "openssl", "example", "makes the certificates of servers on loopback" },
  { "nginx-light", "example", "a web server on loopback, for examples and specs", service = "nginx" },
  { "fcgiwrap", "example", "git's own server behind it", service = "fcgiwrap.service fcgiwrap.socket" },
  { "lua-busted", "test", "runs the specs" },
  { "lua-check", "test", "lints Lua" },
  { "tmux", "test", "a real terminal for the terminal's specs" },
  { "docker-registry", "test", "a registry on loopback to pull from", service = "docker-registry" },
  { "mount", "test", "scratch machines for specs of pid 1 and of full disks" },
  { "zstd", "test", "compresses what is to be unpacked" },
  { "umoci", "test", "unpacks exported snapshots, as others would" },
  { "xz-utils", "test", "likewise" },
  { "bzip2", "test", "likewise" },
  { "curl", "test", "asks the registry whether it is up" },
  { "wget", "test", "gnutls, which believes certificates by other rules than curl" },
  { "procps", "test", "looks for processes" },
  { "python3", "test", "servers that answer in every odd way" },
  { "strace", "test", "counts system calls in specs" },
  { "iproute2", "test", "ss, which finds both ends of a socket" },
  { "nftables", "test", "leads connections to the egress process, where bpf is refused" },
  { "e2fsprogs", "test", "mkfs.ext4, for specs of full disks" },
  { "wrk", "bench", "loads a web server" },
  { "mitmproxy", "bench", "peer of the egress process" },
  { "bubblewrap", "bench", "peer" },
  { "crun", "bench", "peer" },
  { "runc", "bench", "peer" },
  { "podman", "bench", "peer",
    service = "podman.service podman.socket podman-restart.service podman-auto-update.timer" },
}

ffi.cdef [[
unsigned geteuid(void);
int isatty(int fd);
int open(const char *path, int flags, ...);
int flock(int fd, int operation);
int close(int fd);
]]
local O_RDWR, O_CREAT, O_CLOEXEC, LOCK_EX = 2, 64, 0x80000, 2

local tty = ffi.C.isatty(2) == 1

local function quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

local function quoted(words)
  local out = {}
  for i, word in ipairs(words) do
    out[i] = quote(word)
  end
  return table.concat(out, " ")
end

-- A stamp only saves time, so a directory that we may not write to is no error.
local function write_file(path, bytes)
  local file = io.open(path, "wb")
  if file then
    file:write(bytes)
    file:close()
  end
end

local function capture(command)
  local pipe = assert(io.popen(command, "r"))
  local out = pipe:read("*a")
  pipe:close()
  return out
end

-- Progress ---------------------------------------------------------------------------------------

local Phase = {}
Phase.__index = Phase

--- Starts a phase, "[1/3] installing 4 packages". On a terminal, one line that is rewritten;
-- elsewhere a line at the start, one each ten seconds, one at the end.
function bootstrap.phase(number, of, title)
  local self = setmetatable({
    title = string.format("[%d/%d] %s", number, of, title),
    began = os.time(),
    said = os.time(),
  }, Phase)
  if tty then
    io.stderr:write(self.title, " ...")
  else
    io.stderr:write(self.title, " ...\n")
  end
  return self
end

function Phase:update(detail)
  detail = detail:gsub("%c", " ")
  if tty then
    io.stderr:write("\r\27[K", self.title, "  ", detail:sub(1, math.max(8, 76 - #self.title)))
  elseif os.time() - self.said >= 10 then
    self.said = os.time()
    io.stderr:write(self.title, "  ", detail, "\n")
  end
end

function Phase:finish(verdict)
  local line = string.format("%s: %s (%d s)", self.title, verdict, os.time() - self.began)
  io.stderr:write(tty and "\r\27[K" or "", line, "\n")
end

-- Runs a shell command; every line goes to the log, and to on_line. The status comes back as a
-- last line, since LuaJIT's popen does not tell it.
local function run(command, log, on_line)
  local pipe = assert(io.popen("{ " .. command .. "\n} </dev/null 2>&1; echo \"status:$?\"", "r"))
  local status
  for line in pipe:lines() do
    status = line:match("^status:(%d+)$")
    if not status then
      if log then
        log:write(line, "\n")
        log:flush()
      end
      on_line(line)
    end
  end
  pipe:close()
  return status == "0"
end

local function open_log(name)
  os.execute("mkdir -p " .. quote(paths.build()))
  local path = paths.build() .. "/" .. name .. ".log"
  local log = io.open(path, "w")
  return log, path
end

local function tail_of(path, count)
  local lines = {}
  for line in (read_file(path) or ""):gmatch("[^\n]+") do
    lines[#lines + 1] = line
  end
  return table.concat(lines, "\n", math.max(1, #lines - count + 1))
end

local function failed(phase, what, log_path)
  phase:finish("failed")
  return nil, string.format("%s\n%s failed; the whole log is %s", tail_of(log_path, 20), what, log_path)
end

-- Packages ---------------------------------------------------------------------------------------

local function wanted(groups)
  local set = { run = true, build = true }
  for _, group in ipairs(groups) do
    set[group] = true
  end
  local list = {}
  for _, package in ipairs(bootstrap.packages) do
    if set[package[2]] then
      list[#list + 1] = package
    end
  end
  return list
end

local function installed_by_dpkg(names)
  local installed = {}
  local out = capture("dpkg-query -W -f '${Package} ${db:Status-Status}\\n' "
    .. quoted(names) .. " 2>/dev/null")
  for name, status in out:gmatch("(%S+) (%S+)\n") do
    installed[name] = installed[name] or status == "installed"
  end
  return installed
end

--- The packages of these groups (and of "run" and "build") that are not installed.
---@param groups string[]
---@return table[] missing rows of bootstrap.packages
function bootstrap.missing(groups)
  local names, list = {}, wanted(groups)
  for _, package in ipairs(list) do
    names[#names + 1] = package[1]
    if package.provides then
      names[#names + 1] = package.provides
    end
  end
  local installed = installed_by_dpkg(names)
  local missing = {}
  for _, package in ipairs(list) do
    if not installed[package[1]] and not (package.provides and installed[package.provides]) then
      missing[#missing + 1] = package
    end
  end
  return missing
end

--- The command that installs these packages, to show or to run.
function bootstrap.install_command(packages)
  local names = {}
  for i, package in ipairs(packages) do
    names[i] = package[1]
  end
  return "apt-get install -y --no-install-recommends " .. table.concat(names, " ")
end

-- Debian starts a daemon as soon as its package is configured, unless this file says no. Ours are
-- libraries and tools; nothing that we install should be running afterwards.
local deny_services = [[
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
  trap 'rm -f $policy' EXIT INT TERM
fi
]]

local function install(packages, phase_of)
  local title = string.format("installing %d package%s", #packages, #packages == 1 and "" or "s")
  local phase = bootstrap.phase(1, phase_of, title)
  local names = bootstrap.install_command(packages):match("recommends (.*)")
  phase:update(names)
  local log, log_path = open_log("packages")
  local function on_line(line)
    -- APT::Status-Fd: "dlstatus:1:42.5:Retrieving file 3 of 9", "pmstatus:gcc:60.0:Unpacking gcc"
    local kind, percent, text = line:match("^(%a+status):[^:]*:([%d.]+):(.*)")
    if kind then
      local half = kind == "dlstatus" and "download" or "install"
      phase:update(string.format("%s %d %%  %s", half, tonumber(percent), text))
    elseif line:match("^Get:") then
      phase:update(line:gsub("https?://%S+ ", ""))
    end
  end
  local command = deny_services .. [[
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l
apt="apt-get -y -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 -o APT::Status-Fd=1"
install() { $apt install --no-install-recommends ]] .. names .. [[; }
if ! $apt -s install --no-install-recommends ]] .. names .. [[ >/dev/null; then $apt update || exit; fi
install || { $apt update && install; }
]]
  -- A subshell, so that its trap runs before the status is told.
  local ok = run("( " .. command .. "\n)", log, on_line)
  if log then
    log:close()
  end
  if not ok then
    return failed(phase, "installing packages", log_path)
  end
  for _, package in ipairs(packages) do
    if package.service then
      os.execute("systemctl disable --now " .. package.service .. " >/dev/null 2>&1")
    end
  end
  phase:finish("done")
  return true
end

-- The stamp names what was found installed, and dpkg touches its status file at every change.
local function packages_stamped(groups, uv)
  local stamp = paths.build() .. "/packages.stamp"
  local status, ours = uv.fs_stat("/var/lib/dpkg/status"), uv.fs_stat(stamp)
  if not status or not ours or ours.mtime.sec <= status.mtime.sec then
    return false
  end
  local known = "\n" .. (read_file(stamp) or "")
  for _, package in ipairs(wanted(groups)) do
    if not known:find("\n" .. package[1] .. "\n", 1, true) then
      return false
    end
  end
  return true
end

-- The build --------------------------------------------------------------------------------------

-- A description of every source: a file that is new, gone, or changed (even back to an older time,
-- as a checkout does) makes another one.
local function sources(uv)
  local lines = { paths.repo() }
  local function add(path)
    local stat = uv.fs_stat(path)
    if stat then
      lines[#lines + 1] = string.format("%s %d %d.%09d", path, stat.size, stat.mtime.sec, stat.mtime.nsec)
    end
  end
  local function walk(directory)
    local scan = uv.fs_scandir(directory)
    while scan do
      local name, kind = uv.fs_scandir_next(scan)
      if not name then
        break
      end
      local path = directory .. "/" .. name
      if kind == "directory" then
        if name ~= "corpus" then
          walk(path)
        end
      elseif name:match("%.[ch]$") or name:match("%.txt$") or name:match("%.cmake$") then
        add(path)
      end
    end
  end
  add(paths.repo() .. "/CMakeLists.txt")
  walk(paths.repo() .. "/core")
  table.sort(lines)
  return table.concat(lines, "\n")
end

--- Builds into `directory` with CMake. `options`: extra arguments of cmake; `on_line(text)` sees
-- the output. Returns true, or nil and a message that ends with the place of the log.
---@param directory string
---@param options string[]
---@param phase table
---@param log_name string? "build"
---@param target string? instead of everything
function bootstrap.compile(directory, options, phase, log_name, target)
  local log, log_path = open_log(log_name or "build")
  -- A cache that was made for another place refuses to configure.
  local cache = read_file(directory .. "/CMakeCache.txt")
  local home = cache and cache:match("CMAKE_HOME_DIRECTORY:INTERNAL=([^\n]*)")
  if home and home ~= paths.repo() then
    os.remove(directory .. "/CMakeCache.txt")
  end
  local command = string.format(
    "cmake -S %s -B %s %s && cmake --build %s --parallel $(nproc) %s",
    quote(paths.repo()), quote(directory), quoted(options), quote(directory),
    target and "--target " .. quote(target) or "")
  local ok = run(command, log, function(line)
    if line:match("^%[ *%d+%%%]") or line:match("^%-%- ") then
      phase:update(line)
    end
  end)
  if log then
    log:close()
  end
  if not ok then
    return failed(phase, "the build", log_path)
  end
  return true
end

local function build(of)
  local phase = bootstrap.phase(2, of, "building")
  local ok, message = bootstrap.compile(paths.build(), {}, phase)
  if not ok then
    return nil, message
  end
  phase:finish("done")
  return true
end

-- Two first runs at once would fight over dpkg's lock and the build directory.
local function with_lock(fn)
  os.execute("mkdir -p " .. quote(paths.build()))
  local fd = ffi.C.open(paths.build() .. "/bootstrap.lock", bit.bor(O_RDWR, O_CREAT, O_CLOEXEC),
    ffi.cast("int", 420))
  if fd < 0 then
    return nil, paths.build() .. " can't be written to; set TIDEPOOL_BUILD, or run as its owner"
  end
  ffi.C.flock(fd, LOCK_EX)
  local ok, message = fn()
  ffi.C.close(fd)
  return ok, message
end

-- luv as soon as it is there; nil before.
local function loop()
  local ok, uv = pcall(require, "luv")
  return ok and uv or nil
end

local function fresh(uv, signature)
  return read_file(paths.build() .. "/build.stamp") == signature
    and uv.fs_stat(paths.build() .. "/tidepool/core.so") ~= nil
end

--- Sees to it that the packages of "run", "build" and of `groups` are installed and the build is
-- that of the sources. True, or nil and a message for a human.
---@param groups string[] of "image", "example", "test", "bench"
---@param of integer? how many phases there are with the caller's own (2)
---@return boolean? ok
---@return string? message
function bootstrap.ensure(groups, of)
  local uv = loop()
  if uv and packages_stamped(groups, uv) and fresh(uv, sources(uv)) then
    return true
  end
  of = of or 2
  return with_lock(function()
    local missing = bootstrap.missing(groups)
    if #missing > 0 then
      local command = bootstrap.install_command(missing)
      if ffi.C.geteuid() ~= 0 or capture("command -v apt-get") == "" then
        return nil, "packages are missing. As root: apt-get update && " .. command
      end
      local ok, message = install(missing, of)
      if not ok then
        return nil, message
      end
      missing = bootstrap.missing(groups)
      if #missing > 0 then
        return nil, "packages are still missing. As root: " .. bootstrap.install_command(missing)
      end
    end
    uv = loop()
    if not uv then
      return nil, "lua-luv is installed, but luajit can't load it: " .. package.cpath
    end
    local names = {}
    for _, package in ipairs(bootstrap.packages) do
      names[#names + 1] = package[1]
    end
    local installed = installed_by_dpkg(names)
    local found = {}
    for _, name in ipairs(names) do
      found[#found + 1] = installed[name] and name .. "\n" or nil
    end
    if installed_by_dpkg({ "pkg-config" })["pkg-config"] then
      found[#found + 1] = "pkgconf\n"
    end
    write_file(paths.build() .. "/packages.stamp", table.concat(found))

    local signature = sources(uv)
    if not fresh(uv, signature) then
      local ok, message = build(of)
      if not ok then
        return nil, message
      end
      write_file(paths.build() .. "/build.stamp", signature)
    end
    return true
  end)
end

--- Sees to it that the server has the default image, which takes a minute once. True, or nil and a
-- message. Needs what `ensure` installs; says nothing and does nothing when no server can be had,
-- since the verb itself will say that better.
function bootstrap.default_image(number)
  local async = require("tidepool.async")
  local name = "debian"
  return async.within(function()
    local client = require("tidepool.client").new()
    local images = client:call("image_ls", {})
    for _, image in ipairs(images or {}) do
      images = image.name ~= name and images or nil
    end
    if not images then
      client:close()
      return true
    end
    local phase = bootstrap.phase(number, number, "building the default image, " .. name)
    local image, message, code = client:call("image_build", { image = name }, nil, function(line)
      phase:update(line)
    end)
    client:close()
    if not image and code ~= "EEXIST" then
      phase:finish("failed")
      return nil, ("image build %s: %s (%s)"):format(name, message, code)
    end
    phase:finish("done")
    return true
  end)
end

return bootstrap

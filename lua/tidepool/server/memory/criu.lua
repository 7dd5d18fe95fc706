--- CRIU, the program that dumps and restores processes: where it is, and how it is obtained.
--
-- Runs in the server, and in `doctor`. Debian 12 and 13 ship versions that fail on newer kernels, so
-- one of Debian's newer suites is extracted into the state directory, with the libraries it needs, and
-- run by its own loader. Nothing of it is installed on the host.
local uv = require("luv")
local async = require("tidepool.async")
local sources = require("tidepool.image.sources")
local worker = require("tidepool.image.worker")

local criu = {}

local LEAST = { 4, 2 } -- 3.17.1 and 4.1.1 fail on Linux 6.18: the vdso's bounds, a dump that hangs
local SUITES = "testing unstable" -- asked in this order, unless TIDEPOOL_CRIU_SUITES names others
local triplets = { x64 = "x86_64-linux-gnu", arm64 = "aarch64-linux-gnu" }
local loaders = { x64 = "ld-linux-x86-64.so.2", arm64 = "ld-linux-aarch64.so.1" }

--- What to say where it is missing.
criu.HINT = "./sandbox.lua memory install gets it, as an extracted package of a newer Debian"

local function extracted(directory)
  local libraries = ("%s/usr/lib/%s"):format(directory, triplets[jit.arch] or "unknown")
  return { ("%s/%s"):format(libraries, loaders[jit.arch] or "unknown"), "--library-path", libraries,
    directory .. "/usr/sbin/criu" }
end

local function version_of(command)
  local argv = { command[1], command[2], command[3], command[4] }
  argv[#argv + 1] = "--version"
  argv.stdout, argv.stderr = "pipe", "pipe"
  local result = async.command(argv)
  local major, minor = ((result or {}).stdout or ""):match("Version: (%d+)%.(%d+)")
  if not major then
    return nil
  end
  return tonumber(major), tonumber(minor), result.stdout:match("Version: (%S+)")
end

local function new_enough(major, minor)
  return major and (major > LEAST[1] or major == LEAST[1] and minor >= LEAST[2])
end

local TMPFS = 0x01021994 -- CRIU keeps it there alone: it is of this kernel and its modules
local memories = { "/run", "/dev/shm" }

--- Where CRIU is to keep what it has found out about the kernel, in the place of /run; all servers of the
-- host share it. nil: it has to find out each time, as when the state directory is below /run.
function criu.notes(state)
  if uv.fs_realpath(state):find("^/run/") then
    return nil
  end
  for _, memory in ipairs(memories) do
    local found = uv.fs_statfs(memory)
    if found and found.type == TMPFS then
      local directory = memory .. "/tidepool-criu"
      uv.fs_mkdir(directory, 448)
      local stat = uv.fs_lstat(directory)
      return stat and stat.type == "directory" and stat.uid == 0 and directory or nil
    end
  end
end

local known = {} -- state directory -> what was found there

--- { command = the words that start it, version } | nil, message, "ENOPKG"
function criu.find(state)
  if known[state] then
    return known[state]
  end
  local other
  for _, command in ipairs({ extracted(state .. "/criu"), { "/usr/sbin/criu" }, { "/usr/bin/criu" } }) do
    if uv.fs_stat(command[#command]) then
      local major, minor, version = version_of(command)
      if new_enough(major, minor) then
        known[state] = { command = command, version = version }
        return known[state]
      end
      other = other or version
    end
  end
  local why = other and ("CRIU %s is too old, %d.%d is needed"):format(other, LEAST[1], LEAST[2])
    or "CRIU, which saves the memory of processes, is not here"
  return nil, why .. ": " .. criu.HINT, "ENOPKG"
end

-- The host's own mirrors, asked for another suite: security and updates have none of that.
local function lines_for(found, suite)
  local lines = {}
  for _, line in ipairs(found.lines) do
    local head, release, rest = line:match("^(deb .-)(%S+)( main)$")
    if release == found.codename then
      lines[#lines + 1] = head .. suite .. rest
    end
  end
  return lines
end

local function extract(lines, suite, target, progress)
  local command = {
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
    "mmdebstrap", "--mode=root", "--variant=extract", "--include=criu",
    "--aptopt=Acquire::Languages \"none\"",
    "--dpkgopt=path-exclude=/usr/share/*",
    stderr = "pipe",
    env = worker.environment({ LC_ALL = "C.UTF-8" }),
    on_line = function(line)
      local step = line:match("^I: (.*)%.%.%.$")
      if step then
        progress(("%s: %s"):format(suite, step))
      end
    end,
  }
  for _, option in ipairs(sources.host_acquire()) do
    command[#command + 1] = "--aptopt=" .. option
  end
  -- A mirror that is a snapshot of a day has lists that have expired since.
  command[#command + 1] = "--aptopt=Acquire::Check-Valid-Until \"false\""
  command[#command + 1] = suite
  command[#command + 1] = target
  for _, line in ipairs(lines) do
    command[#command + 1] = line
  end
  local result, message, code = async.command(command)
  if not result then
    return nil, message, code
  elseif result.code ~= 0 then
    return nil, "mmdebstrap: " .. (result.stderr:match("E: ([^\n]*)") or worker.ending(result)), "EBUILD"
  end
  return true
end

local function remove(path)
  async.command({ "rm", "-rf", "--one-file-system", "--", path })
end

local function obtain(state, progress)
  if not worker.has("mmdebstrap") then
    return nil, "mmdebstrap is not installed (apt-get install mmdebstrap)", "ENOPKG"
  end
  local found, message, code = sources.host(progress)
  if not found then
    return nil, message, code
  end
  local target = state .. "/criu.new"
  message, code = "no suite may be asked for CRIU: TIDEPOOL_CRIU_SUITES is empty", "ENOPKG"
  for suite in (os.getenv("TIDEPOOL_CRIU_SUITES") or SUITES):gmatch("%S+") do
    remove(target)
    local ok
    ok, message, code = extract(lines_for(found, suite), suite, target, progress)
    local major, minor, version
    if ok then
      major, minor, version = version_of(extracted(target))
      if not new_enough(major, minor) then
        ok, message, code = nil, ("%s has CRIU %s"):format(suite, version or "that does not run"), "ENOPKG"
      end
    end
    if ok then
      remove(state .. "/criu")
      ok, message, code = uv.fs_rename(target, state .. "/criu")
    end
    if ok then
      known[state] = nil
      return criu.find(state)
    end
    progress(message)
  end
  remove(target)
  return nil, message, code
end

local obtaining = async.lock()

--- Extracts it into the state directory, about 30 MB in 10 s, for one who asks at a time. progress(line) is told
-- the steps. { command, version } | nil, message, code; what fails leaves what was there.
function criu.obtain(state, progress)
  return obtaining:with(obtain, state, progress)
end

return criu

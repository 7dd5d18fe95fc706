--- Bringing processes back from a dump, in an id range, groups and a network of their own.
--
-- Runs in the server. CRIU makes the namespaces anew; what it can't know it asks us at two of its
-- stages, through a socket: the network is steered before anything in it is restored, and each
-- process is put into its group before it runs. What fails leaves the dump as it was.
local uv = require("luv")
local async = require("tidepool.async")
local names = require("tidepool.file").names
local cgroup = require("tidepool.server.cgroup")
local core = require("tidepool.core")
local criu = require("tidepool.server.memory.criu")
local dump = require("tidepool.server.memory.dump")
local hook = require("tidepool.server.memory.hook")
local host = require("tidepool.server.host")
local image = require("tidepool.server.memory.image")
local read_file = require("tidepool.file").read
local random = require("tidepool.random")
local steering = require("tidepool.server.steering")

local restore = {}

local OWN = "/.tidepool" -- init's directory inside
local GROUPS = "/sys/fs/cgroup" -- where tidepool-criu mounts the sandbox's own, for the restored root to find
local ENDING = 30 -- seconds that the processes of an earlier run get to be gone
local LEAST, RATE = 30, 10 * 1048576 -- it may take so many seconds, and one more for so many bytes

local function write_file(path, bytes)
  local file, message = io.open(path, "wb")
  local ok = file and file:write(bytes)
  if file then
    file:close()
  end
  if not ok then
    return nil, message or "can't write " .. path, "EIO"
  end
  return true
end

-- A directory for this restore alone: the files of the dump, linked, and those that it changes.
local function prepare(directory, work, options)
  -- CRIU's restored root, who owns none of it, looks for files here by a descriptor of the directory.
  local made, message, code = uv.fs_mkdir(work, 457) -- 0711, and above it is 0700
  if not made then
    return nil, message, code
  end
  for _, name in ipairs(names(directory)) do
    local bytes
    if name:find("^userns%-.*%.img$") then
      bytes, message, code = image.map_ids(assert(read_file(directory .. "/" .. name)), options.base, 65536)
    elseif name:find("^mountpoints%-.*%.img$") then
      bytes, message, code = image.writable(assert(read_file(directory .. "/" .. name)), OWN)
    elseif options.hostname and name:find("^utsns%-.*%.img$") then
      bytes, message, code = image.rename_host(assert(read_file(directory .. "/" .. name)), options.hostname)
    elseif name == "files.img" then
      bytes, message, code = image.arm_timers(assert(read_file(directory .. "/" .. name)))
    elseif name:find("%.img$") then
      made, message, code = uv.fs_link(directory .. "/" .. name, work .. "/" .. name)
    end
    if bytes then
      made, message, code = write_file(work .. "/" .. name, bytes)
    end
    if not made or message then
      return nil, message, code
    end
  end
  uv.fs_mkdir(work .. "/root", 448)
  return true
end

local function remove(work)
  uv.fs_rmdir(work .. "/root")
  dump.remove(work)
end

local function command(sandbox, found, work, manifest, options)
  local argv = { sandbox.server.tools .. "/tidepool-criu" }
  local function add(...)
    for _, word in ipairs({ ... }) do
      argv[#argv + 1] = word
    end
  end
  add("--group", cgroup.directory(sandbox.server.cgroups, options.key))
  local entered = {}
  for name, below in pairs(sandbox.server.cgroups.limits) do
    if sandbox.server.cgroups.controllers[name] == "v1" and not entered[below] then
      entered[below] = true
      add("--group", below .. "/" .. options.key)
    end
  end
  add("--root", options.root, "--at", work .. "/root", "--uid-base", tostring(options.base))
  local notes = criu.notes(sandbox.server.directory)
  if notes then
    add("--run", notes)
  end
  add("--cgroup-at", GROUPS, "--")
  add(unpack(found.command))
  add("restore", "--images-dir", work, "--log-file", "restore.log", "-v1", "--root", work .. "/root")
  add("--restore-detached", "--manage-cgroups=ignore", "--empty-ns", "net", "--tcp-established", "--file-locks")
  add("--skip-in-flight", "--link-remap", "--action-script", argv[1])
  for _, mount in ipairs(manifest.outside) do
    add("--external", ("mnt[%s]:%s"):format(mount.key, mount.source or GROUPS))
  end
  argv.env = hook.environment(work .. "/hook")
  return argv
end

-- Puts each process into the group that it was in.
local function regroup(sandbox, manifest, options)
  local leaf_of = {}
  for leaf, pids in pairs(manifest.leaves) do
    for _, pid in ipairs(pids) do
      leaf_of[pid] = leaf
    end
  end
  local cgroups = sandbox.server.cgroups
  for pid in (read_file(cgroup.directory(cgroups, options.key) .. "/cgroup.procs") or ""):gmatch("%d+") do
    local leaf = leaf_of[dump.inner(tonumber(pid))]
    if leaf then
      local fd, message, code = cgroup.leaf(cgroups, options.key, leaf, options.base)
      if not fd then
        return nil, message, code
      end
      fd:close()
      local ok
      ok, message, code = write_file(cgroup.directory(cgroups, options.key .. "/" .. leaf) .. "/cgroup.procs", pid)
      if not ok then
        return nil, message, code
      end
    end
  end
  return true
end

local stages = {}

stages["setup-namespaces"] = function(sandbox, made, pid, manifest)
  local pidfd, message, code = core.fd.pidfd(pid)
  if not pidfd then
    return nil, message, code
  end
  made.pid, made.pidfd = pid, pidfd
  made.steering, message, code = steering.renew(sandbox.server.spawners, pidfd, pid, manifest.steering)
  return made.steering and true, message, code
end

stages["post-restore"] = function(sandbox, _, _, manifest, options)
  local ok, message, code = regroup(sandbox, manifest, options)
  if ok and options.inside then
    return core.plan.encode(options.inside)
  end
  return ok, message, code
end

-- What is done at each stage, as hook.listen wants it.
local function answerer(sandbox, made, manifest, options)
  return function(stage, pid)
    local step = stages[stage]
    if not step then
      return true
    end
    return step(sandbox, made, pid, manifest, options)
  end
end

local function run(sandbox, found, work, manifest, options, made)
  -- Who was restored before is the host's init's child, and in the groups until that has noticed its end.
  local till = uv.hrtime() + ENDING * 1e9
  local ok, message, code = cgroup.remove(sandbox.server.cgroups, options.key)
  while code == "EBUSY" and uv.hrtime() < till do
    async.sleep(0.005)
    ok, message, code = cgroup.remove(sandbox.server.cgroups, options.key)
  end
  if ok then
    local create = cgroup.steps(sandbox.server.cgroups, options.key, options.base, options.limits)
    ok, message, code = sandbox.server.spawners:execute(create)
  end
  if not ok then
    return nil, message, code
  end
  local stop
  stop, message, code = hook.listen(work .. "/hook", answerer(sandbox, made, manifest, options))
  if not stop then
    return nil, message, code
  end
  local argv = command(sandbox, found, work, manifest, options)
  ok, message, code = dump.run(argv, work, "restore.log", LEAST + manifest.bytes / RATE)
  local refused, refused_code = stop()
  if not ok then
    return nil, refused or message, refused and refused_code or code
  elseif not made.pid or not made.steering then
    return nil, "CRIU has not told of init", "EPROTO"
  end
  return true
end

--- Restores a dump. options: base, of the id range; key, of the control groups; root, the path of the
-- files; limits, as of container.start; for one that goes on as another than it was captured, hostname, and
-- inside, the steps of a plan for inside.
-- { pid, pidfd, steering, manifest } | nil, message, code; a failure leaves nothing behind but the dump.
function restore.restore(sandbox, directory, options)
  local found, message, code = criu.find(sandbox.server.directory)
  if not found then
    return nil, message, code
  end
  local manifest = dump.read(directory)
  if not manifest then
    return nil, "its memory image is not whole", "ENOENT"
  end
  local ok
  ok, message, code = host.can_run(manifest.host)
  if not ok then
    return nil, message, code
  end
  local work = ("%s/memory/restore-%s"):format(sandbox.server.directory, random.hex(8))
  local made = { manifest = manifest }
  ok, message, code = prepare(directory, work, options)
  if ok then
    ok, message, code = run(sandbox, found, work, manifest, options, made)
  end
  if not ok then
    cgroup.kill(sandbox.server.cgroups, options.key)
    if made.steering then
      steering.close(made.steering)
    end
    if made.pidfd then
      made.pidfd:close()
    end
    restore.keep_log(work, directory)
  end
  remove(work)
  if not ok then
    local kernel = (manifest.host or {}).kernel
    if kernel and kernel ~= host.machine().kernel then
      message = ("%s (captured by Linux %s, this is %s)"):format(message, kernel, host.machine().kernel)
    end
    return nil, "restore: " .. message, code
  end
  return made
end

--- For whoever looks into a failure.
function restore.keep_log(work, directory)
  uv.fs_rename(work .. "/restore.log", directory .. "/restore.log")
end

--- Removes what restores of an earlier server have left.
function restore.sweep(state)
  for _, name in ipairs(names(state .. "/memory")) do
    if name:find("^restore%-") then
      remove(state .. "/memory/" .. name)
    end
  end
end

return restore

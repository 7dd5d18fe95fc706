--- Control groups of sandboxes: limits, counters, killing.
--
-- Runs in the server; what it does itself is a few short reads and writes of kernel files. A sandbox's
-- group is `tidepool/INSTANCE/KEY` and each of its processes has a leaf below. Trees live in cgroup
-- v2, which kills, freezes and counts CPU time exactly, with or without controllers; a limit is set
-- where its controller is: in v2, or on a hybrid machine in the v1 hierarchy that has it. What can't
-- be enforced stands in `unenforced`.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local read_file = require("tidepool.file").read

local cgroup = {}

local controllers = { "cpu", "memory", "pids" }
local period = 100000 -- microseconds, the kernel's default

local function write_file(path, text)
  local fd, message, code = uv.fs_open(path, "w", 0)
  if not fd then
    return nil, message, code
  end
  local wrote
  wrote, message, code = uv.fs_write(fd, text, 0)
  uv.fs_close(fd)
  if not wrote then
    return nil, message, code
  end
  return true
end

local function read_number(path)
  local text = read_file(path)
  return text and tonumber((text:match("%d+")))
end

local function has_word(text, word)
  return (" " .. text:gsub("[%s,]", " ") .. " "):find(" " .. word .. " ", 1, true) ~= nil
end

--- Finds the hierarchies of this host: { mode = "v2" | "hybrid" | "v1" | "none", unified = mount point,
-- v1 = { controller = mount point }, controllers = { controller = "v1" | "v2" } }.
function cgroup.detect(mountinfo)
  local found = { mode = "none", v1 = {}, controllers = {} }
  for line in (mountinfo or read_file("/proc/self/mountinfo") or ""):gmatch("[^\n]+") do
    local root, point, kind, options = line:match("^%S+ %S+ %S+ (%S+) (%S+) .- %- (%S+) %S+ (%S+)")
    if kind == "cgroup2" and root == "/" then
      found.unified = found.unified or point
    elseif kind == "cgroup" and root == "/" then
      for _, name in ipairs(controllers) do
        if has_word(options, name) then
          found.v1[name] = found.v1[name] or point
        end
      end
    end
  end
  local offered = found.unified and read_file(found.unified .. "/cgroup.controllers") or ""
  for _, name in ipairs(controllers) do
    found.controllers[name] = has_word(offered, name) and "v2" or found.v1[name] and "v1" or nil
  end
  if found.unified then
    found.mode = next(found.v1) and "hybrid" or "v2"
  elseif next(found.v1) then
    found.mode = "v1"
  end
  return found
end

local costs = {
  cpu = "CPU quota: no cpu controller",
  memory = "memory limit: no memory controller",
  pids = "pids limit: no pids controller",
}

-- Lets the groups below `path` have a controller. In a group with processes the kernel refuses `memory`
-- and takes `cpu` and `pids`, but then nothing can be started in the groups below (threaded domains);
-- the tree's own root is an exception. So a container whose first processes are in the way has no limits.
local function hand_down(path, name)
  if has_word(read_file(path .. "/cgroup.subtree_control") or "", name) then
    return true
  end
  if uv.fs_stat(path .. "/cgroup.type") and (read_file(path .. "/cgroup.procs") or ""):find("%d") then
    return nil, ("processes in %s are in the way"):format(path), "EBUSY"
  end
  local ok, message, code = write_file(path .. "/cgroup.subtree_control", "+" .. name)
  if not ok then
    return nil, ("enable %s below %s: %s"):format(name, path, message), code
  end
  return true
end

-- Makes the directories, and on v2 hands the controllers down to them, from the mount's own group on:
-- systemd enables there what its units need, and nobody else does. Other groups are left alone.
local function prepare(root, wanted)
  local path = root.mount
  for part in ("/" .. root.base .. "/"):gmatch("([^/]*)/") do
    path = part == "" and path or path .. "/" .. part
    if part ~= "" then
      local made, message, code = uv.fs_mkdir(path, 493)
      if not made and code ~= "EEXIST" then
        return nil, message, code
      end
    end
    for _, name in ipairs(wanted) do
      local ok, message, code = hand_down(path, name)
      if not ok then
        return nil, message, code
      end
    end
  end
  return path
end

--- Prepares the groups of one server. Returns { mode, unenforced, ... } | nil, message, code.
-- `mountinfo`: as of cgroup.detect, another host's for specs.
function cgroup.open(instance, mountinfo)
  local self = cgroup.detect(mountinfo)
  if not self.unified then
    return nil, "no cgroup v2 tree is mounted: mount one (cgroup2, at /sys/fs/cgroup/unified)", "ENOTSUP"
  end
  self.instance, self.base, self.directories, self.unenforced = instance, "tidepool/" .. instance, {}, {}
  self.removing = {}
  local path, message, code = prepare({ mount = self.unified, base = self.base }, {})
  if not path then
    return nil, message, code
  end
  self.path = path
  self.limits = {} -- controller -> the directory below which a limit is set
  for _, name in ipairs(controllers) do
    local where = self.controllers[name]
    local below, why
    if where == "v2" then
      below, why = prepare({ mount = self.unified, base = self.base }, { name })
    elseif where == "v1" then
      below, why = prepare({ mount = self.v1[name], base = self.base }, {})
    end
    self.limits[name] = below
    if not below then
      self.unenforced[#self.unenforced + 1] = costs[name] .. (why and " (" .. why .. ")" or "")
    end
  end
  return self
end

--- The v2 directory of a group, "KEY" or "KEY/LEAF".
function cgroup.directory(self, path)
  return self.path .. "/" .. path
end

local function quota(cpu)
  return math.max(1000, math.floor(cpu * period + 0.5))
end

-- { file, text, optional = }. The memory limit counts no swap: as much of that again, as docker has it,
-- so that one sandbox can't take all of the host's. A kernel without swap accounting lacks the file.
local function limit_files(self, name, limits)
  local v2 = self.controllers[name] == "v2"
  if name == "cpu" and limits.cpu then
    local amount = quota(limits.cpu)
    return v2 and { { "cpu.max", ("%d %d"):format(amount, period) } }
      or { { "cpu.cfs_period_us", tostring(period) }, { "cpu.cfs_quota_us", tostring(amount) } }
  elseif name == "memory" and limits.memory then
    local bytes = ("%d"):format(limits.memory)
    if v2 then
      return { { "memory.max", bytes }, { "memory.swap.max", bytes, optional = true } }
    end
    -- v1 counts what TCP and UDP hold apart, and only when told to.
    local sockets = ("%d"):format(limits.memory / 4)
    local both = ("%d"):format(limits.memory * 2)
    return { { "memory.limit_in_bytes", bytes }, { "memory.memsw.limit_in_bytes", both, optional = true },
      { "memory.kmem.tcp.limit_in_bytes", sockets, optional = true } }
  elseif name == "pids" and limits.pids then
    return { { "pids.max", ("%d"):format(limits.pids) } }
  end
  return {}
end

--- Plan steps: `create` makes a sandbox's groups, owned for its root's host id, with the limits
-- { cpu = vCPUs, memory = bytes, pids = } that are given; `join` moves the child into those that a
-- clone can't place it in.
function cgroup.steps(self, key, owner, limits)
  self.removing[key] = nil
  local create, join = { { "group", cgroup.directory(self, key), owner } }, {}
  local made = {}
  for _, name in ipairs(controllers) do
    local below = self.limits[name]
    if below then
      local path = below .. "/" .. key
      if self.controllers[name] == "v1" and not made[path] then
        made[path] = true
        create[#create + 1] = { "group", path, 0 }
        join[#join + 1] = { "join", path }
      end
      for _, file in ipairs(limit_files(self, name, limits)) do
        create[#create + 1] = { file.optional and "write?" or "write", path .. "/" .. file[1], file[2] }
      end
    end
  end
  if #join > 0 then
    table.insert(create, 1, { "dynmods?" })
  end
  return create, join
end

local function directory_fd(self, key)
  local fd, message, code = self.directories[key], nil, nil
  if not fd then
    fd, message, code = core.fd.open(cgroup.directory(self, key), "dp")
    self.directories[key] = fd
  end
  return fd, message, code
end

--- Makes the leaf of one process and returns its directory's descriptor, which START passes on.
-- `owner`: the host id of the sandbox's root.
function cgroup.leaf(self, key, name, owner)
  local parent, message, code = directory_fd(self, key)
  if not parent then
    return nil, message, code
  end
  return core.cgroup.leaf(parent, name, owner)
end

--- Names of the leaves of a sandbox.
function cgroup.leaves(self, key)
  local names = {}
  local scan = uv.fs_scandir(cgroup.directory(self, key))
  while scan do
    local name, kind = uv.fs_scandir_next(scan)
    if not name then
      break
    end
    if kind == "directory" then
      names[#names + 1] = name
    end
  end
  return names
end

local function with_directory(self, path, fn)
  local fd, message, code = core.fd.open(cgroup.directory(self, path), "rd")
  if not fd then
    return nil, message, code
  end
  local result
  result, message, code = fn(fd)
  fd:close()
  return result, message, code
end

--- SIGKILL to all in the group, at once. A group that is gone counts as done.
function cgroup.kill(self, path)
  local ok, message, code = with_directory(self, path, core.cgroup.kill)
  if not ok and code == "ENOENT" then
    return true
  end
  return ok, message, code
end

--- Is some process in the group or below?
function cgroup.populated(self, path)
  return with_directory(self, path, core.cgroup.populated) == true
end

--- Sends a signal to each process of the group; for SIGKILL there is `kill`, which misses none.
function cgroup.signal(self, path, signal)
  return with_directory(self, path, function(fd)
    return core.cgroup.signal(fd, signal)
  end)
end

local function set_frozen(self, path, value)
  return write_file(cgroup.directory(self, path) .. "/cgroup.freeze", value)
end

--- Asks the kernel to stop all in the group; `frozen` tells when it has.
function cgroup.freeze(self, path)
  return set_frozen(self, path, "1")
end

function cgroup.thaw(self, path)
  return set_frozen(self, path, "0")
end

function cgroup.frozen(self, path)
  local events = read_file(cgroup.directory(self, path) .. "/cgroup.events") or ""
  return events:find("frozen 1", 1, true) ~= nil
end

--- CPU seconds that the group has used, or nil when it is gone.
function cgroup.cpu_seconds(self, path)
  local used = (read_file(cgroup.directory(self, path) .. "/cpu.stat") or ""):match("usage_usec (%d+)")
  return used and tonumber(used) / 1e6
end

local function limit_file(self, key, name, v1, v2)
  local below = self.limits[name]
  local file = self.controllers[name] == "v2" and v2 or v1
  return below and ("%s/%s/%s"):format(below, key, file)
end

local function counter(self, key, name, v1, v2)
  local path = limit_file(self, key, name, v1, v2)
  return path and read_number(path)
end

--- { cpu_seconds, memory, memory_peak (bytes), pids } of a sandbox; a counter that the host lacks is nil.
function cgroup.usage(self, key)
  return {
    cpu_seconds = cgroup.cpu_seconds(self, key),
    memory = counter(self, key, "memory", "memory.usage_in_bytes", "memory.current"),
    memory_peak = counter(self, key, "memory", "memory.max_usage_in_bytes", "memory.peak"),
    pids = counter(self, key, "pids", "pids.current", "pids.current"),
  }
end

--- Bytes of memory that no file holds: what is to be written when it is put on disk. 0 where the host can't say.
function cgroup.resident(self, key)
  local path = limit_file(self, key, "memory", "memory.stat", "memory.stat")
  local text = "\n" .. (path and read_file(path) or "")
  local bytes = 0
  for _, name in ipairs(self.controllers.memory == "v2" and { "anon", "shmem" } or { "total_rss", "total_shmem" }) do
    bytes = bytes + tonumber(text:match("\n" .. name .. " (%d+)") or 0)
  end
  return bytes
end

--- How many processes of the sandbox the kernel has killed for want of memory.
function cgroup.oom_kills(self, key)
  local path = limit_file(self, key, "memory", "memory.oom_control", "memory.events")
  local text = path and read_file(path) or ""
  return tonumber(text:match("oom_kill (%d+)") or 0)
end

--- Removes an empty leaf: true, also when it is gone; false while some process is in it.
function cgroup.remove_leaf(self, path)
  local removed, _, code = uv.fs_rmdir(cgroup.directory(self, path))
  return removed ~= nil or code == "ENOENT"
end

local function remove_once(self, key)
  for _, leaf in ipairs(cgroup.leaves(self, key)) do
    uv.fs_rmdir(cgroup.directory(self, key .. "/" .. leaf))
  end
  local failed, message, failure
  local paths = { [cgroup.directory(self, key)] = true }
  for _, below in pairs(self.limits) do
    paths[below .. "/" .. key] = true
  end
  for path in pairs(paths) do
    local removed, why, code = uv.fs_rmdir(path)
    if not removed and code ~= "ENOENT" then
      failed, message, failure = true, why, code
    end
  end
  if failed then
    return nil, message, failure
  end
  return true
end

-- Tries until the last process has ended, 10 seconds at most, or until the group is wanted again.
local function keep_removing(self, key)
  local turn = {}
  self.removing[key] = turn
  async.spawn(function()
    for _ = 1, 200 do
      async.sleep(0.05)
      if self.removing[key] ~= turn or remove_once(self, key) then
        break
      end
    end
    if self.removing[key] == turn then
      self.removing[key] = nil
    end
  end)
end

--- Removes a sandbox's groups with their leaves. Returns true | nil, message, code; after "EBUSY", some
-- process is still ending, it is tried again in the background.
function cgroup.remove(self, key)
  local fd = self.directories[key]
  self.directories[key] = nil
  if fd then
    fd:close()
  end
  local removed, message, code = remove_once(self, key)
  if not removed and code == "EBUSY" then
    keep_removing(self, key)
  end
  return removed, message, code
end

--- Names of the sandboxes that have a group here.
function cgroup.names(self)
  return cgroup.leaves(self, "")
end

--- Removes the groups of the server itself; they must be empty.
function cgroup.close(self)
  for _, fd in pairs(self.directories) do
    fd:close()
  end
  self.directories = {}
  local paths = { [self.path] = true }
  for _, below in pairs(self.limits) do
    paths[below] = true
  end
  for path in pairs(paths) do
    uv.fs_rmdir(path)
    uv.fs_rmdir((path:gsub("/[^/]+$", ""))) -- `tidepool`, when no other instance is there
  end
end

return cgroup

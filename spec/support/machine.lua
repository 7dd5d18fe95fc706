--- Looking at the real machine: processes, cgroups, loops, and what a server left of them.
--
-- For specs (as part of spec.support) and for the end of a test run, where no busted is loaded.
local uv = require("luv")
local async = require("tidepool.async")

local machine = {}

machine.read = require("tidepool.file").read

--- The names in a directory, sorted; {} when it isn't there.
function machine.names(directory)
  local names, scan = {}, uv.fs_scandir(directory)
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then
      break
    end
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

--- Whether a process runs; a zombie does not.
function machine.alive(pid)
  local state = (machine.read("/proc/" .. pid .. "/stat") or ""):match("%) (%a)")
  return state ~= nil and state ~= "Z" and state ~= "X"
end

--- How many descriptors a process has open ("self" for this one).
function machine.fd_count(pid)
  return #machine.names("/proc/" .. (pid or "self") .. "/fd")
end

local function v2_mount()
  for line in machine.read("/proc/self/mountinfo"):gmatch("[^\n]+") do
    local point = line:match("^%S+ %S+ %S+ %S+ (%S+) .- %- cgroup2 ")
    if point then
      return point
    end
  end
end

--- The v2 cgroup directory of a running sandbox.
function machine.cgroup_of(box)
  local pid = assert(assert(box:info()).pid, box.name .. " does not run")
  local path = machine.read("/proc/" .. pid .. "/cgroup"):match("0::(/[^\n]*)")
  return v2_mount() .. path
end

--- The processes in a cgroup (a directory, or a sandbox's) and below, as host pids; {} when it is gone.
function machine.processes_in(cgroup)
  local directory = type(cgroup) == "table" and machine.cgroup_of(cgroup) or cgroup
  local pids = {}
  local function walk(path)
    for pid in (machine.read(path .. "/cgroup.procs") or ""):gmatch("%d+") do
      pids[#pids + 1] = tonumber(pid)
    end
    for _, name in ipairs(machine.names(path)) do
      local stat = uv.fs_lstat(path .. "/" .. name)
      if stat and stat.type == "directory" then
        walk(path .. "/" .. name)
      end
    end
  end
  walk(directory)
  return pids
end

--- Calls fn until it returns something true, and returns that; false after `timeout` seconds, 60 unless
-- given: what takes a moment here may take long on a machine that is busy with other things.
function machine.eventually(fn, timeout)
  return async.within(function()
    local until_ = uv.hrtime() + (timeout or 60) * 1e9
    while true do
      local value = fn()
      if value then
        return value
      end
      if uv.hrtime() > until_ then
        return false
      end
      async.sleep(0.02)
    end
  end)
end

--- What fn returns once that has stood still for a quarter of a second.
function machine.settled(fn)
  local last, since
  machine.eventually(function()
    local value = fn()
    if value ~= last then
      last, since = value, uv.hrtime()
    end
    return uv.hrtime() - since > 0.25e9
  end)
  return last
end

-- Servers, spawners, whatever a server started outside of a sandbox: they inherit its environment.
local function processes_of(run)
  local found = {}
  for _, pid in ipairs(machine.names("/proc")) do
    local environ = pid:match("^%d+$") and tonumber(pid) ~= uv.os_getpid()
      and machine.read("/proc/" .. pid .. "/environ")
    if environ and ("\0" .. environ):find("\0TIDEPOOL_RUN=" .. run, 1, true) then
      local command = (machine.read("/proc/" .. pid .. "/cmdline") or ""):gsub("%z", " ")
      found[#found + 1] = pid .. " (" .. command:sub(1, 60) .. ")"
    end
  end
  return found
end

--- The servers of whose run and state directory `chosen` says yes: a list of { pid, state, run }.
function machine.servers(chosen)
  local found = {}
  for _, pid in ipairs(machine.names("/proc")) do
    local environ = pid:match("^%d+$") and machine.read("/proc/" .. pid .. "/environ")
    local run = environ and ("\0" .. environ):match("%zTIDEPOOL_RUN=(%Z*)")
    local state = environ and ("\0" .. environ):match("%zTIDEPOOL_STATE=(%Z*)")
    local command = machine.read("/proc/" .. pid .. "/cmdline") or ""
    if run and state and command:find("\0serve\0", 1, true) and chosen(run, state) then
      found[#found + 1] = { pid = tonumber(pid), run = run, state = state }
    end
  end
  return found
end

local function loops_of(state)
  local found = {}
  for _, name in ipairs(machine.names("/sys/block")) do
    local backing = machine.read("/sys/block/" .. name .. "/loop/backing_file")
    if backing and backing:sub(1, #state) == state then
      found[#found + 1] = name
    end
  end
  return found
end

local function cgroups_of(instance)
  local found = {}
  for line in machine.read("/proc/self/mountinfo"):gmatch("[^\n]+") do
    local point = line:match("^%S+ %S+ %S+ %S+ (%S+) .- %- cgroup2? ")
    local directory = point and (point .. "/tidepool/" .. instance)
    for _, name in ipairs(directory and machine.names(directory) or {}) do
      local stat = uv.fs_stat(directory .. "/" .. name)
      if stat and stat.type == "directory" then
        found[#found + 1] = directory .. "/" .. name
      end
    end
  end
  return found
end

--- What servers with their state and run directories below these left on the machine, now that they
-- have ended: sentences, none when all is well. Loops and cgroups go a moment after what held them,
-- so this waits for them.
function machine.leftovers(state, run, instance)
  local left
  machine.eventually(function()
    left = {}
    local function note(what, list)
      if #list > 0 then
        left[#left + 1] = what .. " " .. table.concat(list, ", ")
      end
    end
    note("process", processes_of(run))
    note("loop device", loops_of(state))
    note("cgroup", instance and cgroups_of(instance) or {})
    if machine.read("/proc/self/mountinfo"):find(" " .. state .. "/", 1, true) then -- it may be one itself
      left[#left + 1] = "a mount below " .. state
    end
    return #left == 0
  end, 30)
  return left
end

--- Ends the server of this client and all its sandboxes; says what is left: a list of sentences.
function machine.close(client)
  local server = client:call("info", {})
  for _, info in ipairs(server and client:call("ls", {}) or {}) do
    client:call("destroy", { name = info.name })
  end
  if server then
    client:call("shutdown", {})
  end
  client:close()
  return machine.leftovers(client.state, client.run, server and server.instance)
end

return machine

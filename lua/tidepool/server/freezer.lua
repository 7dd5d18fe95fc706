--- Freezing: a sandbox that stands still uses no CPU and goes on within a millisecond, when asked to.
--
-- Runs in the server. Verbs wake a frozen sandbox before they look at it (Sandbox:wake). Input doesn't
-- pass the server, so meanwhile we hold the sockets that init and the file agents read, and look
-- whether something arrives: whatever a client sends wakes it, and nothing is lost.
local uv = require("luv")
local async = require("tidepool.async")
local cgroup = require("tidepool.server.cgroup")
local core = require("tidepool.core")
local log = require("tidepool.server.log")
local processes = require("tidepool.server.processes")
local read_file = require("tidepool.file").read
local step = require("tidepool.server.step")

local freezer = {}

local LIMIT = 10000 -- milliseconds until all must stand still; a task that waits for a dead disk never does
local ANSWER = 0.5 -- seconds that init gets to answer what it was asked
local WATCHED = 1024 -- sockets; more clients than that have to ask for it by a verb

local function now()
  local seconds, micros = uv.gettimeofday()
  return seconds + micros / 1e6
end

local function unwatch(sandbox)
  for entry in pairs(sandbox.inputs or {}) do
    entry.watch:close()
    entry.fd:close()
  end
  sandbox.inputs = nil
end

-- Something arrived at one of the sockets, or its other end was closed, which wakes nobody.
local function arrived(sandbox, entry)
  local inputs = sandbox.inputs
  if not inputs or not inputs[entry] then
    return
  elseif core.fd.waiting(entry.fd) == 0 then
    inputs[entry] = nil
    entry.watch:close()
    entry.fd:close()
    return
  end
  unwatch(sandbox)
  async.spawn(function()
    local ok, message, code = sandbox:wake()
    if not ok then
      log.error("wake_failed", { sandbox = sandbox.name, message = message, code = code })
    end
  end)
end

-- The sockets that a process has open, but for those that can have nothing to read.
local function watch_process(sandbox, pid, room)
  local pidfd = core.fd.pidfd(pid)
  local scan = pidfd and uv.fs_scandir(("/proc/%d/fd"):format(pid))
  while scan and room > 0 do
    local number = uv.fs_scandir_next(scan)
    if not number then
      break
    end
    local target = uv.fs_readlink(("/proc/%d/fd/%s"):format(pid, number)) or ""
    local fd = target:find("^socket:") and core.fd.borrow(pidfd, tonumber(number))
    if fd and core.fd.waiting(fd) then
      local entry = { fd = fd }
      sandbox.inputs[entry] = true
      entry.watch = assert(async.watch(fd:number(), "r", function()
        arrived(sandbox, entry)
      end))
      entry.watch:start("r")
      room = room - 1
    elseif fd then
      fd:close()
    end
  end
  if pidfd then
    pidfd:close()
  end
  return room
end

-- init reads terminals' and pipes' input and our own requests, agents read requests of clients.
local function watch(sandbox)
  unwatch(sandbox)
  sandbox.inputs = {}
  local room = watch_process(sandbox, sandbox.run.pid, WATCHED)
  local agents = cgroup.directory(sandbox.server.cgroups, sandbox:leaf_group("files"))
  for pid in (read_file(agents .. "/cgroup.procs") or ""):gmatch("%d+") do
    room = watch_process(sandbox, tonumber(pid), room)
  end
end

local function group_of(sandbox)
  return cgroup.directory(sandbox.server.cgroups, sandbox:key())
end

-- What init was asked it should have answered before it stands still.
local function settle(sandbox)
  local till = uv.hrtime() + ANSWER * 1e9
  while sandbox.link and next(sandbox.link.pending) and uv.hrtime() < till do
    async.sleep(0.001)
  end
end

--- Makes all of a running sandbox stand still. Called with its lock held.
-- Returns true | nil, message, code: "ETIMEDOUT", some process can't be stopped.
function freezer.freeze(sandbox)
  settle(sandbox)
  local group = group_of(sandbox)
  local ok, message, code = sandbox.server.spawners:execute({ { "freeze", group, LIMIT } })
  if ok then
    step("frozen")
    sandbox.run.frozen = now()
    ok, message, code = sandbox:record("frozen", nil, sandbox.run)
  end
  if not ok then
    cgroup.thaw(sandbox.server.cgroups, sandbox:key())
    sandbox.run.frozen = nil
    return nil, "freeze " .. sandbox.name .. ": " .. message, code
  end
  processes.pause(sandbox)
  watch(sandbox)
  log.info("sandbox_frozen", { sandbox = sandbox.name })
  return true
end

--- Lets it go on. Called with its lock held. Returns true | nil, message, code.
function freezer.thaw(sandbox)
  unwatch(sandbox)
  local ok, message, code = cgroup.thaw(sandbox.server.cgroups, sandbox:key())
  if not ok then
    return nil, "thaw " .. sandbox.name .. ": " .. message, code
  end
  step("thawed")
  local run = sandbox.run
  processes.resume(sandbox, math.max(0, now() - (run.frozen or now())))
  run.frozen = nil
  sandbox:record_fact("running", nil, run)
  log.info("sandbox_thawed", { sandbox = sandbox.name })
  return true
end

--- Forgets what was held of one whose run has ended.
function freezer.forget(sandbox)
  unwatch(sandbox)
end

--- Takes over one that an earlier server froze: true when it stands still, false when it runs.
function freezer.adopt(sandbox)
  if not cgroup.frozen(sandbox.server.cgroups, sandbox:key()) then
    return false
  end
  watch(sandbox)
  return true
end

return freezer

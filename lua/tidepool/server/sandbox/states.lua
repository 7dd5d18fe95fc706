--- From one state to another, on request: freeze, hibernate, wake, stop.
--
-- Runs in the server; each takes the sandbox's lock. How it is done is elsewhere: freezer.lua for
-- standing still, memory/ for memory on disk, run.lua for starts and ends. These are methods of a
-- sandbox (sandbox/init.lua).
local async = require("tidepool.async")
local freezer = require("tidepool.server.freezer")
local hibernation = require("tidepool.server.memory.sleep")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local processes = require("tidepool.server.processes")

local states = {}

--- Lets a frozen one go on. One that an earlier server froze has no link yet. Called with the lock held.
function states.thaw(self)
  if self.state ~= "frozen" then
    return true
  end
  local ok, message, code = freezer.thaw(self)
  if not ok or self.link then
    return ok, message, code
  end
  ok, message = self:connect()
  if ok then
    ok, message = processes.adopt(self)
  end
  if not ok then
    return self:end_run(0, "init does not answer: " .. message)
  end
  return true
end

--- Makes it stand still, with the lock held; it runs.
function states.freeze_now(self)
  return freezer.freeze(self)
end

-- Its clients' ends and ours are closed, since its memory is being written.
local function falls_asleep(self)
  return self.state == "running" and (not self.link or self.link.let_go)
end

--- Whether it stands still until somebody asks something of it, or is about to.
function states.asleep(self)
  return self.state == "frozen" or self.state == "hibernated" or self.state == "waking" or falls_asleep(self)
end

--- Waits until somebody else has woken it, or ended it.
function states.await_awake(self)
  while not self.destroyed and self:asleep() do
    if not falls_asleep(self) then
      self.changed:wait()
    end
    self.lock:with(function() end) -- whatever changes it is done then
    if falls_asleep(self) then
      async.sleep(0.02) -- it has lost its init, and not been told yet
    end
  end
end

--- The memory that it slept with is of no use any more. Called with the lock held.
function states.forget_memory(self)
  if self.state == "hibernated" then
    self:record_fact("stopped", "its memory was dropped", nil)
    processes.lost(self, "its memory was dropped")
  end
  memory.forget(self)
end

--- Makes all its processes stand still: true, also when they do; "ESTOPPED" when it doesn't run.
function states.freeze(self)
  return self.lock:with(function()
    if self.state == "frozen" then
      return true
    elseif self.state ~= "running" then
      return nil, "sandbox is not running: " .. self.name, "ESTOPPED"
    end
    return freezer.freeze(self)
  end)
end

--- Puts its memory on disk: { seconds, bytes, connections_reset } | nil, message, code; what fails leaves it running.
function states.hibernate(self)
  return self.lock:with(function()
    if self.state == "hibernated" then
      return hibernation.figures(self)
    end
    local ok, message, code = states.thaw(self)
    if ok then
      ok, message, code = self:mend()
    end
    if not ok then
      return nil, message, code
    elseif self.state ~= "running" then
      return nil, "sandbox is not running: " .. self.name, "ESTOPPED"
    end
    return hibernation.hibernate(self)
  end)
end

--- Makes sure that it runs. `cold`: one that hibernates is started from its files.
function states.wake(self, cold)
  if self.state == "running" and self.link and not self.link:is_closed() and not self.link.let_go then
    return true
  end
  return self.lock:with(function()
    if self.destroyed then
      return nil, "sandbox was destroyed: " .. self.name, "ENOSANDBOX"
    end
    local ok, message, code = states.thaw(self)
    if ok then
      ok, message, code = self:mend()
    end
    if not ok then
      return nil, message, code
    elseif self.state == "running" then
      return true
    elseif self.state == "hibernated" and not cold then
      return hibernation.wake(self)
    end
    states.forget_memory(self)
    ok, message, code = self:start()
    if not ok then
      return nil, "start " .. self.name .. ": " .. message, code
    end
    log.info("sandbox_started", { sandbox = self.name })
    return true
  end)
end

--- Ends all its processes: TERM, `grace` seconds, KILL. Files stay.
function states.stop(self, grace)
  return self.lock:with(function()
    if grace > 0 then
      states.thaw(self) -- so that it can end in good order; a KILL reaches frozen ones, too
    end
    states.forget_memory(self)
    return self:end_run(grace, "stopped by request")
  end)
end

return states

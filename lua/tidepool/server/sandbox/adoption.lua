--- Taking over a sandbox that an earlier server left, one row of the database.
--
-- Runs in the server, at its start.
local async = require("tidepool.async")
local cgroup = require("tidepool.server.cgroup")
local container = require("tidepool.server.container")
local core = require("tidepool.core")
local egress = require("tidepool.server.egress")
local freezer = require("tidepool.server.freezer")
local host = require("tidepool.server.host")
local keep = require("tidepool.server.memory.keep")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local processes = require("tidepool.server.processes")
local sandbox = require("tidepool.server.sandbox")

local adoption = {}

local function adopt_running(self)
  local run = self.run
  if not run then
    return nil, "its record is damaged"
  end
  if run.boot_id ~= host.boot_id() then
    return nil, "the host was restarted"
  end
  local pidfd = run.pid and core.fd.pidfd(run.pid)
  if not pidfd or host.start_time(run.pid) ~= run.start_time then
    return nil, "init ended while no server ran"
  end
  self.pidfd = pidfd
  if self.state == "frozen" and freezer.adopt(self) then
    self:watch_end(run.pid)
    async.spawn(self.limit_disk, self)
    egress.adopt(self)
    return true
  end
  memory.await_dump(self)
  -- A snapshot that was being taken has frozen it, or its thaw was not written down.
  cgroup.thaw(self.server.cgroups, self:key())
  self.state, run.frozen = "running", nil
  local ok, message = self:connect()
  if not ok then
    -- A namespace takes a moment to die.
    local gone = async.readable(pidfd:number(), 1)
    return nil, gone and "init ended while no server ran" or "init could not be reached: " .. message
  end
  self:watch_end(run.pid)
  async.spawn(self.limit_disk, self)
  egress.adopt(self)
  return processes.adopt(self)
end

--- Takes over what an earlier server left, one row of the database. Never raises for one bad sandbox.
function adoption.adopt(server, row)
  local self = sandbox.new(server, row)
  server.sandboxes[row.name] = self
  if row.damaged then
    log.error("row_damaged", { sandbox = self.name })
  end
  if row.state ~= "hibernated" and row.state ~= "waking" then
    keep.remove(keep.pending(self))
  end
  if row.copied and (row.state == "running" or row.state == "frozen" or row.state == "starting") then
    -- What runs belongs to the server of the original.
    self.run = nil
    self:record_fact("stopped", "the state directory was copied or restored", nil)
  elseif row.state == "running" or row.state == "frozen" then
    local ok, reason = adopt_running(self)
    if ok then
      log.info("sandbox_adopted", { sandbox = self.name, pid = self.run.pid })
      return
    end
    self:ended(reason)
  elseif row.state == "hibernated" or row.state == "waking" then
    keep.settle(self, memory.directory(self))
    if self.run then
      container.destroy(server.spawners, server.cgroups, self:key())
    end
    if row.state == "waking" or self.run then
      self:record_fact("hibernated", row.state == "waking" and "the server ended while it woke" or nil, nil)
    end
  elseif row.state == "starting" then
    -- Its init may be there, but nobody wrote down which: end it by its cgroup.
    container.destroy(server.spawners, server.cgroups, self:key())
    self:record_fact("stopped", "the server ended while it started", nil)
  elseif row.state == "creating" or row.state == "destroying" then
    container.destroy(server.spawners, server.cgroups, self:key())
    local ok, message = self:unmake()
    log.info("sandbox_unmade", { sandbox = self.name, state = row.state, message = ok and "" or message })
  end
end

return adoption

--- Other files in the place of those that a sandbox has.
--
-- Runs in the server. These are methods of a sandbox (sandbox/init.lua).
local hibernation = require("tidepool.server.memory.sleep")
local keep = require("tidepool.server.memory.keep")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local processes = require("tidepool.server.processes")
local random = require("tidepool.random")
local step = require("tidepool.server.step")

local rollback = {}

--- Its files are others from now on, in the directory `root` of storage, and continue the snapshot `parent`;
-- with_memory: it hibernates then, with what keep.settle finds.
-- It does not run. Called with its lock held. `key`: of the request; it ran before, if `ran`.
function rollback.replace_files(self, root, parent, key, ran, with_memory)
  local ok, message, code = self.server.state:roll_back(self.id, root, parent, key, { ran = ran, done = true }, with_memory)
  if not ok then
    return nil, message, code
  end
  local old = self.root
  self.root, self.parent = root, parent
  if with_memory then
    processes.lost(self, "rolled back")
    processes.reset(self)
    self.state, self.reason, self.run = "hibernated", nil, nil
    keep.settle(self, memory.directory(self))
  else
    self:forget_memory() -- it goes with other files
  end
  step("files_replaced")
  self.server.state.db:sync() -- else a power cut could leave a sandbox whose files are gone, and sweep these
  self.server.storage:delete(old) -- what fails here is swept at the next start
  return true
end

--- Ends its run and gives it other files, made by source.files(root), which returns true | nil, message, code; a
-- sandbox that ran is started again. With source.memory(root), which puts a dump where keep.settle finds it, the
-- processes of that go on. What fails leaves it with the files it had, running again if it ran. `key`: of the request.
function rollback.rollback(self, parent, source, key)
  return self.lock:with(function()
    if self.destroyed then
      return nil, "sandbox was destroyed: " .. self.name, "ENOSANDBOX"
    end
    local before = self.server.state.requests:find(key) or {} -- what an earlier server has done of it
    local ran = before.ran or self.run ~= nil
    if before.done and self.state == "hibernated" then
      return hibernation.wake(self)
    elseif before.done then
      return not ran or self.run ~= nil or self:start()
    end
    local root = ("%d.%s"):format(self.id, random.hex(4))
    local ok, message, code = source.files(root)
    if ok and source.memory then
      keep.remove(keep.pending(self))
      ok, message, code = source.memory(root)
    end
    if ok then
      step("rollback_made")
      ok, message, code = self.server.state.requests:note(key, { ran = ran })
    end
    if ok then
      ok, message, code = self:end_run(0, "rolled back")
    end
    if ok then
      step("rollback_ended")
      ok, message, code = rollback.replace_files(self, root, parent, key, ran, source.memory ~= nil)
    end
    if not ok then
      keep.remove(keep.pending(self))
      self.server.storage:delete(root)
      if ran and not self.run then
        self:start()
      end
      return nil, message, code
    end
    log.info("sandbox_rolled_back", { sandbox = self.name, snapshot = parent })
    if source.memory then
      return hibernation.wake(self)
    elseif ran then
      return self:start()
    end
    return true
  end)
end

return rollback

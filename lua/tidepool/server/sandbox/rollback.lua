--- Other files in the place of those that a sandbox has.
--
-- Runs in the server. These are methods of a sandbox (sandbox/init.lua).
local log = require("tidepool.server.log")
local random = require("tidepool.random")
local step = require("tidepool.server.step")

local rollback = {}

--- Its files are others from now on, in the directory `root` of storage, and continue the snapshot `parent`.
-- It does not run. Called with its lock held. `key`: of the request; it ran before, if `ran`.
function rollback.replace_files(self, root, parent, key, ran)
  local ok, message, code = self.server.state:roll_back(self.id, root, parent, key, { ran = ran, done = true })
  if not ok then
    return nil, message, code
  end
  local old = self.root
  self.root, self.parent = root, parent
  self:forget_memory() -- it goes with other files
  step("files_replaced")
  self.server.storage:delete(old) -- what fails here is swept at the next start
  return true
end

--- Ends its run and gives it other files, made by files(root), which returns their path | nil, message, code;
-- a sandbox that ran is started again. What fails leaves it with the files it had. `key`: of the request.
function rollback.rollback(self, parent, files, key)
  return self.lock:with(function()
    if self.destroyed then
      return nil, "sandbox was destroyed: " .. self.name, "ENOSANDBOX"
    end
    local before = self.server.state.requests:find(key) or {} -- what an earlier server has done of it
    local ran = before.ran or self.run ~= nil
    if before.done then
      return not ran or self.run ~= nil or self:start()
    end
    local root = ("%d.%s"):format(self.id, random.hex(4))
    local ok, message, code = files(root)
    if ok then
      step("rollback_made")
      ok, message, code = self.server.state.requests:note(key, { ran = ran })
    end
    if ok then
      ok, message, code = self:end_run(0, "rolled back")
    end
    if ok then
      step("rollback_ended")
      ok, message, code = rollback.replace_files(self, root, parent, key, ran)
    end
    if not ok then
      self.server.storage:delete(root)
      return nil, message, code
    end
    log.info("sandbox_rolled_back", { sandbox = self.name, snapshot = parent })
    if ran then
      return self:start()
    end
    return true
  end)
end

return rollback

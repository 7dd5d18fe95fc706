--- Other files in the place of those that a sandbox has.
--
-- Runs in the server. These are methods of a sandbox (sandbox/init.lua).
local log = require("tidepool.server.log")
local random = require("tidepool.random")
local step = require("tidepool.server.step")

local rollback = {}

--- Its files are others from now on, in the directory `root` of storage, and continue the snapshot `parent`.
-- It does not run. Called with its lock held.
function rollback.replace_files(self, root, parent)
  local ok, message, code = self.server.state:set_root(self.id, root, parent)
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
-- a sandbox that ran is started again. What fails leaves it with the files it had.
function rollback.rollback(self, parent, files)
  return self.lock:with(function()
    if self.destroyed then
      return nil, "sandbox was destroyed: " .. self.name, "ENOSANDBOX"
    end
    local root = ("%d.%s"):format(self.id, random.hex(4))
    local ok, message, code = files(root)
    if not ok then
      return nil, message, code
    end
    step("rollback_made")
    local ran = self.run ~= nil
    ok, message, code = self:end_run(0, "rolled back")
    if ok then
      ok, message, code = rollback.replace_files(self, root, parent)
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

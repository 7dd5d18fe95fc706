--- The end of a sandbox, with its files; also of one that could not be made.
--
-- Runs in the server. These are methods of a sandbox (sandbox/init.lua).
local async = require("tidepool.async")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local spill = require("tidepool.server.spill")

local destruction = {}

local REWRITE = 5 -- seconds between tries
local UNMAKE_TRIES = 3 -- before the caller is told that the create failed

--- Deletes all that it has. Called with the lock held; it does not run. true | nil, message, code
function destruction.unmake(self)
  -- On a full disk it can't be written down, and deleting is the way out.
  local recorded, message, code = self:record("destroying", nil, self.run)
  if not recorded and code ~= "ENOSPC" then
    return nil, message, code
  end
  local deleted
  deleted, message, code = self.server.storage:delete(self.root)
  if not deleted and code ~= "ENOENT" then
    return nil, message, code
  end
  spill.remove(self)
  memory.forget(self)
  local removed
  removed, message, code = self.server.state:remove_sandbox(self.id)
  if not removed then
    return nil, message, code
  end
  if self.server.sandboxes[self.name] == self then
    self.server.sandboxes[self.name] = nil
  end
  self.destroyed = true
  return true
end

function destruction.unmake_surely(self)
  for _ = 1, UNMAKE_TRIES do
    local unmade, message, code = destruction.unmake(self)
    if unmade then
      return
    end
    log.error("unmake_failed", { sandbox = self.name, message = message, code = code })
  end
  async.after(REWRITE, function()
    async.spawn(self.lock.with, self.lock, function()
      if not self.destroyed then
        destruction.unmake_surely(self)
      end
    end)
  end)
end

--- Ends it and deletes its files.
function destruction.destroy(self)
  return self.lock:with(function()
    if self.destroyed then
      return true
    end
    local ok, message, code = self:end_run(0, "destroyed")
    if not ok then
      return nil, message, code
    end
    ok, message, code = destruction.unmake(self)
    if ok then
      log.info("sandbox_destroyed", { sandbox = self.name, id = self.id })
    end
    return ok, message, code
  end)
end

return destruction

--- Taking the memory of a sandbox and its files in one instant, after which it goes on.
--
-- Runs in the server. These are methods of a sandbox (sandbox/init.lua).
local uv = require("luv")
local hibernation = require("tidepool.server.memory.sleep")
local keep = require("tidepool.server.memory.keep")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local step = require("tidepool.server.step")

local capture = {}

local function of_running(self, directory, files)
  local ok, message, code = self.server.storage:sync() -- before it stands still, so that little is left to flush
  if not ok then
    return nil, message, code
  end
  local took
  took, message, code = memory.dump(self, directory, function()
    step("memory_taken")
    return files()
  end)
  hibernation.go_on(self)
  if not took then
    return nil, message, code
  end
  took.pause = (uv.hrtime() - took.froze) / 1e9
  return took
end

local function of_hibernated(self, directory, files)
  local ok, message, code = keep.share(memory.directory(self), directory)
  if ok then
    step("memory_taken")
    ok, message, code = files()
  end
  if not ok then
    keep.remove(directory)
    return nil, message, code
  end
  local figures = hibernation.figures(self)
  return { bytes = figures.bytes, seconds = 0, pause = 0, connections_reset = figures.connections_reset }
end

--- Writes its memory to `directory`, a new one, and calls files(), which takes its files while it stands still
-- and returns true | nil, message, code. A sandbox that hibernates gives what it sleeps with and sleeps on.
-- { pause, seconds of the dump, bytes, connections_reset } | nil, message, code ("ESTOPPED": it has no memory), with
-- no directory and the sandbox as it was. Called with the lock held.
function capture.capture(self, directory, files)
  if self.state == "hibernated" then
    return of_hibernated(self, directory, files)
  end
  local frozen = self.state == "frozen"
  local ok, message, code = self:thaw()
  if ok then
    ok, message, code = self:mend()
  end
  if not ok then
    return nil, message, code
  elseif self.state ~= "running" then
    return nil, "sandbox is not running, so that it has no memory: " .. self.name, "ESTOPPED"
  end
  local took
  took, message, code = of_running(self, directory, files)
  if frozen and self.state == "running" then
    local again, why, why_code = self:freeze_now()
    if not again then
      log.error("not_frozen_again", { sandbox = self.name, message = why, code = why_code })
    end
  end
  return took, message, code
end

return capture

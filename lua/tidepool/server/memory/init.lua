--- The memory of sandboxes on disk: <state>/memory/<id>/, one dump a sandbox, for the time of its sleep. Those
--- of snapshots are beside it (keep.lua).
--
-- Runs in the server. Who calls holds the sandbox's lock (sandbox/), and leads its state.
local uv = require("luv")
local async = require("tidepool.async")
local dump = require("tidepool.server.memory.dump")
local read_file = require("tidepool.file").read
local restore = require("tidepool.server.memory.restore")

local memory = {}

local PATIENCE = 30 -- seconds that a dump of an earlier server may still take

memory.dump, memory.restore, memory.read = dump.dump, restore.restore, dump.read

--- Prepares the directory, and removes what restores of an earlier server have left.
function memory.open(state)
  uv.fs_mkdir(state .. "/memory", 448)
  restore.sweep(state)
end

function memory.directory(sandbox)
  return ("%s/memory/%d"):format(sandbox.server.directory, sandbox.id)
end

--- Whether a process of this key is in a sandbox that runs, or ran when it went to sleep.
function memory.holds(sandbox, key)
  if sandbox.state ~= "hibernated" and sandbox.state ~= "waking" then
    return true
  end
  local manifest = dump.read(memory.directory(sandbox))
  return manifest ~= nil and manifest.leaves[key] ~= nil
end

--- Removes a sandbox's dump, if there is one.
function memory.forget(sandbox)
  local directory = memory.directory(sandbox)
  if uv.fs_stat(directory) then
    dump.remove(directory)
  end
end

--- A dump that an earlier server began goes on without it: waits until it is done with the sandbox.
function memory.await_dump(sandbox)
  local till = uv.hrtime() + PATIENCE * 1e9
  while true do
    local status = read_file(("/proc/%d/status"):format(sandbox.run.pid)) or ""
    local tracer = tonumber(status:match("TracerPid:%s+(%d+)") or 0)
    if tracer == 0 then
      break
    elseif uv.hrtime() > till then
      uv.kill(tracer, "sigkill")
    end
    async.sleep(0.02)
  end
  memory.forget(sandbox)
end

return memory

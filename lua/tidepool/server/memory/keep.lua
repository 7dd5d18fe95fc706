--- Dumps that are kept: a snapshot's, and one of which forks are made. The files of a dump never change, so
-- that what needs it has them by hard links of its own, and whoever deletes a dump deletes names.
--
-- Runs in the server. Below <state>/memory: snapshot-ID, for as long as the snapshot; fork-ANY, for the
-- time of a fork; ID.new, what a sandbox that is being rolled back is to wake from.
local uv = require("luv")
local dump = require("tidepool.server.memory.dump")
local host = require("tidepool.server.host")
local names = require("tidepool.file").names
local random = require("tidepool.random")

local keep = {}

--- Where a snapshot's memory is.
function keep.of_snapshot(server, id)
  return ("%s/memory/snapshot-%d"):format(server.directory, id)
end

--- A new place for the time of a fork.
function keep.staging(server)
  return ("%s/memory/fork-%s"):format(server.directory, random.hex(8))
end

--- Where a sandbox's is before its files are the ones that it belongs with.
function keep.pending(sandbox)
  return ("%s/memory/%d.new"):format(sandbox.server.directory, sandbox.id)
end

local function link_all(source, target)
  for _, name in ipairs(names(source)) do
    if name:find("%.img$") then
      local ok, message, code = uv.fs_link(source .. "/" .. name, target .. "/" .. name)
      if not ok then
        return nil, message, code
      end
    end
  end
  return true
end

--- Gives `target`, a new directory, the dump of `source` too. changes: fields of its manifest that differ there.
-- true | nil, message, code, with nothing left behind.
function keep.share(source, target, changes)
  local manifest = dump.read(source)
  if not manifest then
    return nil, "its memory image is not whole", "ENOENT"
  end
  for name, value in pairs(changes or {}) do
    manifest[name] = value
  end
  local ok, message, code = uv.fs_mkdir(target, 448)
  if ok then
    ok, message, code = link_all(source, target)
    if ok then
      ok, message, code = dump.write(target, manifest)
    end
    if not ok then
      dump.remove(target)
    end
  end
  return ok and true, message, code
end

--- Deletes one.
function keep.remove(directory)
  if uv.fs_stat(directory) then
    dump.remove(directory)
  end
end

--- Whether a dump can be restored here, as far as can be told before: true | nil, message, code ("ENOTSUP": not
-- by this machine).
function keep.check(directory)
  local manifest = dump.read(directory)
  if not manifest then
    return nil, "its memory image is not whole", "ENOENT"
  end
  return host.can_run(manifest.host)
end

--- Bytes of a dump; 0 when there is none.
function keep.bytes(directory)
  return dump.size(directory)
end

--- What a sandbox was being rolled back to when its server ended: taken if its files are those by now.
function keep.settle(sandbox, target)
  local pending = keep.pending(sandbox)
  local manifest = dump.read(pending)
  if manifest and manifest.root == sandbox.root then
    keep.remove(target)
    uv.fs_rename(pending, target)
  else
    keep.remove(pending)
  end
end

--- Removes what belongs to nobody. snapshots: the set of ids of those that there are.
function keep.sweep(server, snapshots)
  for _, name in ipairs(names(server.directory .. "/memory")) do
    local id = tonumber(name:match("^snapshot%-(%d+)$"))
    if id and not snapshots[id] or name:find("^fork%-") then
      keep.remove(server.directory .. "/memory/" .. name)
    end
  end
end

return keep

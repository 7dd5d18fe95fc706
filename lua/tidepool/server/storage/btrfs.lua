--- The btrfs driver: a place is a directory whose `root` is a subvolume.
--
-- Runs in the server, which only composes plans (core/btrfs.c). The pool or a btrfs of the host's makes no
-- difference here but for quotas, which in the latter are the host's to use. The directory around each
-- root is there because a read-only subvolume can't be moved itself.
local care = require("tidepool.server.storage.pool_care")
local image = require("tidepool.image")
local trash = require("tidepool.server.storage.trash")

local btrfs = {}

local FREEZE_LIMIT = 10000 -- milliseconds until all of a sandbox must stand still

local function root(place)
  return place .. "/root"
end

--- What there is to do once the file system is mounted.
function btrfs.begin(self)
  if self.kind == "btrfs" then
    self.unenforced[1] = "disk limit: the state directory is on a btrfs of the host's, whose quotas are left alone"
    return self.spawners:execute({ { "replace", self:join("storage"), 384, "btrfs\n" } }) -- see choice.lua
  end
  local ok, message = self.spawners:execute({ { "quota", self.directory } })
  self.quota = ok ~= nil
  if not ok then
    self.unenforced[1] = "disk limit: no simple quotas, Linux 6.7 has them (" .. message .. ")"
  end
  return true
end

--- Makes a place with an empty root: true | nil, message, code.
function btrfs.make(self, place)
  local ok, message, code = self.spawners:execute({ { "mkdir", place, 448 }, { "subvolume", place, "root" } })
  return ok and true, message, code
end

local function copy_steps(source, place, readonly)
  return { { "mkdir", place, 448 }, { "snapshot", root(source), place, "root", readonly and 1 or 0 } }
end

--- Makes a place with a copy of another's root: true | nil, message, code.
function btrfs.copy(self, source, place, readonly)
  local ok, message, code = self.spawners:execute(copy_steps(source, place, readonly))
  return ok and true, message, code
end

--- Makes several writable copies, a list of { source, target }, or none: true | nil, message, code. The
-- snapshots stand side by side: the spawner takes them at once.
function btrfs.copies(self, list)
  local plan = {}
  for i, one in ipairs(list) do
    plan[i] = { "mkdir", one.target, 448 }
    plan[#list + i] = { "snapshot", root(one.source), one.target, "root", 0 }
  end
  local ok, message, code = self.spawners:execute(plan)
  return ok and true, message, code
end

--- Makes a place with a writable copy, ahead of its use and in the background. `paths`: the files of it
-- that will be read first, and are read into the page cache, those that it has.
function btrfs.prepare(self, source, place, paths)
  local plan = copy_steps(source, place, false)
  for _, path in ipairs(paths) do
    plan[#plan + 1] = { "prefetch?", root(place), path }
  end
  local ok, message, code = self.spawners:execute(plan, nil, true)
  return ok and true, message, code
end

--- Steps that make a root read-only, whole on disk.
function btrfs.seal(self, place)
  return { { "sync", self.directory }, { "readonly", root(place), 1 } }
end

--- Deletes a place in the background: true | nil, message, code.
function btrfs.destroy(self, place)
  local ok, message, code = self.spawners:execute({ { "destroy", place, "root" }, { "rmdir", place } }, nil, true)
  if ok then
    care.reclaim(self)
  end
  return ok and true, message, code
end

--- A read-only copy of files that may be in use, and how long the group stood still, in seconds. What was
-- dirty is written before the freeze, so that little is left to flush within it.
function btrfs.take(self, source, place, group)
  local plan = copy_steps(source, place, true)
  if group then
    local synced, message, code = self.spawners:execute({ { "sync", self.directory } }, nil, true)
    if not synced then
      return nil, message, code
    end
    table.insert(plan, 2, { "freeze", group, FREEZE_LIMIT })
    plan[#plan + 1] = { "thaw", group }
  end
  local answer, message, code = self.spawners:execute(plan)
  if answer then
    return (answer.values[2] or 0) / 1e9
  end
  if code == "ECONNRESET" then -- a spawner that was killed may have left both
    if group then
      self.spawners:execute({ { "thaw", group } })
    end
    trash.discard(self, place)
  end
  return nil, message, code
end

--- See Storage:view. Whoever reads maps the ids by itself: a subvolume allows it.
function btrfs.view(_, place)
  return { path = root(place), close = function() end }
end

--- See Storage:mounting.
function btrfs.mounting(_, place, slot)
  return { { "tree", slot, root(place), "nodev" } }, { { "idmap", slot } }
end

--- See Storage:usage.
function btrfs.usage(self, place)
  if not self.quota then
    return nil, self.unenforced[1], "ENOTSUP"
  end
  local answer, message, code = self.spawners:execute({ { "usage", root(place) } })
  if not answer then
    return nil, message, code
  end
  return answer.values[1]
end

--- See Storage:limit.
function btrfs.limit(self, place, bytes)
  if not self.quota then
    return nil, self.unenforced[1], "ENOTSUP"
  end
  local ok, message, code = self.spawners:execute({ { "limit", root(place), bytes or 0 } })
  return ok and true or nil, message, code
end

--- See Storage:identity: the subvolume's UUID.
function btrfs.identity(_, place, options)
  return image.export.identify(root(place), options)
end

--- See Storage:diff.
function btrfs.diff(_, tools, from, to)
  return { tools .. "/tidepool-diff", root(from), root(to) }, function() end
end

return btrfs

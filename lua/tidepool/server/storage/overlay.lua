--- The overlay driver: a place is a chain of layers on the state directory's file system.
--
-- Runs in the server, which composes plans (core/overlay.c) and starts `cp` and `rm` for what is done file by
-- file. For hosts without btrfs or loop devices. What it does as the others do, and what it can't:
--   * Layers are shared. A copy of read-only files is a new chain; of a writable place that is idle, its
--     upper layer becomes a lower one of both. No cost depends on the size.
--   * A mounted overlay can't be given another upper layer: of a sandbox that runs, stands still or is
--     hibernated, the upper layer is copied, and one that runs stands still for as long as that takes.
--   * Nothing limits or counts what a sandbox writes.
--   * A file with several names loses the other ones when it is written to first.
local uv = require("luv")
local async = require("tidepool.async")
local layers = require("tidepool.server.storage.layers")
local names = require("tidepool.file").names
local random = require("tidepool.random")

local overlay = {}

local FREEZE_LIMIT = 10000 -- milliseconds until all of a sandbox must stand still
local SHALLOW = 64 -- layers above which an idle sandbox's upper is copied too, so that its own chain stays short

--- What there is to do once the directories are there.
function overlay.begin(self)
  local ok, message, code = self.spawners:execute({
    { "ensure", self:join("layers"), 448 },
    { "ensure", self:join("mounts"), 448 },
    { "replace", self:join("storage"), 384, "overlay\n" }, -- see choice.lua
  })
  if not ok then
    return nil, message, code
  end
  self.unenforced[1] = "disk limit: overlayfs has none, so a sandbox can fill the disk of the state directory"
  for _, name in ipairs(names(self:join("mounts"))) do
    uv.fs_rmdir(self:join("mounts", name)) -- the mounts went with their server
  end
  layers.scan(self)
  return true
end

-- Steps that make an upper layer, whose root is like that of the layer below.
local function upper_steps(self, layer, below)
  local path = layers.path(self, layer)
  local like = below and uv.fs_lstat(layers.path(self, below)) or { mode = 493, uid = 0, gid = 0 }
  return {
    { "mkdir", path, 493 },
    { "chown", path, like.uid, like.gid },
    { "chmod", path, like.mode % 4096 },
    { "mkdir", path .. ".w", 448 },
  }
end

-- Makes a place of a chain, after `steps`.
local function make(self, place, chain, steps, background)
  local plan = steps or {}
  plan[#plan + 1] = { "mkdir", place, 448 }
  plan[#plan + 1] = { "file", place .. "/chain", 384, layers.encode(chain) }
  layers.hold(self, chain)
  local ok, message, code = self.spawners:execute(plan, nil, background)
  if not ok then
    layers.release(self, chain)
    return nil, message, code
  end
  return true
end

--- Makes a place with an empty root: true | nil, message, code.
function overlay.make(self, place)
  local layer = layers.name(self)
  return make(self, place, layers.chain({}, layer), upper_steps(self, layer))
end

local function copy(self, source, place, readonly, background)
  local chain, message, code = layers.read(source)
  if not chain then
    return nil, message, code
  elseif chain.upper then
    return overlay.take(self, source, place)
  end
  local layer = not readonly and layers.name(self) or nil
  local ok
  ok, message, code = layers.options({ lower = chain.lower, upper = layer })
  if not ok then
    return nil, message, code
  end
  return make(self, place, layers.chain(chain.lower, layer), layer and upper_steps(self, layer, chain.lower[1]), background)
end

--- Makes a place with a copy of another's files: true | nil, message, code.
function overlay.copy(self, source, place, readonly)
  return copy(self, source, place, readonly)
end

--- The same, writable, ahead of its use. Layers share their cached pages, so that none need be read.
function overlay.prepare(self, source, place)
  return copy(self, source, place, false, true)
end

--- Steps that make a place read-only, whole on disk.
function overlay.seal(self, place)
  local chain = assert(layers.read(place))
  table.insert(chain.lower, 1, chain.upper)
  chain.upper = nil
  return { { "sync", self.directory }, { "replace", place .. "/chain", 384, layers.encode(chain) } }
end

--- Deletes a place in the background: true | nil, message, code.
function overlay.destroy(self, place)
  local chain = layers.read(place)
  local ok, message, code = self.spawners:execute({
    { "unlink", place .. "/chain" }, { "unlink", place .. "/.tidepool-new" }, -- of a `replace` that was killed
    { "rmdir", place },
  }, nil, true)
  if not ok then
    return nil, message, code
  end
  if chain then
    layers.release(self, chain)
  end
  return true
end

-- The upper layer of an idle place goes below both: of itself, with a new one, and of the new place.
local function split(self, source, chain, place)
  local below = layers.all(chain)
  local taken = layers.chain(below)
  local rest = layers.chain(below, layers.name(self))
  layers.hold(self, taken)
  layers.hold(self, rest)
  local plan = upper_steps(self, rest.upper, chain.upper)
  plan[#plan + 1] = { "mkdir", place, 448 }
  plan[#plan + 1] = { "file", place .. "/chain", 384, layers.encode(taken) }
  plan[#plan + 1] = { "sync", self.directory }
  plan[#plan + 1] = { "replace", source .. "/chain", 384, layers.encode(rest) } -- the last, for it is not undone
  local ok, message, code = self.spawners:execute(plan)
  if not ok then
    layers.release(self, taken)
    layers.release(self, rest)
    return nil, message, code
  end
  layers.release(self, chain)
  return 0
end

-- Copies a layer as it is: whiteouts, extended attributes, links, owners, times, holes.
local function copy_layer(self, from, to)
  local result, message, code = async.command({
    "cp", "--archive", "--reflink=auto", "--no-target-directory", "--", layers.path(self, from), layers.path(self, to),
    stderr = "pipe", env = { "PATH=/usr/bin:/bin", "LC_ALL=C" },
  })
  if not result then
    return nil, message, code
  elseif result.code == 0 and result.signal == 0 then
    return true
  end
  local said = result.stderr:match("[^\n]*") or ""
  return nil, "copy a layer: " .. said, said:find("No space left", 1, true) and "ENOSPC" or "EIO"
end

-- The same while a group stands still: for how many seconds it did | nil, message, code.
local function copy_frozen(self, from, to, group)
  local ok, message, code = self.spawners:execute({ { "freeze", group, FREEZE_LIMIT } })
  if not ok then
    return nil, message, code
  end
  local began = uv.hrtime()
  ok, message, code = copy_layer(self, from, to)
  local seconds = (uv.hrtime() - began) / 1e9
  local thawed, why, why_code = self.spawners:execute({ { "thaw", group } })
  if not thawed then
    thawed, why, why_code = self.spawners:execute({ { "thaw", group } }) -- by another spawner
  end
  if not thawed then
    return nil, why, why_code
  end
  return ok and seconds, message, code
end

--- A read-only copy of files that may be in use, and how long the group stood still, in seconds.
function overlay.take(self, source, place, group, idle)
  local chain, message, code = layers.read(source)
  if not chain then
    return nil, message, code
  elseif not chain.upper then
    local ok
    ok, message, code = copy(self, source, place, true)
    return ok and 0, message, code
  elseif uv.fs_lstat(place) then
    return nil, "there is one already: " .. place, "EEXIST"
  elseif idle and #chain.lower < SHALLOW then
    return split(self, source, chain, place)
  end
  local layer = layers.name(self)
  local taken = layers.chain({ layer, unpack(chain.lower) })
  local ok, pause
  ok, message, code = layers.options(taken)
  if not ok then
    return nil, message, code
  end
  layers.hold(self, taken)
  if group then
    pause, message, code = copy_frozen(self, chain.upper, layer, group)
  else
    pause, message, code = copy_layer(self, chain.upper, layer)
    pause = pause and 0
  end
  ok = pause
  if ok then
    ok, message, code = make(self, place, taken, { { "sync", self.directory } }, true)
  end
  layers.release(self, taken)
  return ok and pause, message, code
end

local function attach(self, chain, base)
  local options, message, code = layers.options(chain)
  if not options then
    return nil, message, code
  end
  local point = self:join("mounts", random.hex(8))
  local ok
  ok, message, code = self.spawners:execute({
    { "mkdir", point, 448 },
    { "overlay", 0, self:join("layers"), self:join("mounts"), options, base or 0 },
    { "attach", 0, point },
  })
  if not ok then
    return nil, message, code
  end
  return { path = point, close = function()
    async.spawn(self.spawners.execute, self.spawners, { { "umount?", point }, { "rmdir?", point } })
  end }
end

--- See Storage:view. A single layer is a directory, whose ids others can map.
function overlay.view(self, place, base)
  local chain, message, code = layers.read(place)
  if not chain then
    return nil, message, code
  end
  local list = layers.all(chain)
  if #list == 1 then
    return { path = layers.path(self, list[1]), close = function() end }
  end
  return attach(self, chain, base)
end

--- See Storage:mounting.
function overlay.mounting(self, place, slot, base)
  local chain, message, code = layers.read(place)
  local options
  if chain then
    options, message, code = layers.options(chain)
  end
  if not options then
    return nil, message, code
  end
  return { { "overlay", slot, self:join("layers"), self:join("mounts"), options, base } }, {}
end

--- See Storage:usage.
function overlay.usage(self)
  return nil, self.unenforced[1], "ENOTSUP"
end

--- See Storage:limit.
function overlay.limit(self)
  return nil, self.unenforced[1], "ENOTSUP"
end

--- See Storage:identity.
function overlay.identity(_, place)
  local chain, message, code = layers.read(place)
  if not chain then
    return nil, message, code
  end
  return { uuid = chain.uuid, taken = chain.taken }
end

--- See Storage:diff.
function overlay.diff(self, tools, from, to)
  local old, message, code = overlay.view(self, from)
  local new
  if old then
    new, message, code = overlay.view(self, to)
  end
  if not new then
    if old then
      old.close()
    end
    return nil, message, code
  end
  return { tools .. "/tidepool-diff", old.path, new.path }, function()
    old.close()
    new.close()
  end
end

return overlay

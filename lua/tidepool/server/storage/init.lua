--- Storage: images, the files of sandboxes, snapshots; one interface over what holds them.
--
-- Runs in the server, which holds no file of it open; whatever may wait for the file system is a plan of
-- the spawners'. The listing of this folder:
--   init    opens a state directory's storage; sandboxes' files and snapshots    images  images
--   pool    the image file: made, mounted, its room; pool_care: grown, checked   warm    roots made ahead
--   btrfs   the driver: how a root is made, copied, read, deleted                trash   deleting, sweeping
--   overlay the driver for hosts without it; layers    what it is made of        growing imports, layer by layer
--   choice  which driver, and why                                             together  copies made at once
-- Below the storage's directory, which is <state>/pool:
--   images/NAME   a read-only root            sandboxes/ID    a writable copy of one
--   staging/ANY   one that is being made      snapshots/ID    a read-only copy of a sandbox's
--   warm/IMAGE/N  roots made ahead            trash/ANY       what is being deleted
--   imports/KEY/N layers that are applied     (ID of a sandbox: after a rollback, ID.RANDOM)
-- Each of these directories is a *place*: it holds one root in the driver's way, and is what is renamed,
-- so that one rename is all or nothing. Callers get places from here, hand them back, and look into
-- none: the files are seen through a `view`, and a sandbox gets them by `mounting`.
local uv = require("luv")
local care = require("tidepool.server.storage.pool_care")
local choice = require("tidepool.server.storage.choice")
local pool = require("tidepool.server.storage.pool")
local random = require("tidepool.random")
local together = require("tidepool.server.storage.together")
local trash = require("tidepool.server.storage.trash")
local warm = require("tidepool.server.storage.warm")

local storage = {}

local BTRFS = 0x9123683E
local drivers = { pool = require("tidepool.server.storage.btrfs") }
drivers.btrfs, drivers.overlay = drivers.pool, require("tidepool.server.storage.overlay")
local directories = { "images", "sandboxes", "staging", "snapshots", "warm", "trash" }

--- Roots made ahead of need for each image: a copy takes milliseconds, a rename does not.
storage.WARM = 4

local Storage = {}
Storage.__index = Storage

for _, part in ipairs({ "images", "warm", "trash", "growing", "pool_care" }) do
  local methods = require("tidepool.server.storage." .. part).methods
  for _, name in ipairs(methods.names) do
    Storage[name] = methods[name]
  end
end

--- Opens the storage of a state directory. options: state; spawners, if they run already (else call
-- `use` before anything else); size, bytes of a new pool's image, which is sparse, else TIDEPOOL_POOL_SIZE,
-- else most of the free space; kind, the driver of a new one, else TIDEPOOL_STORAGE, else what the machine can.
-- Returns it | nil, message, code.
function storage.open(options)
  local self = setmetatable({
    state = options.state,
    directory = options.state .. "/pool",
    image = options.state .. "/pool.img",
    size = options.size,
    warm = {}, -- image -> list of places
    warm_count = storage.WARM,
    refilling = {},
    unenforced = {}, -- what info and doctor say of limits that don't hold
  }, Storage)
  local stat, message, code = uv.fs_statfs(options.state)
  if not stat then
    return nil, message, code
  end
  self.kind, self.why, code = choice.pick(options.state, stat.type == BTRFS, options.kind or os.getenv("TIDEPOOL_STORAGE"))
  if not self.kind then
    return nil, self.why, code
  end
  self.driver = drivers[self.kind]
  if self.kind == "pool" and not uv.fs_stat(self.image) then
    local ok
    ok, message, code = pool.make(self.image, options.state, self.size, os.getenv("TIDEPOOL_POOL_SIZE"))
    if not ok then
      return nil, "make the pool: " .. message, code
    end
  end
  if options.spawners then
    local ok
    ok, message, code = self:use(options.spawners)
    if not ok then
      return nil, message, code
    end
  end
  return self
end

--- Mounts the pool by the given spawners, which do all of its work from then on.
-- Returns true | nil, message, code.
function Storage:use(spawners)
  self.spawners = spawners
  local plan = { { "ensure", self.directory, 448 } }
  if self.kind == "pool" then
    plan[2] = pool.mount(self.image, self.directory)
  end
  for _, name in ipairs(directories) do
    plan[#plan + 1] = { "ensure", self.directory .. "/" .. name, 448 }
  end
  local ok, message, code = spawners:execute(plan)
  if not ok then
    return nil, "open the pool: " .. (self.kind == "pool" and care.explain(self.image, message, code) or message), code
  end
  ok, message, code = self.driver.begin(self)
  if not ok then
    return nil, "open the storage: " .. message, code
  end
  return true
end

--- A path in it; for its own parts.
function Storage:join(...)
  return table.concat({ self.directory, ... }, "/")
end

--- Whether there is room for something new. true | nil, message, "ENOSPC", "EROFS", or "ESTALE": the
-- state directory was removed.
function Storage:room()
  if not uv.fs_statfs(self.state) or not uv.fs_stat(self:join("sandboxes")) then
    return nil, ("the state directory %s was removed: save what the sandboxes hold, then `shutdown`"):format(self.state), "ESTALE"
  end
  return pool.room(self)
end

-- Places ------------------------------------------------------------------------------------------------

--- Where the files of a sandbox are.
function Storage:sandbox_place(id)
  return self:join("sandboxes", tostring(id))
end

--- Where the files of an image are, read-only.
function Storage:image_place(name)
  return self:join("images", name)
end

--- Where the files of a snapshot are, read-only.
function Storage:snapshot_place(name)
  return self:join("snapshots", tostring(name))
end

--- A new place for a moment, in the staging directory.
function Storage:staging_place(what)
  return self:join("staging", what .. "-" .. random.hex(8))
end

--- The files at a place, on the host: { path =, close = function } | nil, message, code; `path` is
-- writable where the place is, and of use until `close`. base: an id range's first, for whom they are
-- to be seen; a driver that can map ids later ignores it.
function Storage:view(place, base)
  return self.driver.view(self, place, base)
end

--- A read-only copy that stays, whoever deletes or replaces what it is of: a view | nil, message, code;
-- `close` deletes it.
function Storage:pin(place, base)
  local copy = self:staging_place("pin")
  local ok, message, code = self:copy(place, copy, true)
  if not ok then
    return nil, message, code
  end
  local view
  view, message, code = self:view(copy, base)
  if not view then
    self:abort(copy)
    return nil, message, code
  end
  return { path = view.path, place = copy, close = function()
    view.close()
    self:abort(copy)
  end }
end

--- The steps of a plan by which a sandbox gets its files as the tree in `slot` (container.lua), for ids from
-- `base` on: those before its clone, and those after its ids are mapped. Two lists | nil, message, code.
function Storage:mounting(id, slot, base)
  return self.driver.mounting(self, self:sandbox_place(id), slot, base)
end

--- The command that tells what differs between two places (core/diff/main.c), a list of words, and a
-- function to call when it has ended | nil, message, code.
function Storage:diff(tools, from, to)
  return self.driver.diff(self, tools, from, to)
end

--- What a read-only place is known by on any host: { uuid =, taken = } | nil, message, code. `taken`: when
-- it was copied, nanoseconds as a string, "0" when it was not. options.tools: the directory of our programs.
function Storage:identity(place, options)
  return self.driver.identity(self, place, options)
end

-- Files of sandboxes, and snapshots ------------------------------------------------------------------------

--- Copies a place to another, new one, at no cost: true | nil, message, code, with nothing made.
function Storage:copy(source, target, readonly)
  return self.driver.copy(self, source, target, readonly)
end

--- Makes the files of a sandbox from an image: true | nil, message, code. "ENOENT": no such image,
-- "EEXIST": the id has some.
function Storage:create(id, image)
  local target = self:sandbox_place(id)
  local ready = warm.take(self, image)
  local ok, message, code
  if ready then
    ok, message, code = self.spawners:execute({ { "rename", ready, target } })
  else
    ok, message, code = together.copy(self, self:image_place(image), target)
  end
  if not ok then
    if ready then
      self:abort(ready)
    end
    return nil, message, code
  end
  self:refill(image)
  return true
end

--- Makes the files of a sandbox from another place: true | nil, message, code.
function Storage:clone(id, place)
  return together.copy(self, place, self:sandbox_place(id))
end

--- Deletes a sandbox's files; the space comes back in a while. "ENOENT" when it has none.
function Storage:delete(id)
  return trash.discard(self, self:sandbox_place(id))
end

--- Writes what is dirty, so that a copy that is taken soon has little left to flush: true | nil, message, code.
function Storage:sync()
  local ok, message, code = self.spawners:execute({ { "sync", self.directory } }, nil, true)
  return ok and true, message, code
end

--- A read-only copy of a sandbox's files under a name. `group`: the cgroup of one that runs, which is frozen
-- for that moment. `idle`: nobody has the files mounted, or will before this returns.
-- Returns for how many seconds the group stood still | nil, message, code.
function Storage:snapshot(id, name, group, idle)
  return self.driver.take(self, self:sandbox_place(id), self:snapshot_place(name), group, idle)
end

--- The same for a moment only, for others to be made from: its place | nil, message, code.
function Storage:stage_snapshot(id, group, idle)
  local place = self:staging_place("snapshot")
  local taken, message, code = self.driver.take(self, self:sandbox_place(id), place, group, idle)
  if not taken then
    return nil, message, code
  end
  return place
end

function Storage:remove_snapshot(name)
  return trash.discard(self, self:snapshot_place(name))
end

--- Bytes that a snapshot owns alone | nil, message, "ENOTSUP" where they aren't counted.
function Storage:snapshot_usage(name)
  return self.driver.usage(self, self:snapshot_place(name))
end

--- Bytes on disk that a sandbox has added to what it was made from | nil, message, "ENOTSUP" where they
-- aren't counted.
function Storage:usage(id)
  return self.driver.usage(self, self:sandbox_place(id))
end

--- Limits what a sandbox may add to what it was made from, in bytes; nil: no limit.
-- Returns true | nil, message, code ("ENOTSUP": why it can't be enforced here).
function Storage:limit(id, bytes)
  return self.driver.limit(self, self:sandbox_place(id), bytes)
end

--- Unmounts the pool from this server's namespace; sandboxes keep their own mounts of it.
function Storage:close()
  self.closed = true
  if self.kind ~= "pool" then
    return true
  end
  local ok, message, code = self.spawners:execute({ { "umount", self.directory } })
  return ok and true or nil, message, code
end

return storage

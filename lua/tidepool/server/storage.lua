--- Storage: images and sandbox roots as subvolumes of a btrfs pool.
--
-- Runs in the server, which holds no file of the pool open; whatever may wait for the file system is a
-- plan of the spawners'. The pool is an image file in the state directory, mounted in the server's own
-- mount namespace, or the state directory itself where it is on btrfs. In it:
--   images/NAME/root     a read-only subvolume          sandboxes/ID/root   a writable snapshot of one
--   staging/RANDOM/root  an image that is being made    snapshots/ID/root   a read-only snapshot
--   warm/IMAGE/N/root    roots made ahead               trash/              what is being deleted
-- (ID of a sandbox: after a rollback, ID.RANDOM.) The directory around each root is what is renamed: one rename is all or nothing, and a read-only
-- subvolume can't be moved itself.
local uv = require("luv")
local async = require("tidepool.async")
local names = require("tidepool.file").names
local random = require("tidepool.random")

local storage = {}

local BTRFS = 0x9123683E
local MiB = 1048576
local LEAST = 192 * MiB -- of a new pool; mkfs.btrfs needs 114
local ROOM = 16 * MiB -- of the host's disk, below which nothing new is made
local FREEZE_LIMIT = 2000 -- milliseconds until all of a sandbox must stand still
local directories = { "images", "sandboxes", "staging", "snapshots", "warm", "trash" }

--- Roots made ahead of need for each image: a snapshot takes milliseconds, a rename does not.
storage.WARM = 4

-- What a first command reads. Subvolumes share blocks but no cached pages, so that it would wait for
-- the disk: 3 ms of a create to its first exit. About 2.5 MB a root, those that it has.
local triplets = { x64 = "x86_64-linux-gnu", arm64 = "aarch64-linux-gnu" }
local triplet = triplets[jit.arch] or "unknown"
local hot = {
  "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1",
  "/lib/" .. triplet .. "/libc.so.6", "/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname",
  "/etc/resolv.conf", "/bin/sh", "/bin/true", "/bin/busybox", "/usr/bin/env",
}

local Storage = {}
Storage.__index = Storage

-- The free space but for a twentieth: a pool that outgrows its disk gets write errors and turns
-- read-only, and the host needs room too.
local function default_size(state)
  local stat = uv.fs_statfs(state)
  local free = stat and math.floor(stat.bavail * stat.bsize * 0.95) or 0
  if free < LEAST then
    return nil, ("the disk of %s has %d MiB free, a pool needs %d"):format(state, free / MiB, LEAST / MiB), "ENOSPC"
  end
  return free - free % 4096
end

-- Made under another name and renamed, so that what stands there is always a whole file system.
local function make_image(self)
  local making = self.image .. ".new"
  os.remove(making)
  local size, message, code = self.size, nil, nil
  if not size then
    size, message, code = default_size(self.state)
    if not size then
      return nil, message, code
    end
  end
  local fd
  fd, message, code = uv.fs_open(making, "w", 384)
  if not fd then
    return nil, message, code
  end
  local sized
  sized, message, code = uv.fs_ftruncate(fd, size)
  uv.fs_close(fd)
  if not sized then
    return nil, message, code
  end
  local result
  result, message, code = async.command({
    "mkfs.btrfs", "--quiet", "--metadata", "single", "--label", "tidepool", making,
    stdout = "pipe", stderr = "pipe",
    env = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin" },
  })
  if not result then
    return nil, message .. " (package btrfs-progs)", code
  end
  if result.code ~= 0 then
    os.remove(making)
    return nil, "mkfs.btrfs: " .. result.stderr:gsub("%s+$", ""), "EIO"
  end
  return uv.fs_rename(making, self.image)
end

--- Opens the storage of a state directory. options: state; spawners, if they run already (else call
-- `use` before anything else); size, bytes of a new pool's image (it is sparse; most of the free space
-- unless given).
-- Returns it | nil, message, code.
function storage.open(options)
  local self = setmetatable({
    state = options.state,
    path_ = options.state .. "/pool",
    image = options.state .. "/pool.img",
    size = options.size,
    warm = {}, -- image -> list of directories
    refilling = {},
    unenforced = {},
  }, Storage)
  local stat, message, code = uv.fs_statfs(options.state)
  if not stat then
    return nil, message, code
  end
  self.on_btrfs = stat.type == BTRFS
  if not self.on_btrfs and not uv.fs_stat(self.image) then
    local ok
    ok, message, code = make_image(self)
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

local function enable_quota(self)
  if self.on_btrfs then
    self.unenforced[1] = "disk limit: the state directory is on a btrfs of the host's, whose quotas are left alone"
    return
  end
  local ok, message = self.spawners:execute({ { "quota", self.path_ } })
  self.quota = ok ~= nil
  if not ok then
    self.unenforced[1] = "disk limit: no simple quotas, Linux 6.7 has them (" .. message .. ")"
  end
end

--- Mounts the pool by the given spawners, which do all of its work from then on.
-- Returns true | nil, message, code.
function Storage:use(spawners)
  self.spawners = spawners
  local plan = { { "ensure", self.path_, 448 } }
  if not self.on_btrfs then
    plan[2] = { "pool", self.image, self.path_ }
  end
  for _, name in ipairs(directories) do
    plan[#plan + 1] = { "ensure", self.path_ .. "/" .. name, 448 }
  end
  local ok, message, code = spawners:execute(plan)
  if not ok then
    return nil, "open the pool: " .. message, code
  end
  enable_quota(self)
  return true
end

local function join(self, ...)
  return table.concat({ self.path_, ... }, "/")
end

--- Whether the disk below the pool has room for something new: a pool that can't grow gets write errors
-- and turns read-only, with all sandboxes. true | nil, message, "ENOSPC", "EROFS", or "ESTALE": it was removed.
function Storage:room()
  local stat = uv.fs_statfs(self.state)
  if not stat or not uv.fs_stat(join(self, "sandboxes")) then
    return nil, ("the state directory %s was removed: save what the sandboxes hold, then `shutdown`"):format(self.state), "ESTALE"
  elseif self.on_btrfs then
    return true
  end
  if stat.bavail * stat.bsize < ROOM then
    return nil, ("the disk of %s is full: %d MiB are free"):format(self.state, stat.bavail * stat.bsize / MiB), "ENOSPC"
  end
  for line in io.lines("/proc/self/mountinfo") do
    local point, options = line:match("^%S+ %S+ %S+ %S+ (%S+) .- %- btrfs %S+ (%S+)$")
    if point == self.path_ and options:match("^ro%f[,%z]") then
      return nil, "the pool has turned read-only after a write error, most likely since the disk was full: "
        .. "make room, stop all sandboxes, then `shutdown`; the next start mounts it anew", "EROFS"
    end
  end
  return true
end

--- Where the root of a sandbox is, on the host.
function Storage:path(id)
  return join(self, "sandboxes", tostring(id), "root")
end

--- Where the read-only root of an image is.
function Storage:image_path(name)
  return join(self, "images", name, "root")
end

-- Steps that make DIRECTORY/root a snapshot; undone together when one fails.
local function snapshot_steps(source, directory, readonly)
  return {
    { "mkdir", directory, 448 },
    { "snapshot", source, directory, "root", readonly and 1 or 0 },
  }
end

-- Deletes directories of the trash one after the other, in a task of its own.
local function empty(self, directory)
  local ok, message, code = self.spawners:execute({
    { "destroy", directory, "root" },
    { "rmdir", directory },
  }, nil, true)
  return ok and true, message, code
end

local function discard(self, from)
  local trash = join(self, "trash", random.hex(8))
  local ok, message, code
  for try = 1, 3 do
    ok, message, code = self.spawners:execute({ { "rename", from, trash } })
    if try > 1 and code == "ENOENT" then
      ok = true -- a spawner had done it when it was killed
    end
    if ok or code ~= "ECONNRESET" then
      break
    end
  end
  if code == "ENOSPC" then
    return empty(self, from) -- on a full pool a rename finds no room; a deletion has btrfs's reserve
  end
  if not ok then
    return nil, message, code
  end
  async.spawn(empty, self, trash) -- what fails here is swept at the next start
  return true
end

--- A new, writable root for an image to be: { path =, id = } | nil, message, code.
function Storage:stage_image(name)
  local directory = join(self, "staging", name .. "-" .. random.hex(8))
  local ok, message, code = self.spawners:execute({
    { "mkdir", directory, 448 },
    { "subvolume", directory, "root" },
  })
  if not ok then
    return nil, message, code
  end
  return { path = directory .. "/root", id = directory:match("[^/]+$"), directory = directory }
end

-- Roots made ahead from what an image was.
local function drop_warm(self, name)
  local warm = self.warm[name] or {}
  self.warm[name] = nil
  for _, directory in ipairs(warm) do
    discard(self, directory)
  end
end

--- Seals a staged image and gives it its name at once. "EEXIST" when one has it, unless `replace`.
function Storage:commit_image(stage, name, replace)
  local target = join(self, "images", name)
  local plan = { { "sync", self.path_ }, { "readonly", stage.path, 1 } }
  local old
  if replace and uv.fs_stat(target) then
    old = join(self, "trash", random.hex(8))
    plan[#plan + 1] = { "rename", target, old }
  end
  plan[#plan + 1] = { "rename", stage.directory, target }
  local ok, message, code = self.spawners:execute(plan)
  if not ok then
    return nil, message, code
  end
  if old then
    async.spawn(empty, self, old)
  end
  drop_warm(self, name)
  return true
end

--- Deletes what was staged.
function Storage:abort_image(stage)
  return discard(self, stage.directory)
end

--- Deletes an image. Sandboxes that were made from it keep their files.
function Storage:remove_image(name)
  local ok, message, code = discard(self, join(self, "images", name))
  if not ok then
    return nil, message, code
  end
  drop_warm(self, name)
  return true
end

--- Names of the images, sorted.
function Storage:images()
  local list = names(join(self, "images"))
  table.sort(list)
  return list
end

--- Makes the root of a sandbox from an image and returns its path. "ENOENT": no such image,
-- "EEXIST": the id has one.
function Storage:create(id, image)
  local target = join(self, "sandboxes", tostring(id))
  local warm = table.remove(self.warm[image] or {})
  local plan = warm and { { "rename", warm, target } } or snapshot_steps(self:image_path(image), target, false)
  local ok, message, code = self.spawners:execute(plan)
  if not ok then
    if warm then
      async.spawn(discard, self, warm)
    end
    return nil, message, code
  end
  self:refill(image)
  return self:path(id)
end

--- Deletes a sandbox's root; the space comes back in a while. "ENOENT" when it has none.
function Storage:delete(id)
  return discard(self, join(self, "sandboxes", tostring(id)))
end

-- A read-only snapshot in a new directory: its root's path, and how long the group stood still, in
-- seconds. What was dirty is written before the freeze, so that little is left to flush within it.
local function take(self, source, directory, group)
  local plan = snapshot_steps(source, directory, true)
  if group then
    local synced, message, code = self.spawners:execute({ { "sync", self.path_ } }, nil, true)
    if not synced then
      return nil, message, code
    end
    table.insert(plan, 2, { "freeze", group, FREEZE_LIMIT })
    plan[#plan + 1] = { "thaw", group }
  end
  local answer, message, code = self.spawners:execute(plan)
  if answer then
    return directory .. "/root", (answer.values[2] or 0) / 1e9
  end
  if code == "ECONNRESET" then -- a spawner that was killed may have left both
    if group then
      self.spawners:execute({ { "thaw", group } })
    end
    discard(self, directory)
  end
  return nil, message, code
end

--- A read-only snapshot of a sandbox's root under a name. `group`: the cgroup of one that runs, which
-- is frozen for that moment. Returns its root's path, and for how many seconds it was frozen.
function Storage:snapshot(id, name, group)
  return take(self, self:path(id), self:snapshot_directory(name), group)
end

--- The same for a moment only, for others to be made from: { path =, directory = } | nil, message, code.
function Storage:stage_snapshot(id, group)
  local directory = join(self, "staging", "snapshot-" .. random.hex(8))
  local path, message, code = take(self, self:path(id), directory, group)
  if not path then
    return nil, message, code
  end
  return { path = path, directory = directory }
end

--- Deletes what was staged.
function Storage:abort_snapshot(stage)
  return discard(self, stage.directory)
end

function Storage:snapshot_directory(name)
  return join(self, "snapshots", tostring(name))
end

function Storage:remove_snapshot(name)
  return discard(self, self:snapshot_directory(name))
end

--- Makes the root of a sandbox from another root, read-only or not. Returns its path.
function Storage:clone(id, source)
  local ok, message, code = self.spawners:execute(snapshot_steps(source, join(self, "sandboxes", tostring(id)), false))
  if not ok then
    return nil, message, code
  end
  return self:path(id)
end

--- Bytes that a snapshot owns alone | nil, message, "ENOTSUP" without simple quotas.
function Storage:snapshot_usage(name)
  if not self.quota then
    return nil, self.unenforced[1], "ENOTSUP"
  end
  local answer, message, code = self.spawners:execute({ { "usage", self:snapshot_directory(name) .. "/root" } })
  if not answer then
    return nil, message, code
  end
  return answer.values[1]
end

--- Bytes on disk that a sandbox has added to its image | nil, message, "ENOTSUP" without simple quotas.
function Storage:usage(id)
  if not self.quota then
    return nil, self.unenforced[1], "ENOTSUP"
  end
  local answer, message, code = self.spawners:execute({ { "usage", self:path(id) } })
  if not answer then
    return nil, message, code
  end
  return answer.values[1]
end

--- Limits what a sandbox may add to its image, in bytes; nil: no limit.
-- Returns true | nil, message, code ("ENOTSUP": why it can't be enforced here).
function Storage:limit(id, bytes)
  if not self.quota then
    return nil, self.unenforced[1], "ENOTSUP"
  end
  local ok, message, code = self.spawners:execute({ { "limit", self:path(id), bytes or 0 } })
  return ok and true or nil, message, code
end

local function refill_one(self, image, generation)
  local parent = join(self, "warm", image)
  local directory = parent .. "/" .. random.hex(6)
  local plan = snapshot_steps(self:image_path(image), directory, false)
  table.insert(plan, 1, { "ensure", parent, 448 })
  for _, path in ipairs(hot) do
    plan[#plan + 1] = { "prefetch?", directory .. "/root", path }
  end
  local ok = self.spawners:execute(plan, nil, true)
  if ok and self.warm[image] == generation then
    generation[#generation + 1] = directory
  elseif ok then
    discard(self, directory) -- the image was replaced meanwhile
  end
  return ok
end

--- Makes roots ahead for an image, in the background.
function Storage:refill(image)
  if self.refilling[image] or self.closed then
    return
  end
  self.refilling[image] = true
  self.warm[image] = self.warm[image] or {}
  async.spawn(function()
    while not self.closed do
      local generation = self.warm[image] or {}
      self.warm[image] = generation
      if #generation >= storage.WARM or not refill_one(self, image, generation) then
        break
      end
    end
    self.refilling[image] = nil
  end)
end

local function sweep(self, kind, keep)
  for _, name in ipairs(names(join(self, kind))) do
    if not keep[name] then
      local ok = discard(self, join(self, kind, name))
      if not ok then
        empty(self, join(self, kind, name))
      end
    end
  end
end

local function set_of(list)
  local set = {}
  for _, name in ipairs(list) do
    set[tostring(name)] = true
  end
  return set
end

--- Deletes what an earlier server left half-made, and the roots of sandboxes and the snapshots that are
-- not among the known, lists of names of their directories. At the start, before anything else is made.
function Storage:reconcile(known, snapshots)
  for _, name in ipairs(names(join(self, "trash"))) do
    empty(self, join(self, "trash", name))
  end
  sweep(self, "staging", {})
  sweep(self, "sandboxes", set_of(known))
  if snapshots then
    sweep(self, "snapshots", set_of(snapshots))
  end
  for _, image in ipairs(names(join(self, "warm"))) do
    for _, name in ipairs(names(join(self, "warm", image))) do
      discard(self, join(self, "warm", image, name))
    end
    self.spawners:execute({ { "rmdir?", join(self, "warm", image) } })
  end
  return true
end

--- Unmounts the pool from this server's namespace; sandboxes keep their own mounts of it.
function Storage:close()
  self.closed = true
  if self.on_btrfs then
    return true
  end
  local ok, message, code = self.spawners:execute({ { "umount", self.path_ } })
  return ok and true or nil, message, code
end

return storage

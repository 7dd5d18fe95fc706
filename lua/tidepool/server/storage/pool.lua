--- The pool: a btrfs in a sparse image file of the state directory.
--
-- Runs in the server; the file is mounted by a spawner (core/loop.c), in the server's mount namespace,
-- for nobody else to see.
local uv = require("luv")
local args = require("tidepool.cli.args")
local async = require("tidepool.async")

local pool = {}

local MiB = 1048576
local LEAST = 192 * MiB -- of a new pool; mkfs.btrfs needs 114
local SMALL = 1024 * MiB -- below which files that fill it would leave no room for trees, also when they are gone
local ROOM = 16 * MiB -- of the host's disk, below which nothing new is made

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

local function make_file(path, size)
  local fd, message, code = uv.fs_open(path, "w", 384)
  if not fd then
    return nil, message, code
  end
  local sized
  sized, message, code = uv.fs_ftruncate(fd, size)
  uv.fs_close(fd)
  return sized, message, code
end

local function make_command(path, size)
  local command = {
    "mkfs.btrfs", "--quiet", "--metadata", "single", "--data", "single", "--label", "tidepool", path,
    stdout = "pipe", stderr = "pipe", env = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin" },
  }
  if size < SMALL then
    table.insert(command, 2, "--mixed")
  end
  return command
end

-- The bytes of a setting such as 20G | nil, message, code.
local function parse(setting)
  local size = args.bytes(setting)
  if not size or size < LEAST then
    return nil, ("TIDEPOOL_POOL_SIZE is a size such as 20G, of %d MiB at least, not %s"):format(LEAST / MiB, setting), "EINVAL"
  end
  return size - size % 4096
end

--- Makes the image file, of `size` bytes, or of what `setting` says, or of most of the free space: true |
-- nil, message, code. It is made under another name and renamed, so that what stands there is always a whole
-- file system.
function pool.make(image, state, size, setting)
  local making = image .. ".new"
  os.remove(making)
  local message, code
  if not size and setting and setting ~= "" then
    size, message, code = parse(setting)
    if not size then
      return nil, message, code
    end
  end
  if not size then
    size, message, code = default_size(state)
    if not size then
      return nil, message, code
    end
  end
  local ok
  ok, message, code = make_file(making, size)
  if not ok then
    return nil, message, code
  end
  local result
  result, message, code = async.command(make_command(making, size))
  if not result then
    return nil, message .. " (package btrfs-progs)", code
  end
  if result.code ~= 0 then
    os.remove(making)
    return nil, "mkfs.btrfs: " .. result.stderr:gsub("%s+$", ""), "EIO"
  end
  return uv.fs_rename(making, image)
end

--- The step that mounts it.
function pool.mount(image, directory)
  return { "pool", image, directory }
end

-- Whether the file system that is mounted at, or above, this path is read-only.
local function read_only(path)
  local longest, options = 0, nil
  for line in io.lines("/proc/self/mountinfo") do
    local point, mount, super = line:match("^%S+ %S+ %S+ %S+ (%S+) (%S+) .*%- %S+ %S+ (%S+)$")
    local above = point and (point == path or point == "/" or path:sub(1, #point + 1) == point .. "/")
    if above and #point >= longest then -- of two at one point the later is the upper
      longest, options = #point, mount .. "," .. super
    end
  end
  return options and ("," .. options .. ","):find(",ro,", 1, true) ~= nil
end

local function free(path)
  local stat = uv.fs_statfs(path)
  return stat and stat.bavail * stat.bsize or 0
end

--- Whether there is room for something new, on the disk below and in the pool itself: a pool that can't grow
-- gets write errors and turns read-only, with all sandboxes. true | nil, message, "ENOSPC" or "EROFS".
function pool.room(self)
  if free(self.state) < ROOM then
    return nil, ("the disk of %s is full: %d MiB are free"):format(self.state, free(self.state) / MiB), "ENOSPC"
  elseif self.kind == "pool" and free(self.directory) < ROOM then
    return nil, ("the pool is full, of %d MiB %d are free: delete snapshots, sandboxes or images, or `storage grow`"):format(
      uv.fs_stat(self.image).size / MiB, free(self.directory) / MiB), "ENOSPC"
  elseif read_only(self.directory) then
    return nil, self.kind ~= "pool" and ("the disk of %s is read-only"):format(self.state)
      or "the pool has turned read-only after a write error, most likely since the disk was full: "
        .. "make room, stop all sandboxes, then `shutdown`; the next start mounts it anew", "EROFS"
  end
  return true
end

return pool

--- Care of the pool: growing it, and looking for damage.
--
-- Runs in the server, but for what is said of a pool that can't be mounted, and `offline`, which is the
-- command line's when no server can start.
local uv = require("luv")
local async = require("tidepool.async")
local names = require("tidepool.file").names

local care = {}

local methods = { names = { "grow", "check", "report" } }
care.methods = methods

local MiB = 1048576
local ENVIRONMENT = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C" }

local function not_a_pool(self)
  return nil, ("the storage of %s is %s: its file system is the host's to care for"):format(self.state, self.kind), "ENOTSUP"
end

--- What `info` tells: { driver, why, size, used, free } in bytes; free: what new files find, on the disk below too.
function methods.report(self)
  local report = { driver = self.kind, why = self.why }
  local inside, below = uv.fs_statfs(self.directory), uv.fs_statfs(self.state)
  if inside and below then
    report.size = inside.blocks * inside.bsize
    report.used = (inside.blocks - inside.bfree) * inside.bsize
    report.free = math.min(inside.bavail * inside.bsize, below.bavail * below.bsize)
  end
  return report
end

-- What the image may grow to: what it has on the disk, and of the free space all but a twentieth.
local function most(self, stat)
  local disk = uv.fs_statfs(self.state)
  local bytes = stat.blocks * 512 + math.floor(disk.bavail * disk.bsize * 0.95)
  return bytes - bytes % 4096
end

--- Makes the pool larger, in use: to `bytes`, or to what its disk can hold. { before, size } in bytes | nil,
-- message, code ("EINVAL": that is smaller, "ENOSPC": the disk can't hold it, "ENOTSUP": it is no pool).
function methods.grow(self, bytes)
  if self.kind ~= "pool" then
    return not_a_pool(self)
  end
  local stat, message, code = uv.fs_stat(self.image)
  if not stat then
    return nil, message, code
  end
  local limit = most(self, stat)
  local size = bytes and bytes - bytes % 4096 or math.max(limit, stat.size)
  if size < stat.size then
    return nil, ("the pool has %d MiB and can't become smaller"):format(stat.size / MiB), "EINVAL"
  elseif size > limit and size > stat.size then
    return nil, ("the disk of %s can hold a pool of %d MiB, not of %d"):format(self.state, limit / MiB, size / MiB), "ENOSPC"
  end
  local ok
  ok, message, code = self.spawners:execute({ { "grow", self.image, self.directory, size } })
  if not ok then
    return nil, "grow the pool: " .. message, code
  end
  return { before = stat.size, size = size }
end

local SCARCE = 1 / 20 -- of the pool, below which deleted files' space is asked for
local TRIES, PAUSE = 40, 0.25 -- of asking; seconds between

--- Has the kernel give back the space of what was deleted, where it is scarce: by itself it takes its time. In the
-- background.
function care.reclaim(self)
  local function scarce()
    local stat = uv.fs_statfs(self.directory)
    return stat and stat.bavail < stat.blocks * SCARCE
  end
  if self.kind ~= "pool" or self.reclaiming or self.closed or not scarce() then
    return
  end
  self.reclaiming = true
  async.spawn(function()
    for _ = 1, TRIES do
      if not self.spawners:execute({ { "reclaim", self.directory } }, nil, true) or not scarce() then
        break
      end
      async.sleep(PAUSE)
    end
    self.reclaiming = false
  end)
end

-- The counters of `btrfs scrub`: bytes read, and damage by kind.
local function counters(text)
  local bytes, damage, count = 0, {}, 0
  for name, number in text:gmatch("([%w_]+):%s+(%d+)") do
    number = tonumber(number)
    if name == "data_bytes_scrubbed" or name == "tree_bytes_scrubbed" then
      bytes = bytes + number
    elseif name:find("_errors$") and name ~= "corrected_errors" and name ~= "uncorrectable_errors"
      and name ~= "unverified_errors" and number > 0 then
      damage[name:gsub("_errors$", "")], count = number, count + number
    end
  end
  return bytes, damage, count
end

--- Reads all of the pool, in use, and compares it with its checksums; repairs nothing: { bytes = that were read,
-- errors = how many were found, damage = by kind } | nil, message, code.
function methods.check(self)
  if self.kind ~= "pool" then
    return not_a_pool(self)
  end
  local result, message, code = async.command({
    "btrfs", "scrub", "start", "-B", "-R", "-r", self.directory, -- in the foreground, raw counters, read-only
    stdout = "pipe", stderr = "pipe", env = ENVIRONMENT,
  })
  if not result then
    return nil, message .. " (package btrfs-progs)", code
  end
  local bytes, damage, count = counters(result.stdout)
  if not result.stdout:find("bytes_scrubbed", 1, true) then
    return nil, "btrfs scrub: " .. (result.stderr:match("[^\n]+") or "ended with status " .. result.code), "EIO"
  end
  return { bytes = bytes, errors = count, damage = damage }
end

--- What to say of a pool that can't be mounted: nobody has written to it.
function care.explain(image, message, code)
  local why
  if code == "EINVAL" then
    why = "its superblock is damaged, or of a newer kernel (from 6.7 on, pools have simple quotas)"
  elseif code == "EIO" or code == "EUCLEAN" then
    why = "its trees are damaged"
  else
    return message
  end
  return ("%s: %s is kept as it is: %s; `storage check` looks closer, and `mount -o ro,rescue=all,loop` may still reach its files"):format(
    message, image, why)
end

--- Whether some loop device has the file: its name, or nil.
function care.attached(image)
  for _, name in ipairs(names("/sys/block")) do
    local file = io.open("/sys/block/" .. name .. "/loop/backing_file")
    if file then
      local backing = file:read("*l")
      file:close()
      if backing == image then
        return name
      end
    end
  end
end

--- Looks through a pool that nobody uses, by `btrfs check --readonly`: { errors = 0 or 1, said = its words } | nil,
-- message, code ("EBUSY": somebody does use it, "ENOTSUP": its tools are too old for it).
function care.offline(image)
  if not uv.fs_stat(image) then
    return nil, "no such pool: " .. image, "ENOENT"
  end
  local loop = care.attached(image)
  if loop then
    return nil, ("%s is attached to %s: sandboxes of it still run, or somebody has mounted it"):format(image, loop), "EBUSY"
  end
  local result, message, code = async.command({
    "btrfs", "check", "--readonly", image, stdout = "pipe", stderr = "pipe", env = ENVIRONMENT,
  })
  if not result then
    return nil, message .. " (package btrfs-progs)", code
  end
  if result.stderr:find("unsupported option features", 1, true) then
    return nil, ("the btrfs-progs here are too old to check %s, which has simple quotas: it takes 6.7; dmesg has what the kernel found"):format(
      image), "ENOTSUP"
  end
  return { errors = result.code == 0 and result.signal == 0 and 0 or 1, said = result.stdout .. result.stderr }
end

return care

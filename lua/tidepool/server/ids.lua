--- Ranges of user and group ids, one a sandbox, never twice on a host.
--
-- Runs in the server. A range has 65,536 ids; ranges are reserved in blocks of 64, so that allocating
-- one is a table lookup. A block is a file below /run/tidepool-ids that names the state directory it
-- belongs to, by device and inode too: one made anew in the same place doesn't inherit what the old
-- one's sandboxes may still run under. /run goes with the boot, and so does every use of a range.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local read_file = require("tidepool.file").read

local ids = {}

ids.COUNT = 65536
ids.FIRST = 0x10000000
ids.BLOCK = 64
ids.BLOCKS = 960 -- up to 0xffffffff, which is no id, and not including the last block's worth

local directory = "/run/tidepool-ids"

local Ids = {}
Ids.__index = Ids

local function block_base(block)
  return ids.FIRST + block * ids.BLOCK * ids.COUNT
end

local function block_of(base)
  return math.floor((base - ids.FIRST) / (ids.BLOCK * ids.COUNT))
end

-- Runs fn while no other server of this host changes a block. Held for some file accesses at most.
local function locked(self, fn)
  local lock, message, code = core.fd.open(self.directory .. "/lock", "rwc", 384)
  if not lock then
    return nil, message, code
  end
  local taken
  for _ = 1, 500 do
    taken, message, code = core.fd.lock(lock)
    if taken or code ~= "EAGAIN" then
      break
    end
    if async.running() then
      async.sleep(0.01)
    else
      uv.sleep(10)
    end
  end
  if not taken then
    lock:close()
    return nil, message, code
  end
  local ok, result, why, why_code = pcall(fn)
  lock:close()
  if not ok then
    error(result, 0)
  end
  return result, why, why_code
end

local function identity(path)
  local stat = uv.fs_stat(path)
  return stat and ("%d:%d %s"):format(stat.dev, stat.ino, path)
end

-- Blocks that some process has ids of, whoever started it.
local function blocks_in_use()
  local used = {}
  local scan = uv.fs_scandir("/proc")
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then
      break
    end
    local map = name:find("^%d+$") and read_file("/proc/" .. name .. "/uid_map")
    for outside in (map or ""):gmatch("%d+%s+(%d+)%s+%d+") do
      if tonumber(outside) >= ids.FIRST then
        used[block_of(tonumber(outside))] = true
      end
    end
  end
  return used
end

-- Block number -> the identity line of its owner. Those whose state directory is gone are freed,
-- unless a process still runs under their ids.
local function owners(self)
  local found, used = {}, nil
  local scan = uv.fs_scandir(self.directory)
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then
      break
    end
    local block = tonumber(name:match("^block%-(%d+)$"))
    local owner = block and read_file(self.directory .. "/" .. name)
    if owner then
      local path = owner:match("^%S+ (.*)$")
      if not path or identity(path) ~= owner then
        used = used or blocks_in_use()
        if not used[block] then
          uv.fs_unlink(self.directory .. "/" .. name)
          owner = nil
        end
      end
      found[block] = owner
    end
  end
  return found
end

local function claim(self, block)
  local path = ("%s/block-%d"):format(self.directory, block)
  local fd, message, code = uv.fs_open(path, "wx", 384)
  if not fd then
    return nil, message, code
  end
  local wrote
  wrote, message, code = uv.fs_write(fd, self.owner, 0)
  uv.fs_close(fd)
  if not wrote then
    uv.fs_unlink(path)
    return nil, message, code
  end
  return true
end

local function add_block(self, block)
  self.blocks[block] = true
  for i = 0, ids.BLOCK - 1 do
    local base = block_base(block) + i * ids.COUNT
    if not self.used[base] then
      self:put(base)
    end
  end
end

local function reserve(self)
  return locked(self, function()
    local taken = owners(self)
    for block = 0, ids.BLOCKS - 1 do
      if not taken[block] and not self.blocks[block] then
        local ok, message, code = claim(self, block)
        if not ok then
          return nil, message, code
        end
        add_block(self, block)
        return true
      end
    end
    return nil, "no id range is left on this host", "EUSERS"
  end)
end

--- Opens the allocator of one server. options: state, its directory; in_use, a list of bases that
-- sandboxes still have; directory, of the blocks, for specs.
-- Returns it | nil, message, code.
function ids.open(options)
  local self = setmetatable({
    directory = options.directory or directory,
    owner = identity(options.state),
    blocks = {},
    used = {},
    free = {}, -- a queue from `first` to `last`: what was used last is used again last
    first = 1,
    last = 0,
  }, Ids)
  if not self.owner then
    return nil, "no state directory: " .. options.state, "ENOENT"
  end
  local made, message, code = uv.fs_mkdir(self.directory, 448)
  if not made and code ~= "EEXIST" then
    return nil, message, code
  end
  for _, base in ipairs(options.in_use or {}) do
    self.used[base] = true
  end
  local ok
  ok, message, code = locked(self, function()
    local taken = owners(self)
    for block, owner in pairs(taken) do
      if owner == self.owner then
        add_block(self, block)
      end
    end
    for base in pairs(self.used) do
      local block = block_of(base)
      if not taken[block] and claim(self, block) then
        taken[block] = self.owner
        add_block(self, block)
      end
    end
    return true
  end)
  if not ok then
    return nil, message, code
  end
  return self
end

function Ids:put(base)
  self.last = self.last + 1
  self.free[self.last] = base
end

--- The first host id of a range of 65,536 that nobody uses. "EUSERS" when all are taken.
function Ids:allocate()
  if self.first > self.last then
    local ok, message, code = reserve(self)
    if not ok then
      return nil, message, code
    end
  end
  local base = self.free[self.first]
  self.free[self.first] = nil
  self.first = self.first + 1
  self.used[base] = true
  return base
end

--- Gives a range back. Nothing may run under it any more.
function Ids:release(base)
  if not self.used[base] then
    return
  end
  self.used[base] = nil
  if self.blocks[block_of(base)] then
    self:put(base)
  end
end

--- Gives all blocks back: for a server whose last sandbox is gone for good.
function Ids:close()
  return locked(self, function()
    for block in pairs(self.blocks) do
      uv.fs_unlink(("%s/block-%d"):format(self.directory, block))
    end
    self.blocks, self.free, self.first, self.last = {}, {}, 1, 0
    return true
  end)
end

return ids

--- Which private address stands for which name, in one sandbox.
--
-- A permitted name is answered with an address of our own, so that a later connection tells its name
-- whatever it speaks. Lives in the egress process; the server keeps a copy, since programs inside
-- remember addresses for longer than this process may live.
local uv = require("luv")

local names = {}

local Names = {}
Names.__index = Names

local V4_FIRST = 198 * 2 ^ 24 + 18 * 2 ^ 16 -- 198.18.0.0/15, reserved for benchmarks: in no real network
local V6_PREFIX = "fd74:6964:6501::"
local MOST = 50000 -- well below 2^16, where the table by name would be made anew for each name

-- Names in the order of their use: a list in two tables by index, 0 before the first and behind the last. A scan
-- for the oldest would be a sandbox's way to keep the process busy.
local function unlink(self, index)
  local before, after = self.before[index], self.after[index]
  if before then
    self.after[before], self.before[after] = after, before
  end
end

local function touch(self, index)
  unlink(self, index)
  local last = self.before[0]
  self.after[last], self.before[index] = index, last
  self.after[index], self.before[0] = 0, index
end

-- Some place of the pool, which only has to be another one each time.
local function anywhere()
  local high, low = uv.random(2):byte(1, 2)
  return (high * 256 + low) % MOST
end

--- `known`: a list of { index, name } from an earlier process. `again`: there was one in this run, which may
--- have given out names that nobody knows any more. Their addresses must not soon be another name's, so that
--- who remembers one is refused rather than led elsewhere.
function names.new(known, again)
  local self = setmetatable({
    by_name = {}, by_index = {}, before = { [0] = 0 }, after = { [0] = 0 }, last = 0, count = 0, fresh = {},
  }, Names)
  for _, pair in ipairs(known or {}) do
    local index, name = pair[1], pair[2]
    if not self.by_index[index] and not self.by_name[name] then
      self.by_index[index], self.by_name[name] = name, index
      self.count, self.last = self.count + 1, math.max(self.last, index)
      touch(self, index)
    end
  end
  self.last = again and anywhere() or self.last
  return self
end

-- All are given out: the one that was not asked for the longest gives way.
local function evict(self)
  local oldest = self.after[0]
  self.by_name[self.by_index[oldest]] = nil
  return oldest
end

--- The index of a name, given out now if it has none; and whether it is new.
function Names:give(name)
  local index = self.by_name[name]
  if index then
    touch(self, index)
    return index, false
  end
  if self.count < MOST then
    repeat
      self.last = self.last % MOST + 1
    until not self.by_index[self.last]
    index = self.last
    self.count = self.count + 1
  else
    index = evict(self)
  end
  self.by_name[name], self.by_index[index] = index, name
  self.fresh[#self.fresh + 1] = { index, name }
  touch(self, index)
  return index, true
end

--- What the server has not been told yet; the caller tells it.
function Names:take_fresh()
  local fresh = self.fresh
  self.fresh = {}
  return fresh
end

function names.v4(index)
  local number = V4_FIRST + index
  return ("%d.%d.%d.%d"):format(
    math.floor(number / 2 ^ 24), math.floor(number / 2 ^ 16) % 256, math.floor(number / 2 ^ 8) % 256, number % 256)
end

function names.v6(index)
  return ("%s%x"):format(V6_PREFIX, index)
end

local function index_of(address)
  local a, b, c, d = address:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
  if a then
    return a * 2 ^ 24 + b * 2 ^ 16 + c * 2 ^ 8 + d - V4_FIRST
  end
  if address:sub(1, #V6_PREFIX) == V6_PREFIX then
    local digits = address:sub(#V6_PREFIX + 1)
    return digits:match("^%x+$") and tonumber(digits, 16)
  end
end

--- The name that an address was given out for, or nil.
function Names:at(address)
  local index = index_of(address)
  local name = index and self.by_index[index]
  if name then
    touch(self, index)
  end
  return name
end

--- Whether an address belongs to the pool, given out or not.
function names.is_pool(address)
  local index = index_of(address)
  return index ~= nil and index >= 0 and index < 2 ^ 17
end

return names

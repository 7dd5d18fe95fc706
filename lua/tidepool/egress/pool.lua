--- Idle connections to upstreams, one pool a sandbox: what one has authenticated, no other gets to use.
local async = require("tidepool.async")

local pool = {}

local Pool = {}
Pool.__index = Pool

local IDLE = 30 -- seconds
local MOST = 1024 -- connections kept; as many as a sandbox may have open

function pool.new()
  return setmetatable({ by_key = {}, count = 0 }, Pool)
end

-- Takes it out: true, or false when somebody did already.
local function remove(self, key, entry)
  local list = self.by_key[key]
  for i, other in ipairs(list or {}) do
    if other == entry then
      table.remove(list, i)
      self.count = self.count - 1
      if #list == 0 then
        self.by_key[key] = nil
      end
      return true
    end
  end
  return false
end

--- A connection with this key that was idle and is still open, or nil.
function Pool:take(key)
  while self.by_key[key] do
    local list = self.by_key[key]
    local entry = list[#list]
    remove(self, key, entry)
    if entry.watch:cancel() then
      return entry.conn
    end
    entry.conn:close() -- the other end has closed it, or said what nobody asked for
  end
end

--- Keeps a connection for the next request; closes it when the other end does, or when it was idle for long.
function Pool:put(key, conn)
  if self.closed or self.count >= MOST then
    conn:close()
    return
  end
  local entry = { conn = conn, watch = conn:watch_close() }
  self.by_key[key] = self.by_key[key] or {}
  table.insert(self.by_key[key], entry)
  self.count = self.count + 1
  async.spawn(function()
    entry.watch:finish(IDLE)
    if remove(self, key, entry) then
      conn:close()
    end
  end)
end

function Pool:close()
  self.closed = true
  for _, list in pairs(self.by_key) do
    for _, entry in ipairs(list) do
      entry.conn:close()
    end
  end
  self.by_key, self.count = {}, 0
end

return pool

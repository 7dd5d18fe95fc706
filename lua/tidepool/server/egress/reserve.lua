--- Certificate authorities made ahead, so that no create waits for one. Runs in the server; egress
--- processes make them.
local async = require("tidepool.async")

local reserve = {}

local Reserve = {}
Reserve.__index = Reserve

local MOST, FEW = 16, 4
-- Seconds. Just now whoever took one has a sandbox to start, and may start others: making one takes a
-- millisecond of a processor that they need. With few left it doesn't wait for their end.
local QUIET, SOON = 0.1, 0.02

--- `make()` gives one, { cert, key }, or nil when nobody can make it at the moment.
function reserve.new(make)
  return setmetatable({ make = make }, Reserve)
end

--- One of them, nobody else's | nil when there is none.
function Reserve:take()
  local ca = table.remove(self)
  self:fill()
  return ca
end

local function make(self)
  self.cancel, self.making = nil, true
  local more = true
  while more and #self < MOST and not self.closed do
    local ca = self.make()
    self[#self + 1] = ca
    more = ca ~= nil
  end
  self.making = false
end

--- Makes those that are missing, in the background.
function Reserve:fill()
  if self.making or self.closed or self.cancel and #self < FEW then
    return
  elseif self.cancel then
    self.cancel()
  end
  self.cancel = async.after(#self < FEW and SOON or QUIET, function()
    async.spawn(make, self)
  end)
end

function Reserve:close()
  self.closed = true
end

return reserve

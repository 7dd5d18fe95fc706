--- Certificate authorities made ahead, so that no create waits for one. Runs in the server; egress
--- processes make them.
local async = require("tidepool.async")

local reserve = {}

local Reserve = {}
Reserve.__index = Reserve

local MOST = 8
local FILL_AFTER = 0.02 -- seconds: just now the process that makes them has a sandbox to attach

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

--- Makes those that are missing, in the background.
function Reserve:fill()
  if self.filling or self.closed then
    return
  end
  self.filling = async.after(FILL_AFTER, function()
    async.spawn(function()
      local more = true
      while more and #self < MOST and not self.closed do
        local ca = self.make()
        self[#self + 1] = ca
        more = ca ~= nil
      end
      self.filling = nil
    end)
  end)
end

function Reserve:close()
  self.closed = true
end

return reserve

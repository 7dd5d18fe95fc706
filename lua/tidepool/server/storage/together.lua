--- Copies that are asked for in the same turn of the loop are made by one plan.
--
-- Runs in the server. The file system may make several at the cost of one (core/snapshot.c).
local async = require("tidepool.async")

local together = {}

local MOST = 64 -- copies a plan

-- One plan makes all or none; why one of several can't be made is found by making each alone.
local function make(self, requests)
  local ok, message, code = self.driver.copies(self, requests)
  if ok or #requests == 1 or code == "ECONNRESET" then
    for _, request in ipairs(requests) do
      request.made(ok and true or nil, message, code)
    end
    return
  end
  for _, request in ipairs(requests) do
    async.spawn(make, self, { request })
  end
end

local function begin(self)
  local waiting = self.copying
  self.copying = nil
  for first = 1, #waiting, MOST do
    async.spawn(make, self, { unpack(waiting, first, math.min(#waiting, first + MOST - 1)) })
  end
end

--- Copies a place to another, new one, with others that are asked for now: true | nil, message, code, with
--- nothing made.
function together.copy(self, source, target)
  if not self.driver.copies then
    return self:copy(source, target, false)
  end
  return async.wait(function(wake)
    if not self.copying then
      self.copying = {}
      async.after(0, function()
        begin(self)
      end)
    end
    table.insert(self.copying, { source = source, target = target, made = wake })
  end)
end

return together

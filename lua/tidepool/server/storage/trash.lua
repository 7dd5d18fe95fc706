--- Deleting: a place is renamed into the trash at once, and emptied in the background.
--
-- Runs in the server. What is left there by a server that ended is emptied by the next one.
local async = require("tidepool.async")
local names = require("tidepool.file").names
local random = require("tidepool.random")

local trash = {}

local methods = { names = { "abort", "count", "reconcile" } }
trash.methods = methods

--- A name in the trash for what is to be deleted.
function trash.place(self)
  return self:join("trash", random.hex(8))
end

--- Deletes a place that is in the trash, in a task of its own; what fails is swept at the next start.
function trash.empty(self, place)
  async.spawn(self.driver.destroy, self, place)
end

--- Deletes a place: true, and the space comes back in a while | nil, message, code.
function trash.discard(self, from)
  local place = trash.place(self)
  local ok, message, code
  for try = 1, 3 do
    ok, message, code = self.spawners:execute({ { "rename", from, place } })
    if try > 1 and code == "ENOENT" then
      ok = true -- a spawner had done it when it was killed
    end
    if ok or code ~= "ECONNRESET" then
      break
    end
  end
  if code == "ENOSPC" then
    return self.driver.destroy(self, from) -- on a full pool a rename finds no room; a deletion has btrfs's reserve
  end
  if not ok then
    return nil, message, code
  end
  trash.empty(self, place)
  return true
end

--- Deletes what was staged.
function methods.abort(self, place)
  return trash.discard(self, place)
end

local function sweep(self, kind, keep)
  for _, name in ipairs(names(self:join(kind))) do
    if not keep[name] then
      local ok = trash.discard(self, self:join(kind, name))
      if not ok then
        self.driver.destroy(self, self:join(kind, name))
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

--- How many sandboxes and snapshots have files here.
function methods.count(self)
  return #names(self:join("sandboxes")) + #names(self:join("snapshots"))
end

--- Deletes what an earlier server left half-made, and the files of sandboxes and the snapshots that are
-- not among the known, lists of their ids. At the start, before anything else is made.
function methods.reconcile(self, known, snapshots)
  for _, name in ipairs(names(self:join("trash"))) do
    self.driver.destroy(self, self:join("trash", name))
  end
  sweep(self, "staging", {})
  sweep(self, "sandboxes", set_of(known))
  if snapshots then
    sweep(self, "snapshots", set_of(snapshots))
  end
  for _, image in ipairs(names(self:join("warm"))) do
    sweep(self, "warm/" .. image, {})
    self.spawners:execute({ { "rmdir?", self:join("warm", image) } })
  end
  return true
end

return trash

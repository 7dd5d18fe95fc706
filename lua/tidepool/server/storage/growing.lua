--- Imports: files that grow layer by layer, kept after each, so that another try continues.
--
-- Runs in the server. imports/KEY has a place for the last whole layer, its number, and `work`, where the
-- next one is applied; the last layer's place becomes a snapshot by a rename. So what an ended server has
-- left there is never seen. What nobody continues is swept.
local uv = require("luv")
local names = require("tidepool.file").names
local step = require("tidepool.server.step")
local trash = require("tidepool.server.storage.trash")

local growing = {}

local methods = { names = { "growing", "sweep_growing", "capacity" } }
growing.methods = methods

local Growing = {}
Growing.__index = Growing

--- What an import of that key has, and what it does next: an object | nil, message, code.
function methods.growing(self, key)
  local directory = self:join("imports", key)
  local ok, message, code = self.spawners:execute({
    { "ensure", self:join("imports"), 448 },
    { "ensure", directory, 448 },
  })
  if not ok then
    return nil, message, code
  end
  return setmetatable({ storage = self, directory = directory, work = directory .. "/work" }, Growing)
end

-- Where the layers up to the i-th are.
local function place_of(self, i)
  return ("%s/%d"):format(self.directory, i)
end

-- Deletes all that was made so far, but the names in the set `kept`.
local function discard(self, kept)
  for _, name in ipairs(names(self.directory)) do
    if not (kept and kept[name]) then
      trash.discard(self.storage, self.directory .. "/" .. name)
    end
  end
end

--- How many of `count` layers an earlier try has applied. What else it has left goes.
function Growing:applied(count)
  local done = 0
  for i = 1, count do
    if uv.fs_stat(place_of(self, i)) then
      done = i
    end
  end
  discard(self, { [tostring(done)] = true })
  return done
end

--- Begins the work with what is there: `done` layers, or the place `below`, or nothing. Returns the path
-- that layers are to be applied to, for ids from `base` on | nil, message, code.
function Growing:begin(done, below, base)
  below = done > 0 and place_of(self, done) or below
  local ok, message, code
  if below then
    ok, message, code = self.storage:copy(below, self.work, false)
  else
    ok, message, code = self.storage.driver.make(self.storage, self.work)
  end
  if not ok then
    return nil, message, code
  end
  self.view, message, code = self.storage:view(self.work, base)
  return self.view and self.view.path, message, code
end

--- Keeps what has been applied up to layer i, for another try. The files themselves go on: what is written
-- to them stays their own, also in storage's account. true | nil, message, code
function Growing:keep(i, last)
  local ok, message, code
  if last then
    self:leave()
    local plan = self.storage.driver.seal(self.storage, self.work)
    plan[#plan + 1] = { "rename", self.work, place_of(self, i) }
    ok, message, code = self.storage.spawners:execute(plan)
  else
    local copy = self.directory .. "/copy"
    ok, message, code = self.storage.driver.take(self.storage, self.work, copy)
    if ok then
      ok, message, code = self.storage.spawners:execute({ { "rename", copy, place_of(self, i) } })
    end
  end
  if not ok then
    return nil, message, code
  end
  step("import_kept")
  discard(self, { [tostring(i)] = true, work = true })
  return true
end

--- Makes the i-th layer's place a snapshot's: true | nil, message, code.
function Growing:become(i, id)
  local ok, message, code = self.storage.spawners:execute({
    { "rename", place_of(self, i), self.storage:snapshot_place(id) },
  })
  return ok and true or nil, message, code
end

--- Lets go of the path that layers were applied to.
function Growing:leave()
  if self.view then
    self.view.close()
    self.view = nil
  end
end

--- Deletes all of it.
function Growing:discard()
  self:leave()
  discard(self)
  self.storage.spawners:execute({ { "rmdir?", self.directory } })
end

--- Deletes what imports of earlier servers left and nobody has continued for `age` seconds. At the start.
function methods.sweep_growing(self, age)
  for _, key in ipairs(names(self:join("imports"))) do
    local stat = uv.fs_stat(self:join("imports", key))
    local idle = stat and (os.time() - stat.mtime.sec > age or #names(self:join("imports", key)) == 0)
    local left = idle and self:growing(key)
    if left then
      left:discard()
    end
  end
end

--- Bytes that all of it could hold.
function methods.capacity(self)
  local stat = uv.fs_statfs(self.directory)
  return stat and stat.blocks * stat.bsize or 0
end

return growing

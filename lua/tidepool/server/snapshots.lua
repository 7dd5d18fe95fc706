--- Snapshots: a sandbox's files in one instant, under a label, whatever becomes of the sandbox.
--
-- Runs in the server. A snapshot is a row of the database and read-only files in storage, under the row's
-- number; the row is there before the files, and after they are gone. It is addressed
-- NAME@LABEL, and knows the snapshot before it: together they are trees.
local uv = require("luv")
local async = require("tidepool.async")
local cjson = require("cjson")
local core = require("tidepool.core")
local cgroup = require("tidepool.server.cgroup")
local database = require("tidepool.server.database")
local egress = require("tidepool.server.egress")
local dumps = require("tidepool.server.memory.keep")
local log = require("tidepool.server.log")
local step = require("tidepool.server.step")

local snapshots = {}

local Snapshots = {}
Snapshots.__index = Snapshots

local function address_of(record)
  return record.sandbox .. "@" .. record.label
end

local function register(self, record)
  record.place = self.server.storage:snapshot_place(record.id)
  self.by_id[record.id] = record
  self.by_address[address_of(record)] = record
  return record
end

local function forget(self, record)
  self.by_id[record.id] = nil
  if self.by_address[address_of(record)] == record then
    self.by_address[address_of(record)] = nil
  end
end

local function decode_row(row)
  row.spec = database.decode(row.spec) or {}
  row.labels = database.decode(row.labels) or {}
  row.egress = row.egress and database.decode(row.egress)
  row.memory = row.memory == 1
  return row
end

--- The snapshots of a server. One that was being made when an earlier server ended is forgotten; storage
-- sweeps its files.
function snapshots.open(server)
  local self = setmetatable({ server = server, db = server.state.db, by_id = {}, by_address = {} }, Snapshots)
  local ok, message, code = self.db:execute("DELETE FROM snapshots WHERE state <> 'ready'")
  if not ok then
    return nil, message, code
  end
  local rows
  rows, message, code = self.db:rows("SELECT * FROM snapshots")
  if not rows then
    return nil, message, code
  end
  for _, row in ipairs(rows) do
    register(self, decode_row(row))
  end
  return self
end

--- The numbers of all, which name their directories.
function Snapshots:ids()
  local list = {}
  for id in pairs(self.by_id) do
    list[#list + 1] = id
  end
  return list
end

--- NAME@LABEL of the snapshot of this number, if it is there.
function Snapshots:address(id)
  local record = self.by_id[id]
  return record and address_of(record)
end

--- A snapshot by its address: { id, sandbox, label, parent, image, spec, egress, created, labels, memory,
-- place, pause, total } | nil, message, "ENOSNAPSHOT". Its files are at that place of storage.
function Snapshots:get(address)
  local record = self.by_address[address]
  if not record or record.state ~= "ready" then
    return nil, "no such snapshot: " .. address, "ENOSNAPSHOT"
  end
  return record
end

--- Writes a new one down, which is not to be seen before `commit`: it | nil, message, code. fields: sandbox,
-- sandbox_id, label, image, spec, egress, labels, parent, memory.
function Snapshots:add(fields)
  local address = address_of(fields)
  if self.by_address[address] then
    return nil, "snapshot exists: " .. address, "EEXIST"
  end
  local seconds, micros = uv.gettimeofday()
  local record = { state = "creating", created = seconds + micros / 1e6, memory = fields.memory or false }
  for _, name in ipairs({ "sandbox", "sandbox_id", "label", "image", "spec", "egress", "parent" }) do
    record[name] = fields[name]
  end
  record.labels = fields.labels or {}
  local ok, message, code = self.db:execute(
    "INSERT INTO snapshots (sandbox, sandbox_id, label, parent, state, image, spec, egress, labels, memory, created) "
    .. "VALUES (?, ?, ?, ?, 'creating', ?, ?, ?, ?, ?, ?)",
    record.sandbox, record.sandbox_id or 0, record.label, record.parent, record.image, cjson.encode(record.spec),
    record.egress and cjson.encode(record.egress) or nil, cjson.encode(record.labels), record.memory and 1 or 0, record.created)
  local found
  if ok then
    found, message, code = self.db:rows("SELECT id FROM snapshots WHERE sandbox = ? AND label = ?", record.sandbox, record.label)
  end
  if not found then
    return nil, message, code
  end
  record.id = found[1].id
  return register(self, record)
end

--- Its files are whole: it is there from now on. pause, total: seconds. `sandbox`, if given, continues it;
-- `key`: of the request.
function Snapshots:commit(record, pause, total, sandbox, key)
  local ok, message, code = self.db:transaction(function()
    local done, why, why_code = self.db:execute(
      "UPDATE snapshots SET state = 'ready', pause = ?, total = ?, memory = ? WHERE id = ?",
      pause, total, record.memory and 1 or 0, record.id)
    if done and sandbox then
      done, why, why_code = self.server.state:set_root(sandbox.id, sandbox.root, record.id)
    end
    if done then
      done, why, why_code = self.server.state.requests:note(key, { snapshot = address_of(record) })
    end
    return done, why, why_code
  end)
  if not ok then
    return nil, message, code
  end
  record.state, record.pause, record.total = "ready", pause, total
  if sandbox then
    sandbox.parent = record.id
  end
  return record
end

--- Gives up one that was not committed, with its files.
function Snapshots:abort(record)
  forget(self, record)
  self.db:execute("DELETE FROM snapshots WHERE id = ?", record.id)
  self:remove_files(record)
end

--- Deletes what a snapshot has on disk; what fails here is swept at the next start.
function Snapshots:remove_files(record)
  dumps.remove(dumps.of_snapshot(self.server, record.id))
  return self.server.storage:remove_snapshot(record.id)
end

--- The cgroup that must stand still while files are taken: nil for a sandbox that does so already.
function snapshots.group(sandbox)
  if sandbox.state ~= "running" then
    return nil
  end
  return cgroup.directory(sandbox.server.cgroups, sandbox:key())
end

--- Whether storage can take something new now.
local function check(sandbox)
  if sandbox.destroyed then
    return nil, "sandbox was destroyed: " .. sandbox.name, "ENOSANDBOX"
  end
  return sandbox.server.storage:room()
end

--- The snapshot that an earlier try of the request of this key has made, if it has.
function Snapshots:made_before(key)
  local before = self.server.state.requests:find(key)
  return before and before.snapshot and self:get(before.snapshot) or nil
end

-- For how many seconds it stood still | nil, message, code.
local function take_with_memory(self, sandbox, record)
  local took, message, code = sandbox:capture(dumps.of_snapshot(self.server, record.id), function()
    local taken, why, why_code = self.server.storage:snapshot(sandbox.root, record.id)
    return taken and true, why, why_code
  end)
  return took and took.pause, message, code
end

local function take(self, sandbox, params)
  local ok, message, code = check(sandbox)
  if not ok then
    return nil, message, code
  end
  local began = uv.hrtime()
  local record
  record, message, code = self:add({
    sandbox = sandbox.name, sandbox_id = sandbox.id, label = params.label, parent = sandbox.parent, image = sandbox.image,
    spec = sandbox.spec, labels = params.labels, memory = params.memory,
    egress = params.memory and egress.keep(sandbox) or egress.record(sandbox.egress),
  })
  if not record then
    return nil, message, code
  end
  step("snapshot_recorded")
  local pause
  if params.memory then
    pause, message, code = take_with_memory(self, sandbox, record)
  else
    pause, message, code = self.server.storage:snapshot(sandbox.root, record.id, snapshots.group(sandbox),
      sandbox.state == "stopped")
  end
  step("snapshot_made")
  if not pause then
    self:abort(record)
    return nil, message, code
  end
  ok, message, code = self:commit(record, pause, (uv.hrtime() - began) / 1e9, sandbox, params.key)
  if not ok then
    self:abort(record)
    return nil, message, code
  end
  step("snapshot_committed")
  log.info("snapshot_taken", { sandbox = sandbox.name, label = record.label, pause = pause, total = record.total })
  return record
end

--- Takes one of a sandbox, running, frozen, hibernated or stopped: it | nil, message, code ("EEXIST", "ETIMEDOUT":
-- some process can't be stopped, "ENOSPC"). params: label, labels, memory (its processes too), key.
function Snapshots:take(sandbox, params)
  local record, message, code = sandbox.lock:with(take, self, sandbox, params)
  if not record then
    return nil, ("snapshot %s@%s: %s"):format(sandbox.name, params.label, message), code
  end
  return record
end

--- Deletes one. Those after it, and sandboxes, continue the one before it. `key`: of the request, whose
-- outcome this is, or `outcome`.
function Snapshots:remove(address, key, outcome)
  local before = not outcome and self.server.state.requests:find(key)
  if before and before.removed then
    return true
  end
  local record, message, code = self:get(address)
  if not record then
    return nil, message, code
  end
  local ok
  ok, message, code = self.db:transaction(function()
    for _, sql in ipairs({
      "UPDATE snapshots SET parent = (SELECT parent FROM snapshots WHERE id = ?1) WHERE parent = ?1",
      "UPDATE sandboxes SET parent = (SELECT parent FROM snapshots WHERE id = ?1) WHERE parent = ?1",
      "DELETE FROM snapshots WHERE id = ?1",
    }) do
      local done, why, why_code = self.db:execute(sql, record.id)
      if not done then
        return nil, why, why_code
      end
    end
    return self.server.state.requests:note(key, outcome or { removed = { address } })
  end)
  if not ok then
    return nil, message, code
  end
  for _, holder in ipairs({ self.by_id, self.server.sandboxes }) do
    for _, one in pairs(holder) do
      if one.parent == record.id then
        one.parent = record.parent
      end
    end
  end
  forget(self, record)
  step("snapshot_forgotten")
  self:remove_files(record)
  log.info("snapshot_removed", { snapshot = address })
  return true
end

--- What differs between two, as a descriptor of records that a worker writes (core/diff/main.c): the bytes
-- don't pass the server. Returns it | nil, message, code.
function Snapshots:diff(from, to)
  local old, message, code = self:get(from)
  local new = old
  if old then
    new, message, code = self:get(to)
  end
  if not new then
    return nil, message, code
  end
  local ours, theirs
  ours, theirs, code = core.fd.pair()
  if not ours then
    return nil, theirs, code
  end
  local command, done
  command, done, code = self.server.storage:diff(self.server.tools, old.place, new.place)
  if not command then
    ours:close()
    theirs:close()
    return nil, done, code
  end
  local handle, why, why_code
  handle, why, why_code = uv.spawn(table.remove(command, 1), {
    args = command,
    stdio = { nil, theirs:number(), 2 },
    detached = true,
  }, async.guarded(function()
    handle:close()
    done()
  end))
  theirs:close()
  if not handle then
    done()
    ours:close()
    return nil, "tidepool-diff: " .. tostring(why), why_code
  end
  return ours
end

-- Bytes that it owns alone: of files, where they are counted, and of memory.
local function size_of(self, record)
  local files = self.server.storage:snapshot_usage(record.id)
  if not record.memory then
    return files
  end
  return files and files + dumps.bytes(dumps.of_snapshot(self.server, record.id))
end

--- What a client is told. `size`: with the bytes that it owns alone, which asks storage.
function Snapshots:describe(record, size)
  return {
    snapshot = address_of(record),
    sandbox = record.sandbox,
    label = record.label,
    parent = record.parent and self:address(record.parent),
    image = record.image,
    labels = record.labels,
    memory = record.memory,
    memory_size = record.memory and dumps.bytes(dumps.of_snapshot(self.server, record.id)) or nil,
    created = record.created,
    pause = record.pause,
    total = record.total,
    size = size and size_of(self, record) or nil,
  }
end

-- Those of a sandbox's name, or all, the oldest first.
local function ready(self, name)
  local list = {}
  for _, record in pairs(self.by_id) do
    if record.state == "ready" and (not name or record.sandbox == name) then
      list[#list + 1] = record
    end
  end
  table.sort(list, function(a, b)
    return a.id < b.id
  end)
  return list
end

--- All snapshots, or those of one name, the oldest first, as clients are told.
function Snapshots:list(name)
  local list = ready(self, name)
  for i, record in ipairs(list) do
    list[i] = self:describe(record, true)
  end
  return list
end

local function has_labels(record, wanted)
  for key, value in pairs(wanted) do
    if record.labels[key] ~= value then
      return false
    end
  end
  return next(wanted) ~= nil
end

--- Which of the snapshots, the oldest first, a rule keeps: { last = the newest n, daily = the newest of each
-- of the last n days that have one, labels = those with all of them }. Returns a set.
function snapshots.kept(list, rule)
  local keep, days, count = {}, {}, 0
  for i = #list, 1, -1 do
    local record = list[i]
    local day = os.date("!%Y-%m-%d", record.created)
    if #list - i < (rule.last or 0) or has_labels(record, rule.labels or {}) then
      keep[record] = true
    end
    if not days[day] and count < (rule.daily or 0) then
      days[day], count = true, count + 1
      keep[record] = true
    end
  end
  return keep
end

--- Deletes the snapshots of a name that the rule does not keep; returns their addresses. `key`: of the
-- request; what an earlier try has deleted is told with the rest.
function Snapshots:keep(name, rule, key)
  local before = self.server.state.requests:find(key) or { removed = {} }
  local list, removed = ready(self, name), before.removed
  if before.done then
    return removed
  end
  local keep, doomed = snapshots.kept(list, rule), {}
  for _, record in ipairs(list) do
    if not keep[record] then
      doomed[#doomed + 1] = record
    end
  end
  for i, record in ipairs(doomed) do
    if self.by_id[record.id] == record then -- else somebody has deleted it, and may have taken another of that name
      removed[#removed + 1] = address_of(record)
      local ok, message, code = self:remove(address_of(record), key, { removed = removed, done = i == #doomed })
      if not ok then
        return nil, message, code
      end
    end
  end
  return removed
end

return snapshots

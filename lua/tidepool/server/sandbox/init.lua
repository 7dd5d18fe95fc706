--- A sandbox as the server (root) knows it: its row of the database, its present run, what clients are told.
--
-- A sandbox's state is written to the database before and after each step that leaves something
-- behind, so that a server killed at any instant finds out what to adopt and what to unmake. One
-- life-cycle operation at a time runs on a sandbox (its lock); commands don't take the lock. What
-- leads a part of its life is a file beside this one; their functions are its methods.
local async = require("tidepool.async")
local cgroup = require("tidepool.server.cgroup")
local egress = require("tidepool.server.egress")
local log = require("tidepool.server.log")
local processes = require("tidepool.server.processes")
local verbs = require("tidepool.verbs")

local sandbox = {}

local Sandbox = {}
Sandbox.__index = Sandbox

local parts = {
  require("tidepool.server.sandbox.run"),
  require("tidepool.server.sandbox.states"),
  require("tidepool.server.sandbox.capture"),
  require("tidepool.server.sandbox.rollback"),
  require("tidepool.server.sandbox.destruction"),
}
for _, part in ipairs(parts) do
  for name, method in pairs(part) do
    Sandbox[name] = method
  end
end

-- What a row must have for the rest to work, whoever wrote it.
local function complete(spec)
  for field, value in pairs({ type = "basic", pids = 4096 }) do
    spec[field] = spec[field] or value
  end
  local of_type = verbs.types[spec.type] or verbs.types.basic
  for _, field in ipairs({ "cpu", "memory", "disk" }) do
    spec[field] = spec[field] or of_type[field]
  end
  return spec
end

--- The object of a row of the database.
function sandbox.new(server, row)
  return setmetatable({
    server = server,
    id = row.id,
    name = row.name,
    image = row.image,
    spec = complete(row.spec),
    created = row.created,
    state = row.state,
    reason = row.reason,
    run = row.run,
    root = row.root or tostring(row.id), -- the directory of its files, in storage
    parent = row.parent, -- the snapshot that they continue
    branch_of = row.branch_of, -- the sandbox whose name it may take
    egress = egress.new(row),
    lock = async.lock(),
    changed = async.event(), -- set when its state is another
    gone = async.event(), -- set when the present run has ended
    processes = processes.new_table(),
  }, Sandbox)
end

--- Writes down where it stands, then says so: true | nil, message, code, with nothing changed.
function Sandbox:record(state, reason, run)
  local ok, message, code = self.server.state:set_sandbox(self.id, state, reason, run)
  if not ok then
    return nil, message, code
  end
  self:become(state, reason, run)
  return true
end

--- Says where it stands, to those who wait for a change, too.
function Sandbox:become(state, reason, run)
  self.state, self.reason, self.run = state, reason, run
  local changed = self.changed
  self.changed = async.event()
  changed:set(true)
end

local REWRITE = 5 -- seconds between tries

--- Records what has happened already and is true whether it can be written or not. A server that is
-- killed before it was written finds the same out by looking.
function Sandbox:record_fact(state, reason, run)
  local ok, message, code = self:record(state, reason, run)
  if ok then
    return
  end
  log.error("state_not_written", { sandbox = self.name, state = state, message = message, code = code })
  self:become(state, reason, run)
  local function again()
    if self.state == state and self.run == run and not self.destroyed and not self:record(state, reason, run) then
      async.after(REWRITE, again)
    end
  end
  async.after(REWRITE, again)
end

--- The name of its cgroups: by the id, since names are used again; and kept with the run, since a branch
-- that is promoted changes its name.
function Sandbox:key()
  return self.run and self.run.key or ("%d-%s"):format(self.id, self.name)
end

--- What a run may use, as of container.start.
function Sandbox:limits()
  return { cpu = self.spec.cpu, memory = self.spec.memory, pids = self.spec.pids }
end

--- The name that the sandbox of this id has now, if there is one.
function sandbox.name_of(server, id)
  for name, one in pairs(server.sandboxes) do
    if one.id == id then
      return name
    end
  end
end

--- What a client is told about it. `deep`: usage too, which reads the kernel's counters.
function Sandbox:info(deep)
  local info = {
    name = self.name,
    id = self.id,
    state = self.state,
    reason = self.reason,
    image = self.image,
    type = self.spec.type,
    labels = self.spec.labels,
    env = self.spec.env,
    created = self.created,
    limits = { cpu = self.spec.cpu, memory = self.spec.memory, pids = self.spec.pids, disk = self.spec.disk },
    processes = processes.count_running(self),
    egress = egress.names(self),
  }
  info.parent = self.parent and self.server.snapshots:address(self.parent) or nil
  info.branch_of = self.branch_of and sandbox.name_of(self.server, self.branch_of) or nil
  if deep then
    info.pid = self.run and self.run.pid
    info.usage = self.run and cgroup.usage(self.server.cgroups, self:key()) or {}
    info.usage.disk = self.server.storage:usage(self.root)
    info.unenforced = {}
    for _, reasons in ipairs({ self.server.cgroups.unenforced, self.server.storage.unenforced, { self.disk_unenforced } }) do
      for _, reason in ipairs(reasons) do
        table.insert(info.unenforced, reason)
      end
    end
  end
  return info
end

--- A leaf cgroup for one process tree: its directory descriptor.
function Sandbox:leaf(name)
  if not self.run then
    return nil, "sandbox is not running: " .. self.name, "ESTOPPED"
  end
  return cgroup.leaf(self.server.cgroups, self:key(), name, self.run.base)
end

--- Writes down until when a process may run, for the next server; nil: it has ended. A moment, in
-- seconds since the epoch.
function Sandbox:keep_deadline(process_key, moment)
  local run = self.run
  if self.state ~= "running" or (run.deadlines or {})[process_key] == moment then
    return
  end
  run.deadlines = run.deadlines or {}
  run.deadlines[process_key] = moment
  self:record_fact(self.state, self.reason, run)
end

function Sandbox:leaf_group(name)
  return self:key() .. "/" .. name
end

return sandbox

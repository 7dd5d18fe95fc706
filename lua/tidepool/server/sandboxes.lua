--- Sandboxes: their life from create to destroy, as the server (root) leads it.
--
-- A sandbox's state is written to the database before and after each step that leaves something
-- behind, so that a server killed at any instant finds out what to adopt and what to unmake. One
-- life-cycle operation at a time runs on a sandbox (its lock); commands don't take the lock.
local async = require("tidepool.async")
local cgroup = require("tidepool.server.cgroup")
local container = require("tidepool.server.container")
local core = require("tidepool.core")
local egress = require("tidepool.server.egress")
local egress_policies = require("tidepool.server.egress_policies")
local freezer = require("tidepool.server.freezer")
local host = require("tidepool.server.host")
local link = require("tidepool.server.link")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local processes = require("tidepool.server.processes")
local random = require("tidepool.random")
local spill = require("tidepool.server.spill")
local sleep = require("tidepool.server.memory.sleep")
local step = require("tidepool.server.step")
local verbs = require("tidepool.verbs")

local sandboxes = {}

local Sandbox = {}
Sandbox.__index = Sandbox

local function unhex(text)
  return (text:gsub("%x%x", function(pair)
    return string.char(tonumber(pair, 16))
  end))
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

local function new(server, row)
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
    gone = async.event(), -- set when the present run has ended
    processes = processes.new_table(),
  }, Sandbox)
end

-- Writes down where it stands, then says so: true | nil, message, code, with nothing changed.
local function record(self, state, reason, run)
  local ok, message, code = self.server.state:set_sandbox(self.id, state, reason, run)
  if not ok then
    return nil, message, code
  end
  self.state, self.reason, self.run = state, reason, run
  return true
end

local REWRITE = 5 -- seconds between tries

-- Records what has happened already and is true whether it can be written or not. A server that is
-- killed before it was written finds the same out by looking.
local function record_fact(self, state, reason, run)
  local ok, message, code = record(self, state, reason, run)
  if ok then
    return
  end
  log.error("state_not_written", { sandbox = self.name, state = state, message = message, code = code })
  self.state, self.reason, self.run = state, reason, run
  local function again()
    if self.state == state and self.run == run and not self.destroyed and not record(self, state, reason, run) then
      async.after(REWRITE, again)
    end
  end
  async.after(REWRITE, again)
end

-- The name of its cgroups: by the id, since names are used again; and kept with the run, since a branch
-- that is promoted changes its name.
local function key(self)
  return self.run and self.run.key or ("%d-%s"):format(self.id, self.name)
end

local function limits(self)
  return { cpu = self.spec.cpu, memory = self.spec.memory, pids = self.spec.pids }
end

--- Unmakes what a run left outside of the container itself.
local function release(self, base)
  cgroup.kill(self.server.cgroups, key(self))
  cgroup.remove(self.server.cgroups, key(self))
  self.server.ids:release(base)
end

-- The run has ended, however it did: wake all who wait, write it down, unmake the rest.
local function ended(self, reason)
  if self.gone:is_set() then
    return
  end
  local run, broken = self.run, self.link
  self.link = nil
  if self.watch then
    self.watch:close()
    self.watch = nil
  end
  freezer.forget(self)
  if self.pidfd then
    self.pidfd:close()
    self.pidfd = nil
  end
  if broken then
    broken:close()
  end
  egress.finish(self)
  if run and run.pid then
    self.server:forget_exit(run.pid)
  end
  if run and run.base then
    release(self, run.base)
  end
  if self.state == "hibernated" or self.state == "waking" then
    record_fact(self, "hibernated", self.state == "waking" and "wake failed: " .. reason or nil, nil)
  else
    record_fact(self, "stopped", reason, nil) -- at a full disk, too: who waits must not wait for it
    processes.lost(self, reason)
  end
  log.info("sandbox_" .. self.state, { sandbox = self.name, reason = reason })
  self.gone:set(reason)
end

local function exit_reason(self, pid)
  if self.stopping then
    return self.stopping
  end
  -- The spawner tells the status a moment before or after the pidfd wakes us.
  local status = self.server:exit_status(pid, 0.1)
  local oom = cgroup.oom_kills(self.server.cgroups, key(self))
  if status and status.signal then
    local why = "init was killed by signal " .. status.signal
    return oom > 0 and why .. " (out of memory)" or why
  end
  if status and status.code then
    return "init exited with status " .. status.code
  end
  return "init ended"
end

-- Waits for init's end on its pidfd, and takes the link's end as a hint only.
local function watch(self, pid)
  local poller = assert(async.poller(self.pidfd:number()))
  self.watch = poller
  async.spawn(function()
    if poller:readable() then
      ended(self, exit_reason(self, pid))
    end
  end)
end

-- Ends the run, if there is one: TERM, `grace` seconds, KILL. Called with the lock held.
local function end_run(self, grace, reason)
  if not self.watch then
    return true
  end
  self.stopping = reason
  if grace > 0 and self.link then
    spill.save(self)
    if self.link and self.link:request("shutdown", { grace = math.floor(grace * 1000) }, nil, 5) then
      self.gone:wait(grace + 2)
    end
  end
  if not self.gone:is_set() then
    cgroup.kill(self.server.cgroups, key(self))
    if not self.gone:wait(10) then
      self.stopping = nil
      return nil, self.name .. ": its processes do not end", "EBUSY"
    end
  end
  return true
end

local MEND_AFTER = 0.5 -- seconds; when init has ended its pidfd says so before

local mend

local function connect(self)
  local opened, message, code
  opened, message, code = link.open(self.run.pid, unhex(self.run.nonce), {
    on_exit = function(event)
      processes.on_exit(self, event)
    end,
    on_close = function(why, why_code)
      if not opened or self.link ~= opened or self.stopping then
        return -- it never was ours, or the run ends
      end
      log.warn("link_closed", { sandbox = self.name, message = why, code = why_code })
      async.after(MEND_AFTER, function()
        async.spawn(self.lock.with, self.lock, mend, self)
      end)
    end,
  })
  if not opened then
    return nil, message, code
  end
  self.link = opened
  return true
end

-- Sets its disk limit, in the background of a start: within milliseconds, and anew with each run and
-- each server, so that no kill in between leaves a sandbox without one.
local function limit_disk(self)
  local limited, message, code = self.server.storage:limit(self.root, self.spec.disk)
  if limited or code == "ENOTSUP" or self.destroyed or self.state == "destroying" then
    self.disk_unenforced = nil -- what the storage can't do at all it tells by itself
    return
  end
  self.disk_unenforced = "disk limit: " .. message
  log.error("disk_limit_failed", { sandbox = self.name, message = message, code = code })
end

-- What there is to do once init runs. Called with the lock held.
local function begin(self, made)
  async.spawn(limit_disk, self)
  self.pidfd = made.pidfd
  self.run.pid, self.run.start_time = made.pid, host.start_time(made.pid)
  self.run.steering = made.steering.mode
  watch(self, made.pid)
  local attaching = egress.begin(self, made.steering)
  local ok, message, code = connect(self)
  attaching:join() -- without it the sandbox runs and is refused everything
  if ok then
    -- What isn't written down must not be acknowledged: the next server would end it.
    ok, message, code = record(self, "running", nil, self.run)
  end
  if not ok then
    end_run(self, 0, self.state == "waking" and message or "start failed: " .. message)
    return nil, message, code
  end
  return true
end

--- Starts it from its files. Called with the lock held, in state creating or stopped.
local function start(self)
  local server = self.server
  local base, message, code = server.ids:allocate()
  if not base then
    return nil, message, code
  end
  local nonce = random.hex(16)
  local recorded
  recorded, message, code = record(self, "starting", nil, {
    base = base, nonce = nonce, boot_id = host.boot_id(), key = key(self),
  })
  if not recorded then
    server.ids:release(base)
    return nil, message, code
  end
  self.gone = async.event()
  self.stopping = nil
  processes.reset(self)

  local trust = egress.trust(self)
  local made
  made, message, code = container.start(server.spawners, {
    name = self.name,
    hostname = self.name,
    root = server.storage:path(self.root),
    range = { base = base, count = 65536 },
    cgroups = server.cgroups,
    cgroup = key(self),
    limits = limits(self),
    init = server.tools .. "/tidepool-init",
    filter = server.filter,
    nonce = unhex(nonce),
    machine_id = self.spec.machine_id,
    trust = trust,
  })
  if not made then
    release(self, base)
    record_fact(self, "stopped", "start failed: " .. message, nil)
    return nil, message, code
  end

  server:expect_exit(made.pid)
  return begin(self, made)
end

local function resolve_limits(params)
  local of_type = verbs.types[params.type]
  return {
    type = params.type,
    cpu = params.cpu or of_type.cpu,
    memory = params.memory or of_type.memory,
    disk = params.disk or of_type.disk,
    pids = params.pids,
    env = params.env or {},
    labels = params.labels or {},
  }
end

local function unmake(self)
  -- On a full disk it can't be written down, and deleting is the way out.
  local recorded, message, code = record(self, "destroying", nil, self.run)
  if not recorded and code ~= "ENOSPC" then
    return nil, message, code
  end
  local deleted
  deleted, message, code = self.server.storage:delete(self.root)
  if not deleted and code ~= "ENOENT" then
    return nil, message, code
  end
  spill.remove(self)
  memory.forget(self)
  local removed
  removed, message, code = self.server.state:remove_sandbox(self.id)
  if not removed then
    return nil, message, code
  end
  if self.server.sandboxes[self.name] == self then
    self.server.sandboxes[self.name] = nil
  end
  self.destroyed = true
  return true
end

local UNMAKE_TRIES = 3 -- before the caller is told that the create failed

-- What could not be made must not stay: the same trouble may be in the way of its end, so again until it goes.
local unmake_surely
function unmake_surely(self)
  for _ = 1, UNMAKE_TRIES do
    local unmade, message, code = unmake(self)
    if unmade then
      return
    end
    log.error("unmake_failed", { sandbox = self.name, message = message, code = code })
  end
  async.after(REWRITE, function()
    async.spawn(self.lock.with, self.lock, function()
      if not self.destroyed then
        unmake_surely(self)
      end
    end)
  end)
end

--- Makes a sandbox and starts it: all or nothing. wanted: name, image, spec, policies (a checked chain),
-- files(id), which makes its files and returns their path | nil, message, code; of one that begins with
-- another's files also parent, the snapshot that they continue, branch_of, and names, of its egress.
-- The name is free, and taken from here on.
function sandboxes.make(server, wanted)
  local created, kept = os.time(), { policies = wanted.policies, revision = 1 }
  local id, message, code = server.state:add_sandbox(wanted.name, wanted.image, wanted.spec, created, kept, wanted)
  if not id then
    return nil, message, code
  end
  local self = new(server, {
    id = id, name = wanted.name, image = wanted.image, spec = wanted.spec, created = created, state = "creating",
    egress = kept, parent = wanted.parent, branch_of = wanted.branch_of,
  })
  server.sandboxes[wanted.name] = self
  step("sandbox_recorded")

  return self.lock:with(function()
    local ok
    if wanted.names then
      server.state:add_names(id, wanted.names)
    end
    ok, message, code = wanted.files(id)
    step("files_made")
    if ok then
      ok, message, code = start(self)
    end
    if ok then
      log.info("sandbox_created", { sandbox = self.name, id = id, image = wanted.image })
      return self
    end
    log.error("create_failed", { sandbox = self.name, message = message, code = code })
    unmake_surely(self)
    return nil, message, code
  end)
end

--- Makes and starts a new sandbox. "EEXIST" when the name is taken, "ENOIMAGE".
-- A request whose key made the sandbox that is there is the same one, sent again over a new connection.
function sandboxes.create(server, params)
  local taken = server.sandboxes[params.name]
  if taken and (not params.key or taken.spec.key ~= params.key) then
    return nil, "sandbox exists: " .. params.name, "EEXIST"
  elseif taken then
    local awake, message, code = taken:wake()
    return awake and taken, message, code
  end
  local chain, why, why_code = egress_policies.check(server, params.egress or {})
  if not chain then
    return nil, "create " .. params.name .. ": " .. why, why_code
  elseif server.sandboxes[params.name] then
    return sandboxes.create(server, params) -- somebody else made it while that was checked
  end
  local image = server.images[params.image]
  if not image then
    return nil, "no such image: " .. params.image .. " (image ls lists them, image build makes one)", "ENOIMAGE"
  end
  local room, message, code = server.storage:room()
  if not room then
    return nil, "create " .. params.name .. ": " .. message, code
  end
  local spec = resolve_limits(params)
  spec.machine_id, spec.key = random.hex(16), params.key
  local self
  self, message, code = sandboxes.make(server, {
    name = params.name, image = params.image, spec = spec, policies = chain,
    files = function(id)
      return server.storage:create(id, params.image)
    end,
  })
  if not self then
    return nil, "create " .. params.name .. ": " .. message, code
  end
  return self
end

--- The sandbox of that name, running: started when it is stopped, made when absent.
-- Returns it and whether it was made.
function sandboxes.open(server, params)
  local self = server.sandboxes[params.name]
  if not self then
    local made, message, code = sandboxes.create(server, params)
    if made or code ~= "EEXIST" then
      return made, made and true or message, code
    end
    self = server.sandboxes[params.name] -- somebody else made it meanwhile
  end
  local ok, message, code = self:wake(params.cold)
  if not ok then
    return nil, message, code
  end
  return self, false
end

-- Lets a frozen one go on. One that an earlier server froze has no link yet.
local function thaw(self)
  if self.state ~= "frozen" then
    return true
  end
  local ok, message, code = freezer.thaw(self)
  if not ok or self.link then
    return ok, message, code
  end
  ok, message = connect(self)
  if ok then
    ok, message = processes.adopt(self)
  end
  if not ok then
    return end_run(self, 0, "init does not answer: " .. message)
  end
  return true
end

--- Whether it stands still until somebody asks something of it.
function Sandbox:asleep()
  return self.state == "frozen" or self.state == "hibernated" or self.state == "waking"
end

--- Puts its memory on disk: { seconds, bytes, connections_reset } | nil, message, code; what fails leaves it running.
function Sandbox:hibernate()
  return self.lock:with(function()
    if self.state == "hibernated" then
      return {}
    end
    local ok, message, code = thaw(self)
    if ok then
      ok, message, code = mend(self)
    end
    if not ok then
      return nil, message, code
    elseif self.state ~= "running" then
      return nil, "sandbox is not running: " .. self.name, "ESTOPPED"
    end
    return sleep.hibernate(self)
  end)
end

-- The memory that it slept with is of no use any more. Called with the lock held.
local function forget_memory(self)
  if self.state == "hibernated" then
    record_fact(self, "stopped", "its memory was dropped", nil)
    processes.lost(self, "its memory was dropped")
  end
  memory.forget(self)
end

--- Makes all its processes stand still: true, also when they do; "ESTOPPED" when it doesn't run.
function Sandbox:freeze()
  return self.lock:with(function()
    if self.state == "frozen" then
      return true
    elseif self.state ~= "running" then
      return nil, "sandbox is not running: " .. self.name, "ESTOPPED"
    end
    return freezer.freeze(self)
  end)
end

--- Makes sure that it runs. `cold`: one that hibernates is started from its files.
function Sandbox:wake(cold)
  if self.state == "running" and self.link and not self.link:is_closed() then
    return true
  end
  return self.lock:with(function()
    if self.destroyed then
      return nil, "sandbox was destroyed: " .. self.name, "ENOSANDBOX"
    end
    local ok, message, code = thaw(self)
    if ok then
      ok, message, code = mend(self)
    end
    if not ok then
      return nil, message, code
    elseif self.state == "running" then
      return true
    elseif self.state == "hibernated" and not cold then
      return sleep.wake(self)
    end
    forget_memory(self)
    ok, message, code = start(self)
    if not ok then
      return nil, "start " .. self.name .. ": " .. message, code
    end
    log.info("sandbox_started", { sandbox = self.name })
    return true
  end)
end

-- The link to init broke, which may be well: connects again and asks what was missed, or ends the run.
-- Called with the lock held, in any state.
function mend(self)
  if self.state ~= "running" or not self.link or not self.link:is_closed() then
    return true
  end
  local ok, why = connect(self)
  if ok then
    ok, why = processes.adopt(self)
  end
  if ok then
    log.info("link_mended", { sandbox = self.name })
    return true
  end
  return end_run(self, 0, "init does not answer: " .. why)
end

--- Ends all its processes: TERM, `grace` seconds, KILL. Files stay.
function Sandbox:stop(grace)
  return self.lock:with(function()
    if grace > 0 then
      thaw(self) -- so that it can end in good order; a KILL reaches frozen ones, too
    end
    forget_memory(self)
    return end_run(self, grace, "stopped by request")
  end)
end

--- Ends it and deletes its files.
function Sandbox:destroy()
  return self.lock:with(function()
    if self.destroyed then
      return true
    end
    local ok, message, code = end_run(self, 0, "destroyed")
    if not ok then
      return nil, message, code
    end
    ok, message, code = unmake(self)
    if ok then
      log.info("sandbox_destroyed", { sandbox = self.name, id = self.id })
    end
    return ok, message, code
  end)
end

--- The name that the sandbox of this id has now, if there is one.
function sandboxes.name_of(server, id)
  for name, sandbox in pairs(server.sandboxes) do
    if sandbox.id == id then
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
  info.branch_of = self.branch_of and sandboxes.name_of(self.server, self.branch_of) or nil
  if deep then
    info.pid = self.run and self.run.pid
    info.usage = self.run and cgroup.usage(self.server.cgroups, key(self)) or {}
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
  return cgroup.leaf(self.server.cgroups, key(self), name, self.run.base)
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
  record_fact(self, self.state, self.reason, run)
end

function Sandbox:leaf_group(name)
  return key(self) .. "/" .. name
end

-- For those who lead a part of its life: freezer.lua, snapshots.lua, branches.lua, memory/.
Sandbox.key, Sandbox.record, Sandbox.record_fact = key, record, record_fact
Sandbox.limits, Sandbox.release, Sandbox.connect, Sandbox.begin, Sandbox.end_run = limits, release, connect, begin, end_run

--- Its files are others from now on, in the directory `root` of storage, and continue the snapshot `parent`.
-- It does not run. Called with its lock held.
function Sandbox:replace_files(root, parent)
  local ok, message, code = self.server.state:set_root(self.id, root, parent)
  if not ok then
    return nil, message, code
  end
  local old = self.root
  self.root, self.parent = root, parent
  forget_memory(self) -- it goes with other files
  step("files_replaced")
  self.server.storage:delete(old) -- what fails here is swept at the next start
  return true
end

--- Takes the name `name`; the sandbox that has it, `old`, is destroyed. One step in the database: a server
-- that is killed leaves the one or the other. Called with both locks held.
function Sandbox:take_name(name, old)
  local server, former = self.server, self.name
  local ok, message, code = server.state:replace_sandbox(old and old.id, self.id, name)
  if not ok then
    return nil, message, code
  end
  server.sandboxes[former], server.sandboxes[name] = nil, self
  self.name, self.branch_of = name, nil
  log.info("sandbox_promoted", { sandbox = name, id = self.id, former = former })
  step("name_taken")
  if old then
    old.name = "~" .. old.id
    end_run(old, 0, "another branch took its place")
    unmake_surely(old)
  end
  return true
end

--- Ends its run and gives it other files, made by files(root), which returns their path | nil, message, code;
-- a sandbox that ran is started again. What fails leaves it with the files it had.
function Sandbox:rollback(parent, files)
  return self.lock:with(function()
    if self.destroyed then
      return nil, "sandbox was destroyed: " .. self.name, "ENOSANDBOX"
    end
    local root = ("%d.%s"):format(self.id, random.hex(4))
    local ok, message, code = files(root)
    if not ok then
      return nil, message, code
    end
    step("rollback_made")
    local ran = self.run ~= nil
    ok, message, code = end_run(self, 0, "rolled back")
    if ok then
      ok, message, code = self:replace_files(root, parent)
    end
    if not ok then
      self.server.storage:delete(root)
      return nil, message, code
    end
    log.info("sandbox_rolled_back", { sandbox = self.name, snapshot = parent })
    if ran then
      return start(self)
    end
    return true
  end)
end

local function adopt_running(self)
  local run = self.run
  if not run then
    return nil, "its record is damaged"
  end
  if run.boot_id ~= host.boot_id() then
    return nil, "the host was restarted"
  end
  local pidfd = run.pid and core.fd.pidfd(run.pid)
  if not pidfd or host.start_time(run.pid) ~= run.start_time then
    return nil, "init ended while no server ran"
  end
  self.pidfd = pidfd
  if self.state == "frozen" and freezer.adopt(self) then
    watch(self, run.pid)
    async.spawn(limit_disk, self)
    egress.adopt(self)
    return true
  end
  memory.await_dump(self)
  -- A snapshot that was being taken has frozen it, or its thaw was not written down.
  cgroup.thaw(self.server.cgroups, key(self))
  self.state, run.frozen = "running", nil
  local ok, message = connect(self)
  if not ok then
    -- A namespace takes a moment to die.
    local gone = async.readable(pidfd:number(), 1)
    return nil, gone and "init ended while no server ran" or "init could not be reached: " .. message
  end
  watch(self, run.pid)
  async.spawn(limit_disk, self)
  egress.adopt(self)
  return processes.adopt(self)
end

--- Takes over what an earlier server left, one row of the database. Never raises for one bad sandbox.
function sandboxes.adopt(server, row)
  local self = new(server, row)
  server.sandboxes[row.name] = self
  if row.damaged then
    log.error("row_damaged", { sandbox = self.name })
  end
  if row.copied and (row.state == "running" or row.state == "frozen" or row.state == "starting") then
    -- What runs belongs to the server of the original.
    self.run = nil
    record_fact(self, "stopped", "the state directory was copied or restored", nil)
  elseif row.state == "running" or row.state == "frozen" then
    local ok, reason = adopt_running(self)
    if ok then
      log.info("sandbox_adopted", { sandbox = self.name, pid = self.run.pid })
      return
    end
    ended(self, reason)
  elseif row.state == "hibernated" or row.state == "waking" then
    if self.run then
      container.destroy(server.spawners, server.cgroups, key(self))
    end
    if row.state == "waking" or self.run then
      record_fact(self, "hibernated", row.state == "waking" and "the server ended while it woke" or nil, nil)
    end
  elseif row.state == "starting" then
    -- Its init may be there, but nobody wrote down which: end it by its cgroup.
    container.destroy(server.spawners, server.cgroups, key(self))
    record_fact(self, "stopped", "the server ended while it started", nil)
  elseif row.state == "creating" or row.state == "destroying" then
    container.destroy(server.spawners, server.cgroups, key(self))
    local ok, message = unmake(self)
    log.info("sandbox_unmade", { sandbox = self.name, state = row.state, message = ok and "" or message })
  end
end

return sandboxes

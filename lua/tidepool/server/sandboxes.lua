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
local host = require("tidepool.server.host")
local link = require("tidepool.server.link")
local log = require("tidepool.server.log")
local processes = require("tidepool.server.processes")
local random = require("tidepool.random")
local spill = require("tidepool.server.spill")
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

--- The name of its cgroup, hostname and directories: the id, since names are used again.
local function key(self)
  return ("%d-%s"):format(self.id, self.name)
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
  record_fact(self, "stopped", reason, nil) -- at a full disk, too: who waits must not wait for it
  processes.lost(self, reason)
  log.info("sandbox_stopped", { sandbox = self.name, reason = reason })
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
  local limited, message, code = self.server.storage:limit(self.id, self.spec.disk)
  if limited or code == "ENOTSUP" or self.destroyed or self.state == "destroying" then
    self.disk_unenforced = nil -- what the storage can't do at all it tells by itself
    return
  end
  self.disk_unenforced = "disk limit: " .. message
  log.error("disk_limit_failed", { sandbox = self.name, message = message, code = code })
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
  recorded, message, code = record(self, "starting", nil, { base = base, nonce = nonce, boot_id = host.boot_id() })
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
    root = server.storage:path(self.id),
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
  async.spawn(limit_disk, self)
  self.pidfd = made.pidfd
  self.run.pid, self.run.start_time = made.pid, host.start_time(made.pid)
  self.run.steering = made.steering.mode
  watch(self, made.pid)
  local attaching = egress.begin(self, made.steering)
  local ok
  ok, message, code = connect(self)
  attaching:join() -- without it the sandbox runs and is refused everything
  if ok then
    -- What isn't written down must not be acknowledged: the next server would end it.
    ok, message, code = record(self, "running", nil, self.run)
  end
  if not ok then
    end_run(self, 0, "start failed: " .. message)
    return nil, message, code
  end
  return true
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
  deleted, message, code = self.server.storage:delete(self.id)
  if not deleted and code ~= "ENOENT" then
    return nil, message, code
  end
  spill.remove(self)
  local removed
  removed, message, code = self.server.state:remove_sandbox(self.id)
  if not removed then
    return nil, message, code
  end
  self.server.sandboxes[self.name] = nil
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
  local created = os.time()
  local id
  local kept = { policies = chain, revision = 1 }
  id, message, code = server.state:add_sandbox(params.name, params.image, spec, created, kept)
  if not id then
    return nil, "create " .. params.name .. ": " .. message, code
  end
  local self = new(server, {
    id = id, name = params.name, image = params.image, spec = spec, created = created, state = "creating", egress = kept,
  })
  server.sandboxes[params.name] = self

  return self.lock:with(function()
    local path
    path, message, code = server.storage:create(id, params.image)
    if path then
      local ok
      ok, message, code = start(self)
      if ok then
        log.info("sandbox_created", { sandbox = self.name, id = id, image = params.image })
        return self
      end
    end
    log.error("create_failed", { sandbox = self.name, message = message, code = code })
    unmake_surely(self)
    return nil, "create " .. params.name .. ": " .. message, code
  end)
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
  local ok, message, code = self:wake()
  if not ok then
    return nil, message, code
  end
  return self, false
end

--- Makes sure that it runs.
function Sandbox:wake()
  if self.state == "running" and self.link and not self.link:is_closed() then
    return true
  end
  return self.lock:with(function()
    if self.destroyed then
      return nil, "sandbox was destroyed: " .. self.name, "ENOSANDBOX"
    end
    local ok, message, code = mend(self)
    if not ok then
      return nil, message, code
    elseif self.state == "running" then
      return true
    end
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
  if deep then
    info.pid = self.run and self.run.pid
    info.usage = self.state == "running" and cgroup.usage(self.server.cgroups, key(self)) or {}
    info.usage.disk = self.server.storage:usage(self.id)
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
  if row.copied and (row.state == "running" or row.state == "starting") then
    -- What runs belongs to the server of the original.
    self.run = nil
    record_fact(self, "stopped", "the state directory was copied or restored", nil)
  elseif row.state == "running" then
    local ok, reason = adopt_running(self)
    if ok then
      log.info("sandbox_adopted", { sandbox = self.name, pid = self.run.pid })
      return
    end
    ended(self, reason)
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

--- One run of a sandbox, from its start to its end: init, the link to it, its groups and network.
--
-- Runs in the server, with the sandbox's lock held but where it says otherwise. These are methods of a
-- sandbox (sandbox/init.lua).
local async = require("tidepool.async")
local cgroup = require("tidepool.server.cgroup")
local container = require("tidepool.server.container")
local egress = require("tidepool.server.egress")
local freezer = require("tidepool.server.freezer")
local host = require("tidepool.server.host")
local link = require("tidepool.server.link")
local log = require("tidepool.server.log")
local processes = require("tidepool.server.processes")
local random = require("tidepool.random")
local spill = require("tidepool.server.spill")

local run = {}

local function unhex(text)
  return (text:gsub("%x%x", function(pair)
    return string.char(tonumber(pair, 16))
  end))
end

--- Unmakes what a run left outside of the container itself.
function run.release(self, base)
  cgroup.kill(self.server.cgroups, self:key())
  cgroup.remove(self.server.cgroups, self:key())
  self.server.ids:release(base)
end

--- The run has ended, however it did: wake all who wait, write it down, unmake the rest.
function run.ended(self, reason)
  if self.gone:is_set() then
    return
  end
  local last, broken = self.run, self.link
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
  if last and last.pid then
    self.server:forget_exit(last.pid)
  end
  if last and last.base then
    run.release(self, last.base)
  end
  if self.state == "hibernated" or self.state == "waking" then
    self:record_fact("hibernated", self.state == "waking" and "wake failed: " .. reason or nil, nil)
  else
    self:record_fact("stopped", reason, nil) -- at a full disk, too: who waits must not wait for it
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
  local oom = cgroup.oom_kills(self.server.cgroups, self:key())
  if status and status.signal then
    local why = "init was killed by signal " .. status.signal
    return oom > 0 and why .. " (out of memory)" or why
  end
  if status and status.code then
    return "init exited with status " .. status.code
  end
  return "init ended"
end

--- Waits for init's end on its pidfd, and takes the link's end as a hint only.
function run.watch_end(self, pid)
  local poller = assert(async.poller(self.pidfd:number()))
  self.watch = poller
  async.spawn(function()
    if poller:readable() then
      run.ended(self, exit_reason(self, pid))
    end
  end)
end

--- Ends the run, if there is one: TERM, `grace` seconds, KILL. Called with the lock held.
function run.end_run(self, grace, reason)
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
    cgroup.kill(self.server.cgroups, self:key())
    if not self.gone:wait(10) then
      self.stopping = nil
      return nil, self.name .. ": its processes do not end", "EBUSY"
    end
  end
  return true
end

local MEND_AFTER = 0.5 -- seconds; when init has ended its pidfd says so before

--- Opens the link to init: true | nil, message, code.
function run.connect(self)
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
        async.spawn(self.lock.with, self.lock, run.mend, self)
      end)
    end,
  })
  if not opened then
    return nil, message, code
  end
  self.link = opened
  return true
end

--- Sets its disk limit, in the background of a start: within milliseconds, and anew with each run and
-- each server, so that no kill in between leaves a sandbox without one.
function run.limit_disk(self)
  local limited, message, code = self.server.storage:limit(self.root, self.spec.disk)
  if limited or code == "ENOTSUP" or self.destroyed or self.state == "destroying" then
    self.disk_unenforced = nil -- what the storage can't do at all it tells by itself
    return
  end
  self.disk_unenforced = "disk limit: " .. message
  log.error("disk_limit_failed", { sandbox = self.name, message = message, code = code })
end

--- What there is to do once init runs. Called with the lock held.
function run.begin(self, made)
  async.spawn(run.limit_disk, self)
  self.pidfd = made.pidfd
  self.run.pid, self.run.start_time = made.pid, host.start_time(made.pid)
  self.run.steering = made.steering.mode
  run.watch_end(self, made.pid)
  local attaching = egress.begin(self, made.steering)
  local ok, message, code = run.connect(self)
  attaching:join() -- without it the sandbox runs and is refused everything
  if ok then
    -- What isn't written down must not be acknowledged: the next server would end it.
    ok, message, code = self:record("running", nil, self.run)
  end
  if not ok then
    run.end_run(self, 0, self.state == "waking" and message or "start failed: " .. message)
    return nil, message, code
  end
  return true
end

--- Starts it from its files. Called with the lock held, in state creating or stopped.
function run.start(self)
  local server = self.server
  local base, message, code = server.ids:allocate()
  if not base then
    return nil, message, code
  end
  local nonce = random.hex(16)
  local recorded
  recorded, message, code = self:record("starting", nil, {
    base = base, nonce = nonce, boot_id = host.boot_id(), key = self:key(),
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
    mounting = function(slot)
      return server.storage:mounting(self.root, slot, base)
    end,
    range = { base = base, count = 65536 },
    cgroups = server.cgroups,
    cgroup = self:key(),
    limits = self:limits(),
    init = server.tools .. "/tidepool-init",
    filter = server.filter,
    nonce = unhex(nonce),
    card = { name = self.name, id = self.id },
    machine_id = self.spec.machine_id,
    trust = trust,
  })
  if not made then
    run.release(self, base)
    self:record_fact("stopped", "start failed: " .. message, nil)
    return nil, message, code
  end

  server:expect_exit(made.pid)
  return run.begin(self, made)
end

--- The link to init broke, which may be well: connects again and asks what was missed, or ends the run.
-- Called with the lock held, in any state.
function run.mend(self)
  if self.state ~= "running" or not self.link or not self.link:is_closed() then
    return true
  end
  local ok, why = run.connect(self)
  if ok then
    ok, why = processes.adopt(self)
  end
  if ok then
    log.info("link_mended", { sandbox = self.name })
    return true
  end
  return run.end_run(self, 0, "init does not answer: " .. why)
end

return run

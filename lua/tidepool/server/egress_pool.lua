--- The egress processes of a server: how many there are, which one serves whom, and what follows when one
--- ends.
--
-- Runs in the server. A sandbox belongs to one process for its run. When that ends its connects are
-- refused at once, another is started in its place, and its sandboxes are attached anew. How many there are
-- is a setting, TIDEPOOL_EGRESS: "core" (at most one a CPU core), a number, "label:KEY" (one for each value
-- of that label) or "sandbox" (one each).
local uv = require("luv")
local async = require("tidepool.async")
local egress_reserve = require("tidepool.server.egress_reserve")
local log = require("tidepool.server.log")
local outside = require("tidepool.server.egress_outside")
local process = require("tidepool.server.egress_process")

local egress_pool = {}

local Pool = {}
Pool.__index = Pool

local CA_NAME = "Tidepool sandbox"
local READY = 15 -- seconds that a start of a process may take
local RETRY, LONGEST_RETRY = 1, 30 -- seconds between starts in a row
local IDLE = 60 -- seconds until one that serves nobody is ended
local FORMER = 10 -- seconds in which a process may still tell about a sandbox that has ended
local LONGEST_CA = 8192 -- bytes
local LOOK = 5 -- seconds between looks at the host's resolver configuration
local LIMITS = { connections = 1024, memory = 2 ^ 31 } -- of a sandbox; bytes of a process

-- Processes ----------------------------------------------------------------------------------------

--- server: directory, run, ids, db (of tidepool.server.database). owner: attach(sandbox, process),
--- refuse(sandbox), request(member, method, params), overdue(member, text), adopted(member). options: setting, main.
-- Returns it | nil, message, code.
function egress_pool.open(server, owner, options)
  local setting, message, code = outside.setting(options.setting)
  if not setting then
    return nil, message, code
  end
  local self = setmetatable({
    server = server, owner = owner, setting = setting, main = options.main,
    members = {}, -- by number
    stamp = outside.stamp(),
  }, Pool)
  self.reserve = egress_reserve.new(function()
    for _, member in pairs(self.members) do
      if member.process and member.ready:is_set() then
        return (member.process:call("make_ca", { name = CA_NAME }))
      end
    end
  end)
  self.looking = assert(uv.new_timer())
  self.looking:start(LOOK * 1000, LOOK * 1000, async.guarded(function()
    self:look()
  end))
  return self
end

local function save(self, member)
  local row = member.process:row()
  return self.server.state.db:execute(
    "INSERT OR REPLACE INTO egress_processes (number, pid, start_time, boot_id, base, key) VALUES (?, ?, ?, ?, ?, ?)",
    row.number, row.pid, row.start_time, row.boot_id, row.base, member.key)
end

local function forget(self, number, base)
  self.server.state.db:execute("DELETE FROM egress_processes WHERE number = ?", number)
  self.server.ids:release(base)
end

local function options_of(self, member)
  return {
    server = self.server,
    number = member.number,
    main = self.main,
    on_request = function(_, method, params)
      return self.owner.request(member, method, params)
    end,
    on_lost = function(lost, message)
      self:lost(member, lost, message)
    end,
    on_explained = function(lost, message, text)
      log.error("egress_lost", { number = member.number, egress_pid = lost.pid, message = message, running = text })
      if text and not self.closed then
        self.owner.overdue(member, text)
      end
    end,
  }
end

local function configuration(uid)
  local world = outside.world()
  world.uid, world.gid, world.limits = uid, uid, LIMITS
  return world
end

local function start_process(self, member)
  local base, message, code = self.server.ids:allocate()
  if not base then
    return nil, message, code
  end
  local options = options_of(self, member)
  options.base = base
  local started
  started, message, code = process.start(options)
  if not started then
    self.server.ids:release(base)
    return nil, message, code
  end
  member.process, member.starting = started, true
  local ok
  ok, message, code = save(self, member) -- else the next server would not find it
  if ok then
    ok, message, code = started:call("configure", configuration(base))
  end
  member.starting = nil
  if not ok then
    started:finish()
    member.process = nil
    forget(self, member.number, base)
    return nil, ("egress process: %s (the server's log has the reason)"):format(started.ended or message), code
  end
  log.info("egress_started", { number = member.number, egress_pid = started.pid, key = member.key })
  return true
end

-- It has begun to serve: whoever belongs to it is attached.
local function ready(self, member)
  member.problem, member.retry = nil, nil
  member.ready:set(true)
  for _, sandbox in pairs(member.sandboxes) do
    async.spawn(self.owner.attach, sandbox)
  end
  self.reserve:fill()
end

local function run(self, member)
  local ok, message, code = start_process(self, member)
  if self.closed then
    return
  elseif ok then
    return ready(self, member)
  end
  log.error("egress_not_started", { number = member.number, message = message, code = code })
  member.problem = message
  member.ready:set(nil, message, code)
  member.ready = async.event()
  if next(member.sandboxes) == nil then
    self.members[member.number] = nil
    return
  end
  self:restart(member)
end

--- Starts it again after a pause that grows with each failure in a row.
function Pool:restart(member)
  local pause = member.retry or 0
  member.retry = math.min(LONGEST_RETRY, math.max(RETRY, pause * 2))
  async.after(pause, function()
    if not self.closed and self.members[member.number] == member then
      async.spawn(run, self, member)
    end
  end)
end

local function add(self, number, key)
  local member = { number = number, key = key, sandboxes = {}, former = {}, ready = async.event() }
  self.members[number] = member
  return member
end

local function new_member(self, key)
  local number = 1
  while self.members[number] do
    number = number + 1
  end
  local member = add(self, number, key)
  async.after(0, function() -- a start may fail at once: not before it is known whom it is for
    async.spawn(run, self, member)
  end)
  return member
end

local function size_of(map)
  local count = 0
  for _ in pairs(map) do
    count = count + 1
  end
  return count
end

local function load_of(member)
  return size_of(member.sandboxes)
end

-- The one with the least to do, and how many there are.
local function least_loaded(self)
  local best, least, count = nil, math.huge, 0
  for _, member in pairs(self.members) do
    local load = load_of(member)
    count = count + 1
    if load < least or load == least and member.number < best.number then
      best, least = member, load
    end
  end
  return best, least, count
end

local function by_key(self, key)
  for _, member in pairs(self.members) do
    if member.key == key then
      return member
    end
  end
  return new_member(self, key)
end

--- Which one serves a sandbox, by the setting; started when there is none. It may not be ready yet.
function Pool:assign(sandbox)
  local member
  if self.setting.label then
    member = by_key(self, sandbox.spec.labels[self.setting.label] or "")
  elseif self.setting.each then
    member = by_key(self, tostring(sandbox.id))
  else
    local least, count
    member, least, count = least_loaded(self)
    if not member then
      member = new_member(self)
    elseif least >= 1 and count < self.setting.most then
      new_member(self) -- for those to come: this one shouldn't wait for its start
    end
  end
  member.sandboxes[sandbox.id] = sandbox
  return member
end

--- The sandbox needs it no longer. What it still has to tell about it is taken for a while.
function Pool:unassign(sandbox, member)
  if member.sandboxes[sandbox.id] ~= sandbox then
    return
  end
  member.sandboxes[sandbox.id] = nil
  local now = os.time()
  for id, former in pairs(member.former) do
    if now - former.since > FORMER then
      member.former[id] = nil
    end
  end
  member.former[sandbox.id] = { name = sandbox.name, since = now }
  self:end_idle(member)
end

--- Ends it after a while, unless somebody needs it by then.
function Pool:end_idle(member)
  if member.ending then
    return
  end
  member.ending = async.after(self.setting.each and 1 or IDLE, function()
    member.ending = nil
    local idle = not self.closed and self.members[member.number] == member and member.process and next(member.sandboxes) == nil
    if idle and (member.calls or 0) == 0 then
      local ended = member.process
      self.members[member.number] = nil
      ended:finish()
      forget(self, ended.number, ended.base)
      log.info("egress_ended", { number = member.number })
    end
  end)
end

--- One has ended, or was killed since it hung.
function Pool:lost(member, lost, message)
  if member.process ~= lost or member.starting then
    return -- whoever starts it sees the start fail
  end
  member.process, member.inventory = nil, nil
  member.ready:set(nil, message, "ECONNRESET")
  member.ready = async.event()
  for _, sandbox in pairs(member.sandboxes) do
    self.owner.refuse(sandbox, "its egress process ended")
  end
  forget(self, lost.number, lost.base)
  if self.closed then
    return
  elseif next(member.sandboxes) == nil then
    self.members[member.number] = nil
    return
  end
  self:restart(member)
end

--- Waits until the member can be called: its process | nil, message, code.
function Pool.wait(_, member)
  if member.problem then
    return nil, member.problem, "EAGAIN" -- it is tried again and again in the background
  elseif not (member.process and member.ready:is_set()) then
    local ok, message, code = member.ready:wait(READY)
    if not ok then
      return nil, member.problem or message, code
    end
  end
  return member.process
end

-- Any member, for what concerns no sandbox.
local function any(self)
  local member = least_loaded(self)
  if not member then
    member = new_member(self, (self.setting.label or self.setting.each) and "" or nil)
  end
  return member
end

--- Calls a method of whichever process: result, fds | nil, message, code. Once more when one ends meanwhile.
function Pool:call_any(method, params)
  local result, message, code
  for _ = 1, 2 do
    local member = any(self)
    member.calls = (member.calls or 0) + 1
    local one
    one, message, code = self:wait(member)
    if one then
      result, message, code = one:call(method, params)
    end
    member.calls = member.calls - 1
    if next(member.sandboxes) == nil then
      self:end_idle(member)
    end
    if result ~= nil or not one or not one.dead then
      break
    end
  end
  return result, message, code
end

--- Tells all of them, and waits until each knows; one that is starting learns it as it is attached to.
function Pool:broadcast(method, params)
  local tasks = {}
  for _, member in pairs(self.members) do
    local one = member.process
    if one and not one.dead and member.ready:is_set() then
      tasks[#tasks + 1] = function()
        local ok, message = one:call(method, params)
        if not ok then
          log.error("egress_not_told", { number = member.number, method = method, message = message })
        end
      end
    end
  end
  async.all(tasks)
end

-- What a process made, if it is one: it goes into a file of the sandbox.
local function authority(ca, message, code)
  if ca == nil then
    return nil, message, code
  elseif type(ca) ~= "table" or type(ca.cert) ~= "string" or type(ca.key) ~= "string" or #ca.cert + #ca.key > LONGEST_CA
    or not ca.cert:find("^%-%-%-%-%-BEGIN CERTIFICATE%-%-%-%-%-\n[%w+/=\n]+\n%-%-%-%-%-END CERTIFICATE%-%-%-%-%-\n$") then
    return nil, "the egress process made no certificate authority", "EBADMSG"
  end
  return ca
end

--- A certificate authority for a new sandbox, { cert, key } | nil, message, code.
function Pool:take_ca()
  local ca = authority(self.reserve:take())
  if ca then
    return ca
  end
  return authority(self:call_any("make_ca", { name = CA_NAME }))
end

--- Has one ready before the first sandbox needs it.
function Pool:warm()
  if self.setting.most and next(self.members) == nil then
    self:end_idle(new_member(self))
  end
end

--- Tells the processes when the host's nameservers, hosts or certificates have changed, and looks after them.
function Pool:look()
  local now = outside.stamp()
  if now ~= self.stamp then
    self.stamp = now
    async.spawn(self.broadcast, self, "configure", configuration())
  end
  -- One that is stopped or spins answers nothing, and is lost then. What it answers does not matter.
  for _, member in pairs(self.members) do
    if member.process and member.ready:is_set() then
      async.spawn(member.process.call, member.process, "ping", {})
    end
  end
end

-- Over the server's life --------------------------------------------------------------------------

--- User ids of processes that an earlier server left.
function egress_pool.bases(db)
  local rows = db:rows("SELECT base FROM egress_processes") or {}
  for i, row in ipairs(rows) do
    rows[i] = row.base
  end
  return rows
end

-- By id, and nothing but what it should be: it may be somebody else's by now, and must not keep us from starting.
local function inventory_of(list)
  local inventory = {}
  for _, entry in ipairs(type(list) == "table" and list or {}) do
    if type(entry) == "table" and type(entry.id) == "number" and entry.id == entry.id then
      inventory[entry.id] = { revision = type(entry.revision) == "number" and entry.revision or 0 }
    end
  end
  return inventory
end

-- One may end at any moment of this: then `lost` has seen to it.
local function adopt_one(self, row)
  local member = add(self, row.number, row.key)
  local one, message = process.adopt(options_of(self, member), row)
  member.process = one
  local list
  if one then
    list, message = one:call("inventory", {})
  end
  if list and not one.dead then
    member.inventory = inventory_of(list)
    self.owner.adopted(member)
  end
  if list and not one.dead then
    member.ready:set(true)
    async.spawn(one.call, one, "configure", configuration()) -- the host may have changed meanwhile
    log.info("egress_adopted", { number = row.number, egress_pid = row.pid, sandboxes = size_of(member.inventory) })
    return
  end
  log.warn("egress_not_adopted", { number = row.number, message = message })
  if member.process then
    one:finish()
  end
  if self.members[row.number] == member then
    self.members[row.number] = nil
    forget(self, row.number, row.base)
  end
end

--- Takes over what an earlier server left. member.inventory: id -> { revision } of what each serves.
function Pool:adopt()
  local rows, message, code = self.server.state.db:rows("SELECT number, pid, start_time, boot_id, base, key FROM egress_processes")
  if not rows then
    return nil, message, code
  end
  for _, row in ipairs(rows) do
    adopt_one(self, row)
  end
  return true
end

--- The member that has served a sandbox all along, if any.
function Pool:holder(id)
  for _, member in pairs(self.members) do
    if member.inventory and member.inventory[id] then
      return member, member.inventory[id]
    end
  end
end

--- After the sandboxes were adopted: nobody is served that does not run.
function Pool:reconcile()
  for _, member in pairs(self.members) do
    for id in pairs(member.inventory or {}) do
      if not member.sandboxes[id] then
        local one = member.process
        async.spawn(one.call, one, "detach", { id = id })
      end
    end
    member.inventory = nil
    if next(member.sandboxes) == nil then
      self:end_idle(member)
    end
  end
  self.reserve:fill()
end

--- The server ends. `keep`: sandboxes run on, and so do those that serve them.
function Pool:close(keep)
  if self.closed then
    return
  end
  self.closed = true
  self.reserve:close()
  self.looking:close()
  for _, member in pairs(self.members) do
    local one = member.process
    if one and keep then
      one:leave()
    elseif one then
      one:finish()
      forget(self, one.number, one.base)
    end
  end
end

--- For `info`: number, pid and how many each serves.
function Pool:list()
  local list = {}
  for _, member in pairs(self.members) do
    list[#list + 1] = {
      number = member.number, key = member.key, sandboxes = load_of(member),
      pid = member.process and member.process.pid, problem = member.problem,
    }
  end
  table.sort(list, function(a, b)
    return a.number < b.number
  end)
  return list
end

return egress_pool

--- The egress processes of a server: how many there are, which one serves whom, and what follows when one
--- ends.
--
-- Runs in the server. A sandbox belongs to one process for its run. When that ends its connects are
-- refused at once, another is started in its place, and its sandboxes are attached anew. How many there are
-- is a setting, TIDEPOOL_EGRESS: "core" (at most one a CPU core), a number, "label:KEY" (one for each value
-- of that label) or "sandbox" (one each).
local uv = require("luv")
local async = require("tidepool.async")
local adoption = require("tidepool.server.egress.adoption")
local log = require("tidepool.server.log")
local members = require("tidepool.server.egress.member")
local outside = require("tidepool.server.egress.outside")
local reserve = require("tidepool.server.egress.reserve")

local pool = {}

local Pool = {}
Pool.__index = Pool
Pool.adopt, Pool.holder, Pool.reconcile = adoption.adopt, adoption.holder, adoption.reconcile

local CA_NAME = "Tidepool sandbox"
local IDLE = 60 -- seconds until one that serves nobody is ended
local FORMER = 10 -- seconds in which a process may still tell about a sandbox that has ended
local LONGEST_CA = 8192 -- bytes
local LOOK = 5 -- seconds between looks at the host's resolver configuration

--- server: directory, run, ids, db (of tidepool.server.database). owner: attach(sandbox, process),
--- refuse(sandbox), request(member, method, params), overdue(member, text), adopted(member). options: setting, main.
-- Returns it | nil, message, code.
function pool.open(server, owner, options)
  local setting, message, code = outside.setting(options.setting)
  if not setting then
    return nil, message, code
  end
  local self = setmetatable({
    server = server, owner = owner, setting = setting, main = options.main,
    members = {}, -- by number
    stamp = outside.stamp(),
  }, Pool)
  self.reserve = reserve.new(function()
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

local function load_of(member)
  local count = 0
  for _ in pairs(member.sandboxes) do
    count = count + 1
  end
  return count
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
  return members.new(self, key)
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
      member = members.new(self)
    elseif least >= 1 and count < self.setting.most then
      members.new(self) -- for those to come: this one shouldn't wait for its start
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
      members.forget(self, ended.number, ended.base)
      log.info("egress_ended", { number = member.number })
    end
  end)
end

-- Any member, for what concerns no sandbox.
local function any(self)
  local member = least_loaded(self)
  if not member then
    member = members.new(self, (self.setting.label or self.setting.each) and "" or nil)
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
    one, message, code = members.wait(member)
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
    self:end_idle(members.new(self))
  end
end

--- Tells the processes when the host's nameservers, hosts or certificates have changed, and looks after them.
function Pool:look()
  local now = outside.stamp()
  if now ~= self.stamp then
    self.stamp = now
    async.spawn(self.broadcast, self, "configure", members.configuration())
  end
  -- One that is stopped or spins answers nothing, and is lost then. What it answers does not matter.
  for _, member in pairs(self.members) do
    if member.process and member.ready:is_set() then
      async.spawn(member.process.call, member.process, "ping", {})
    end
  end
end

--- Waits until a member can be called: its process | nil, message, code.
function Pool.wait(_, member)
  return members.wait(member)
end

--- User ids of processes that an earlier server left.
function pool.bases(db)
  local rows = db:rows("SELECT base FROM egress_processes") or {}
  for i, row in ipairs(rows) do
    rows[i] = row.base
  end
  return rows
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
      members.forget(self, one.number, one.base)
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

return pool

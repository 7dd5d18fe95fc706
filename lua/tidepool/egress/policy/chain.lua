--- The policies of one sandbox, asked in order. In the egress process and in the CLI.
--
-- For a hook the first verdict of some member wins; if none says anything, it is denied. A member's
-- handlers for the host come before its general hooks, the exact name before the longest glob. A hook
-- that a member lacks is answered by its coarser one: `resolve` by `connect` (with no port), `request`
-- by `connect`. A handler of a host with `request` and without `connect` lets the name resolve and
-- ports 443 and 80 of it be connected to. `response` and `log` have nothing coarser; a response that no
-- one speaks of passes. At `resolve` only a deny is one: whatever else a policy means to do with the
-- connection, the name has to resolve first.
--
-- Whatever goes wrong inside a policy is a deny that says so.
local budget = require("tidepool.egress.policy.budget")
local environment = require("tidepool.egress.policy.environment")
local load_policy = require("tidepool.egress.policy.load")
local verdict = require("tidepool.egress.policy.verdict")

local MOST_STATE = 65536
local MOST_DEPTH = 8

local LEVELS = {
  resolve = { "resolve", "connect" },
  connect = { "connect" },
  request = { "request", "connect" },
  response = { "response" },
  log = { "log" },
}
local UPSTREAM = { allow = true, passthrough = true, redirect = true }

local function copy(value, depth)
  if type(value) ~= "table" then
    return value
  end
  local result = {}
  if depth > 0 then
    for key, field in pairs(value) do
      result[key] = copy(field, depth - 1)
    end
  end
  return result
end

local Chain = {}
Chain.__index = Chain

-- What a hook gets: a table of its own, which it may change without any effect.
local function event_for(self, member, hook, event)
  local own = copy(event, MOST_DEPTH)
  own.hook = hook
  own.sandbox = self.sandbox.name
  own.id = self.sandbox.id
  own.labels = copy(self.sandbox.labels or {}, 1)
  own.image = self.sandbox.image
  own.options = member.options
  return own
end

local function save_state(self, member)
  local ok, text = pcall(environment.json.encode, member.state)
  if ok and #text > MOST_STATE then
    ok, text = false, ("it takes more than %d bytes"):format(MOST_STATE)
  end
  if not ok then -- back to the last state that could be kept
    local kept = member.saved and environment.json.decode(member.saved) or {}
    for key in pairs(member.state) do
      member.state[key] = nil
    end
    for key, value in pairs(kept) do
      member.state[key] = value
    end
    return nil, "its state can't be kept: " .. tostring(text)
  end
  if text ~= member.saved then
    member.saved = text
    self.dirty = true
  end
  return true
end

local function failure(member, hook, message, code, fn)
  message = environment.redact(member.seen, message)
  if code == "EDQUOT" then
    return ("policy %s %s in %s"):format(member.name, message, hook)
  end
  return ("policy %s failed: %s"):format(member.name, load_policy.told(message, fn))
end

-- Calls one function of a member: true, what it returned | nil, message.
local function call(self, member, hook, fn, event)
  local who = ("policy %s of sandbox %s, %s"):format(member.name, tostring(self.sandbox.name), hook)
  local ok, value, code = budget.run(who, fn, event_for(self, member, hook, event), member.options)
  if not ok then
    return nil, failure(member, hook, value, code, fn)
  end
  if member.touched then
    local kept, message = save_state(self, member)
    if not kept then
      return nil, ("policy %s failed: %s"):format(member.name, message)
    end
  end
  return true, value
end

-- The first function of these levels that the table has.
local function function_for(hooks, hook)
  for _, level in ipairs(LEVELS[hook]) do
    if hooks[level] then
      return hooks[level]
    end
  end
end

local function implied(handler, hook, event)
  if not handler.request or handler.connect then
    return nil
  elseif hook == "resolve" or (hook == "connect" and (event.port == 443 or event.port == 80)) then
    return verdict.allowed()
  end
end

local function ask(self, member, hook, fn, event)
  local ok, value = call(self, member, hook, fn, event)
  if not ok then
    return verdict.denied(value)
  elseif value == nil then
    return nil
  end
  local plain = verdict.plain(value)
  if not plain then
    local text = ("policy %s failed: %s must return a verdict or nothing, not a %s"):format(member.name, hook, type(value))
    return verdict.denied(load_policy.told(text, fn))
  end
  return plain
end

local function answer(self, member, hook, event)
  local handler = member.handlers and member.handlers:find(event.host)
  if handler then
    local fn = function_for(handler, hook)
    local plain
    if fn then
      plain = ask(self, member, hook, fn, event)
    else
      plain = implied(handler, hook, event)
    end
    if plain then
      return plain
    end
  end
  local fn = function_for(member.hooks, hook)
  return fn and ask(self, member, hook, fn, event)
end

-- What the event itself rules out, whatever the policy said.
local function overruled(plain, hook, event)
  if plain.action == "respond" and event.protocol == "tcp" then
    return "not HTTP: nothing can be answered to it"
  elseif not UPSTREAM[plain.action] then
    return nil
  elseif event.mismatch and hook ~= "resolve" and not plain.changes.mismatch then
    return "mismatch: " .. tostring(event.mismatch)
  elseif event.protocol == "tcp" and plain.action ~= "passthrough" and hook == "connect" then
    return "not HTTP: a policy must say passthrough to relay it"
  elseif plain.action == "passthrough" and (hook == "request" or hook == "response") then
    return "passthrough has to be said at connect, not at " .. hook
  end
end

local function redacted(member, plain)
  if next(member.seen) == nil then
    return plain
  end
  plain.reason = plain.reason and environment.redact(member.seen, plain.reason)
  plain.body = plain.body and environment.redact(member.seen, plain.body)
  for name, value in pairs(plain.headers or {}) do
    plain.headers[name] = value and environment.redact(member.seen, value)
  end
  return plain
end

local function final(member, hook, event, plain)
  local reason = overruled(plain, hook, event)
  if reason then
    plain = verdict.denied(reason)
  elseif hook == "resolve" and plain.action ~= "deny" then
    plain = verdict.allowed()
  end
  plain.policy, plain.hook = member.name, hook
  return redacted(member, plain)
end

--- What the policies say: always a verdict. Inside a task, since a hook may wait for `fetch`.
---@param hook "resolve"|"connect"|"request"|"response"
function Chain:decide(hook, event)
  for _, member in ipairs(self.members) do
    local plain = answer(self, member, hook, event)
    if plain then
      return final(member, hook, event, plain)
    end
  end
  local plain = hook == "response" and verdict.allowed() or verdict.denied("no policy allows it")
  plain.hook = hook
  return plain
end

--- Tells every member what was decided and how it went.
function Chain:log(event)
  for _, member in ipairs(self.members) do
    local handler = member.handlers and member.handlers:find(event.host)
    local fn = handler and handler.log or member.hooks.log
    if fn then
      local ok, message = call(self, member, "log", fn, event)
      if not ok and member.services.log then
        member.services.log(member.name, message)
      end
    end
  end
end

local function wanted(self, member, field, value, event)
  if type(value) ~= "function" then
    return value
  end
  local ok, bytes = call(self, member, field, value, event)
  return ok and type(bytes) == "number" and bytes >= 0 and bytes or nil
end

--- How much of a request's body the members want to see before they decide, and how much of the end of
-- the response after: { body = bytes or nil, tail = bytes or nil }, the most that one of them asks for.
-- With the event of the request (its head), a member that asks by function is heard too.
function Chain:wants(host, event)
  event = event or { host = host }
  local most = {}
  for _, member in ipairs(self.members) do
    local handler = member.handlers and member.handlers:find(host)
    for _, field in ipairs({ "body", "tail" }) do
      local value = handler and handler[field] or member.hooks[field]
      local bytes = wanted(self, member, field, value, event)
      if bytes and bytes > 0 and bytes > (most[field] or 0) then
        most[field] = bytes
      end
    end
  end
  return most
end

--- The members' states by name, as tables of the caller's, and `dirty` starts anew.
function Chain:states()
  local states = {}
  for _, member in ipairs(self.members) do
    if member.saved then
      states[member.key] = environment.json.decode(member.saved)
    end
  end
  self.dirty = false
  return states
end

-- The same policy twice in a chain keeps two states.
local function key_of(taken, name)
  taken[name] = (taken[name] or 0) + 1
  return taken[name] == 1 and name or name .. "#" .. taken[name]
end

--- A chain of instances. Raises when one can't be made, though its options passed: its text does something
-- else from one time to the next.
---@param list { definition: table, options: table }[]
---@param sandbox { id: string, name: string, labels: table?, image: string? }
---@param services { secret: function?, log: function?, fetch: function?, now: function }
---@param states table<string, table>? what `states` gave before
local function new(list, sandbox, services, states)
  local self = setmetatable({ members = {}, sandbox = sandbox, dirty = false }, Chain)
  local taken = {}
  for i, item in ipairs(list) do
    local key = key_of(taken, item.definition.name)
    local state = copy(states and states[key] or {}, MOST_DEPTH * 4)
    local member, message = item.definition:instance(item.options, services, state)
    if not member then
      error(("policy %s: %s"):format(item.definition.name, message), 0)
    end
    member.key = key
    member.saved = next(state) ~= nil and environment.json.encode(state) or nil
    self.members[i] = member
  end
  return self
end

return { new = new }

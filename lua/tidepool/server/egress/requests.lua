--- What egress processes ask of the server: to store what they decided, gave out and remember.
--
-- Runs in the server. A process is believed about the sandboxes that it serves and about nobody else, in
-- bounded messages of plain data: it parses what comes from the network, and may be somebody else's by now.
local uv = require("luv")
local log = require("tidepool.server.log")

local requests = {}

local STATE = 64 * 1024 -- bytes that a policy may keep for a sandbox
local ENTRIES = 512 -- of the audit in one message, as egress/audit.lua sends them
local SECRETS = 64 -- names of secrets in one entry
local ACTIONS = { allow = true, deny = true, error = true, note = true, passthrough = true, redirect = true, respond = true }

local handlers = {}

-- Whom an entry is about, if that one's egress is the process's to tell of.
local function name_of(member, id)
  local sandbox = member.sandboxes[id]
  return sandbox and sandbox.name or member.former[id] and member.former[id].name
end

local function now()
  local seconds, micros = uv.gettimeofday()
  return seconds + micros / 1e6
end

-- Whether an entry is one that may be stored. One of tomorrow would outlive its days.
local function is_entry(entry)
  return type(entry) == "table" and ACTIONS[entry.action] and type(entry.time) == "number" and entry.time <= now() + 1
end

local function first(list, most)
  return type(list) == "table" and { unpack(list, 1, math.min(#list, most)) } or nil
end

function handlers.audit(server, member, params)
  local given, entries = type(params.entries) == "table" and params.entries or {}, {}
  if #given > ENTRIES then
    return nil, "too many entries at once", "EMSGSIZE"
  end
  for _, entry in ipairs(given) do
    local name = is_entry(entry) and name_of(member, entry.id)
    if name then
      entry.sandbox, entry.secrets = name, first(entry.secrets, SECRETS)
      entries[#entries + 1] = entry
    end
  end
  return server.audit:add(entries)
end

function handlers.names(server, member, params)
  local sandbox, names = member.sandboxes[params.id], {}
  for _, pair in ipairs(sandbox and type(params.names) == "table" and params.names or {}) do
    local number, name
    if type(pair) == "table" then
      number, name = pair[1], pair[2]
    end
    -- Whole, or there would be no end of them.
    if type(number) == "number" and number >= 1 and number < 2 ^ 17 and number % 1 == 0 and type(name) == "string" and #name <= 255 then
      names[#names + 1] = { number, name }
    end
  end
  return server.state:add_names(params.id, names)
end

local function state_context(id, policy)
  return ("state of policy %s for sandbox %d"):format(policy, id)
end

-- Sealed as secrets are: a policy may keep a token that it was given for one.
function handlers.state(server, member, params)
  local sandbox, states = member.sandboxes[params.id], {}
  for policy, text in pairs(sandbox and type(params.states) == "table" and params.states or {}) do
    for _, attached in ipairs(sandbox.egress.policies) do
      if attached.name == policy and type(text) == "string" and #text <= STATE then
        local sealed, message, code = server.secrets:seal(text, state_context(params.id, policy))
        if not sealed then
          return nil, message, code
        end
        states[policy] = sealed
      end
    end
  end
  return server.state:set_policy_states(params.id, states)
end

--- What the policies of a sandbox remember, by their names | nil, message, code. What can't be unsealed is forgotten.
function requests.states(sandbox)
  local server = sandbox.server
  local sealed, message, code = server.state:policy_states(sandbox.id)
  if not sealed then
    return nil, message, code
  end
  local states = {}
  for policy, text in pairs(sealed) do
    states[policy], message = server.secrets:unseal(text, state_context(sandbox.id, policy))
    if not states[policy] then
      log.error("policy_state_unreadable", { sandbox = sandbox.name, policy = policy, message = message })
    end
  end
  return states
end

--- Writes down what the server itself knows of a sandbox's egress.
function requests.note(sandbox, fields)
  fields.time, fields.id, fields.sandbox, fields.count = now(), sandbox.id, sandbox.name, 1
  return sandbox.server.audit:add({ fields })
end

--- Answers a process: result | nil, message, code.
function requests.answer(server, member, method, params)
  local handler = handlers[method]
  if not handler or type(params) ~= "table" then
    return nil, "no such call: " .. method, "ENOSYS"
  end
  return handler(server, member, params)
end

--- The watchdog found somebody in a call that did not end, and the process with it: see policy/chain.lua.
-- Returns the sandbox, if it is still there.
function requests.overdue(member, text)
  local policy, name, hook = text:match("^policy (%S+) of sandbox (%S+), (%S+)$")
  for _, sandbox in pairs(member.sandboxes) do
    if sandbox.name == name then
      requests.note(sandbox, {
        action = "deny", hook = hook, policy = policy,
        reason = ("policy %s exceeded its time inside one call; its egress process was started again"):format(policy),
      })
      return sandbox
    end
  end
end

return requests

--- A sandbox's way out, as the server leads it: its policies, its certificate authority, and which egress
--- process answers for its network.
--
-- Runs in the server, which never looks at a byte of the network nor runs a policy. It holds the sandbox's
-- listeners too, so that either side can end: while no egress process serves a sandbox its connects are
-- refused. What changes is checked by an egress process and written down before it is acknowledged.
local uv = require("luv")
local async = require("tidepool.async")
local container = require("tidepool.server.container")
local egress_pool = require("tidepool.server.egress_pool")
local log = require("tidepool.server.log")
local policies = require("tidepool.server.policies")
local secrets = require("tidepool.server.secrets")
local steering = require("tidepool.server.steering")

local egress = {}

-- In the order in which an egress process takes them; a host without IPv6, or without bpf, lacks some.
local HANDLES = { "tcp4", "tcp6", "udp4", "udp6", "map", "link" }

local STATE = 64 * 1024 -- bytes that a policy may keep for a sandbox

local function now()
  local seconds, micros = uv.gettimeofday()
  return seconds + micros / 1e6
end

-- Steering ---------------------------------------------------------------------------------------

local function shut(sandbox, made)
  local ok, message, code = steering.shut(made)
  if not ok then
    log.error("steering_not_shut", { sandbox = sandbox.name, message = message, code = code })
  end
end

--- Refuses every connect of the sandbox from now on.
function egress.refuse(sandbox, reason)
  local own = sandbox.egress
  own.process, own.problem = nil, reason
  if own.steering then
    shut(sandbox, own.steering)
  end
end

-- What an egress process is told ------------------------------------------------------------------

local function attachment(sandbox)
  local own, server = sandbox.egress, sandbox.server
  local list, message, code = policies.resolved(server, own.policies)
  if not list then
    return nil, message, code
  end
  local names
  names, message, code = server.state:names(sandbox.id)
  if not names then
    return nil, message, code
  end
  local states
  states, message, code = server.state:policy_states(sandbox.id)
  if not states then
    return nil, message, code
  end
  return {
    id = sandbox.id, name = sandbox.name, labels = sandbox.spec.labels, image = sandbox.image,
    policies = list, revision = own.revision, ca = own.ca, names = names, states = states,
    secrets = server.secrets:for_egress(), mode = own.steering.mode,
  }
end

local function attach(sandbox)
  local own, pool = sandbox.egress, sandbox.server.egress
  local made = own.steering
  if not made then
    return nil, "sandbox is not running: " .. sandbox.name, "ESTOPPED"
  elseif own.process and not own.process.dead then
    return true
  end
  own.member = own.member or pool:assign(sandbox)
  local process, message, code = pool:wait(own.member)
  if not process then
    return nil, message, code
  end
  local params
  params, message, code = attachment(sandbox)
  if not params then
    return nil, message, code
  end
  local fds = {}
  params.handles = {}
  for _, name in ipairs(HANDLES) do
    if made[name] then
      fds[#fds + 1] = made[name]
      params.handles[#fds] = name
    end
  end
  local revision = own.revision
  local ok
  ok, message, code = process:call("attach", params, fds)
  if not ok then
    return nil, message, code
  elseif own.steering ~= made then
    process:call("detach", { id = sandbox.id }) -- it has ended meanwhile
    return nil, "sandbox is not running: " .. sandbox.name, "ESTOPPED"
  end
  own.process, own.told, own.problem = process, revision, nil
  return steering.open(made)
end

--- Has an egress process serve the sandbox, if none does: true | nil, message, code. It is refused
--- everything meanwhile, and tried again when a process starts.
function egress.attach(sandbox)
  local own = sandbox.egress
  local ok, message, code = own.lock:with(attach, sandbox)
  if not ok and own.steering then
    own.problem = message
    log.error("egress_not_attached", { sandbox = sandbox.name, message = message, code = code })
  end
  return ok, message, code
end

-- Tells the process of what was changed. What fails is made good by the next attach.
local function push(sandbox)
  local own = sandbox.egress
  return own.lock:with(function()
    if not own.process or own.told == own.revision then
      return true
    end
    local revision = own.revision
    local list, message = policies.resolved(sandbox.server, own.policies)
    if not list then
      return nil, message
    end
    local ok
    ok, message = own.process:call("policies", { id = sandbox.id, policies = list, revision = revision })
    if not ok then
      -- Better nothing than what was replaced.
      if own.process and not own.process.dead then
        egress.refuse(sandbox, "its policies could not be changed: " .. message)
      end
      return nil, message
    end
    own.told = revision
    return true
  end)
end

-- A sandbox's life ---------------------------------------------------------------------------------

--- What a sandbox has of egress: from its row, or a chain for a new one.
function egress.new(row)
  local kept = row.egress or {}
  return {
    policies = kept.policies or policies.DEFAULT,
    revision = kept.revision or 1,
    sealed_ca = row.ca,
    lock = async.lock(),
  }
end

--- What goes into its row.
function egress.record(own)
  return { policies = own.policies, revision = own.revision }
end

local function ca_context(sandbox)
  return "certificate authority of sandbox " .. sandbox.id
end

local function keep_ca(sandbox, ca)
  local server = sandbox.server
  local key, message, code = server.secrets:seal(ca.key, ca_context(sandbox))
  local ok = key
  if key then
    ok, message, code = server.state:set_ca(sandbox.id, { cert = ca.cert, key = key })
  end
  if not ok then
    log.error("ca_not_kept", { sandbox = sandbox.name, message = message, code = code })
  end
end

--- Its certificate authority's certificate, PEM, made when it has none | nil, message, code: it can start
--- without and is refused everything.
function egress.trust(sandbox)
  local own, server = sandbox.egress, sandbox.server
  if own.sealed_ca and not own.ca then
    local key, message = server.secrets:unseal(own.sealed_ca.key, ca_context(sandbox))
    if key then
      own.ca = { cert = own.sealed_ca.cert, key = key }
    else
      log.error("ca_unreadable", { sandbox = sandbox.name, message = message })
    end
    own.sealed_ca = nil
  end
  if not own.ca then
    local ca, message, code = server.egress:take_ca()
    if not ca then
      log.error("no_ca", { sandbox = sandbox.name, message = message, code = code })
      own.problem = message
      return nil, message, code
    end
    own.ca = ca
    keep_ca(sandbox, ca)
  end
  return own.ca.cert
end

--- A run has begun: these are its listeners, ours from now on. Returns a task that attaches it.
function egress.begin(sandbox, made)
  sandbox.egress.steering = made
  return async.spawn(egress.attach, sandbox)
end

--- The run has ended.
function egress.finish(sandbox)
  local own = sandbox.egress
  local made, process, member = own.steering, own.process, own.member
  own.steering, own.process, own.member, own.problem = nil, nil, nil, nil
  if made then
    steering.close(made)
  end
  if member then
    if process and not process.dead then
      async.spawn(process.call, process, "detach", { id = sandbox.id })
    end
    sandbox.server.egress:unassign(sandbox, member)
  end
end

--- Takes over a sandbox that runs: from the egress process that serves it, or by new listeners where that
--- has ended as well. Returns true | nil, message, code.
function egress.adopt(sandbox)
  local own, server = sandbox.egress, sandbox.server
  egress.trust(sandbox)
  local member, entry = server.egress:holder(sandbox.id)
  if member then
    local names, fds = member.process:call("handles", { id = sandbox.id })
    if names then
      local made = { mode = sandbox.run.steering }
      for i, name in ipairs(type(names) == "table" and names or HANDLES) do
        made[name] = fds[i]
      end
      member.sandboxes[sandbox.id] = sandbox
      own.member, own.process, own.steering, own.told = member, member.process, made, entry.revision
      steering.open(made)
      return push(sandbox)
    end
  end
  local made, message, code = container.resteer(server.spawners, sandbox.run.pid, sandbox.run.steering)
  if not made then
    own.problem = message
    log.error("not_steered", { sandbox = sandbox.name, message = message, code = code })
    return nil, message, code
  end
  egress.begin(sandbox, made)
  return true
end

-- Changing policies ------------------------------------------------------------------------------

--- A chain of what a client sent, checked by an egress process | nil, message, code.
function egress.check(server, given)
  local chain, message, code = policies.chain(given)
  if not chain then
    return nil, message, code
  end
  local list
  list, message, code = policies.resolved(server, chain)
  if not list then
    return nil, message, code
  elseif chain == policies.DEFAULT then
    return chain
  end
  local ok
  ok, message, code = server.egress:call_any("check", { policies = list })
  if not ok then
    return nil, message, code
  end
  return chain
end

-- `change(chain)` gives the new one. One change at a time.
local function change_policies(sandbox, change)
  local own = sandbox.egress
  own.changing = own.changing or async.lock()
  return own.changing:with(function()
    local given, message, code = change(own.policies)
    if not given then
      return nil, message, code
    end
    local chain
    chain, message, code = egress.check(sandbox.server, given)
    if not chain then
      return nil, message, code
    elseif sandbox.destroyed then
      return nil, "sandbox was destroyed: " .. sandbox.name, "ENOSANDBOX"
    end
    local ok
    ok, message, code = sandbox.server.state:set_egress(sandbox.id, { policies = chain, revision = own.revision + 1 })
    if not ok then
      return nil, message, code
    end
    own.policies, own.revision = chain, own.revision + 1
    log.info("egress_changed", { sandbox = sandbox.name, revision = own.revision, policies = egress.names(sandbox) })
    push(sandbox)
    return egress.show(sandbox)
  end)
end

--- Replaces all policies of a sandbox.
function egress.set(sandbox, given)
  return change_policies(sandbox, function()
    return given
  end)
end

--- Adds policies, or changes the options of those that are there.
function egress.add(sandbox, given)
  return change_policies(sandbox, function(chain)
    for _, item in ipairs(given) do
      chain = policies.with(chain, item)
    end
    return chain
  end)
end

--- Removes a policy; without any left, everything is denied.
function egress.remove(sandbox, name)
  return change_policies(sandbox, function(chain)
    return policies.without(chain, name)
  end)
end

--- The policies' names, in order, for a line.
function egress.names(sandbox)
  local names = {}
  for i, member in ipairs(sandbox.egress.policies) do
    names[i] = member.name
  end
  return table.concat(names, ",")
end

--- What a client is told.
function egress.show(sandbox)
  local own = sandbox.egress
  local list = {}
  for i, member in ipairs(own.policies) do
    list[i] = { name = member.name, options = member.options, file = member.text ~= nil }
  end
  local member = own.member
  return {
    name = sandbox.name,
    policies = list,
    revision = own.revision,
    state = not own.steering and "stopped" or own.process and "served" or "refused",
    problem = own.problem,
    process = own.process and { number = member.number, pid = own.process.pid } or nil,
    mode = own.steering and own.steering.mode or nil,
    counters = sandbox.server.audit:counters(sandbox.id),
  }
end

-- Requests of egress processes ---------------------------------------------------------------------

local requests = {}

-- Whom an entry is about, if that one's egress is the process's to tell of.
local function name_of(member, id)
  local sandbox = member.sandboxes[id]
  return sandbox and sandbox.name or member.former[id] and member.former[id].name
end

function requests.audit(server, member, params)
  local entries = {}
  for _, entry in ipairs(type(params.entries) == "table" and params.entries or {}) do
    local name = type(entry) == "table" and name_of(member, entry.id)
    if name then
      entry.sandbox = name
      entries[#entries + 1] = entry
    end
  end
  return server.audit:add(entries)
end

function requests.names(server, member, params)
  local sandbox, names = member.sandboxes[params.id], {}
  for _, pair in ipairs(sandbox and type(params.names) == "table" and params.names or {}) do
    local number, name = pair[1], pair[2]
    if type(number) == "number" and number >= 1 and number < 2 ^ 17 and type(name) == "string" and #name <= 255 then
      names[#names + 1] = { number, name }
    end
  end
  return server.state:add_names(params.id, names)
end

function requests.state(server, member, params)
  local sandbox, states = member.sandboxes[params.id], {}
  for policy, text in pairs(sandbox and type(params.states) == "table" and params.states or {}) do
    for _, attached in ipairs(sandbox.egress.policies) do
      if attached.name == policy and type(text) == "string" and #text <= STATE then
        states[policy] = text
      end
    end
  end
  return server.state:set_policy_states(params.id, states)
end

-- The watchdog found somebody in a call that did not end, and the process with it: see policy/chain.lua.
local function overdue(server, member, text)
  local policy, name, hook = text:match("^policy (%S+) of sandbox (%S+), (%S+)$")
  for id, sandbox in pairs(member.sandboxes) do
    if sandbox.name == name then
      server.audit:add({ {
        time = now(), id = id, sandbox = name, action = "deny", hook = hook, policy = policy, count = 1,
        reason = ("policy %s exceeded its time inside one call; its egress process was started again"):format(policy),
      } })
      return
    end
  end
end

--- Opens the pool of a server, whose state, ids, secrets and audit are there. options: setting, main.
function egress.open(server, options)
  return egress_pool.open(server, {
    attach = egress.attach,
    refuse = egress.refuse,
    overdue = function(member, text)
      overdue(server, member, text)
    end,
    request = function(member, method, params)
      local handler = requests[method]
      if not handler or type(params) ~= "table" then
        return nil, "no such call: " .. method, "ENOSYS"
      end
      return handler(server, member, params)
    end,
  }, options)
end

--- A secret has changed, or has gone: every process is told.
function egress.secret_changed(server, secret)
  server.egress:broadcast("secret", secrets.message(secret))
end

function egress.secret_removed(server, name)
  server.egress:broadcast("secret_remove", { name = name })
end

return egress

--- A sandbox's way out, as the server leads it: its policies, its certificate authority, and which egress
--- process answers for its network.
--
-- Runs in the server, which never looks at a byte of the network nor runs a policy. It holds the sandbox's
-- listeners too, so that either side can end: while no egress process serves a sandbox its connects are
-- refused.
local async = require("tidepool.async")
local container = require("tidepool.server.container")
local pools = require("tidepool.server.egress.pool")
local requests = require("tidepool.server.egress.requests")
local log = require("tidepool.server.log")
local policies = require("tidepool.server.policies")
local secrets = require("tidepool.server.secrets")
local steering = require("tidepool.server.steering")

local egress = {}

-- A policy that runs away takes its egress process with it, and all who share that: so often in so many
-- seconds, and its sandbox is refused everything for as long, or until its policies change.
local OVERDUE, OVERDUE_WITHIN = 3, 60
local RETRY = 5 -- seconds after an attach that failed

-- In the order in which an egress process takes them; a host without IPv6, or without bpf, lacks some.
local HANDLES = { "tcp4", "tcp6", "udp4", "udp6", "map", "link" }

-- Steering ---------------------------------------------------------------------------------------

local function shut(sandbox, made)
  local ok, message, code = steering.shut(made)
  if not ok then
    log.error("steering_not_shut", { sandbox = sandbox.name, message = message, code = code })
  end
end

--- Refuses every connect of the sandbox from now on, and writes down why: nobody else does.
function egress.refuse(sandbox, reason)
  local own = sandbox.egress
  own.process, own.problem = nil, reason
  if own.steering then
    shut(sandbox, own.steering)
    requests.note(sandbox, { action = "deny", hook = "connect", reason = reason })
  end
end

-- The watchdog ended a process in a call of this policy.
local function overdue(member, text)
  local sandbox = requests.overdue(member, text)
  local own, now = sandbox and sandbox.egress, os.time()
  if not own then
    return
  elseif not own.overdue or own.overdue.revision ~= own.revision or now - own.overdue.since > OVERDUE_WITHIN then
    own.overdue = { revision = own.revision, since = now, count = 0 }
  end
  own.overdue.count = own.overdue.count + 1
  if own.overdue.count >= OVERDUE then
    own.overdue.since = now
    local process = own.process -- it may serve again already
    egress.refuse(sandbox, egress.SUSPENDED)
    if process and not process.dead then
      async.spawn(process.call, process, "detach", { id = sandbox.id })
    end
  end
end

egress.SUSPENDED = ("a policy exceeded its time %d times: refused for %d s, or until its policies change"):format(OVERDUE, OVERDUE_WITHIN)

local function is_suspended(own)
  local late = own.overdue
  return late and late.count >= OVERDUE and late.revision == own.revision and os.time() - late.since <= OVERDUE_WITHIN
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
  states, message, code = requests.states(sandbox)
  if not states then
    return nil, message, code
  end
  return {
    id = sandbox.id, name = sandbox.name, labels = sandbox.spec.labels, image = sandbox.image,
    policies = list, revision = own.revision, ca = own.ca, names = names, states = states,
    secrets = server.secrets:for_egress(), mode = own.steering.mode, again = own.served,
  }
end

local function attach(sandbox)
  local own, pool = sandbox.egress, sandbox.server.egress
  local made = own.steering
  if not made then
    return nil, "sandbox is not running: " .. sandbox.name, "ESTOPPED"
  elseif own.process and not own.process.dead then
    return true
  elseif is_suspended(own) then
    return nil, egress.SUSPENDED, "EAGAIN"
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
  own.process, own.told, own.problem, own.served = process, revision, nil, true
  return steering.open(made)
end

--- Has an egress process serve the sandbox, if none does: true | nil, message, code. It is refused
--- everything meanwhile, and tried again when a process starts.
function egress.attach(sandbox)
  local own = sandbox.egress
  local ok, message, code = own.lock:with(attach, sandbox)
  if ok or not own.steering then
    return ok, message, code
  end
  if own.problem ~= message then
    log.error("egress_not_attached", { sandbox = sandbox.name, message = message, code = code })
  end
  own.problem = message
  if not own.retrying then
    own.retrying = async.after(RETRY, function()
      own.retrying = nil
      async.spawn(egress.attach, sandbox)
    end)
  end
  return nil, message, code
end

-- The policies that the process has are not those that count any more: better nothing than them.
local function outdated(sandbox, message)
  local own = sandbox.egress
  if own.process and not own.process.dead then
    egress.refuse(sandbox, "its policies could not be changed: " .. message)
  end
  return nil, message
end

--- Tells the process of policies that were changed: true | nil, message; then it is refused everything.
function egress.push(sandbox)
  local own = sandbox.egress
  return own.lock:with(function()
    if not own.process then
      return own.steering == nil or attach(sandbox)
    elseif own.told == own.revision then
      return true
    end
    local revision = own.revision
    local list, message = policies.resolved(sandbox.server, own.policies)
    if not list then
      return outdated(sandbox, message)
    end
    local ok
    ok, message = own.process:call("policies", { id = sandbox.id, policies = list, revision = revision })
    if not ok then
      return outdated(sandbox, message)
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

local function kept_context(id)
  return "certificate authority of a snapshot of sandbox " .. id
end

--- What goes into a snapshot with memory beside the record: what its processes hold of the outside. Addresses
--- stand for names, and what they trust is in their memory.
function egress.keep(sandbox)
  local own, server = sandbox.egress, sandbox.server
  local kept = egress.record(own)
  kept.names = server.state:names(sandbox.id)
  if egress.trust(sandbox) then
    local key, message = server.secrets:seal(own.ca.key, kept_context(sandbox.id))
    kept.ca = key and { cert = own.ca.cert, key = key }
    if not key then
      log.error("ca_not_kept", { sandbox = sandbox.name, message = message })
    end
  end
  return kept
end

--- The certificate authority that was kept so: { cert, key }, or nil. id: of the sandbox that it was of.
function egress.kept_ca(server, kept, id)
  local key, message = nil, nil
  if kept and kept.ca then
    key, message = server.secrets:unseal(kept.ca.key, kept_context(id))
    if not key then
      log.error("ca_unreadable", { sandbox_id = id, message = message })
    end
  end
  return key and { cert = kept.ca.cert, key = key } or nil
end

--- Gives a new sandbox the certificate authority of another: its processes trust that.
function egress.inherit(sandbox, ca)
  if ca then
    sandbox.egress.ca = ca
    keep_ca(sandbox, ca)
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

-- New listeners, for a sandbox whose old ones nobody holds any more. Tried again while it runs.
local resteer
function resteer(sandbox)
  local own, server = sandbox.egress, sandbox.server
  local made, message, code = container.resteer(server.spawners, sandbox.run.pid, sandbox.run.steering)
  if made and sandbox.run then
    egress.begin(sandbox, made)
    return true
  elseif made then
    steering.close(made) -- it has ended meanwhile
    return nil, "sandbox is not running: " .. sandbox.name, "ESTOPPED"
  end
  if own.problem ~= message then
    log.error("not_steered", { sandbox = sandbox.name, message = message, code = code })
  end
  own.problem = message
  async.after(RETRY, function()
    if sandbox.run and not own.steering then
      async.spawn(resteer, sandbox)
    end
  end)
  return nil, message, code
end

-- What an egress process gave of a sandbox's handles, by their names | nil when it can't be that.
local function handles_of(sandbox, names, fds)
  local made, known = { mode = sandbox.run.steering }, {}
  for _, name in ipairs(HANDLES) do
    known[name] = true
  end
  for i, name in ipairs(type(names) == "table" and names or {}) do
    if not known[name] or made[name] or not fds[i] then
      return nil
    end
    made[name] = fds[i]
  end
  local complete = made.tcp4 and made.udp4 and (made.map or made.mode ~= "bpf")
  return complete and made or nil
end

--- Takes over a sandbox that runs: from the egress process that serves it, or by new listeners where that
--- has ended as well. Returns true | nil, message, code.
function egress.adopt(sandbox)
  local own, server = sandbox.egress, sandbox.server
  own.served = true
  egress.trust(sandbox)
  local member, entry = server.egress:holder(sandbox.id)
  local one = member and member.process
  if one then
    local names, fds = one:call("handles", { id = sandbox.id })
    local made = names and not one.dead and handles_of(sandbox, names, fds)
    if made then
      member.sandboxes[sandbox.id] = sandbox
      own.member, own.process, own.steering, own.told = member, one, made, entry.revision
      steering.open(made)
      return egress.push(sandbox)
    end
    for _, fd in ipairs(names and fds or {}) do
      fd:close() -- it ended meanwhile, or told nonsense
    end
    one:call("detach", { id = sandbox.id }) -- what it holds and can't give is in the way of the new ones
  end
  return resteer(sandbox)
end

--- The policies' names, in order, for a line.
function egress.names(sandbox)
  local names = {}
  for i, member in ipairs(sandbox.egress.policies) do
    names[i] = member.name
  end
  return table.concat(names, ",")
end

--- Opens the pool of a server, whose state, ids, secrets and audit are there. options: setting, main.
function egress.open(server, options)
  return pools.open(server, {
    attach = egress.attach,
    refuse = egress.refuse,
    overdue = overdue,
    adopted = function(member)
      local ok, message = member.process:call("secrets", server.secrets:all_for_egress())
      if not ok then
        log.error("egress_not_told", { number = member.number, method = "secrets", message = message })
      end
    end,
    request = function(member, method, params)
      return requests.answer(server, member, method, params)
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

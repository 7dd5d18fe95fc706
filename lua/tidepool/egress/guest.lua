--- One sandbox, as the egress process sees it: who it is, its policies, its names, its connections.
--
-- Who a connection comes from is known by the listener that it arrived on, never by what it says.
local async = require("tidepool.async")
local cjson = require("cjson")
local core = require("tidepool.core")
local proxy = require("tidepool.proxy")
local connection = require("tidepool.egress.connection")
local dns = require("tidepool.egress.dns")
local fetch = require("tidepool.egress.fetch")
local head = require("tidepool.egress.head")
local names = require("tidepool.egress.names")
local policy = require("tidepool.egress.policy")
local pool = require("tidepool.egress.pool")

local guest = {}

local Guest = {}
Guest.__index = Guest

local LEAVES = 256 -- certificates kept, one a host
local RENEW = 2 * 86400 -- seconds before its end that a certificate is minted anew
local SAVE_AFTER = 1 -- seconds between a change of a policy's state and its saving
local PAUSE = 0.2 -- seconds
local ACCEPTS = 64 -- connections accepted in one turn of the loop
local HANDSHAKES, WINDOW = 2, 0.001 -- of TLS, begun at once and a sandbox, and the seconds until the next ones

local function services_of(self)
  return {
    secret = function(name)
      return self.service.secrets:value(name)
    end,
    log = function(policy_name, text)
      self:record({ action = "note", policy = policy_name, reason = text }, { hook = "log" })
    end,
    fetch = function(request)
      return fetch.run(self, request)
    end,
    now = os.time,
  }
end

-- A chain that denies with a reason: a policy that can't be loaded must not be skipped.
local function broken(reason)
  return {
    dirty = false,
    decide = function(_, hook)
      return { action = "deny", reason = reason, hook = hook, changes = {} }
    end,
    log = function() end,
    wants = function()
      return {}
    end,
    states = function()
      return {}
    end,
  }
end

--- The definitions of a list of { name, text, options }, checked | nil, message.
function guest.members(policies, services)
  local members = {}
  for i, given in ipairs(policies) do
    local definition, message = policy.load(given.text, given.name, services)
    if not definition then
      return nil, ("policy %s: %s"):format(given.name, message)
    end
    local options
    options, message = definition:options(given.options or {})
    if not options then
      return nil, ("policy %s: %s"):format(given.name, message)
    end
    members[i] = { definition = definition, options = options }
  end
  return members
end

local function decode_states(states)
  local decoded = {}
  for name, text in pairs(states or {}) do
    local ok, value = pcall(cjson.decode, text)
    decoded[name] = ok and type(value) == "table" and value or nil
  end
  return decoded
end

-- Puts a new chain in place. Requests in flight hold the old one.
local function install(self, policies, states)
  local services = services_of(self)
  local members, message = guest.members(policies, services)
  if not members then
    self.chain = broken(message)
    return nil, message, "EINVAL"
  end
  local identity = { id = self.id, name = self.name, labels = self.labels, image = self.image }
  local ok, chain = pcall(policy.chain, members, identity, services, states)
  if not ok then
    self.chain = broken("the policies can't be combined: " .. tostring(chain))
    return nil, tostring(chain), "EINVAL"
  end
  self.chain = chain
  return true
end

--- spec: id, name, labels, image, policies, revision, ca = { cert, key }, names, states, again
-- (whether it was served before in this run).
-- handles: tcp4, tcp6, udp4, udp6, map, link. A policy that is broken denies everything.
function guest.new(service, spec, handles)
  local self = setmetatable({
    service = service,
    id = spec.id,
    name = spec.name,
    labels = spec.labels or {},
    image = spec.image,
    revision = spec.revision,
    handles = handles,
    ca_files = spec.ca,
    names = names.new(spec.names, spec.again),
    leaves = {},
    leaf_count = 0,
    connections = 0,
    open = setmetatable({}, { __mode = "k" }),
    relays = {},
    pool = pool.new(),
    watches = {},
    told = {}, -- hosts that a secret went to
    told_count = 0,
    begun = 0, -- handshakes in this window
  }, Guest)
  local ok, message = install(self, spec.policies or {}, decode_states(spec.states))
  if not ok then
    self:record({ action = "deny", reason = message }, { hook = "attach" })
  end
  return self
end

--- Replaces the policies; what they remember goes on. Returns true | nil, message, code, then all is denied.
function Guest:set_policies(policies, revision)
  local states = self.chain:states()
  local ok, message, code = install(self, policies, states)
  self.revision = revision
  self:save_states()
  for _, relay in pairs(self.relays) do
    async.spawn(relay.recheck)
  end
  return ok, message, code
end

--- Relays bytes between two connections until both have ended, as loop:relay. A relay has no end that one could
-- wait for when policies change, so `still()` is asked then whether it may go on, and it is cut if not. `chain` has
-- allowed it: what changed since, while the other end was connected to, counts as well.
function Guest:relay(chain, a, b, still, options)
  local function recheck()
    if self.relays[a] and not still() then
      a:reset()
      b:reset()
    end
  end
  self.relays[a] = { recheck = recheck }
  self.open[b] = true
  if self.stopped then -- meanwhile, too
    b:reset()
  elseif self.chain ~= chain then
    async.spawn(recheck)
  end
  local sent, received, code, sent_before, received_before = self.service.loop:relay(a, b, nil, options)
  self.relays[a] = nil
  if not sent then
    return sent_before or 0, received_before or 0, tostring(received), code
  end
  return sent, received
end

--- Starts to accept.
function Guest:start()
  for _, which in ipairs({ "tcp4", "tcp6" }) do -- on a host without IPv6 the second is not there
    self.watches[#self.watches + 1] = self.handles[which] and self:accept_on(self.handles[which])
  end
  for _, which in ipairs({ "udp4", "udp6" }) do
    self.watches[#self.watches + 1] = self.handles[which] and dns.serve(self, self.handles[which])
  end
end

--- Ends it: connections are cut, descriptors closed.
function Guest:stop()
  self.stopped = true
  for _, watch in ipairs(self.watches) do
    watch:close()
  end
  for conn in pairs(self.open) do
    conn:reset()
  end
  self.pool:close()
  for _, handle in pairs(self.handles) do
    handle:close()
  end
end

--- Whether another connection or query may begin; a flood is one line in the audit.
function Guest:may_begin()
  if self.connections < self.service.limits.connections then
    return true
  end
  self:record({ action = "deny", reason = ("more than %d connections at once"):format(self.connections) }, { hook = "accept" })
  return false
end

--- Runs fn as one of the sandbox's connections.
function Guest:run(fn, ...)
  self.connections = self.connections + 1
  local ok, err = xpcall(fn, debug.traceback, ...)
  self.connections = self.connections - 1
  if not ok then
    async.on_error(err)
    self:record({ action = "deny", reason = "internal error; the server's log has it" }, { hook = "accept" })
  end
end

-- Leaves a listener alone for a while.
function Guest:pause(watch, code)
  watch:stop()
  if code ~= "EINVAL" then
    self:record({ action = "deny", reason = "connections can't be accepted: " .. code }, { hook = "accept" })
  end
  async.after(PAUSE, function()
    if not self.stopped then
      watch:start()
    end
  end)
end

--- Accepts connections on a listener. Returns the watch, to be closed.
function Guest:accept_on(listener)
  local watch
  watch = assert(async.watch(listener:number(), "r", function()
    for _ = 1, ACCEPTS do
      local fd, to, code = proxy.socket.accept(listener)
      if not fd then
        if code ~= "EAGAIN" and code ~= "ECONNABORTED" then
          self:pause(watch, code) -- out of descriptors, or shut for a moment: the poll would spin
        end
        return
      end
      if not self:may_begin() then
        fd:close()
      else
        async.spawn(self.run, self, connection.serve, self, fd, to)
      end
    end
  end))
  watch:start()
  return watch
end

--- What the policies of now say.
function Guest:decide(hook, event)
  return self:decide_with(self.chain, hook, event)
end

-- What a verdict tells the sandbox, without secrets in any encoding: a policy may have said too much.
local function redact(verdict, secrets)
  verdict.reason = verdict.reason and secrets:redact(verdict.reason)
  if verdict.action == "respond" then
    verdict.body = verdict.body and secrets:redact(verdict.body)
    for name, value in pairs(verdict.headers or {}) do
      verdict.headers[name] = secrets:redact(value)
    end
  end
  return verdict
end

--- What the policies of `chain` say. Nothing is allowed that can't be written down.
function Guest:decide_with(chain, hook, event)
  if self.service.audit:is_full(self.id) then
    return { action = "deny", reason = "the audit queue is full", status = 503, hook = hook, changes = {} }
  end
  local verdict = chain:decide(hook, event)
  self:save_states()
  return redact(verdict, self.service.secrets)
end

--- Writes a decision down: a verdict, and what it was about.
function Guest:record(verdict, about)
  about.id, about.sandbox = self.id, self.name
  about.action, about.reason = about.action or verdict.action, about.reason or verdict.reason
  about.reason = about.reason and head.reason(about.reason)
  about.policy = about.policy or verdict.policy
  self.service.audit:add(about)
end

--- Waits until a handshake may begin. Each is a millisecond or two of the process, in which nobody else is served;
-- a thousand at once are one sandbox's way to hold up the others.
function Guest:take_turn()
  while self.begun >= HANDSHAKES do
    self.window:wait()
  end
  self.begun = self.begun + 1
  if self.begun == 1 then
    self.window = async.event()
    async.after(WINDOW, function()
      self.begun = 0
      self.window:set(true)
    end)
  end
end

--- The certificate for a host or address, minted when first needed.
function Guest:identity(host)
  local leaf = self.leaves[host]
  if leaf and leaf:expires() - os.time() > RENEW then
    return leaf
  end
  local message, code
  if not self.ca_files then
    return nil, "the sandbox has no certificate authority", "ENOENT"
  elseif not self.ca then -- takes 2 ms, which a create needn't wait for
    self.ca, message, code = proxy.ca.open(self.ca_files.cert, self.ca_files.key)
    if not self.ca then
      return nil, message, code
    end
  end
  leaf, message, code = self.ca:identity(host)
  if not leaf then
    return nil, message, code
  end
  if self.leaf_count >= LEAVES then
    self.leaves, self.leaf_count = {}, 0
  end
  self.leaf_count = self.leaf_count + (self.leaves[host] and 0 or 1)
  self.leaves[host] = leaf
  return leaf
end

--- Tells the server which names were given out, so that addresses outlive this process.
function Guest:tell_names()
  if self.telling then
    return
  end
  local fresh = self.names:take_fresh()
  if #fresh == 0 then
    return
  end
  self.telling = true
  async.spawn(function()
    while #fresh > 0 do
      if self.service:tell("names", { id = self.id, names = fresh }) then
        fresh = self.names:take_fresh()
      else
        async.sleep(1)
      end
    end
    self.telling = false
  end)
end

--- Saves what policies remember, soon.
function Guest:save_states()
  if not self.chain.dirty or self.saving then
    return
  end
  self.saving = true
  async.after(SAVE_AFTER, function()
    self.saving = false
    self.chain.dirty = false
    local states = {}
    for name, value in pairs(self.chain:states()) do
      local ok, text = pcall(cjson.encode, value)
      states[name] = ok and text or nil
    end
    async.spawn(function()
      if not self.service:tell("state", { id = self.id, states = states }) then
        self.chain.dirty = true
      end
    end)
  end)
end

--- The descriptors, for a server that must hold them too, and which they are.
function Guest:descriptors()
  local list, which = {}, {}
  for _, name in ipairs(guest.HANDLES) do
    if self.handles[name] then
      which[#which + 1] = name
      list[#list + 1] = assert(core.fd.duplicate(self.handles[name]))
    end
  end
  return list, which
end

guest.HANDLES = { "tcp4", "tcp6", "udp4", "udp6", "map", "link" }

return guest

--- Connections to the outside: resolved, checked, connected, and their TLS verified.
--
-- A name is resolved here, when a connection to it was allowed, and never before. An answer that leads
-- into a private network is refused, however often it changes, unless a policy named it.
local uv = require("luv")
local async = require("tidepool.async")
local proxy = require("tidepool.proxy")

local upstream = {}

local CONNECT_TIMEOUT = 10 -- seconds, one address
local TLS_TIMEOUT = 10 -- seconds
local MOST_ADDRESSES = 6
local TTL_LEAST, TTL_MOST = 1, 60 -- seconds that an answer is kept
local CACHED = 4096
local MOST_TRUSTS = 64 -- sets of authorities kept, half a megabyte each

-- What a policy says yes to with `private`. The rest needs the address itself, by `to`.
local PRIVATE = { private = true, loopback = true, ["link-local"] = true }
local PUBLIC = { public = true, documentation = true }

local Upstream = {}
Upstream.__index = Upstream

--- options: loop, of flow.open; resolver, of proxy.resolver.new; roots, PEM, and trust, of it; own, a set of this
-- host's addresses.
function upstream.new(options)
  local self = setmetatable({
    loop = options.loop,
    own = options.own or {},
    waiting = {},
    cache = {},
    cached = 0,
  }, Upstream)
  self:set_trust(options.roots, options.trust)
  self:set_resolver(options.resolver)
  return self
end

-- Resolving ------------------------------------------------------------------------------------------

local function run_resolver(self)
  for _, done in ipairs(self.resolver:run()) do
    local wake = self.waiting[done[1]]
    self.waiting[done[1]] = nil
    if wake then
      wake(done[2], done[3], done[4])
    end
  end
  if self.due then
    self.due()
    self.due = nil
  end
  local timeout = self.resolver:timeout()
  if timeout then
    self.due = async.after(timeout, function()
      self.due = nil
      run_resolver(self)
    end)
  end
end

--- Asks other name servers from now on.
function Upstream:set_resolver(resolver)
  if self.resolving then
    self.resolving:close()
  end
  local waiting = self.waiting
  self.resolver, self.cache, self.cached, self.waiting = resolver, {}, 0, {}
  self.resolving = assert(async.watch(resolver:number(), "r", function()
    run_resolver(self)
  end))
  self.resolving:start()
  for _, wake in pairs(waiting) do -- last: who is told may ask again at once
    wake(nil, "the name servers have changed, try again", "ECANCELED")
  end
end

local function now()
  return uv.hrtime() / 1e9
end

-- Addresses of a host | nil, message, code.
local function resolve(self, host)
  local kept = self.cache[host]
  if kept and kept.until_ > now() then
    return kept.addresses
  end
  local addresses, ttl, code = async.wait(function(wake)
    local id, message, why = self.resolver:query(host)
    if not id then
      return wake(nil, message, why)
    end
    self.waiting[id] = wake
    run_resolver(self)
  end)
  if not addresses then
    return nil, ("%s can't be resolved: %s"):format(host, tostring(ttl)), code or "ENOENT"
  end
  if self.cached >= CACHED then
    self.cache, self.cached = {}, 0
  end
  if not self.cache[host] then
    self.cached = self.cached + 1
  end
  self.cache[host] = { addresses = addresses, until_ = now() + math.max(TTL_LEAST, math.min(ttl or TTL_LEAST, TTL_MOST)) }
  return addresses
end

local function may_reach(self, address, private)
  local kind = proxy.resolver.classify(address)
  if PUBLIC[kind] and self.own[address:match("^::ffff:(%d+%.%d+%.%d+%.%d+)$") or address] then
    kind = "private"
  end
  return PUBLIC[kind] or (private and PRIVATE[kind]), kind
end

-- The addresses to try | nil, message, "EACCES" when they are all refused.
local function candidates(self, target)
  if target.to then
    return { target.to_address }
  end
  local found, message, code = { target.address }, nil, nil
  if not target.address then
    found, message, code = resolve(self, target.host)
    if not found then
      return nil, message, code
    end
  end
  local allowed, refused = {}, nil
  for _, address in ipairs(found) do
    local may, kind = may_reach(self, address, target.private)
    if may and #allowed < MOST_ADDRESSES then
      allowed[#allowed + 1] = address
    elseif not may then
      refused = ("%s leads to %s, which is %s"):format(target.host or "the connection", address, kind)
    end
  end
  if #allowed == 0 then
    return nil, refused or (target.host .. " has no address"), refused and "EACCES" or "ENOENT"
  end
  return allowed
end

-- Connecting -----------------------------------------------------------------------------------------

--- Believes in these authorities from now on.
function Upstream:set_trust(roots, trust)
  self.roots, self.trust, self.trusts, self.trust_count = roots, trust, {}, 0
end

-- The host's authorities and those that a policy adds.
local function trust_of(self, pem)
  if not pem then
    return self.trust
  end
  local key = proxy.digest.sha256(pem)
  if not self.trusts[key] then
    local trust, message = proxy.tls.trust(self.roots .. "\n" .. pem)
    if not trust then
      return nil, "the policy's ca: " .. tostring(message), "EINVAL"
    end
    if self.trust_count >= MOST_TRUSTS then
      self.trusts, self.trust_count = {}, 0
    end
    self.trusts[key], self.trust_count = trust, self.trust_count + 1
  end
  return self.trusts[key]
end

local function split(to)
  local host, port = to:match("^%[([%x:.]+)%]:(%d+)$")
  if not host then
    host, port = to:match("^([^:]+):(%d+)$")
  end
  return host, tonumber(port)
end

--- Whether a text is an "address:port" that one can be sent to.
function upstream.is_address(to)
  local host, port = split(to)
  return host ~= nil and port >= 1 and port <= 65535 and proxy.resolver.classify(host) ~= nil
end

--- Where a verdict sends a connection: { host, address, port, tls, to, private, ca }, named_port (the port before
-- `to` gave another), and its `key`, equal for connections that may be used for each other. `changes` are the verdict's.
function upstream.target(host, address, port, tls, changes)
  local target = { host = host, address = address, port = port, named_port = port, tls = tls }
  if changes.to then
    target.to = changes.to
    target.to_address, target.port = split(changes.to)
  end
  target.private, target.ca = changes.private or false, changes.ca
  target.key = table.concat({
    host or "", address or "", target.port, tostring(tls), target.to or "", tostring(target.private), target.ca or "",
  }, "\0")
  return target
end

--- Connects. Returns a conn | nil, reason, code: "EACCES" when we refuse, else what went wrong outside.
function Upstream:open(target)
  local addresses, message, code = candidates(self, target)
  if not addresses then
    return nil, message, code
  end
  local conn
  for _, address in ipairs(addresses) do
    conn, message, code = self.loop:connect(address, target.port, CONNECT_TIMEOUT)
    if conn then
      break
    end
    message = ("connect to %s port %d: %s"):format(target.host or address, target.port, tostring(message))
  end
  if not conn or not target.tls then
    return conn, message, code
  end
  local trust
  trust, message, code = trust_of(self, target.ca)
  if not trust then
    conn:reset()
    return nil, message, code
  end
  local secured
  secured, message, code = conn:connect_tls(trust, target.host or target.address, TLS_TIMEOUT)
  if not secured then
    conn:reset()
    return nil, ("TLS with %s: %s"):format(target.host or target.address, tostring(message)), code
  end
  return conn
end

return upstream

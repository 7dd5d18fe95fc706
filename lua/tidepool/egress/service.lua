--- What the server asks of an egress process, and what it is told.
--
-- The server's word is the only one that counts here: it comes over the channel that we were started with,
-- or over the socket on which a later server finds us.
local async = require("tidepool.async")
local core = require("tidepool.core")
local proxy = require("tidepool.proxy")
local rpc = require("tidepool.rpc")
local audit = require("tidepool.egress.audit")
local flow = require("tidepool.egress.flow")
local guests = require("tidepool.egress.guest")
local policy = require("tidepool.egress.policy")
local secrets = require("tidepool.egress.secrets")
local upstream = require("tidepool.egress.upstream")

local service = {}

local Service = {}
Service.__index = Service

local handlers = {}

local ALONE = 30 -- seconds without a server after which one that serves nobody ends
local ANSWER = 10 -- seconds that the server may take for an answer

local function resolver_of(params)
  return proxy.resolver.new({ servers = params.nameservers or {}, hosts = params.hosts or {} })
end

local function set_of(list)
  local set = {}
  for _, value in ipairs(list or {}) do
    set[value] = true
  end
  return set
end

--- Roots, name servers, the host's addresses and limits. The first call gives every power up that is not needed
-- any more.
function handlers.configure(self, params)
  local resolver, message, code = resolver_of(params)
  if not resolver then
    return nil, message, code
  end
  local trust
  trust, message, code = proxy.tls.trust(params.roots)
  if not trust then
    return nil, "the host's certificate authorities: " .. tostring(message), code
  end
  self.limits = params.limits
  if self.upstream then
    self.upstream:set_trust(params.roots, trust)
    self.upstream.own = set_of(params.addresses)
    self.upstream:set_resolver(resolver)
    return true
  end
  local confined
  confined, message, code = proxy.confine.enter({ uid = params.uid, gid = params.gid, memory = params.limits.memory })
  if not confined then
    return nil, "can't give up its powers: " .. tostring(message), code
  end
  self.upstream = upstream.new({
    loop = self.loop, resolver = resolver, roots = params.roots, trust = trust, own = set_of(params.addresses),
  })
  return true
end

function handlers.make_ca(_, params)
  local cert, key, code = proxy.ca.generate(params.name)
  if not cert then
    return nil, key, code
  end
  return { cert = cert, key = key }
end

--- Whether policies can be loaded and their options are right.
function handlers.check(_, params)
  local members, message = guests.members(params.policies, {})
  if not members then
    return nil, message, "EINVAL"
  end
  local ok, why = pcall(policy.chain, members, { id = 0, name = "check", labels = {} }, {})
  if not ok then
    return nil, tostring(why), "EINVAL"
  end
  return true
end

function handlers.attach(self, params, fds)
  local handles = {}
  for i, name in ipairs(params.handles or guests.HANDLES) do -- without IPv6 or without bpf there are less
    handles[name] = fds[i] and assert(core.fd.duplicate(fds[i]))
  end
  if not handles.tcp4 or not handles.udp4 then
    return nil, "attach needs the listeners", "EINVAL"
  end
  for _, secret in ipairs(params.secrets or {}) do
    self.secrets:set(secret)
  end
  if self.guests[params.id] then
    self.guests[params.id]:stop()
  end
  local guest = guests.new(self, params, handles)
  self.guests[params.id] = guest
  guest:start()
  return true
end

function handlers.detach(self, params)
  local guest = self.guests[params.id]
  if guest then
    self.guests[params.id] = nil
    guest:stop()
  end
  return true
end

function handlers.policies(self, params)
  local guest = self.guests[params.id]
  if not guest then
    return nil, "no such sandbox here", "ENOSANDBOX"
  end
  return guest:set_policies(params.policies, params.revision)
end

function handlers.secret(self, params)
  self.secrets:set(params)
  return true
end

function handlers.secret_remove(self, params)
  self.secrets:remove(params.name)
  return true
end

--- All secrets, for a server that was started after us: the one before may have ended between a change and
--- telling us. `names` are all that there are, those too that the server can't read any more.
function handlers.secrets(self, params)
  for _, secret in ipairs(params.secrets) do
    self.secrets:set(secret)
  end
  self.secrets:keep(params.names)
  return true
end

--- Which sandboxes are here, for a server that was started after us.
function handlers.inventory(self)
  local list = {}
  for id, guest in pairs(self.guests) do
    list[#list + 1] = { id = id, revision = guest.revision, connections = guest.connections }
  end
  return list
end

--- A sandbox's descriptors, and their names, as attach takes them.
function handlers.handles(self, params)
  local guest = self.guests[params.id]
  if not guest then
    return nil, "no such sandbox here", "ENOSANDBOX"
  end
  local list, names = guest:descriptors()
  return names, nil, nil, list
end

-- Takes a connection to a server; an earlier one is over.
local function serve(self, channel)
  if self.server then
    self.server:close("another server has come")
  end
  local connection
  connection = rpc.connection(channel, {
    on_request = function(_, method, params, fds)
      local handler = handlers[method]
      if not handler then
        return nil, "no such call: " .. method, "ENOSYS"
      end
      return handler(self, params or {}, fds or {})
    end,
    on_close = function()
      if self.server == connection then
        self.server = nil
        if not self.upstream then
          os.exit(0) -- never configured: nobody needs us
        end
        async.after(ALONE, function()
          if not self.server and next(self.guests) == nil and #self.audit.queue == 0 then
            os.exit(0)
          end
        end)
      end
    end,
  })
  self.server = connection
end

--- Calls the server: its answer | nil when there is none; it comes back some day.
function Service:tell(method, params)
  local server = self.server
  if not server then
    return nil
  end
  local answer = async.event()
  async.spawn(function()
    answer:set(server:call(method, params))
  end)
  return answer:wait(ANSWER)
end

-- Servers that come later connect here. Only root may.
local function listen(self, listener)
  self.listening = assert(async.watch(listener:number(), "r", function()
    while true do
      local channel, peer = core.channel.accept(listener)
      if not channel then
        return
      elseif peer.uid ~= 0 then
        channel:close()
      else
        serve(self, channel)
      end
    end
  end))
  self.listening:start()
end

--- channel: to the server that started us; listener: where later ones connect.
function service.start(channel, listener)
  local self = setmetatable({ guests = {}, loop = flow.open(), secrets = secrets.new(), listener = listener }, Service)
  self.audit = audit.new(function(entries)
    return self:tell("audit", { entries = entries })
  end, function(text)
    return self.secrets:redact(text)
  end)
  serve(self, channel)
  listen(self, listener)
  return self
end


return service

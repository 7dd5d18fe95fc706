--- What a sandbox may reach in a spec: servers on loopback under names of their own, with certificates of one
-- authority, and a sandbox whose policy allows exactly them.
--
-- Everything ends with the spec file. A name exists in the policy alone.
local certificates = require("spec.support.certificates")
local policy = require("tidepool.client.policy")
local support = require("spec.support")

local outside = {}

local Outside = {}
Outside.__index = Outside

--- A world without servers: { ca, servers, to }.
function outside.new()
  return setmetatable({ ca = certificates.ca(), servers = {}, to = {}, hosts = {} }, Outside)
end

--- Starts a server that is `host` to the sandbox: make(leaf), leaf a certificate for it. The server's port is
-- where it listens; `plain` has the name point to its plain_port. Returns the server.
function Outside:serve(host, make, plain)
  local server = make(not plain and self.ca:leaf({ hosts = { host } }) or nil)
  self.servers[host] = server
  self:point(host, plain and server.plain_port or server.port)
  return server
end

--- Gives a name to a port of loopback.
function Outside:point(host, port)
  self.hosts[#self.hosts + 1] = host
  self.to[host] = "127.0.0.1:" .. port
end

--- The policies that allow all that is served; `more` are options that allow_hosts is given besides.
function Outside:policies(more)
  local allowed = { "allow_hosts", hosts = self.hosts, to = self.to, ca = self.ca.pem }
  for key, value in pairs(more or {}) do
    allowed[key] = value
  end
  return { allowed }
end

--- A sandbox that may reach it all. `policies`: other ones than self:policies().
function Outside:sandbox(policies)
  support.needs_root()
  support.image("debian")
  self.box = support.sandbox({ image = "debian", egress = assert(policy.list(policies or self:policies())) })
  return self.box
end

return outside

-- Reaches the listed hosts. Over TLS and HTTP it is the proxy that speaks to them; `tcp` and
-- `passthrough` relay bytes that it can't read, so with them a host gets whatever the sandbox sends.

-- Whether "host:port" is on the list of opaque services; with no port, whether the host is.
local function is_tcp(list, host, port)
  for _, entry in ipairs(list or {}) do
    local name, number = entry:match("^(.+):(%d+)$")
    if name and match(name, host) and (port == nil or tonumber(number) == port) then
      return true
    end
  end
  return false
end

-- With these a server takes a POST, some take a GET, for a method that was not judged.
local OVERRIDES = { ["x-http-method-override"] = false, ["x-http-method"] = false, ["x-method-override"] = false }

local function decide(event, options)
  local host, port = event.host, event.port
  if not host then
    return deny("the address was given out for no name")
  elseif is_tcp(options.tcp, host, port) then
    return passthrough(upstream(event, { to = options.to, private = options.private }))
  elseif not options.hosts:has(host) then
    return deny("host is not on the list")
  elseif not options.ports:has(port) then
    return deny("port is not on the list")
  elseif options.passthrough and options.passthrough:has(host) then
    return passthrough(upstream(event, { to = options.to, private = options.private }))
  end
  return allow(upstream(event, options, options.methods and OVERRIDES))
end

return policy {
  name = "allow_hosts",
  about = "Reach the listed hosts over HTTP and HTTPS, nothing else.",
  options = {
    hosts = { type = "host_list", default = {}, about = "hosts to reach: exact, *.below or *" },
    ports = { type = "port_list", default = { "443", "80" }, about = "ports to reach them at" },
    methods = { type = "string_list", about = "methods that may be used; else all" },
    tcp = { type = "string_list", about = "\"host:port\" of services that are not HTTP: ssh, postgres" },
    passthrough = { type = "host_list", about = "of the hosts, those whose TLS is not opened" },
    to = { type = "map", about = "host to \"address:port\": where to connect for it" },
    private = { type = "boolean", about = "the hosts may have private addresses" },
    ca = { type = "pem", about = "more roots that the hosts' certificates may have" },
  },

  connect = decide,

  request = function(event, options)
    if not options.methods then
      return decide(event, options)
    end
    for _, method in ipairs(options.methods) do
      if method:upper() == event.method then
        return decide(event, options)
      end
    end
    return deny("method is not on the list", 405)
  end,

  cases = {
    { "a listed host resolves", options = { hosts = "a.example" }, hook = "resolve", event = { host = "a.example" }, expect = "allow" },
    { "another does not", options = { hosts = "a.example" }, hook = "resolve", event = { host = "b.example" }, expect = "deny" },
    { "a glob stands for any depth below", options = { hosts = "*.example" }, hook = "connect", event = { host = "x.y.example" }, expect = "allow" },
    { "but not for the name itself", options = { hosts = "*.b.example" }, hook = "connect", event = { host = "b.example" }, expect = "deny" },
    { "nor for a name that ends alike", options = { hosts = "*.b.example" }, hook = "connect", event = { host = "xb.example" }, expect = "deny" },
    { "an address is no host", options = { hosts = "*" }, hook = "connect", event = { address = "192.0.2.1", port = 443 },
      expect = { action = "deny", reason = "no name" } },
    { "other ports stay shut", options = { hosts = "a.example" }, hook = "connect", event = { host = "a.example", port = 8443 }, expect = "deny" },
    { "unless they are listed", options = { hosts = "a.example", ports = "8443" }, hook = "connect", event = { host = "a.example", port = 8443 },
      expect = "allow" },
    { "and then 443 has to be listed too", options = { hosts = "a.example", ports = "8443" }, hook = "connect",
      event = { host = "a.example", port = 443 }, expect = "deny" },
    { "a service is relayed at its port", options = { tcp = "db.example:5432" }, hook = "connect",
      event = { host = "db.example", port = 5432, protocol = "tcp" }, expect = "passthrough" },
    { "and its name resolves", options = { tcp = "db.example:5432" }, hook = "resolve", event = { host = "db.example" }, expect = "allow" },
    { "not at another port", options = { tcp = "db.example:5432" }, hook = "connect",
      event = { host = "db.example", port = 22, protocol = "tcp" }, expect = "deny" },
    { "what is not HTTP has to be listed as such", options = { hosts = "a.example", ports = "22" }, hook = "connect",
      event = { host = "a.example", port = 22, protocol = "tcp" }, expect = { action = "deny", reason = "not HTTP" } },
    { "TLS stays shut where asked", options = { hosts = "*.example", passthrough = "pinned.example" }, hook = "connect",
      event = { host = "pinned.example" }, expect = "passthrough" },
    { "connects where it is told", options = { hosts = "a.example", to = "a.example:127.0.0.1:8443" }, hook = "connect",
      event = { host = "a.example" }, expect = { action = "allow", to = "127.0.0.1:8443" } },
    { "only listed methods", options = { hosts = "a.example", methods = "get,head" }, event = { host = "a.example", method = "POST" },
      expect = { action = "deny", status = 405 } },
    { "which may be written small", options = { hosts = "a.example", methods = "get,head" }, event = { host = "a.example" }, expect = "allow" },
    { "and none is hidden behind another", options = { hosts = "a.example", methods = "post" }, event = { host = "a.example", method = "POST" },
      expect = { action = "allow", headers = { ["x-http-method-override"] = false } } },
    { "a Host header that disagrees is refused", options = { hosts = "a.example" }, event = { host = "a.example", mismatch = "SNI is b.example" },
      expect = { action = "deny", reason = "SNI is b" } },
    { "an entry that is no host is refused", options = { hosts = "api*.example" }, expect = { refused = "hosts" } },
  },
}

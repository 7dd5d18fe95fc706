-- A user and a password for hosts that want them, which the sandbox never holds. Whatever Authorization
-- the sandbox sends is replaced.

-- With these a server takes a POST, some take a GET, for a method that was not judged.
local OVERRIDES = { ["x-http-method-override"] = false, ["x-http-method"] = false, ["x-method-override"] = false }

return policy {
  name = "http_basic",
  about = "Reach the listed hosts with HTTP Basic authentication.",
  options = {
    hosts = { type = "host_list", required = true, least = 1, about = "hosts that get the password" },
    user = { type = "string", required = true, about = "the user's name" },
    secret = { type = "secret", required = true, about = "the secret that holds the password" },
    methods = { type = "string_list", about = "methods that may be used; else all" },
    ports = { type = "port_list", default = { "443" }, about = "ports to reach them at" },
    plain = { type = "boolean", default = false, about = "send the password over HTTP without TLS too" },
    to = { type = "map", about = "host to \"address:port\": where to connect for it" },
    private = { type = "boolean", about = "the hosts may have private addresses" },
    ca = { type = "pem", about = "more roots that the hosts' certificates may have" },
  },

  connect = function(event, options)
    if not options.hosts:has(event.host) then
      return nil
    elseif not options.ports:has(event.port) then
      return deny("port is not on the list")
    end
    return allow(upstream(event, options))
  end,

  request = function(event, options)
    if not options.hosts:has(event.host) then
      return nil
    elseif not event.tls and not options.plain then
      return deny("the password would be sent in the clear: plain=true allows that")
    elseif options.user:find(":", 1, true) then
      return deny("a user's name can't hold a colon")
    end
    local may = options.methods == nil
    for _, method in ipairs(options.methods or {}) do
      may = may or method:upper() == event.method
    end
    if not may then
      return deny("method is not on the list", 405)
    end
    local headers = { authorization = "Basic " .. base64(options.user .. ":" .. secret(options.secret)) }
    for name, value in pairs(options.methods and OVERRIDES or {}) do
      headers[name] = value
    end
    return allow(upstream(event, options, headers))
  end,

  cases = (function()
    local OPTIONS = { hosts = "a.example", user = "me", secret = "pw" }
    local SECRETS = { pw = "open sesame" }
    return {
      { "sends the password", options = OPTIONS, secrets = SECRETS, event = { host = "a.example" },
        expect = { action = "allow", headers = { authorization = "Basic bWU6b3BlbiBzZXNhbWU=" } } },
      { "instead of what the sandbox sent", options = OPTIONS, secrets = SECRETS,
        event = { host = "a.example", headers = { authorization = "Basic eDp5" } },
        expect = { action = "allow", headers = { authorization = "Basic bWU6b3BlbiBzZXNhbWU=" } } },
      { "to no other host", options = OPTIONS, secrets = SECRETS, event = { host = "b.example" }, expect = "deny" },
      { "not in the clear", options = OPTIONS, secrets = SECRETS, event = { host = "a.example", protocol = "http" },
        expect = { action = "deny", reason = "plain=true" } },
      { "unless asked to", options = { hosts = "a.example", user = "me", secret = "pw", plain = true }, secrets = SECRETS,
        event = { host = "a.example", protocol = "http" }, expect = "allow" },
      { "with the methods that are listed", options = { hosts = "a.example", user = "me", secret = "pw", methods = "get" }, secrets = SECRETS,
        event = { host = "a.example", method = "PUT" }, expect = { action = "deny", status = 405 } },
      { "none of which hides another", options = { hosts = "a.example", user = "me", secret = "pw", methods = "post" }, secrets = SECRETS,
        event = { host = "a.example", method = "POST" }, expect = { action = "allow", headers = { ["x-http-method-override"] = false } } },
      { "the host resolves", options = OPTIONS, hook = "resolve", event = { host = "a.example" }, expect = "allow" },
      { "at its port", options = OPTIONS, hook = "connect", event = { host = "a.example", port = 8443 }, expect = "deny" },
      { "a colon in the user is refused", options = { hosts = "a.example", user = "m:e", secret = "pw" }, secrets = SECRETS,
        event = { host = "a.example" }, expect = { action = "deny", reason = "colon" } },
      { "a password that is missing is a deny", options = OPTIONS, event = { host = "a.example" }, expect = { action = "deny", reason = "pw" } },
      { "the user is required", options = { hosts = "a.example", secret = "pw" }, expect = { refused = "option user is required" } },
    }
  end)(),
}

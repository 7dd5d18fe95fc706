-- Package registries, to download from: npm, PyPI, apt, cargo, Go modules and their like. Which hosts
-- those are comes from the options; `npm config get registry`, `pip config list`, apt's sources tell.
-- Nothing is published: only GET and HEAD pass, and npm's look-up of advisories where asked for.

local READS = { GET = true, HEAD = true }
local ADVISORIES = "/-/npm/v1/security/"

-- The registry's own credentials, if it has some; what the sandbox sends is removed either way.
local function authorization(event, options)
  local bearer = options.tokens and options.tokens[event.host]
  local basic = options.passwords and options.passwords[event.host]
  if not bearer and not basic then
    return false
  elseif not event.tls then
    return nil, "the token would be sent in the clear"
  end
  return bearer and "Bearer " .. secret(bearer) or "Basic " .. base64(secret(basic))
end

local function is_advisory(event, options)
  return options.advisories and event.method == "POST" and event.path:sub(1, #ADVISORIES) == ADVISORIES
    and not event.path:find("..", 1, true) and not event.path:find("%", 1, true)
end

return policy {
  name = "package_registries",
  about = "Download packages from the listed registries; publish nothing.",
  options = {
    hosts = { type = "host_list", required = true, least = 1, about = "the registries' hosts, also those that downloads come from" },
    ports = { type = "port_list", default = { "443", "80" }, about = "ports to reach them at" },
    mirrors = { type = "map", about = "host to the mirror (\"host\" or \"host:port\") that is asked instead" },
    tokens = { type = "map", about = "host to the secret with its bearer token" },
    passwords = { type = "map", about = "host to the secret with its \"user:password\"" },
    advisories = { type = "boolean", default = false, about = "npm may send the names of installed packages to learn of advisories" },
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
    elseif not READS[event.method] and not is_advisory(event, options) then
      return deny("a registry is read: " .. event.method .. " is not allowed", 405)
    end
    local value, why = authorization(event, options)
    if value == nil then
      return deny(why)
    end
    local made = upstream(event, options, {
      authorization = value, cookie = false, ["npm-otp"] = false,
      ["x-http-method-override"] = false, ["x-http-method"] = false, ["x-method-override"] = false, -- which would publish
    })
    local mirror = options.mirrors and options.mirrors[event.host]
    return mirror and redirect(mirror, made) or allow(made)
  end,

  cases = (function()
    local OPTIONS = {
      hosts = "r.example,*.files.example", tokens = "r.example:npm", passwords = "x.files.example:pip",
    }
    local SECRETS = { npm = "npm_token_1", pip = "me:pw" }
    return {
      { "reads a registry with its token", options = OPTIONS, secrets = SECRETS, event = { host = "r.example", path = "/left-pad" },
        expect = { action = "allow", headers = { authorization = "Bearer npm_token_1", cookie = false, ["x-http-method-override"] = false } } },
      { "with its password", options = OPTIONS, secrets = SECRETS, event = { host = "x.files.example" },
        expect = { action = "allow", headers = { authorization = "Basic bWU6cHc=" } } },
      { "with none where there is none", options = OPTIONS, secrets = SECRETS,
        event = { host = "y.files.example", headers = { authorization = "Bearer mine" } },
        expect = { action = "allow", headers = { authorization = false } } },
      { "publishes nothing", options = OPTIONS, secrets = SECRETS, event = { host = "r.example", method = "PUT", path = "/left-pad" },
        expect = { action = "deny", status = 405, reason = "PUT" } },
      { "asks for no advisories", options = OPTIONS, secrets = SECRETS,
        event = { host = "r.example", method = "POST", path = "/-/npm/v1/security/advisories/bulk" }, expect = "deny" },
      { "unless it may", options = { hosts = "r.example", advisories = "yes" },
        event = { host = "r.example", method = "POST", path = "/-/npm/v1/security/advisories/bulk" }, expect = "allow" },
      { "and nothing beside them", options = { hosts = "r.example", advisories = "yes" },
        event = { host = "r.example", method = "POST", path = "/-/npm/v1/security/../../../left-pad" }, expect = "deny" },
      { "reads apt over HTTP", options = { hosts = "deb.example" }, event = { host = "deb.example", protocol = "http", path = "/dists/x/InRelease" },
        expect = "allow" },
      { "sends no token in the clear", options = OPTIONS, secrets = SECRETS, event = { host = "r.example", protocol = "http" },
        expect = { action = "deny", reason = "in the clear" } },
      { "asks a mirror", options = { hosts = "r.example", mirrors = "r.example:m.example:8443" }, event = { host = "r.example" },
        expect = { action = "redirect", host = "m.example:8443" } },
      { "other hosts are someone else's", options = OPTIONS, event = { host = "s.example" }, expect = "deny" },
      { "its hosts resolve", options = OPTIONS, hook = "resolve", event = { host = "r.example" }, expect = "allow" },
      { "not at other ports", options = OPTIONS, hook = "connect", event = { host = "r.example", port = 22, protocol = "tcp" }, expect = "deny" },
      { "a port may be added", options = { hosts = "r.example", ports = "4873" }, hook = "connect",
        event = { host = "r.example", port = 4873, protocol = "http" }, expect = "allow" },
    }
  end)(),
}

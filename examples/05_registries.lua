-- Registries: npm, pip and apt work inside, and reach the registries alone, to read.
--
--   sudo ./sandbox.lua run examples/05_registries.lua
--
-- Which registries those are is the host's own configuration's business: what npm, pip and apt use
-- here is what the policy `package_registries` permits inside. What this host doesn't have or can't
-- reach is left out, and the example says so.
local uv = require "luv"
local sandbox = require "sandbox"
local sources = require "tidepool.image.sources"
local classify = require("tidepool.proxy").resolver.classify

local function say(...)
  print(("\n==> " .. string.format(...)))
end

local function output_of(command)
  local pipe = io.popen(command .. " 2>/dev/null")
  local text = pipe:read("*a"):gsub("%s+$", "")
  pipe:close()
  return text
end

local function host_of(url)
  return url:match("^https?://([^/:]+)")
end

-- A client's registry, as the host's own client tells it: { url, hosts }, or nil and why not.
local configured = {}

function configured.npm()
  local url = output_of("npm config get registry")
  if not host_of(url) then
    return nil, "npm isn't installed here"
  end
  return { url = url, hosts = { host_of(url) } }
end

-- pip says its configured index only when there is one; its default is in its own code, as is the
-- host that the index points to for files.
local DEFAULTS = [[from pip._internal.models.index import PyPI; print(PyPI.simple_url, PyPI.file_storage_domain)]]

function configured.pip()
  local url = os.getenv("PIP_INDEX_URL") or output_of("pip3 config get global.index-url")
  if host_of(url) then
    return { url = url, hosts = { host_of(url) } }
  end
  local files
  url, files = output_of("python3 -c '" .. DEFAULTS .. "'"):match("^(%S+) (%S+)$")
  if not url then
    return nil, "pip isn't installed here"
  end
  return { url = url, hosts = { host_of(url), files } }
end

function configured.apt()
  local found, message = sandbox.run(sources.host, function() end)
  local hosts, first, seen = {}, nil, {}
  for _, line in ipairs(found and found.lines or {}) do
    local url = line:match("https?://%S+")
    local host = url and host_of(url)
    if host and not seen[host] then
      hosts[#hosts + 1], seen[host] = host, true
      first = first or url
    end
  end
  if not first then
    return nil, message or "apt's mirrors here are no web servers"
  end
  return { url = first, hosts = hosts }
end

-- What each does inside: a real install or download. apt wants to be root, as everywhere.
local users = { apt = "root" }
local work = {
  npm = [[mkdir -p app && cd app && npm install --no-audit --no-fund --registry "$URL" is-odd &&
    node -e 'console.log("3 is odd: " + require("is-odd")(3))']],
  pip = [[python3 -m venv venv && venv/bin/pip --no-input --disable-pip-version-check download -q --no-deps \
    --index-url "$URL" -d wheels six && ls wheels]],
  apt = [[apt-get -q update && apt-get -q download hello && dpkg-deb --info hello_*.deb | grep Package]],
}

local function reachable(url)
  return os.execute(("curl -sS --max-time 20 -o /dev/null '%s' 2>/dev/null"):format(url)) == 0
end

-- A mirror in one's own network has an address that the proxy refuses, whatever resolves to it, unless
-- the policy names it: host to "address:port".
local function addresses(registries)
  local to = {}
  for _, registry in ipairs(registries) do
    for _, host in ipairs(registry.hosts) do
      local found = uv.getaddrinfo(host, nil, { family = "inet", socktype = "stream" })
      local address = found and found[1] and found[1].addr
      if address and classify(address) ~= "public" then
        to[host] = address .. (registry.url:match("^https") and ":443" or ":80")
      end
    end
  end
  return next(to) and to or nil
end

-- The registries of this host: a list of { client, url, hosts }.
local function survey()
  local found = {}
  for _, client in ipairs({ "npm", "pip", "apt" }) do
    local registry, why = configured[client]()
    if registry and not reachable(registry.url) then
      registry, why = nil, "this host can't reach its registry"
    end
    if registry then
      registry.client = client
      found[#found + 1] = registry
    end
    print(("    %s  %s"):format(client, registry and table.concat(registry.hosts, ", ") or "left out: " .. why))
  end
  return found
end

local function install(box, registry)
  say("%s, inside", registry.client)
  local result = assert(box:exec({ "sh", "-c", work[registry.client] }, {
    cwd = "/workspace",
    user = users[registry.client],
    env = { URL = registry.url },
    timeout = 300,
    on_output = function(_, bytes) io.write(bytes) end,
  }))
  return result.exit_code == 0
end

say("The registries that this host's clients use")
local found = survey()
if #found == 0 then
  print("registries: this host has none that it can reach, so there is nothing to show")
  os.exit(0)
end

local hosts = {}
for _, registry in ipairs(found) do
  for _, host in ipairs(registry.hosts) do
    hosts[#hosts + 1] = host
  end
end

say("A sandbox that may read from those, and nothing else")
local box = assert(sandbox.open("registries-tour", {
  image = "debian",
  labels = { example = "05" },
  egress = { { "package_registries", hosts = hosts, to = addresses(found) } },
}))

local worked, failed = {}, {}
for _, registry in ipairs(found) do
  table.insert(install(box, registry) and worked or failed, registry.client)
end

-- Reading is all that it may do there: publishing is refused, wherever a token would come from.
say("Publishing")
local refused = assert(box:exec({ "curl", "-sS", "-X", "PUT", "-d", "{}", found[1].url }, { timeout = 60 }))
print(refused.stdout .. refused.stderr)
for _, entry in ipairs(assert(box:egress_log({ action = "deny", wait = 5 }))) do
  print(("    logged: %s %s %s: %s"):format(entry.action, entry.method or entry.hook, entry.host or "", entry.reason or ""))
end

assert(box:destroy())
print(("registries: %s worked through the proxy%s"):format(table.concat(worked, " and "),
  #failed > 0 and ", FAILED: " .. table.concat(failed, " and ") or ""))
os.exit(#failed == 0 and 0 or 1)

-- What the measurements of the egress process share: one nginx with TLS, and three ways to it.
--
-- "ours": from inside a sandbox's network, through the egress process, TLS on both sides. "direct": the
-- same client on the host, TLS straight to nginx. "mitmproxy": the same client on the host, through
-- Debian's mitmdump as a reverse proxy, TLS on both sides, its own certificate authority. Clients are
-- the host's programs every time, in the sandbox's network namespace when it is ours, so that only the
-- way differs. All on one machine: client, proxy and nginx share its cores, in all three ways alike.
local uv = require("luv")
local async = require("tidepool.async")
local certificates = require("spec.support.certificates")
local daemon = require("spec.support.daemon")
local machine = require("spec.support.machine")
local web = require("spec.support.web")

local scene = {}

local Scene = {}
Scene.__index = Scene

local HOST = "bench.test"
local POLICY = [[
return policy {
  name = "%s",
  about = "One of a hundred that have nothing to say.",
  hosts = { ["%s.example.test"] = { request = function() return deny("not here") end } },
}
]]

-- Private directories must not keep nginx's and mitmproxy's own users out.
local function make_directory(parent)
  local directory = assert(uv.fs_mkdtemp(parent .. "/egress-XXXXXX"))
  assert(uv.fs_mkdir(directory .. "/mitm", 448))
  return directory
end

-- A client finds the host by a hosts file of its own, in a mount namespace of its own.
local function hosts_file(self, name, address)
  return web.write(self.directory .. "/hosts-" .. name, address .. " " .. HOST .. "\n")
end

local function start_mitmproxy(self)
  local port = daemon.free_port()
  self.mitmproxy = daemon.start({
    "unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', self.hosts.direct,
    "mitmdump", "-q", "--mode", ("reverse:https://%s:%d"):format(HOST, self.nginx.port),
    "--listen-host", "127.0.0.1", "--listen-port", tostring(port), "--set", "confdir=" .. self.directory .. "/mitm",
    "--set", "ssl_verify_upstream_trusted_ca=" .. self.ca.cert, "--set", "stream_large_bodies=1m",
    "--set", "keep_host_header=true",
    name = "mitmdump", port = port, directory = self.directory, defer = self.defer, timeout = 30,
  })
  return port
end

-- What a chain of one allow_hosts says about our nginx.
local function allow(self)
  return { "allow_hosts", hosts = { HOST }, to = { [HOST] = "127.0.0.1:" .. self.nginx.port }, ca = self.ca.pem }
end

-- The address that the sandbox's own resolver has for the host.
local function address_inside(box)
  local result = assert(box:exec({ "nslookup", HOST }))
  local address = result.stdout:match("Name:.-Address[^:\n]*: *([%d.]+)")
  return assert(address, "no address inside for " .. HOST .. ": " .. result.stdout .. result.stderr)
end

--- Sets all up. context: as bench gives it.
function scene.new(context)
  local self = setmetatable({ context = context, endings = {}, directory = make_directory(context.directory) }, Scene)
  self.defer = function(fn)
    table.insert(self.endings, 1, fn)
  end
  self.ca = certificates.ca({ directory = self.directory })
  self.nginx = web.nginx({
    leaf = self.ca:leaf({ hosts = { HOST } }), directory = self.directory, defer = self.defer,
    access_log = "access_log off;", workers = 1,
    locations = "    location /held { limit_rate 1k; alias " .. self.directory .. "/held; }\n",
  })
  self.nginx:put("small", ("x"):rep(1000))
  self.nginx:sparse("large", 2 ^ 30)
  self.nginx:sparse("medium", 100 * 2 ^ 20)
  local options = { egress = { allow(self) } }
  for key, value in pairs(context.options) do
    options[key] = value
  end
  self.box = assert(context.sandbox.create("egress", options))
  self.defer(function() self.box:destroy() end)
  self.pid = assert(self.box:info()).pid
  self.egress = assert(self.box:egress_show()).process.pid
  self.hosts = { direct = hosts_file(self, "direct", "127.0.0.1"), ours = hosts_file(self, "ours", address_inside(self.box)) }
  self.hosts.mitmproxy = self.hosts.direct
  self.ports = { direct = self.nginx.port, ours = 443 }
  if context.found.mitmproxy then
    self.ports.mitmproxy = start_mitmproxy(self)
  end
  self:trust()
  return self
end

-- The certificate authorities that each way's client must know.
function Scene:trust()
  local inside = assert(self.box:read("/etc/ssl/certs/ca-certificates.crt"))
  self.roots = {
    direct = self.ca.cert,
    ours = web.write(self.directory .. "/inside.pem", inside),
    mitmproxy = self.directory .. "/mitm/mitmproxy-ca-cert.pem",
  }
end

--- The argv of a host program as a client of that way; `words` see the host by its name.
function Scene:client(way, words)
  local argv = {
    "unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', self.hosts[way],
  }
  if way == "ours" then
    argv[#argv + 1] = "nsenter"
    argv[#argv + 1] = ("--net=/proc/%d/ns/net"):format(self.pid)
  end
  for _, word in ipairs(words) do
    argv[#argv + 1] = word
  end
  return argv
end

function Scene:url(way, path)
  return ("https://%s:%d/%s"):format(HOST, self.ports[way], path)
end

--- Runs a client to its end: its output.
function Scene:run(way, words, limit)
  local _, output = assert(self.context.bench.program(self:client(way, words), { keep = true, limit = limit or 60 }))
  return output
end

local TICKS = 100 -- a second, of /proc/PID/stat, on every Debian

--- CPU seconds that a process has used, or 0 when it isn't there.
function scene.cpu(pid)
  local fields = (machine.read("/proc/" .. pid .. "/stat") or ""):match("%) (.*)") or ""
  local user, system = fields:match("^%S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ (%d+) (%d+)")
  return ((tonumber(user) or 0) + (tonumber(system) or 0)) / TICKS
end

--- Bytes of memory that are a process's own.
function scene.memory(pid)
  local text = assert(machine.read("/proc/" .. pid .. "/smaps_rollup"))
  local kib = 0
  for value in text:gmatch("\nPrivate_%w+: +(%d+) kB") do
    kib = kib + tonumber(value)
  end
  return kib * 1024
end

--- The pid of the proxy of that way; nil for "direct".
function Scene:proxy_pid(way)
  return way == "ours" and self.egress or way == "mitmproxy" and self.mitmproxy.pid or nil
end

--- Opens `count` connections of that way and calls fn while they are open: idle after one request
-- each ("idle"), or each in the middle of an answer ("busy").
function Scene:holding(way, count, state, fn)
  local script = require("tidepool.paths").repo() .. "/spec/bench/egress_hold.py"
  local holder = daemon.start({
    name = "hold", directory = self.directory, ready = "holding (%d+)\n", timeout = 60,
    unpack(self:client(way, { "/usr/bin/python3", "-u", script, self:url(way, state == "busy" and "large" or "small"),
      tostring(count), state, self.roots[way] })),
  })
  assert(tonumber(holder.found) == count, "only " .. holder.found .. " connections")
  async.sleep(0.5)
  local results = { fn() }
  holder:stop()
  return unpack(results)
end

--- Files of a hundred policies that have nothing to say, and the chain with them before ours.
function Scene:hundred()
  local chain = {}
  for i = 1, 100 do
    local name = ("quiet_%03d"):format(i)
    chain[i] = { web.write(("%s/%s.lua"):format(self.directory, name), POLICY:format(name, name)) }
  end
  chain[101] = allow(self)
  return chain
end

function Scene:alone()
  return { allow(self) }
end

function Scene:close()
  for _, fn in ipairs(self.endings) do
    fn()
  end
end

return scene

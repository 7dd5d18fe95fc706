--- Web servers for specs: nginx as one finds it in the wild, and small ones that answer in every odd
-- way. All on loopback, with the caller's certificates, ended with the spec file.
local uv = require("luv")
local daemon = require("spec.support.daemon")
local read = require("spec.support.machine").read

local web = {}

local CONFIG = [[
user root;
daemon off;
worker_processes %d;
pid %s/nginx.pid;
error_log %s/error.log info;
events { worker_connections 4096; }
http {
  access_log %s/access.log;
  %s
  types { text/html html; text/plain txt; application/json json; application/octet-stream bin; }
  default_type application/octet-stream;
  sendfile on;
  tcp_nodelay on;
  keepalive_requests 10000000;
  keepalive_timeout 300s;
  client_max_body_size 0;
  gzip on;
  gzip_min_length 100;
  gzip_types text/plain application/json;
  server {
    %s
    root %s/root;
%s
  }
}
]]

local TEMPORARY = { "client_body", "proxy", "fastcgi", "uwsgi", "scgi" }

local function temporary_paths(directory)
  local lines = {}
  for i, name in ipairs(TEMPORARY) do
    lines[i] = ("%s_temp_path %s/%s;"):format(name, directory, name)
  end
  return table.concat(lines, "\n  ")
end

local function write(path, bytes)
  local file = assert(io.open(path, "wb"))
  assert(file:write(bytes))
  assert(file:close())
  return path
end
web.write = write

local Nginx = {}
Nginx.__index = Nginx

--- Puts a file below the root that nginx serves.
function Nginx:put(name, bytes)
  return write(self.root .. "/" .. name, bytes)
end

--- A file of `size` zero bytes that takes no space.
function Nginx:sparse(name, size)
  local fd = assert(uv.fs_open(self.root .. "/" .. name, "w", 420))
  assert(uv.fs_ftruncate(fd, size))
  uv.fs_close(fd)
end

--- The lines of its access log so far.
function Nginx:requests()
  local lines = {}
  for line in (read(self.directory .. "/access.log") or ""):gmatch("[^\n]+") do
    lines[#lines + 1] = line
  end
  return lines
end

function Nginx:log()
  return (read(self.directory .. "/error.log") or "") .. self.process:log()
end

function Nginx:stop()
  self.process:stop()
end

local function listeners(options, ports)
  local lines = { ("listen 127.0.0.1:%d backlog=4096;"):format(ports.plain) }
  if options.leaf then
    lines[#lines + 1] = ("listen 127.0.0.1:%d ssl backlog=4096;"):format(ports.tls)
    lines[#lines + 1] = ("ssl_certificate %s; ssl_certificate_key %s;"):format(options.leaf.cert, options.leaf.key)
    lines[#lines + 1] = ("ssl_protocols %s;"):format(options.protocols or "TLSv1.2 TLSv1.3")
  end
  return table.concat(lines, "\n    ")
end

--- nginx on two ports of its own: `port` (TLS) and `plain_port`. options: leaf (of certificates),
-- locations (nginx's configuration of the server), http (of the level above), protocols, workers,
-- access_log (a line of configuration instead of the usual log), directory, defer.
-- Returns { port, plain_port, pid, root, put, sparse, requests, log, stop }.
function web.nginx(options)
  options = options or {}
  local place, defer = daemon.place(options)
  local directory = assert(uv.fs_mkdtemp(place .. "/nginx-XXXXXX"))
  assert(uv.fs_mkdir(directory .. "/root", 493))
  local ports = { plain = daemon.free_port(), tls = daemon.free_port() }
  local text = CONFIG:format(options.workers or 1, directory, directory, directory,
    temporary_paths(directory) .. "\n  " .. (options.http or ""), listeners(options, ports), directory,
    options.locations or "")
  if options.access_log then
    text = text:gsub("access_log [^;]*;", options.access_log, 1)
  end
  local self = setmetatable({
    directory = directory, root = directory .. "/root", plain_port = ports.plain, port = ports.tls,
  }, Nginx)
  self:put("index.html", "hello from nginx\n")
  self:put("page.txt", ("a line of text, to be compressed\n"):rep(100))
  self.process = daemon.start({
    "nginx", "-p", directory, "-e", directory .. "/error.log", "-c", write(directory .. "/nginx.conf", text),
    port = ports.plain, directory = directory, defer = defer,
  })
  self.pid = self.process.pid
  return self
end

-- For what both a Python server of ours and openssl's need to know of a certificate.
local function with_leaf(options, config)
  if options.leaf then
    config.cert, config.key = options.leaf.cert, options.leaf.key
  end
  config.tls, config.alpn, config.host = options.tls, options.alpn, options.host
  config.ciphers = options.ciphers
  return config
end

--- The HTTP server of spec/support/servers/http_echo.py; its file tells what each path answers.
-- options: leaf, tls ("1.2", "1.3": that alone), alpn, host ("127.0.0.1"). Returns { port, requests,
-- log, stop }.
function web.echo(options)
  options = options or {}
  local place, defer = daemon.place(options)
  local log = ("%s/requests-%x.json"):format(place, uv.hrtime() % 2 ^ 40)
  local self = daemon.python("http_echo", with_leaf(options, { log = log }), { directory = place, defer = defer })
  --- Each request that it has read: { head, method, target, headers, connection, request }.
  function self.requests()
    local list = {}
    for line in (read(log) or ""):gmatch("[^\n]+") do
      list[#list + 1] = require("cjson").decode(line)
    end
    return list
  end
  return self
end

--- A WebSocket server that gives every message back. options as of web.echo.
function web.websocket(options)
  options = options or {}
  return daemon.python("websocket", with_leaf(options, {}), options)
end

--- A plain TCP server: kind "echo", "lines", "silent" or "count".
function web.tcp(kind, options)
  options = options or {}
  return daemon.python("tcp", with_leaf(options, { kind = kind }), options)
end

--- openssl s_server with a certificate; it answers GET with a page of its own. options: leaf, flags
-- (more of its words, for instance "-tls1_3"). Returns { port, log, stop }.
function web.openssl(options)
  local place, defer = daemon.place(options)
  local leaf = options.leaf
  local argv = {
    "openssl", "s_server", "-accept", "127.0.0.1:0", "-www", "-key", leaf.key, "-cert", leaf.alone or leaf.cert,
    "-cipher", "DEFAULT:@SECLEVEL=0", -- it has to serve the weak forms too
    name = "s_server", ready = "ACCEPT [%d.]*:(%d+)", directory = place, defer = defer,
  }
  if leaf.chain_file then
    argv[#argv + 1], argv[#argv + 2] = "-cert_chain", leaf.chain_file
  end
  for _, word in ipairs(options.flags or {}) do
    argv[#argv + 1] = word
  end
  local self = daemon.start(argv)
  self.port = tonumber(self.found)
  return self
end

--- A DNS server on UDP and TCP. `zone` as in spec/support/servers/dns.py. Returns { port, set(zone),
-- queries(), stop }.
function web.dns(zone, options)
  local place, defer = daemon.place(options)
  local base = ("%s/dns-%x"):format(place, uv.hrtime() % 2 ^ 40)
  local cjson = require("cjson")
  write(base .. ".zone", cjson.encode(zone))
  local self = daemon.python("dns", { zone = base .. ".zone", log = base .. ".log", port = daemon.free_port() },
    { directory = place, defer = defer })
  --- Replaces the zone.
  function self.set(new)
    write(base .. ".new", cjson.encode(new))
    assert(os.rename(base .. ".new", base .. ".zone"))
  end
  --- Every query so far: { name, type, over }.
  function self.queries()
    local list = {}
    for line in (read(base .. ".log") or ""):gmatch("[^\n]+") do
      list[#list + 1] = cjson.decode(line)
    end
    return list
  end
  return self
end

return web

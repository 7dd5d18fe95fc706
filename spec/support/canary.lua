--- Canaries: places that nothing from inside a sandbox may reach, and that write down what does.
--
-- One on this host's loopback, and one behind a link of its own, in a network namespace that is made here
-- and goes with the spec file. Both on addresses that no policy refuses by their range alone.
local uv = require("luv")
local cjson = require("cjson")
local daemon = require("spec.support.daemon")
local machine = require("spec.support.machine")
local support = require("spec.support")
local paths = require("tidepool.paths")

local canary = {}

local Canary = {}
Canary.__index = Canary

--- What it has seen since the start, or since `forget`: a list of { how, what }.
function Canary:seen()
  local list = {}
  for line in (machine.read(self.log) or ""):sub(self.from + 1):gmatch("[^\n]+") do
    list[#list + 1] = cjson.decode(line)
  end
  return list
end

--- Starts counting anew.
function Canary:forget()
  self.from = #(machine.read(self.log) or "")
end

local function start(config, prefix)
  local directory = support.scratch()
  config.log = directory .. "/canary.log"
  local argv = { unpack(prefix) }
  for _, word in ipairs({ "/usr/bin/python3", "-uB", paths.repo() .. "/spec/support/servers/canary.py", cjson.encode(config) }) do
    argv[#argv + 1] = word
  end
  argv.name, argv.ready, argv.directory, argv.defer = "canary", "listening (%d+)\n", directory, support.defer
  local process = daemon.start(argv)
  return setmetatable({ log = config.log, from = 0, port = tonumber(process.found) }, Canary)
end

--- On 127.0.0.1, ::1 and all other addresses of this host, and on an abstract unix socket; on a port, if it
-- matters which. Fields: port, abstract.
function canary.host(port)
  local abstract = "tidepool-canary-" .. support.unique()
  local self = start({ hosts = { "0.0.0.0", "::" }, port = port, abstract = abstract }, {})
  self.abstract = abstract
  return self
end

local function run(...)
  local result = support.run({ "ip", ... })
  assert(result.code == 0, result.stderr)
end

--- Behind a link. Fields: v4, v6 (its addresses), host4, host6 (this host's on that link), port.
function canary.outside()
  local k
  local taken = support.run({ "ip", "-o", "-4", "addr" }).stdout
  repeat
    k = uv.random(1):byte() % 60
  until not taken:find((" 198.51.100.%d/"):format(k * 4 + 1), 1, true) -- by another run of this
  local name = "tp-" .. support.unique()
  local v4, v6 = "198.51.100." .. k * 4, ("2001:db8:51:%x::"):format(k)
  run("netns", "add", name)
  support.defer(function()
    support.run({ "ip", "netns", "del", name }) -- the link goes with its end in there
  end)
  run("link", "add", name, "type", "veth", "peer", "name", "out", "netns", name)
  local host4, far4 = v4:gsub("%d+$", k * 4 + 1), v4:gsub("%d+$", k * 4 + 2)
  run("addr", "add", host4 .. "/30", "dev", name)
  run("-6", "addr", "add", v6 .. "1/126", "dev", name, "nodad")
  run("link", "set", name, "up")
  run("-n", name, "addr", "add", far4 .. "/30", "dev", "out")
  run("-n", name, "-6", "addr", "add", v6 .. "2/126", "dev", "out", "nodad")
  run("-n", name, "link", "set", "lo", "up")
  run("-n", name, "link", "set", "out", "up")
  local self = start({ hosts = { far4, v6 .. "2" }, sniff = "out" }, { "ip", "netns", "exec", name })
  self.host4, self.v4, self.host6, self.v6 = host4, far4, v6 .. "1", v6 .. "2"
  return self
end

return canary

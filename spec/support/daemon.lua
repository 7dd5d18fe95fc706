--- Programs that run beside a spec, an example or a measurement: started, waited for, ended.
--
-- They run as whoever runs the spec, on loopback, write to a log in their directory and die with
-- whoever started them. Needs no busted, so that examples and benchmarks can use it too.
local uv = require("luv")
local async = require("tidepool.async")
local machine = require("spec.support.machine")

local daemon = {}

local Daemon = {}
Daemon.__index = Daemon

--- Where a server keeps its files and who is told how to end it. options: `directory` and `defer`
-- (a function that takes a function), both the spec's own unless given.
function daemon.place(options)
  if options and options.directory then
    return options.directory, options.defer or function() end
  end
  local support = require("spec.support")
  return support.scratch(), support.defer
end

--- A TCP port of loopback that is free now. For programs that can't choose one themselves. It is none of
-- those that the kernel gives away by itself, so nobody gets it in the meantime by chance.
function daemon.free_port()
  while true do
    local high, low = uv.random(2):byte(1, 2)
    local port = 10000 + (high * 256 + low) % 20000
    local probe = uv.new_tcp()
    local free = probe:bind("127.0.0.1", port) and probe:listen(1, function() end)
    probe:close()
    if free then
      return port
    end
  end
end

--- Whether something listens on a port of 127.0.0.1.
function daemon.listens(port)
  local socket = uv.new_tcp()
  local found = async.within(function()
    return async.wait(function(wake)
      socket:connect("127.0.0.1", port, async.guarded(function(err)
        wake(not err)
      end))
    end)
  end)
  socket:close()
  return found
end

--- What it has written so far, to both its outputs.
function Daemon:log()
  return machine.read(self.log_path) or ""
end

--- Ends it and all that it started, and waits until it is gone.
function Daemon:stop()
  if self.stopped then
    return
  end
  self.stopped = true
  uv.kill(self.pid, "sigterm")
  if not machine.eventually(function() return not machine.alive(self.pid) end, 10) then
    uv.kill(self.pid, "sigkill")
  end
  uv.kill(-self.pid, "sigkill") -- its process group, for what outlived it
end

local function spawn(self, options)
  local log = assert(uv.fs_open(self.log_path, "w", 384))
  -- setpriv becomes the program, and the kernel ends it should we be killed.
  local args = { "--pdeathsig", "TERM", unpack(options) }
  local handle, pid
  handle, pid = uv.spawn("setpriv", {
    args = args,
    stdio = { nil, log, log },
    env = options.env,
    cwd = options.cwd,
    detached = true,
  }, async.guarded(function(code)
    handle:close()
    self.code = code
  end))
  uv.fs_close(log)
  assert(handle, pid)
  handle:unref() -- else a wait that can't end would not be noticed
  self.pid = pid
end

--- Starts a program; options[1..n] is its argv. It is ready when its log has `ready` (a Lua pattern,
-- whose capture is kept as `found`) or when `port` listens. Also: name, env, cwd, directory, defer.
-- Raises with its log when it ends before, or isn't ready in `timeout` seconds (60).
function daemon.start(options)
  local directory, defer = daemon.place(options)
  local name = options.name or options[1]:match("[^/]+$")
  local self = setmetatable({ name = name, directory = directory, port = options.port }, Daemon)
  self.log_path = ("%s/%s-%x.log"):format(directory, name, uv.hrtime() % 2 ^ 32)
  spawn(self, options)
  defer(function() self:stop() end)

  local ready = machine.eventually(function()
    if options.ready then
      self.found = self:log():match(options.ready)
      return self.found or not machine.alive(self.pid)
    end
    return daemon.listens(options.port) or not machine.alive(self.pid)
  end, options.timeout or 60)
  if not ready or not machine.alive(self.pid) then
    self:stop()
    error(("%s did not start: %s"):format(name, self:log()), 2)
  end
  return self
end

--- Starts one of the Python servers in spec/support/servers, which chooses its port and says it.
-- `config` becomes its one argument, as JSON.
function daemon.python(name, config, options)
  local directory, defer = daemon.place(options)
  local path = require("tidepool.paths").repo() .. "/spec/support/servers/" .. name .. ".py"
  local self = daemon.start({
    "/usr/bin/python3", "-uB", path, require("cjson").encode(config),
    name = name, ready = "listening (%d+)\n", directory = directory, defer = defer,
  })
  self.port = tonumber(self.found)
  return self
end

return daemon

--- The server: one a state directory, root, the only writer of its state.
--
-- It holds the lock of the state directory, adopts what an earlier server left, then listens. Killed
-- at any instant and started again it finds every sandbox and process that was there.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local paths = require("tidepool.paths")
local random = require("tidepool.random")
local rpc = require("tidepool.rpc")
local verbs = require("tidepool.verbs")
local cgroup = require("tidepool.server.cgroup")
local handlers = require("tidepool.server.handlers")
local ids = require("tidepool.server.ids")
local images = require("tidepool.server.images")
local log = require("tidepool.server.log")
local sandboxes = require("tidepool.server.sandboxes")
local spawner = require("tidepool.server.spawner")
local state = require("tidepool.server.state")
local storage = require("tidepool.server.storage")

local main = {}

local Server = {}
Server.__index = Server

main.VERSION = "0.1.0"

--- What `info` without a name tells.
function Server:info()
  local running = 0
  for _, sandbox in pairs(self.sandboxes) do
    if sandbox.state == "running" then
      running = running + 1
    end
  end
  local total = 0
  for _ in pairs(self.sandboxes) do
    total = total + 1
  end
  return {
    pid = uv.os_getpid(),
    version = main.VERSION,
    state_directory = self.directory,
    run_directory = self.run,
    log = self.directory .. "/server.log",
    instance = self.instance,
    started = self.started,
    sandboxes = total,
    running = running,
    cgroups = self.cgroups.mode,
    unenforced = self.cgroups.unenforced or {},
  }
end

--- Keeps the end of this child of a spawner, once told, until `forget_exit`.
function Server:expect_exit(pid)
  self.exits[pid] = async.event()
end

function Server:forget_exit(pid)
  self.exits[pid] = nil
end

--- How a process that was expected has ended: { code } or { signal }, waiting `timeout` seconds for the
-- spawner to tell; nil when it is another server's spawner that knew.
function Server:exit_status(pid, timeout)
  local exit = self.exits[pid]
  return exit and exit:wait(timeout) or nil
end

local function on_request(self, connection, method, params, fds, id)
  local checked, message, code = verbs.check(method, params)
  if not checked then
    return nil, message, code
  end
  return handlers[method](self, checked, fds, connection, id)
end

local function accept_all(self)
  while true do
    local channel, peer, code = core.channel.accept(self.listener)
    if not channel then
      if code ~= "EAGAIN" then
        log.error("accept_failed", { message = peer, code = code })
      end
      return
    end
    if peer.uid ~= 0 and peer.uid ~= uv.getuid() then
      log.warn("peer_refused", { peer_pid = peer.pid, uid = peer.uid })
      channel:close()
    else
      local connection
      connection = rpc.connection(channel, {
        on_request = function(from, method, params, fds, id)
          return on_request(self, from, method, params, fds, id)
        end,
        on_close = function(message, why)
          self.connections[connection] = nil
          if why == "EBADMSG" or why == "EMSGSIZE" then
            log.warn("connection_broken", { peer_pid = peer.pid, message = message, code = why })
          end
        end,
      })
      if not connection:is_closed() then
        self.connections[connection] = true
      end
    end
  end
end

local function listen(self)
  local path = self.run .. "/server.sock"
  os.remove(path) -- ours to remove: we hold the lock
  self.listener = assert(core.channel.listen(path))
  self.accepting = assert(uv.new_poll(self.listener:number()))
  self.accepting:start("r", async.guarded(function()
    accept_all(self)
  end))
end

--- Ends the server in good order; sandboxes go on.
function Server:shutdown(reason)
  if self.ending then
    return
  end
  self.ending = true
  log.info("server_ending", { reason = reason })
  self.accepting:close()
  self.listener:close()
  os.remove(self.run .. "/server.sock")
  for connection in pairs(self.connections) do
    connection:close("server is shutting down")
  end
  if self:info().running == 0 then
    cgroup.close(self.cgroups)
  end
  self.done:set(true)
end

local function take_lock(self)
  local lock, message, code = core.fd.open(self.directory .. "/lock", "rwc", 384)
  if not lock then
    return nil, message, code
  end
  local locked
  locked, message, code = core.fd.lock(lock)
  if not locked then
    return nil, "another server has the state directory " .. self.directory, code == "EAGAIN" and "EALREADY" or code
  end
  self.lock = lock
  return true
end

local function instance_name(self)
  local name = self.state:setting("instance")
  if not name then
    name = random.hex(6)
    self.state:set_setting("instance", name)
  end
  return name
end

local function adopt(self)
  local rows, tasks, in_use, known = self.state:sandboxes(), {}, {}, {}
  for _, row in ipairs(rows) do
    if row.run and row.run.base and row.state == "running" then
      in_use[#in_use + 1] = row.run.base
    end
    known[row.id] = true
  end
  self.ids = assert(ids.open({ instance = self.instance, state = self.directory, in_use = in_use }))
  for i, row in ipairs(rows) do
    tasks[i] = function()
      local ok, message = xpcall(sandboxes.adopt, debug.traceback, self, row)
      if not ok then
        log.error("adopt_failed", { sandbox = row.name, message = message })
      end
    end
  end
  async.all(tasks)
  local remaining = {}
  for _, sandbox in pairs(self.sandboxes) do
    remaining[#remaining + 1] = sandbox.id
  end
  self.storage:reconcile(remaining)
end

-- Makes a directory and its parents, private to us.
local make_directory
function make_directory(path)
  local made, message, code = uv.fs_mkdir(path, 448)
  if made or code == "EEXIST" then
    return true
  end
  local parent = path:match("^(.+)/[^/]+$")
  if code ~= "ENOENT" or not parent then
    return nil, message, code
  end
  made, message, code = make_directory(parent)
  if not made then
    return nil, message, code
  end
  return make_directory(path)
end

local function start(self)
  local ok, message, code = make_directory(self.directory)
  if ok then
    ok, message, code = make_directory(self.run)
  end
  if ok then
    ok, message, code = take_lock(self)
  end
  if not ok then
    return nil, message, code
  end
  if not self.foreground then
    assert(log.to_file(self.directory .. "/server.log"))
  end
  self.state = state.open(self.directory .. "/state.db")
  self.instance = instance_name(self)
  self.cgroups = assert(cgroup.open(self.instance))
  self.filter = assert(core.seccomp.filter())
  self.spawners = assert(spawner.start(2, { tools = self.tools }))
  self.storage = assert(storage.open({ state = self.directory, spawners = self.spawners }))
  self.spawners:on_exit(function(pid, status)
    if self.exits[pid] then
      self.exits[pid]:set(status)
    end
  end)
  images.sweep(self)
  images.load(self)
  adopt(self)
  for name in pairs(self.images) do
    self.storage:refill(name)
  end
  listen(self)
  return true
end

--- Runs the server until it is told to end. options: foreground.
-- Returns true | nil, message, code ("EALREADY": another one has the state directory).
function main.serve(options)
  return async.run(function()
    local self = setmetatable({
      directory = paths.state(),
      run = paths.run(),
      tools = paths.build(),
      foreground = options.foreground,
      sandboxes = {},
      images = {},
      making_images = {},
      connections = {},
      exits = {},
      started = os.time(),
      done = async.event(),
    }, Server)
    async.on_error = function(err)
      log.error("task_failed", { message = tostring(err) })
    end
    local ok, message, code = start(self)
    if not ok then
      return nil, message, code
    end
    log.info("server_started", { version = main.VERSION, state = self.directory, sandboxes = #self.state:sandboxes() })
    local signals = {}
    for _, name in ipairs({ "sigterm", "sigint" }) do
      local handle = uv.new_signal()
      handle:start(name, async.guarded(function()
        self:shutdown(name)
      end))
      signals[#signals + 1] = handle
    end
    uv.new_signal():start("sigpipe", function() end)
    self.done:wait()
    self.state:close()
    return true
  end)
end

return main

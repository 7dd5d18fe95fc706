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
local audit = require("tidepool.server.audit")
local cgroup = require("tidepool.server.cgroup")
local egress = require("tidepool.server.egress")
local egress_pool = require("tidepool.server.egress.pool")
local handlers = require("tidepool.server.handlers")
local ids = require("tidepool.server.ids")
local images = require("tidepool.server.images")
local keep = require("tidepool.server.memory.keep")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local sandboxes = require("tidepool.server.sandboxes")
local secrets = require("tidepool.server.secrets")
local imports = require("tidepool.server.imports")
local snapshots = require("tidepool.server.snapshots")
local spawner = require("tidepool.server.spawner")
local state = require("tidepool.server.state")
local storage = require("tidepool.server.storage")

local main = {}

local Server = {}
Server.__index = Server

main.VERSION = "0.1.0"

local DESCRIPTORS = 524288 -- five a sandbox, one a client

--- What `info` without a name tells.
function Server:info()
  local running = 0
  for _, sandbox in pairs(self.sandboxes) do
    if sandbox.run then
      running = running + 1
    end
  end
  local total = 0
  for _ in pairs(self.sandboxes) do
    total = total + 1
  end
  local unenforced = {}
  for _, reasons in ipairs({ self.cgroups.unenforced or {}, self.storage.unenforced }) do
    for _, reason in ipairs(reasons) do
      unenforced[#unenforced + 1] = reason
    end
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
    unenforced = unenforced,
    storage = self.storage:report(),
    egress = self.egress:list(),
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

local ACCEPT_PAUSE = 0.2 -- seconds
local start_accepting

-- Out of descriptors, most likely: who waits in the backlog stays there, and we don't spin meanwhile.
local function pause_accepting(self, message, code)
  log.error("accept_failed", { message = message, code = code })
  self.accepting:stop()
  async.after(ACCEPT_PAUSE, function()
    if not self.ending then
      start_accepting(self)
    end
  end)
end

local function accept_all(self)
  while true do
    local channel, peer, code = core.channel.accept(self.listener)
    if not channel then
      if code ~= "EAGAIN" and code ~= "ECONNABORTED" then
        pause_accepting(self, peer, code)
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

function start_accepting(self)
  self.accepting:start("r", async.guarded(function()
    accept_all(self)
  end))
end

local function socket_path(self)
  return self.run .. "/server.sock"
end

local function inode(path)
  local stat = uv.fs_lstat(path)
  return stat and stat.dev .. ":" .. stat.ino
end

-- Whether another server listens there, one with another state directory. One that was just killed may
-- still take a connection.
local function is_taken(path)
  for _ = 1, 50 do
    local other = core.channel.connect(path)
    if not other then
      return false
    end
    other:close()
    async.sleep(0.02)
  end
  return true
end

-- Makes the socket anew when it was removed under us: no client could reach us, and none could start
-- another server, since we hold the lock.
local function watch_socket(self)
  local pending, again
  local function check()
    pending = false
    if self.ending or inode(socket_path(self)) == self.socket then
      return
    end
    if inode(socket_path(self)) then
      log.error("socket_taken", { path = socket_path(self) }) -- another server's now: fighting helps nobody
      return
    end
    self.accepting:close()
    self.listener:close()
    local ok, message, code = self:listen()
    log.warn("socket_removed", { path = socket_path(self), message = not ok and message or "made again", code = code })
  end
  function again()
    if not pending then
      pending = true
      async.after(0.05, check)
    end
  end
  self.watching = assert(uv.new_fs_event())
  self.watching:start(self.run, {}, async.guarded(again))
end

--- Listens for clients. Returns true | nil, message, code.
function Server:listen()
  local path = socket_path(self)
  local ok, message, code = make_directory(self.run)
  if not ok then
    return nil, message, code
  end
  if is_taken(path) then
    return nil, "another server, of another state directory, listens at " .. path, "EADDRINUSE"
  end
  os.remove(path)
  self.listener, message, code = core.channel.listen(path)
  if not self.listener then
    return nil, message, code
  end
  self.socket = inode(path)
  self.accepting = assert(uv.new_poll(self.listener:number()))
  start_accepting(self)
  if self.watching then
    self.watching:close()
  end
  watch_socket(self)
  return true
end

--- Ends the server in good order; sandboxes go on.
function Server:shutdown(reason)
  if self.ending then
    return
  end
  self.ending = true
  log.info("server_ending", { reason = reason })
  self.watching:close()
  self.accepting:close()
  self.listener:close()
  if inode(socket_path(self)) == self.socket then
    os.remove(socket_path(self))
  end
  for connection in pairs(self.connections) do
    connection:close("server is shutting down")
  end
  local running = self:info().running > 0
  self.egress:close(running)
  if not running then
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

-- Whether the database was made in another directory than it is in: a copy, whose original may run.
local function is_copy(self)
  local here = inode(self.directory)
  local written, message, code = self.state:setting("directory")
  if message then
    return nil, message, code
  end
  if written == here then
    return false
  end
  local ok
  ok, message, code = self.state:set_setting("directory", here)
  if not ok then
    return nil, message, code
  end
  return written ~= nil
end

local function instance_name(self, copied)
  local name, message, code = self.state:setting("instance")
  if message then
    return nil, message, code
  end
  if not name or copied then
    name = random.hex(6)
    local ok
    ok, message, code = self.state:set_setting("instance", name)
    if not ok then
      return nil, message, code
    end
  end
  return name
end

-- Secrets, audit, and whoever answers for the sandboxes' networks. Needs the ids.
local function open_egress(self)
  local message, code
  self.audit, message, code = audit.open({
    path = self.directory .. "/audit.db",
    days = tonumber(os.getenv("TIDEPOOL_AUDIT_DAYS")),
    on_secret_used = function(name, time)
      self.secrets:mark_used(name, time)
    end,
  })
  if not self.audit then
    return nil, message, code
  end
  self.secrets, message, code = secrets.open({
    db = self.state.db,
    directory = self.directory,
    on_change = function(secret)
      egress.secret_changed(self, secret)
    end,
    on_remove = function(name)
      egress.secret_removed(self, name)
    end,
  })
  if not self.secrets then
    return nil, message, code
  end
  self.egress, message, code = egress.open(self, { setting = os.getenv("TIDEPOOL_EGRESS") })
  if not self.egress then
    return nil, message, code
  end
  return self.egress:adopt()
end

local function adopt(self, copied)
  local rows, message, code = self.state:sandboxes()
  if not rows then
    return nil, message, code
  end
  local tasks, in_use = {}, copied and {} or egress_pool.bases(self.state.db)
  for _, row in ipairs(rows) do
    row.copied = copied
    if row.run and row.run.base and (row.state == "running" or row.state == "frozen") and not copied then
      in_use[#in_use + 1] = row.run.base
    end
  end
  self.ids, message, code = ids.open({ instance = self.instance, state = self.directory, in_use = in_use })
  if not self.ids then
    return nil, "id ranges: " .. message, code
  end
  if copied then
    self.state.db:execute("DELETE FROM egress_processes") -- they belong to the server of the original
  end
  local ok
  ok, message, code = open_egress(self)
  if not ok then
    return nil, message, code
  end
  self.snapshots, message, code = snapshots.open(self)
  if not self.snapshots then
    return nil, message, code
  end
  memory.open(self.directory)
  for i, row in ipairs(rows) do
    tasks[i] = function()
      local adopted, why = xpcall(sandboxes.adopt, debug.traceback, self, row)
      if not adopted then
        log.error("adopt_failed", { sandbox = row.name, message = why })
      end
    end
  end
  async.all(tasks)
  self.egress:reconcile()
  -- Of the database, not of what was adopted: one whose adoption failed keeps its files.
  local remaining
  remaining, message, code = self.state:sandboxes()
  if not remaining then
    return nil, message, code
  end
  for i, row in ipairs(remaining) do
    remaining[i] = row.root or row.id
  end
  self.storage:reconcile(remaining, self.snapshots:ids())
  keep.sweep(self, self.snapshots.by_id)
  imports.sweep(self)
  return true
end

-- What storage has and the database does not know is swept, but not when that has never known anything: then it
-- is not the one that goes with it. true | nil, message, "ENOENT"
local function goes_together(self)
  local known, message, code = self.state.db:rows("SELECT name FROM sqlite_sequence")
  if not known then
    return nil, message, code
  end
  local count = self.storage:count()
  if #known == 0 and count > 0 then
    return nil, ("%s/state.db is gone or another one, while the files of %d sandboxes and snapshots are here: "
      .. "put it back, or move the whole directory away"):format(self.directory, count), "ENOENT"
  end
  return true
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
    ok, message, code = log.to_file(self.directory .. "/server.log")
    if not ok then
      return nil, message, code
    end
  end
  core.fd.raise_limit(DESCRIPTORS)
  self.state, message, code = state.open(self.directory .. "/state.db")
  if not self.state then
    return nil, message, code
  end
  local copied
  copied, message, code = is_copy(self)
  if copied ~= nil then
    self.instance, message, code = instance_name(self, copied)
  end
  if not self.instance then
    return nil, message, code
  end
  self.cgroups, message, code = cgroup.open(self.instance)
  if not self.cgroups then
    return nil, message, code
  end
  self.filter = assert(core.seccomp.filter())
  self.spawners, message, code = spawner.start(2, { tools = self.tools })
  if not self.spawners then
    return nil, message, code
  end
  self.storage, message, code = storage.open({ state = self.directory, spawners = self.spawners })
  if not self.storage then
    return nil, message, code
  end
  self.spawners:on_exit(function(pid, status)
    if self.exits[pid] then
      self.exits[pid]:set(status)
    end
  end)
  ok, message, code = goes_together(self)
  if not ok then
    return nil, message, code
  end
  images.sweep(self)
  ok, message, code = images.load(self)
  if ok then
    ok, message, code = adopt(self, copied)
  end
  if not ok then
    return nil, message, code
  end
  for name in pairs(self.images) do
    self.storage:refill(name)
  end
  ok, message, code = self:listen()
  if ok then
    self.egress:warm()
  end
  return ok, message, code
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
      if self.cgroups then
        cgroup.close(self.cgroups) -- groups of sandboxes that run keep it
      end
      return nil, message, code
    end
    log.info("server_started", { version = main.VERSION, state = self.directory, sandboxes = self:info().sandboxes })
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
    self.audit:close()
    self.state:close()
    return true
  end)
end

return main

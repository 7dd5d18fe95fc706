--- One egress process: started, found again after a server's end, spoken to, ended.
--
-- Runs in the server. The process is LuaJIT with lua/tidepool/egress/main.lua, started as root, which
-- gives up everything but its sockets once it is configured. It outlives the server, listens on a socket
-- of its own for the next one, and is known by pid, start time and boot.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local host = require("tidepool.server.host")
local paths = require("tidepool.paths")
local rpc = require("tidepool.rpc")

local process = {}

local Process = {}
Process.__index = Process

local ANSWER = 15 -- seconds; a loop that answers nothing for so long hangs
local PAGE = 4096 -- bytes: what the watchdog shares, see core/proxy/watchdog.h

local function socket_path(run, number)
  return ("%s/egress-%d.sock"):format(run, number)
end

local function page_path(run, number)
  return ("%s/egress-%d.page"):format(run, number)
end

-- A page that both of us map. A file and no memfd, so that the next server finds it; gone with the boot.
local function make_page(run, number)
  os.remove(page_path(run, number))
  local page, message, code = core.fd.open(page_path(run, number), "rwcx", 384)
  if not page then
    return nil, message, code
  end
  local wrote
  wrote, message, code = core.fd.write(page, ("\0"):rep(PAGE))
  if not wrote then
    page:close()
    return nil, message, code
  end
  return page
end

-- It speaks through us alone, so its environment is what finding modules takes.
local function environment(server)
  local list = {}
  for _, name in ipairs({ "LUA_PATH", "LUA_CPATH", "LD_LIBRARY_PATH" }) do
    local value = os.getenv(name)
    if value then
      list[#list + 1] = name .. "=" .. value
    end
  end
  list[#list + 1] = "TIDEPOOL_RUN=" .. server.run -- whose it is, for whoever looks at the machine
  list[#list + 1] = "TIDEPOOL_BUILD=" .. paths.build()
  return list
end

local function new(fields)
  return setmetatable(fields, Process)
end

-- The descriptors that it is born with, and what of them is ours: nothing stays open when this fails.
local function open_all(server, number)
  local opened = {}
  local function keep(name, value, message, code)
    if not value then
      for _, fd in pairs(opened) do
        fd:close()
      end
      return nil, message, code
    end
    opened[name] = value
    return true
  end
  local ours, theirs, code = core.fd.pair()
  if not ours then
    return nil, theirs, code
  end
  opened.ours, opened.theirs = ours, theirs
  local function file(name, ...)
    return keep(name, core.fd.open(...))
  end
  os.remove(socket_path(server.run, number))
  local ok, message
  ok, message, code = file("null", "/dev/null", "rw")
  if ok then
    ok, message, code = file("log", server.directory .. "/server.log", "wca", 384)
  end
  if ok then
    ok, message, code = keep("listener", core.channel.listen(socket_path(server.run, number)))
  end
  if ok then
    ok, message, code = keep("page", make_page(server.run, number))
  end
  if not ok then
    return nil, message, code
  end
  return opened
end

-- Speaks to it over a channel from now on.
local function connect(self, channel)
  self.connection = rpc.connection(channel, {
    on_request = function(_, method, params)
      return self.on_request(self, method, params)
    end,
    on_close = function(message)
      self:lost(message)
    end,
  })
end

--- Starts one. options: server (directory, run); number; base, its user and group id; on_request(process,
--- method, params); on_lost(process, message), once, after which it is dead; on_explained(process, message,
--- text), a moment later: how it ended, and whom its watchdog found running; main, its program.
-- Returns it, not configured | nil, message, code.
function process.start(options)
  local server, number = options.server, options.number
  local main = options.main or paths.repo() .. "/lua/tidepool/egress/main.lua"
  local fds, message, code = open_all(server, number)
  if not fds then
    return nil, message, code
  end
  local self = new({
    number = number, base = options.base, run = server.run, page = fds.page,
    on_request = options.on_request, on_lost = options.on_lost, on_explained = options.on_explained,
  })
  local handle, pid
  handle, pid, code = uv.spawn(uv.exepath(), {
    args = { main },
    env = environment(server),
    cwd = "/",
    stdio = {
      fds.null:number(), fds.null:number(), fds.log:number(), fds.theirs:number(), fds.listener:number(), fds.page:number(),
    },
    detached = true,
  }, async.guarded(function(status, signal)
    self.ended = signal ~= 0 and "was killed by signal " .. signal or "exited with status " .. status
    self.handle:close()
    self:lost(self.ended)
  end))
  for _, name in ipairs({ "null", "log", "theirs", "listener" }) do
    fds[name]:close()
  end
  if not handle then
    fds.ours:close()
    fds.page:close()
    return nil, "egress: " .. tostring(pid), code
  end
  self.handle, self.pid, self.start_time = handle, pid, host.start_time(pid)
  connect(self, core.channel.wrap(fds.ours))
  return self
end

--- Connects to one of an earlier server, by its row. Returns it | nil, message, code when it is gone.
function process.adopt(options, row)
  if row.boot_id ~= host.boot_id() or host.start_time(row.pid) ~= row.start_time then
    return nil, "it ended while no server ran", "ESRCH"
  end
  local channel, message, code = core.channel.connect(socket_path(options.server.run, row.number))
  if not channel then
    process.kill(row)
    return nil, message, code
  end
  local self = new({
    number = row.number, base = row.base, run = options.server.run, pid = row.pid, start_time = row.start_time,
    page = core.fd.open(page_path(options.server.run, row.number), "rw"),
    on_request = options.on_request, on_lost = options.on_lost, on_explained = options.on_explained,
  })
  connect(self, channel)
  return self
end

--- Kills one by its row, if it is still that process.
function process.kill(row)
  if row.boot_id == host.boot_id() and host.start_time(row.pid) == row.start_time then
    uv.kill(row.pid, "sigkill")
  end
end

--- Its row in the state.
function Process:row()
  return { number = self.number, pid = self.pid, start_time = self.start_time, boot_id = host.boot_id(), base = self.base }
end

--- Calls a method: result, fds | nil, message, code. One that does not answer in time is taken for hung.
function Process:call(method, params, fds)
  if self.dead then
    return nil, "the egress process has ended", "ECONNRESET"
  end
  local cancel = async.after(ANSWER, function()
    self:lost(("did not answer %s within %d s"):format(method, ANSWER))
  end)
  local result, message, code = self.connection:call(method, params, fds)
  cancel()
  if result == nil and self.connection:is_closed() and not self.dead then
    async.sleep(0) -- the callers are told before the connection's owner: let it see first that this one is lost
  end
  return result, message, code
end

--- Whom its watchdog found running when it ended | nil.
function Process:overdue()
  local ok, text = pcall(function()
    return require("tidepool.proxy").watchdog.read(self.page)
  end)
  return ok and text or nil
end

local function remove_files(self)
  os.remove(socket_path(self.run, self.number))
  os.remove(page_path(self.run, self.number))
end

local STATUS = 0.05 -- seconds until a child's end is told

-- Why it ended, as soon as that is known.
local function explain(self, message)
  async.after(self.handle and not self.ended and STATUS or 0, function()
    local text = self.page and self:overdue()
    if self.page then
      self.page:close()
    end
    self.on_explained(self, self.ended or message, text)
  end)
end

-- It is dead, or is made so: what can't be spoken to must not go on deciding.
function Process:lost(message)
  if self.dead then
    return
  end
  self.dead = true
  self.connection:close()
  process.kill(self:row())
  remove_files(self)
  self.on_lost(self, self.ended or message)
  explain(self, message)
end

--- Leaves it alone, for the next server.
function Process:leave()
  self.dead = true
  self.connection:close()
  if self.page then
    self.page:close()
  end
end

--- Ends it; nobody is told.
function Process:finish()
  if not self.dead then
    self.dead = true
    self.connection:close()
    process.kill(self:row())
    remove_files(self)
    if self.page then
      self.page:close()
    end
  end
end

return process

--- A client of the server: one connection, made anew when the server was killed.
--
-- It starts the server when none runs, as tmux does. Every method may be called inside a task
-- (tidepool.async), where it waits without blocking others, or outside, where it runs the loop.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local paths = require("tidepool.paths")
local random = require("tidepool.random")
local rpc = require("tidepool.rpc")
local verbs = require("tidepool.verbs")
local read_file = require("tidepool.file").read

local client = {}

---@class tidepool.Client
---@field state string the server's state directory
---@field run string its run directory
local Client = {}
Client.__index = Client

local TRIES = 5 -- of a call whose connection is lost
local START_LIMIT = 60 -- seconds; making and mounting a pool is part of a first start

-- Verbs that do no harm when they run twice, so that a lost connection is no failure.
local REPEATABLE = {}
for name in ("create ls info ps wait wait_port open stop destroy kill forget attach logs image_ls agent "
  .. "snapshot_create snapshot_ls snapshot_rm snapshot_diff snapshot_keep snapshot_export snapshot_import "
  .. "restore rollback fork promote freeze hibernate wake memory_install storage_grow storage_check "
  .. "egress_set egress_add egress_show egress_log policy_ls policy_show secret_set secret_ls secret_placeholder"):gmatch("%S+") do
  REPEATABLE[name] = true
end

-- Verbs that are repeatable since a key tells the server that it is the same request.
local KEYED = {
  create = true, restore = true, fork = true, rollback = true, promote = true,
  snapshot_create = true, snapshot_rm = true, snapshot_keep = true, snapshot_import = true,
}

-- Who has waited for a while does not end a sleep by waiting on, at the next server.
local function idle_from_now(verb, params)
  if verb ~= "wait" then
    return params
  end
  local waiting = { idle = true }
  for name, value in pairs(params) do
    waiting[name] = value
  end
  return waiting
end

-- The environment of the server: ours, with this client's directories.
local function environment_of(self)
  local environment = uv.os_environ()
  environment.TIDEPOOL_STATE, environment.TIDEPOOL_RUN = self.state, self.run
  local list = {}
  for name, value in pairs(environment) do
    list[#list + 1] = name .. "=" .. value
  end
  return list
end

-- Starts a server that outlives us; returns a function that tells how it ended, if it has: what it
-- said, and whether another server had the state directory. Called with true it tidies up.
local function start_server(self)
  local errors = os.tmpname()
  local stderr = assert(core.fd.open(errors, "wct", 384))
  local null = assert(core.fd.open("/dev/null", "rw"))
  local ended, handle, pid
  handle, pid = uv.spawn(paths.launcher(), {
    args = { "serve", "--daemon" },
    detached = true,
    env = environment_of(self),
    stdio = { null:number(), null:number(), stderr:number() },
    cwd = "/",
  }, async.guarded(function(code, signal)
    ended = { code = code, signal = signal }
    handle:close()
  end))
  null:close()
  stderr:close()
  if not handle then
    os.remove(errors)
    return nil, "can't start the server: " .. tostring(pid)
  end
  handle:unref()
  return function(final)
    if final then
      os.remove(errors)
    elseif ended then
      return (read_file(errors):gsub("%s+$", "")), ended.code == client.ALREADY
    end
  end
end

--- The exit status of `serve` when another server has the state directory.
client.ALREADY = 75

local function open_channel(self)
  local path = self.run .. "/server.sock"
  local channel, message, code = core.channel.connect(path)
  if channel then
    return channel
  end
  if code ~= "ENOENT" and code ~= "ECONNREFUSED" then
    return nil, ("connect to %s: %s"):format(path, message), code
  end
  if not self.start then
    return nil, "no server runs for " .. self.state, "ENOSERVER"
  end
  if uv.getuid() ~= 0 then
    return nil, "no server runs for " .. self.state .. "; starting one needs root (sudo)", "EPERM"
  end

  local failure, why = start_server(self)
  if not failure then
    return nil, why, "ENOSERVER"
  end
  local waited, pause = 0, 0.002
  while waited < START_LIMIT do
    async.sleep(pause)
    waited, pause = waited + pause, math.min(pause * 1.5, 0.05)
    channel = core.channel.connect(path)
    if channel then
      failure(true)
      return channel
    end
    local text, already = failure()
    if already then
      -- The other one may be coming up, or going down: then nobody else would start the next.
      failure(true)
      failure, why = start_server(self)
      if not failure then
        return nil, why, "ENOSERVER"
      end
    elseif text then
      failure(true)
      return nil, "the server did not start: " .. (text ~= "" and text or "see " .. self.state .. "/server.log"), "ENOSERVER"
    end
  end
  failure(true)
  return nil, ("the server did not answer within %d s, see %s/server.log"):format(START_LIMIT, self.state), "ETIMEDOUT"
end

--- A client; it connects with its first call. One process may talk to several servers.
---@param options? { start: boolean, state: string, run: string } start = false: never start a server
---@return tidepool.Client
function client.new(options)
  options = options or {}
  return setmetatable({
    start = options.start ~= false,
    state = options.state or paths.state(),
    run = options.run or paths.run(),
    lock = async.lock(),
    progress = {},
    environment = nil,
  }, Client)
end

local function connection(self)
  if self.connection and not self.connection:is_closed() then
    return self.connection
  end
  return self.lock:with(function()
    if self.connection and not self.connection:is_closed() then
      return self.connection
    end
    local channel, message, code = open_channel(self)
    if not channel then
      return nil, message, code
    end
    self.connection = rpc.connection(channel, {
      on_notify = function(method, params)
        local report = method == "progress" and type(params) == "table" and self.progress[params[1]]
        if report then
          report(tostring(params[2]))
        end
      end,
    })
    return self.connection
  end)
end

-- One try: as `call`, and fourth whether the connection was lost. A server's own answer never means
-- that, whatever its code: "ECONNRESET" may as well be a spawner's.
local function call_once(self, verb, params, fds, on_progress)
  local at, message, code = connection(self)
  if not at then
    return nil, message, code, code == "EPIPE" or code == "ECONNRESET"
  end
  local number
  local function finished(result, extra, why)
    if number then
      self.progress[number] = nil
    end
    return result, extra, why, result == nil and at:is_closed()
  end
  return finished(at:call(verb, params, fds, function(id)
    if on_progress then
      number = id
      self.progress[id] = on_progress
    end
  end))
end

--- Calls a verb of tidepool.verbs. Parameters are checked here first, so that a mistake costs no round
--- trip. A lost connection is made again and the call repeated where that does no harm.
---@param verb string
---@param params table
---@param fds? tidepool.Fd[] they stay the caller's
---@param on_progress? fun(line: string)
---@return any result nil after a failure
---@return tidepool.Fd[]|string|nil fds_or_message
---@return string? code the verb's errors, or those of every verb: see tidepool.meta.client
function Client:call(verb, params, fds, on_progress)
  return async.within(function()
    local checked, message, code = verbs.check(verb, params)
    if not checked then
      return nil, message, code
    end
    if KEYED[verb] and not params.key then
      local keyed = { key = random.hex(12) } -- by which the server knows it when it comes again
      for name, value in pairs(params) do
        keyed[name] = value
      end
      params = keyed
    end
    local result, extra, lost
    result, extra, code, lost = call_once(self, verb, params, fds, on_progress)
    local tries = 1
    params = idle_from_now(verb, params)
    while lost and REPEATABLE[verb] and tries < TRIES do
      -- A server that is being killed may still take the next connection before its listener goes.
      async.sleep(0.01 * (tries - 1))
      tries = tries + 1
      result, extra, code, lost = call_once(self, verb, params, fds, on_progress)
      if result == nil and verb == "destroy" and code == "ENOSANDBOX" then
        return true -- the first call did it
      end
    end
    if lost then
      extra = ("the server went away during %s, whose outcome is unknown: %s"):format(verb, extra)
    end
    return result, extra, code
  end)
end

--- Runs a command of ours exactly once, however often the connection is lost: its key finds out whether
--- it was started.
---@param verb "exec"|"start"
---@param params table with a key
---@param renew fun(): tidepool.Fd[]?, string?, string? fresh descriptors for each try, or none, or why not
---@return table? result
---@return string? message
---@return string? code as of call
function Client:call_keyed(verb, params, renew)
  local checked, message, code = verbs.check(verb, params)
  if not checked then
    return nil, message, code
  end
  for _ = 1, TRIES do
    local fds, result, lost
    fds, message, code = renew()
    if not fds and message then
      return nil, message, code
    end
    result, message, code, lost = call_once(self, verb, params, fds)
    if not lost then
      return result, message, code
    end
    if verb == "exec" then
      result, message, code = self:call("wait", { name = params.name, key = params.key, deadline = params.timeout, idle = true })
      if result ~= nil or code ~= "ENOPROCESS" then
        return result, message, code
      end
    end
  end
  return nil, message, code
end

--- Ends the connection; the next call makes another.
function Client:close()
  if self.connection then
    self.connection:close()
  end
end

return client

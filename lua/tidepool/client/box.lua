--- A sandbox, as a client holds it: a name. It survives the server, a stop and a start.
local async = require("tidepool.async")
local box_branches = require("tidepool.client.box_branches")
local box_egress = require("tidepool.client.box_egress")
local box_files = require("tidepool.client.box_files")
local collect = require("tidepool.client.collect")
local core = require("tidepool.core")
local process = require("tidepool.client.process")
local random = require("tidepool.random")
local session = require("tidepool.client.session")
local stream = require("tidepool.client.stream")

local box = {}

---@class tidepool.Box
---@field name string
---@field created? boolean whether `open` made it now
local Box = {}
Box.__index = Box

---@param client tidepool.Client
---@param name string
---@return tidepool.Box
function box.new(client, name)
  return setmetatable({ client = client, name = name, agents = {} }, Box)
end

-- argv or a shell line, and the options that the verb knows.
local function parameters(self, command, options)
  local params = { name = self.name, key = random.hex(12) }
  if type(command) == "table" then
    params.argv = command
  else
    params.line = command
  end
  for _, name in ipairs({ "user", "cwd", "env", "timeout", "cols", "rows", "ring" }) do
    params[name] = options[name]
  end
  params.tty = options.tty or nil
  return params
end
box.parameters = parameters

-- Errors of the caller's own functions: kept until the command has ended, since a lossless process
-- waits for its reader and its input's end; after the first, none is called any more.
local function trap()
  local failed, failure = false, nil
  local function call(fn, ...)
    if not failed then
      local ok, why = pcall(fn, ...)
      if not ok then
        failed, failure = true, why
      end
    end
  end
  local function raise()
    if failed then
      error(failure, 0)
    end
  end
  return call, raise
end

-- Feeds stdin: a string, a function that returns pieces and then nil, or true for nothing yet.
local function feed(connection, input, call)
  if type(input) == "string" then
    connection:write(input)
  elseif type(input) == "function" then
    call(function()
      for piece in input do
        if not connection:write(piece) then
          break
        end
      end
    end)
  end
  connection:eof()
end

--- Runs a command and waits for it. An error that on_output or the stdin function raises is raised when
--- the command has ended.
---@param command string[]|string an argv, or a shell line
---@param options? tidepool.ExecOptions
---@return tidepool.Result? a timeout too is a result: timed_out, and the signal
---@return string? message
---@return string? code why it could not be started: "ENOENT", "EACCES", "ENOEXEC", "EBADUSER", "EBADCWD", "EAGAIN"; or "ESTOPPED" (the sandbox was, meanwhile)
function Box:exec(command, options)
  options = options or {}
  return async.within(function()
    local params = parameters(self, command, options)
    params.stdin = options.stdin ~= nil or nil
    params.lossless = true
    local sink, lost, result = collect.new(options)
    local call, raise = trap()
    local connection, theirs, reader

    local function connect()
      if connection then
        connection:close()
        theirs:close()
      end
      local code
      connection, theirs, code = stream.pair()
      if not connection then
        return nil, theirs, code
      end
      local mine = connection
      mine:survive(process.renewal(self, params.key, { input = params.stdin, lossless = true }, 0))
      reader = async.spawn(mine.pump, mine, function(number, bytes)
        call(sink, number, bytes)
      end, lost)
      if options.stdin ~= nil then
        async.spawn(feed, mine, options.stdin, call)
      end
      return { theirs }
    end

    local outcome, message, code = self.client:call_keyed("exec", params, connect)
    if connection then
      theirs:close() -- from here on the stream ends when init's side does
    end
    if outcome then
      reader:join()
    end
    if connection then
      connection:close()
    end
    raise()
    if not outcome then
      return nil, message, code
    end
    local gathered = result()
    for _, name in ipairs({ "exit_code", "signal", "wall_seconds", "cpu_seconds", "timed_out", "id" }) do
      gathered[name] = outcome[name]
    end
    return gathered
  end)
end

--- Starts a command in the background.
---@param command string[]|string an argv, or a shell line
---@param options? tidepool.StartOptions
---@return tidepool.Process?
---@return string? message
---@return string? code as of exec, and "EEXIST": one of that name runs
function Box:start(command, options)
  options = options or {}
  return async.within(function()
    local params = parameters(self, command, options)
    params.process = options.name
    params.stdin = options.stdin and true or nil
    local described, message, code = self.client:call_keyed("start", params, function() end)
    if not described then
      return nil, message, code
    end
    return process.new(self, described)
  end)
end

--- A process of this sandbox, whether or not it runs or is there; its methods say so.
---@param which string|integer name or number
---@return tidepool.Process
function Box:process(which)
  return process.new(self, { id = tonumber(which), name = not tonumber(which) and which or nil })
end

--- The processes that were started in it, those that ended lately too; of a stopped sandbox those whose
--- output was kept.
---@return tidepool.ProcessInfo[]?
---@return string? message
---@return string? code
function Box:ps()
  return self.client:call("ps", { name = self.name })
end

--- A process with a terminal of its own, a login shell unless `command` says otherwise, attached.
---@param options? tidepool.TerminalOptions
---@return tidepool.Process?
---@return string? message
---@return string? code as of start
function Box:terminal(options)
  options = options or {}
  local copy = {}
  for key, value in pairs(options) do
    copy[key] = value
  end
  copy.tty = true
  return async.within(function()
    local command = options.command or { "/bin/sh", "-c", "exec ${SHELL:-/bin/sh} -l" }
    local started, message, code = self:start(command, copy)
    if not started then
      return nil, message, code
    end
    local ok
    ok, message, code = started:attach({ input = true })
    if not ok then
      return nil, message, code
    end
    return started
  end)
end

--- A shell whose directory, environment and functions persist between its commands; by name, the one that
--- is there. shell: a line that executes it, bash by default where that is.
---@param options? { name: string, cwd: string, env: table<string, string>, user: string, shell: string }
---@return tidepool.Session?
---@return string? message
---@return string? code as of start
function Box:session(options)
  return session.open(self, options or {})
end

--- Waits until something in the sandbox listens on the port.
---@param port integer TCP
---@param options? { timeout: number, process: string } timeout: seconds, 30 by default; process: give up when it ends
---@return true?
---@return string? message
---@return string? code "ETIMEDOUT", "ESRCH" (the process ended), "ESTOPPED", "ENOPROCESS"
function Box:wait_port(port, options)
  options = options or {}
  return self.client:call("wait_port", { name = self.name, port = port, timeout = options.timeout, process = options.process })
end

--- Opens a file agent: a process inside that does file work as that user. For tidepool.client.files.
---@param user? string name or id
---@return tidepool.Fd? socket our end
---@return string? message
---@return string? code "EBADUSER", "ESTOPPED"
function Box:agent(user)
  return async.within(function()
    local ours, theirs, code = core.fd.pair()
    if not ours then
      return nil, theirs, code
    end
    local ok, message
    ok, message, code = self.client:call("agent", { name = self.name, user = user }, { theirs })
    theirs:close()
    if not ok then
      ours:close()
      return nil, message, code
    end
    return ours
  end)
end

--- State, limits and usage.
---@return tidepool.SandboxInfo?
---@return string? message
---@return string? code
function Box:info()
  return self.client:call("info", { name = self.name })
end

--- Ends all its processes: TERM, the grace, KILL. Its files stay, and the output of named processes.
---@param options? { grace: number } seconds, 5 by default
---@return tidepool.SandboxInfo?
---@return string? message
---@return string? code "EBUSY": processes that the kernel can't end
function Box:stop(options)
  self:close()
  return self.client:call("stop", { name = self.name, grace = options and options.grace })
end

--- Ends it and deletes its files.
---@return true?
---@return string? message
---@return string? code "EBUSY"
function Box:destroy()
  self:close()
  return self.client:call("destroy", { name = self.name })
end

box_branches.extend(Box, box.new)
box_egress.extend(Box)
box_files.extend(Box)

return box

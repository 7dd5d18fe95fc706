--- Shell sessions: a long-lived shell whose directory, environment and functions persist between
-- commands, each with its own output and exit status.
--
-- The shell is a named process, so that a session outlives its client and the server: opened again
-- by name it goes on. A command is sent as one line, evaluated with stdin from /dev/null, and its
-- end is told by a marker on both streams that only this call knows.
local async = require("tidepool.async")
local collect = require("tidepool.client.collect")
local random = require("tidepool.random")

local session = {}

---@class tidepool.Session
---@field name string
---@field process tidepool.Process the shell
local Session = {}
Session.__index = Session

local PREFIX = "session-"

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

--- See Box:session.
---@param box tidepool.Box
---@param options table
---@return tidepool.Session?
---@return string? message
---@return string? code
function session.open(box, options)
  return async.within(function()
    local name = options.name or random.hex(4)
    local self = setmetatable({ box = box, name = name, lock = async.lock() }, Session)
    if options.name then
      local known = box:process(PREFIX .. name):info()
      if known and known.status == "running" then
        self.process = box:process(PREFIX .. name)
        return self
      end
    end
    local shell = options.shell or "if command -v bash >/dev/null; then exec bash --norc --noprofile; else exec sh; fi"
    local started, message, code = box:start({ "/bin/sh", "-c", shell }, {
      name = PREFIX .. name,
      cwd = options.cwd,
      env = options.env,
      user = options.user,
      stdin = true,
    })
    if not started then
      return nil, message, code
    end
    self.process = started
    return self
  end)
end

-- Takes the marker out of a stream's bytes, which may come in any pieces.
local function until_marker(marker, sink)
  local held = ""
  return function(bytes)
    held = held .. bytes
    local first, last, status = held:find(marker .. ":(%d+)\n")
    if first then
      if first > 1 then
        sink(held:sub(1, first - 1))
      end
      held = held:sub(last + 1)
      return tonumber(status)
    end
    -- Keep what may be the start of the marker.
    local keep = math.min(#held, #marker + 8)
    if #held > keep then
      sink(held:sub(1, #held - keep))
      held = held:sub(#held - keep + 1)
    end
  end
end

-- `command`: without it a syntax error would end a POSIX shell.
local LINE = "command eval %s </dev/null\n{ __tp=$?; printf '%s:%%d\\n' $__tp; printf '%s:%%d\\n' $__tp >&2; (exit $__tp); }\n"

-- Sends a command and reads until its marker has come on both streams: its exit status | nil, the
-- shell's exit frame if that is why, message.
local function converse(connection, command, sink, lost)
  local marker = "tidepool_" .. random.hex(12) -- no character that a pattern reads otherwise
  local readers = {}
  for number = 1, 2 do
    readers[number] = until_marker(marker, function(bytes)
      sink(number, bytes)
    end)
  end
  connection:write(LINE:format(quote(command), marker, marker))

  local status, done = nil, 0
  while done < 2 do
    local frame, message = connection:read()
    if not frame then
      return nil, nil, message
    elseif frame.type == "exit" then
      return nil, frame
    elseif frame.type == "lost" then
      lost(frame.count)
    elseif frame.type == "data" then
      local found = readers[frame.stream](frame.bytes)
      if found then
        status, done = found, done + 1
      end
    end
  end
  return status
end

-- Where a stream of this command's output begins: the end of what was before.
local function connect(self)
  local described, message = self.process:info()
  if not described or described.status ~= "running" then
    return nil, message or ("session has ended: " .. self.name), "ESHUTDOWN"
  end
  return self.process:connect({ input = true, lossless = true, offset = described.output or 0 })
end

local function exec_one(self, command, options)
  local connection, why, code = connect(self)
  if not connection then
    return nil, why, code
  end
  local timed_out = false
  local cancel = options.timeout
    and async.after(options.timeout, function()
      timed_out = true
      async.spawn(self.process.kill, self.process, 0)
    end)
  local sink, lost, result = collect.new(options)
  -- Whatever on_output raises, the stream and the time limit end here.
  local ok, status, last, message = xpcall(converse, debug.traceback, connection, command, sink, lost)
  if cancel then
    cancel()
  end
  connection:close()

  if not ok then
    error(status, 0)
  elseif status then
    local gathered = result()
    gathered.exit_code = status
    return gathered
  elseif timed_out then
    return nil, ("command ran longer than %g s; the session was ended"):format(options.timeout), "ETIMEDOUT"
  elseif last then
    return nil, ("session ended with %s %d"):format(last.kind == "signal" and "signal" or "exit status", last.code), "ESHUTDOWN"
  end
  return nil, message, "ESHUTDOWN"
end

--- Runs one command in the session. After a timeout the session is ended, since a shell that is inside a
--- command can't be told to stop it.
---@param command string a shell line, or several
---@param options? { timeout: number, limit: integer, on_output: fun(stream: string, bytes: string), collect: boolean } as of exec
---@return { exit_code: integer, stdout: string, stderr: string, dropped: integer }?
---@return string? message
---@return string? code "ESHUTDOWN": the command ended the session, or it had ended; "ETIMEDOUT"
function Session:exec(command, options)
  return async.within(function()
    return self.lock:with(exec_one, self, command, options or {})
  end)
end

--- Ends the shell and all that it started.
---@return tidepool.ProcessInfo?
---@return string? message
---@return string? code
function Session:close()
  return self.process:kill(1)
end

return session

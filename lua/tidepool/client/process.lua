--- A process in a sandbox, as a client holds it: (sandbox, id or name) and an offset of its output.
local async = require("tidepool.async")
local stream = require("tidepool.client.stream")

local process = {}

---@class tidepool.Process
---@field id integer? its number in this run of the sandbox
---@field name string?
---@field pid integer? inside
local Process = {}
Process.__index = Process

---@param box tidepool.Box
---@param described { id: integer?, name: string?, pid: integer? }
---@return tidepool.Process
function process.new(box, described)
  return setmetatable({ box = box, id = described.id, name = described.name, pid = described.pid }, Process)
end

local function which(self)
  return self.name or tostring(self.id)
end

local function call(self, verb, params, fds)
  params = params or {}
  params.name = self.box.name
  params.process = which(self)
  return self.box.client:call(verb, params, fds)
end

--- How a stream of the process of this key attaches again after a sleep of its sandbox.
---@param box tidepool.Box
---@param key string
---@param options table as of connect
---@param at integer where its output begins, bytes
---@return tidepool.StreamRenewal
function process.renewal(box, key, options, at)
  return {
    at = at,
    attach = function(socket, offset)
      return box.client:call("attach", {
        name = box.name, process = key, key = key, idle = true, offset = offset,
        input = options.input, lossless = options.lossless, follow = options.follow,
      }, { socket })
    end,
    wake = function()
      return box.client:call("wake", { name = box.name })
    end,
  }
end

-- An offset from the beginning; a negative one was counted from the end that the server told of.
local function from_start(offset, described)
  return offset < 0 and math.max(0, (described.output or 0) + offset) or offset
end

--- Waits for its end. The result is as of exec, without output.
---@param timeout? number seconds; the process goes on after it
---@return tidepool.ProcessInfo?
---@return string? message
---@return string? code "ETIMEDOUT", "ENOPROCESS", "ESTOPPED" (the sandbox was)
function Process:wait(timeout)
  return call(self, "wait", { timeout = timeout })
end

--- What is known of it now.
---@return tidepool.ProcessInfo?
---@return string? message
---@return string? code "ENOPROCESS"
function Process:info()
  return async.within(function()
    local list, message, code = self.box:ps()
    if not list then
      return nil, message, code
    end
    for _, entry in ipairs(list) do
      if entry.id == self.id or (self.name and entry.name == self.name) then
        return entry
      end
    end
    return nil, ("no such process in %s: %s"):format(self.box.name, which(self)), "ENOPROCESS"
  end)
end

--- Ends it and all that it started: TERM, the grace, KILL.
---@param grace? number seconds, 5 by default; 0: KILL at once
---@return tidepool.ProcessInfo? how it ended
---@return string? message
---@return string? code "ENOPROCESS", "ESTOPPED"
function Process:kill(grace)
  return call(self, "kill", { grace = grace })
end

--- Sends a signal to the process itself.
---@param signal string|integer "TERM", "SIGTERM" or 15
---@return true?
---@return string? message
---@return string? code "ESRCH" (it has ended), "EINVAL", "ENOPROCESS"
function Process:signal(signal)
  return call(self, "signal", { signal = tostring(signal) })
end

--- Drops the record and the output of an ended process.
---@return true?
---@return string? message
---@return string? code "EBUSY" (it runs), "ENOPROCESS"
function Process:forget()
  return call(self, "forget")
end

--- Waits until something in the sandbox listens on the port, or the process ends.
---@param port integer TCP
---@param options? { timeout: number } seconds, 30 by default
---@return true?
---@return string? message
---@return string? code "ETIMEDOUT", "ESRCH" (it ended first), "ESTOPPED"
function Process:wait_port(port, options)
  return self.box:wait_port(port, { timeout = options and options.timeout, process = which(self) })
end

--- A stream of its output, and for its input; the caller closes it. offset: bytes, negative: so many
--- before the end; lossless: the process waits for this reader; follow: to its end (default).
---@param options? { offset: integer, input: boolean, lossless: boolean, follow: boolean }
---@return tidepool.Stream?
---@return tidepool.ProcessInfo|string info_or_message
---@return string? code "ENOPROCESS", "ESTOPPED"
function Process:connect(options)
  options = options or {}
  return async.within(function()
    local ours, theirs, code = stream.pair()
    if not ours then
      return nil, theirs, code
    end
    local described, message
    described, message, code = call(self, "attach", {
      offset = options.offset,
      input = options.input,
      lossless = options.lossless,
      follow = options.follow,
    }, { theirs })
    theirs:close()
    if not described then
      ours:close()
      return nil, message, code
    end
    ours:survive(process.renewal(self.box, described.key, options, from_start(options.offset or 0, described)))
    return ours, described
  end)
end

--- Keeps a connection for write, read, resize, expect. A second call replaces the first.
---@param options? table as of connect
---@return true?
---@return string? message
---@return string? code "ENOPROCESS", "ESTOPPED"
function Process:attach(options)
  return async.within(function()
    local connection, message, code = self:connect(options)
    if not connection then
      return nil, message, code
    end
    self:detach()
    self.connection = connection
    self.pending = ""
    return true
  end)
end

--- Lets the connection go; the process goes on.
function Process:detach()
  if self.connection then
    self.connection:close()
    self.connection = nil
  end
end
Process.close = Process.detach

local function attached(self)
  return async.within(function()
    if self.connection then
      return self.connection
    end
    local ok, message, code = self:attach({ input = true })
    if not ok then
      return nil, message, code
    end
    return self.connection
  end)
end

local function on_connection(method)
  return function(self, ...)
    local args = { n = select("#", ...), ... }
    return async.within(function()
      local connection, message, code = attached(self)
      if not connection then
        return nil, message, code
      end
      return connection[method](connection, unpack(args, 1, args.n))
    end)
  end
end

--- Writes to its stdin or terminal, waiting while it doesn't read.
---@type fun(self: tidepool.Process, bytes: string): true?, string?, string?
--- code: "EPIPE" (nothing reads it any more)
Process.write = on_connection("write")
--- Ends its stdin.
---@type fun(self: tidepool.Process): true?, string?, string?
Process.eof = on_connection("eof")
--- Tells its terminal the size, in characters.
---@type fun(self: tidepool.Process, cols: integer, rows: integer): true?, string?, string?
Process.resize = on_connection("resize")

--- The next output, waiting for it.
---@param timeout? number seconds
---@return string? bytes
---@return string stream_or_message "stdout" (a terminal's too) or "stderr"
---@return string? code "EPIPE" at its end, "ETIMEDOUT", "ENOPROCESS", "ESTOPPED"
function Process:read(timeout)
  return async.within(function()
    local connection, message, code = attached(self)
    if not connection then
      return nil, message, code
    end
    while true do
      local frame
      frame, message, code = connection:read(timeout)
      if not frame then
        return nil, message, code
      elseif frame.type == "data" then
        return frame.bytes, frame.stream == 2 and "stderr" or "stdout"
      elseif frame.type == "exit" or frame.type == "end" then
        return nil, "process has ended", "EPIPE"
      end
    end
  end)
end

--- Reads until `pattern` has come; what came after it is kept for the next expect.
---@param pattern string a Lua pattern
---@param options? { timeout: number, plain: boolean } timeout: seconds of silence, 10 by default; plain: no pattern
---@return string? bytes all that was read, up to and with the match
---@return string? message with the last of what came
---@return string? code "ETIMEDOUT", "EPIPE" (it ended)
function Process:expect(pattern, options)
  options = options or {}
  return async.within(function()
    local seen = self.pending or ""
    while true do
      local _, last = seen:find(pattern, 1, options.plain)
      if last then
        self.pending = seen:sub(last + 1)
        return seen:sub(1, last)
      end
      local bytes, message, code = self:read(options.timeout or 10)
      if not bytes then
        self.pending = seen
        return nil, ("%s before %q came; last was %q"):format(message, pattern, seen:sub(-200)), code
      end
      seen = seen .. bytes
    end
  end)
end

-- The output so far or to come, as an open stream: live from init, or what a stop wrote down.
local function open_logs(self, options)
  local ours, theirs, code = stream.pair()
  if not ours then
    return nil, theirs, code
  end
  local described, extra
  described, extra, code = call(self, "logs", { since = options.since, follow = options.follow }, { theirs })
  theirs:close()
  if not described then
    ours:close()
    return nil, extra, code
  end
  if described.saved then
    ours:close()
    local since = options.since or 0
    return stream.open(extra[1], since < 0 and (described.output or 0) + since or since)
  end
  local follow = options.follow and true or false
  ours:survive(process.renewal(self.box, described.key, { follow = follow }, from_start(options.since or 0, described)))
  return ours
end

--- Its output, so far or to its end, also after a stop of the sandbox.
---@param options? { since: integer, follow: boolean } since: skip so many bytes, negative: from so many before the end
---@param on_output? fun(stream: "stdout"|"stderr", bytes: string, offset: integer) else it is gathered in `text`
---@return { text: string, lost: integer }? lost: bytes that were dropped before anybody read them
---@return string? message
---@return string? code "ENOPROCESS"
function Process:logs(options, on_output)
  options = options or {}
  return async.within(function()
    local source, message, code = open_logs(self, options)
    if not source then
      return nil, message, code
    end
    local lost, text = 0, {}
    local last
    last, message, code = source:pump(on_output and function(number, bytes, offset)
      on_output(number == 2 and "stderr" or "stdout", bytes, offset)
    end or function(_, bytes)
      text[#text + 1] = bytes
    end, function(count)
      lost = lost + count
    end)
    source:close()
    if not last and code ~= "EPIPE" then
      return nil, message, code
    end
    return { lost = lost, text = table.concat(text) }
  end)
end

-- Lines out of pieces: feed(bytes) gives each that is complete to `on_line`, rest() what has no newline.
local function splitter(on_line)
  local parts = {} -- of a line that goes on; joined once, since it may come in many pieces
  local function feed(bytes)
    local at = 1
    while true do
      local newline = bytes:find("\n", at, true)
      if not newline then
        break
      end
      parts[#parts + 1] = bytes:sub(at, newline - 1)
      on_line(table.concat(parts))
      parts, at = {}, newline + 1
    end
    if at <= #bytes then
      parts[#parts + 1] = bytes:sub(at)
    end
  end
  local function rest()
    local line = table.concat(parts)
    parts = {}
    return line ~= "" and line or nil
  end
  return feed, rest
end

--- Iterates over lines of output, without their newline. Raises when there is no such process.
---@param options? { since: integer, follow: boolean } as of logs
---@return fun(): string?
function Process:lines(options)
  options = options or {}
  local source, ended, queue, first = nil, false, {}, 1
  local feed, rest = splitter(function(line)
    queue[#queue + 1] = line
  end)

  local function fill()
    if not source then
      local message, code
      source, message, code = open_logs(self, options)
      if not source then
        error(("%s (%s)"):format(message, code), 0)
      end
    end
    queue, first = {}, 1
    local frame = source:read()
    if frame and frame.type == "data" then
      feed(frame.bytes)
    elseif not frame or frame.type == "exit" or frame.type == "end" then
      ended = true
      source:close()
      queue[1] = rest()
    end
  end

  return function()
    return async.within(function()
      while not queue[first] and not ended do
        fill()
      end
      first = first + 1
      return queue[first - 1]
    end)
  end
end

--- Waits until a line of its output matches.
---@param pattern string a Lua pattern
---@param options? { timeout: number, since: integer, plain: boolean } timeout: seconds, 30 by default; plain: no pattern
---@return string? line
---@return string? message
---@return string? code "ETIMEDOUT", "ESRCH" (it ended first), "ENOPROCESS"
function Process:wait_log(pattern, options)
  options = options or {}
  return async.within(function()
    local source, message, code = open_logs(self, { since = options.since, follow = true })
    if not source then
      return nil, message, code
    end
    local cancel = async.after(options.timeout or 30, function()
      code = "ETIMEDOUT"
      source:close()
    end)
    local found
    local function scan(line)
      found = found or (line:find(pattern, 1, options.plain) and line or nil)
    end
    local feed, rest = splitter(scan)
    while not found do
      local frame = source:read()
      if not frame or frame.type == "exit" or frame.type == "end" then
        scan(rest() or "")
        break
      elseif frame.type == "data" then
        feed(frame.bytes)
      end
    end
    cancel()
    source:close()
    if found then
      return found
    end
    if code == "ETIMEDOUT" then
      return nil, ("%q did not appear within %g s"):format(pattern, options.timeout or 30), code
    end
    return nil, ("process ended before %q appeared"):format(pattern), "ESRCH"
  end)
end

return process

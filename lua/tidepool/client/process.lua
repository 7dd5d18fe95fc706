--- A process in a sandbox, as a client holds it: (sandbox, id or name) and an offset of its output.
local async = require("tidepool.async")
local stream = require("tidepool.client.stream")

local process = {}

local Process = {}
Process.__index = Process

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

--- Waits for the end: exit_code or signal, wall_seconds, cpu_seconds | nil, message, "ETIMEDOUT" ...
function Process:wait(timeout)
  return call(self, "wait", { timeout = timeout })
end

--- What is known of it now, as `ps` tells it | nil, message, "ENOPROCESS".
function Process:info()
  return async.within(function()
    local list, message, code = self.box:ps()
    for _, entry in ipairs(list or {}) do
      if entry.id == self.id or (self.name and entry.name == self.name) then
        return entry
      end
    end
    return nil, message or ("no such process in %s: %s"):format(self.box.name, which(self)), code or "ENOPROCESS"
  end)
end

--- Ends the whole tree: TERM, `grace` seconds (5), KILL.
function Process:kill(grace)
  return call(self, "kill", { grace = grace })
end

--- Sends a signal, by name or number, to the process itself.
function Process:signal(signal)
  return call(self, "signal", { signal = tostring(signal) })
end

function Process:forget()
  return call(self, "forget")
end

--- Waits until something listens on the port, or the process ends.
function Process:wait_port(port, options)
  return self.box:wait_port(port, { timeout = options and options.timeout, process = which(self) })
end

--- A stream of its output from `offset` on (bytes; negative: before the end), and for its input.
-- options: offset (0), input, lossless, follow (true).
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
    return ours, described
  end)
end

--- Keeps a connection for write, read, resize. A second call replaces the first.
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
Process.write = on_connection("write")
--- Ends its stdin.
Process.eof = on_connection("eof")
--- Tells its terminal the size, in characters.
Process.resize = on_connection("resize")

--- The next output: bytes, stream name | nil, message, "EPIPE" at its end or "ETIMEDOUT".
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

--- Reads until `pattern` (a Lua pattern, or plain text with options.plain) has come.
-- Returns all that was read up to and with the match | nil, message, code. options: timeout (10 s).
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
    return stream.open(extra[1])
  end
  return ours
end

--- Shows output to on_output(stream, bytes, offset), to its end. options: since (0), follow.
-- Returns { lost = bytes that were dropped, exit_code, signal } | nil, message, code.
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

--- Iterates over lines of output, without their newline. options: since (0), follow.
function Process:lines(options)
  options = options or {}
  local source, buffer, ended, queue = nil, "", false, {}

  local function fill()
    if not source then
      local message, code
      source, message, code = open_logs(self, options)
      if not source then
        error(("%s (%s)"):format(message, code), 0)
      end
    end
    local frame = source:read()
    if frame and frame.type == "data" then
      buffer = buffer .. frame.bytes
      buffer = buffer:gsub("([^\n]*)\n", function(line)
        queue[#queue + 1] = line
        return ""
      end)
    elseif not frame or frame.type == "exit" or frame.type == "end" then
      ended = true
      source:close()
      if buffer ~= "" then
        queue[#queue + 1] = buffer
        buffer = ""
      end
    end
  end

  return function()
    return async.within(function()
      while #queue == 0 and not ended do
        fill()
      end
      return table.remove(queue, 1)
    end)
  end
end

--- Waits until a line of its output matches the Lua pattern: the line | nil, message, code.
-- options: timeout (30 s), since (0), plain.
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
    local found, buffer = nil, ""
    local function scan(line)
      found = found or (line:find(pattern, 1, options.plain) and line or nil)
    end
    while not found do
      local frame = source:read()
      if not frame or frame.type == "exit" or frame.type == "end" then
        scan(buffer)
        break
      elseif frame.type == "data" then
        buffer = (buffer .. frame.bytes):gsub("([^\n]*)\n", function(line)
          scan(line)
          return ""
        end)
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

--- A client's end of an attach socket: output in, input out, straight from and to init.
--
-- Before its memory is written to disk a sandbox closes these sockets. A stream that was told how attaches
-- again by itself, from where it was, as soon as somebody has woken the sandbox; input wakes it. What was
-- written is there once: the bytes that the socket took before it was closed, and the others after.
local async = require("tidepool.async")
local core = require("tidepool.core")

local stream = {}

local PIECE = 256 * 1024 -- bytes; more than a socket takes at once

---@class tidepool.Frame
---@field type "data"|"lost"|"exit"|"end"|"stdin_closed"
---@field stream? 1|2 stdout (and a terminal's) or stderr, of data
---@field bytes? string of data
---@field offset? integer of the output, bytes, all streams together
---@field count? integer bytes that are lost
---@field kind? "code"|"signal" of an exit
---@field code? integer exit code or signal
---@field wall? number seconds

---@class tidepool.StreamRenewal How a stream attaches again.
---@field at integer where the next output begins, bytes
---@field attach fun(socket: tidepool.Fd, offset: integer): any, string?, string? waits until the sandbox is awake
---@field wake fun(): any, string?, string?

---@class tidepool.Stream
local Stream = {}
Stream.__index = Stream

--- Makes the pair: our end as a Stream, the other to be passed to the server.
---@return tidepool.Stream?
---@return tidepool.Fd|string theirs_or_message
---@return string? code "EMFILE", "ENFILE"
function stream.pair()
  local ours, theirs, code = core.fd.pair()
  if not ours then
    return nil, theirs, code
  end
  return stream.open(ours), theirs
end

--- Takes a descriptor over: a socket, or a file of saved frames, which is always ready. `since`: the
--- offset that a reader of saved frames wants to begin at; of a socket's, init was told.
---@param fd tidepool.Fd
---@param since? integer bytes of output
---@return tidepool.Stream
function stream.open(fd, since)
  local saved = core.fd.kind(fd) == "file"
  local raw = core.stream.open(fd)
  return setmetatable({
    raw = raw,
    since = since or 0,
    poller = not saved and assert(async.poller(raw:number())) or nil,
    writers = async.lock(),
  }, Stream)
end

--- From now on it attaches again, rather than end, when its sandbox has slept.
---@param renewal tidepool.StreamRenewal
function Stream:survive(renewal)
  self.renewal = renewal
end

local PARTS = { "poller", "write_poller", "write_fd", "raw" }

-- The socket that it has from now on, or none. Those who wait for the former find out.
local function replace_socket(self, raw, poller)
  local former = {}
  for i, part in ipairs(PARTS) do
    former[i] = self[part] or false
    self[part] = nil
  end
  self.raw, self.poller = raw, poller
  for _, handle in ipairs(former) do
    if handle then
      handle:close()
    end
  end
end

-- Takes the place of the socket that was closed: true | nil, message, code
local function attach_again(self)
  local ours, theirs, code = core.fd.pair()
  if not ours then
    return nil, theirs, code
  end
  local ok, message
  ok, message, code = self.renewal.attach(theirs, self.renewal.at)
  theirs:close()
  if not ok or not self.raw then
    ours:close()
    return nil, message or "stream is closed", code or "ECANCELED"
  end
  local fresh = core.stream.open(ours)
  ok, message, code = fresh:resume(self.raw)
  if not ok then
    fresh:close()
    return nil, message, code
  end
  replace_socket(self, fresh, assert(async.poller(fresh:number())))
  if self.size then
    fresh:resize(self.size[1], self.size[2])
  end
  return true
end

-- The same, for reader and writer at once. What can't be attached again has ended.
local function renew(self, timeout)
  local renewed = self.renewed
  if not renewed then
    renewed = async.event()
    self.renewed = renewed
    async.spawn(function()
      local ok, message, code = attach_again(self)
      self.renewed = nil
      if not ok then
        self.renewal = nil
      end
      renewed:set(ok, message, code)
    end)
  end
  return renewed:wait(timeout)
end

-- Whether to send again after such a failure: not before the sandbox is awake.
local function may_resend(self, code)
  if not self.renewal or self.stdin_closed or code ~= "EPIPE" and code ~= "ECONNRESET" then
    return false
  end
  local broken = self.raw
  local ok, message, why = self.renewal.wake()
  if not ok then
    return nil, message, why
  end
  return self.raw and (self.raw ~= broken or self.renewal and renew(self))
end

-- Where to go on after this frame; after the last there is nothing more.
local function note(self, frame)
  if not self.renewal then
    return
  elseif frame.type == "exit" or frame.type == "end" then
    self.renewal = nil
  elseif frame.offset then
    self.renewal.at = frame.offset + (frame.count or #frame.bytes)
  end
end

-- The frame without what lies before `since`, or nil when nothing is left of it.
local function cut(frame, since)
  local before = frame.offset and since - frame.offset or 0
  if before <= 0 or frame.type ~= "data" and frame.type ~= "lost" then
    return frame
  end
  local size = frame.count or #frame.bytes
  if before >= size then
    return nil
  elseif frame.bytes then
    frame.bytes = frame.bytes:sub(before + 1)
  else
    frame.count = size - before
  end
  frame.offset = since
  return frame
end

-- core.stream's several values as a table.
local function frame_of(kind, ...)
  if kind == "data" then
    local number, offset, bytes = ...
    return { type = kind, stream = number, offset = offset, bytes = bytes }
  elseif kind == "lost" then
    local offset, count = ...
    return { type = kind, offset = offset, count = count }
  elseif kind == "exit" then
    local how, code, wall, offset = ...
    return { type = kind, kind = how, code = code, wall = wall, offset = offset }
  elseif kind then
    return { type = kind }
  end
  return nil, ...
end

--- The next frame, waiting for it.
---@param timeout? number seconds
---@return tidepool.Frame?
---@return string? message
---@return string? code "EPIPE" at the end, "ETIMEDOUT", "ECANCELED" (closed here), "EBADMSG"
function Stream:read(timeout)
  while self.raw do
    local raw = self.raw
    local frame, message, code = frame_of(raw:read())
    local wanted = frame and cut(frame, self.since)
    if wanted then
      note(self, frame)
      return wanted
    elseif not frame then
      local ready
      if code == "EAGAIN" and self.poller then
        ready, message, code = self.poller:readable(timeout)
      elseif code == "EPIPE" and self.renewal then
        ready = renew(self, timeout)
        if not ready and self.renewed then
          message, code = "timeout", "ETIMEDOUT"
        end
      else
        return nil, message, code == "EAGAIN" and "EPIPE" or code
      end
      if not ready and self.raw == raw then -- else it was attached again while we waited
        return nil, message, code
      end
    end
  end
  return nil, "stream is closed", "ECANCELED"
end

--- Reads to the end.
---@param on_data fun(stream: 1|2, bytes: string, offset: integer)
---@param on_lost? fun(count: integer, offset: integer)
---@return tidepool.Frame? last of type "exit" or "end"
---@return string? message
---@return string? code as of read
function Stream:pump(on_data, on_lost)
  while true do
    local frame, message, code = self:read()
    if not frame then
      return nil, message, code
    elseif frame.type == "data" then
      on_data(frame.stream, frame.bytes, frame.offset)
    elseif frame.type == "lost" then
      if on_lost then
        on_lost(frame.count, frame.offset)
      end
    elseif frame.type == "exit" or frame.type == "end" then
      return frame
    elseif frame.type == "stdin_closed" then
      self.stdin_closed = true
    end
  end
end

-- Input has a poll handle of its own, on a duplicate: libuv allows one a descriptor.
local function wait_writable(self)
  if not self.write_poller then
    self.write_fd = assert(core.fd.duplicate(self.raw:number()))
    self.write_poller = assert(async.poller(self.write_fd:number()))
  end
  local raw = self.raw
  local ready, message, code = self.write_poller:writable()
  return ready or self.raw ~= nil and self.raw ~= raw, message, code
end

-- Waits until the socket has all that was given to it, and returns what `offer`, which gives it, answered.
-- `later`: it is told again when it is attached again, so that it need not wake anything.
local function send(self, offer, later)
  local accepted
  while self.raw do
    local raw, message, code, empty = self.raw, nil, nil, nil
    if not accepted then
      accepted, message, code = offer(raw)
    end
    if accepted or code == "EAGAIN" then
      empty, message, code = raw:flush()
    end
    if empty and accepted then
      return accepted
    elseif empty ~= nil then
      -- Also when nothing of ours waits but the frame was not taken: the socket is full of older bytes.
      local ready
      ready, message, code = wait_writable(self)
      if not ready then
        return nil, message, code
      end
    elseif later and self.renewal then
      return true
    else
      local again, why, why_code = may_resend(self, code)
      if not again then
        return nil, why or message, why_code or code
      end
    end
  end
  return nil, "stream is closed", "ECANCELED"
end

--- Writes to the process's stdin or terminal, waiting while it doesn't read.
---@param bytes string
---@return true?
---@return string? message
---@return string? code "EPIPE": nothing reads it any more
function Stream:write(bytes)
  return self.writers:with(function()
    local offset = 0
    while offset < #bytes do
      if not self.raw or self.stdin_closed then
        return nil, "nothing reads the process's input", "EPIPE"
      end
      -- In pieces: what is left of a large string would be copied again for each bufferful.
      local piece = #bytes <= PIECE and offset == 0 and bytes or bytes:sub(offset + 1, offset + PIECE)
      local taken, message, code = send(self, function(raw)
        return raw:write(piece)
      end)
      if not taken then
        return nil, message, code
      end
      offset = offset + taken
    end
    return true
  end)
end

--- Ends the process's input.
---@return true?
---@return string? message
---@return string? code "EPIPE", "ECANCELED"
function Stream:eof()
  return self.writers:with(function()
    return send(self, function(raw)
      return raw:eof()
    end)
  end)
end

--- Tells the terminal its size.
---@param cols integer characters
---@param rows integer characters
---@return true?
---@return string? message
---@return string? code "EPIPE", "ECANCELED"
function Stream:resize(cols, rows)
  self.size = { cols, rows }
  return self.writers:with(function()
    return send(self, function(raw)
      return raw:resize(cols, rows)
    end, true)
  end)
end

function Stream:close()
  replace_socket(self)
  if self.renewed then
    self.renewed:set(nil, "stream is closed", "ECANCELED")
  end
end

return stream

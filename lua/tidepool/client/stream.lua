--- A client's end of an attach socket: output in, input out, straight from and to init.
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
    local frame, message, code = frame_of(self.raw:read())
    local wanted = frame and cut(frame, self.since)
    if wanted then
      return wanted
    elseif not frame then
      if code ~= "EAGAIN" or not self.poller then
        return nil, message, code == "EAGAIN" and "EPIPE" or code
      end
      local ready
      ready, message, code = self.poller:readable(timeout)
      if not ready then
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
  return self.write_poller:writable()
end

--- Writes to the process's stdin or terminal, waiting while it doesn't read.
---@param bytes string
---@return true?
---@return string? message
---@return string? code "EPIPE": nothing reads it any more
---@return integer? taken of a connection that broke: how many bytes it had taken
function Stream:write(bytes)
  return self.writers:with(function()
    local offset = 0
    while offset < #bytes do
      if not self.raw or self.stdin_closed then
        return nil, "nothing reads the process's input", "EPIPE"
      end
      -- In pieces: what is left of a large string would be copied again for each bufferful.
      local piece = #bytes <= PIECE and offset == 0 and bytes or bytes:sub(offset + 1, offset + PIECE)
      local taken, message, code = self.raw:write(piece)
      if taken then
        offset = offset + taken
      elseif code == "EAGAIN" then
        local ready
        ready, message, code = wait_writable(self)
        if not ready then
          return nil, message, code
        end
      else
        return nil, message, code, offset
      end
    end
    return true
  end)
end

-- Sends a small frame, waiting until the socket has taken it and all before it.
local function send(self, method, ...)
  local accepted, message, code
  while self.raw do
    if not accepted then
      accepted, message, code = self.raw[method](self.raw, ...)
      if not accepted and code ~= "EAGAIN" then
        return nil, message, code
      end
    end
    local empty
    empty, message, code = self.raw:flush()
    if empty and accepted then
      return true
    elseif empty == nil then
      return nil, message, code
    end
    -- Also when nothing of ours waits but the frame was not taken: the socket is full of older bytes.
    if not wait_writable(self) then
      break
    end
  end
  return nil, "stream is closed", "ECANCELED"
end

--- Ends the process's input.
---@return true?
---@return string? message
---@return string? code "EPIPE", "ECANCELED"
function Stream:eof()
  return self.writers:with(function()
    return send(self, "eof")
  end)
end

--- Tells the terminal its size.
---@param cols integer characters
---@param rows integer characters
---@return true?
---@return string? message
---@return string? code "EPIPE", "ECANCELED"
function Stream:resize(cols, rows)
  return self.writers:with(function()
    return send(self, "resize", cols, rows)
  end)
end

function Stream:close()
  if self.poller then
    self.poller:close()
  end
  if self.write_poller then
    self.write_poller:close()
    self.write_fd:close()
  end
  if self.raw then
    self.raw:close()
  end
  self.raw, self.poller, self.write_poller = nil, nil, nil
end

return stream

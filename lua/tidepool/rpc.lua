--- msgpack-rpc over a channel: requests, responses and notifications, with descriptors beside them.
--
--   request       [0, id, method, params]
--   response      [1, id, error or nil, result]      error: { message, code }
--   notification  [2, method, params]
--
-- Both ends use it. The bytes of a peer are decoded under pcall: what isn't a message ends the
-- connection, never the process. A request runs in a task of its own.
local mpack = require("mpack")
local uv = require("luv")
local async = require("tidepool.async")

local rpc = {}

local Connection = {}
Connection.__index = Connection

local REQUEST, RESPONSE, NOTIFICATION = 0, 1, 2
local NIL = mpack.NIL

local function plain(value)
  if value == NIL then
    return nil
  end
  return value
end

local function close_all(fds)
  for _, fd in ipairs(fds or {}) do
    fd:close()
  end
end
rpc.close_all = close_all

--- Writes what waits in the channel's queue, in a task of its own, while there is any.
local function drain(self)
  if self.draining then
    return
  end
  self.draining = true
  async.spawn(function()
    -- A poll handle of its own: libuv allows one a descriptor, so reads pause for a moment.
    while not self.closed do
      local empty, message, code = self.channel:flush()
      if empty == nil then
        self.draining = false
        return self:close(message, code)
      end
      if empty then
        break
      end
      self.poller:both()
    end
    self.draining = false
  end)
end

local function send(self, message, fds)
  if self.closed then
    return nil, self.closed_message, self.closed_code
  end
  local ok, bytes = pcall(mpack.pack, message)
  if not ok then
    return nil, "can't encode message: " .. tostring(bytes), "EINVAL"
  end
  local sent, err, code = self.channel:send(bytes, fds)
  if sent == nil then
    if code ~= "EMSGSIZE" then
      self:close(err, code)
    end
    return nil, err, code
  end
  if not sent then
    drain(self)
  end
  return true
end

local function answer(self, id, result, message, code, fds)
  local ok, err, err_code
  if result == nil and message ~= nil then
    ok, err, err_code = send(self, { RESPONSE, id, { tostring(message), code or "EIO" }, NIL })
  else
    ok, err, err_code = send(self, { RESPONSE, id, NIL, result == nil and NIL or result }, fds)
  end
  if not ok and err_code == "EMSGSIZE" then
    send(self, { RESPONSE, id, { "the answer is too large: " .. err, err_code }, NIL })
  end
  close_all(fds)
end

local function handle_request(self, id, method, params, fds)
  async.spawn(function()
    local ok, result, message, code, out = xpcall(function()
      return self.on_request(self, method, params, fds or {}, id)
    end, debug.traceback)
    close_all(fds) -- what the handler kept it took
    if not ok then
      async.on_error(result)
      return answer(self, id, nil, "internal error in " .. tostring(method), "EINTERNAL")
    end
    answer(self, id, result, message, code, out)
  end)
end

local function dispatch(self, message, fds)
  local kind = message[1]
  if kind == REQUEST and type(message[2]) == "number" and type(message[3]) == "string" then
    if not self.on_request then
      close_all(fds)
      return nil, "unexpected request"
    end
    handle_request(self, message[2], message[3], plain(message[4]), fds)
  elseif kind == RESPONSE and self.pending[message[2]] then
    local wake = self.pending[message[2]]
    self.pending[message[2]] = nil
    local failure = plain(message[3])
    if type(failure) == "table" then
      close_all(fds)
      wake(nil, tostring(failure[1]), tostring(failure[2]))
    else
      wake(plain(message[4]), fds)
    end
  elseif kind == NOTIFICATION and type(message[2]) == "string" then
    if self.on_notify then
      self.on_notify(message[2], plain(message[3]), fds)
    else
      close_all(fds)
    end
  else
    close_all(fds)
    return nil, "message of an unknown kind"
  end
  return true
end

local function read_all(self)
  while not self.closed do
    local bytes, fds, code = self.channel:receive()
    if bytes then
      local ok, message = pcall(mpack.unpack, bytes)
      if not ok or type(message) ~= "table" then
        close_all(fds)
        return self:close("not a msgpack message", "EBADMSG")
      end
      local dispatched, complaint = dispatch(self, message, fds)
      if not dispatched then
        return self:close(complaint, "EBADMSG")
      end
    elseif code == "EAGAIN" then
      return
    else
      return self:close(fds, code)
    end
  end
end

--- Takes a channel over and serves it from now on.
-- options.on_request(connection, method, params, fds, id) -> result, message, code, fds
-- options.on_notify(method, params, fds); options.on_close(message, code).
function rpc.connection(channel, options)
  local self = setmetatable({
    channel = channel,
    pending = {},
    next_id = 1,
    on_request = options and options.on_request,
    on_notify = options and options.on_notify,
    on_close = options and options.on_close,
  }, Connection)
  local handle = assert(uv.new_poll(channel:number()))
  local waiting -- a drain that waits for room
  local on_ready
  on_ready = async.guarded(function(err, events)
    if waiting and (err or (events and events:find("w", 1, true))) then
      local wake = waiting
      waiting = nil
      handle:start("r", on_ready)
      wake()
    end
    if not self.closed and (err or events == nil or events:find("r", 1, true) or events:find("d", 1, true)) then
      read_all(self)
    end
  end)
  self.poller = {
    both = function()
      async.wait(function(wake)
        waiting = wake
        handle:start("rw", on_ready)
      end)
    end,
    close = function()
      if not handle:is_closing() then
        handle:close()
      end
      if waiting then
        local wake = waiting
        waiting = nil
        wake()
      end
    end,
  }
  handle:start("r", on_ready)
  return self
end

--- Sends a request and waits for its answer: result, fds | nil, message, code.
-- A connection that is lost meanwhile answers "EPIPE". `on_id(id)` is told the request's number.
function Connection:call(method, params, fds, on_id)
  local id = self.next_id
  self.next_id = id % 0x7fffffff + 1
  if on_id then
    on_id(id)
  end
  return async.wait(function(wake)
    self.pending[id] = wake
    local ok, message, code = send(self, { REQUEST, id, method, params == nil and NIL or params }, fds)
    if not ok and self.pending[id] then
      self.pending[id] = nil
      wake(nil, message, code)
    end
  end)
end

function Connection:notify(method, params)
  return send(self, { NOTIFICATION, method, params == nil and NIL or params })
end

--- Ends the connection; every pending call fails with the reason.
function Connection:close(message, code)
  if self.closed then
    return
  end
  self.closed = true
  self.closed_message = message or "connection closed"
  self.closed_code = code or "EPIPE"
  self.poller.close()
  self.channel:close()
  local pending = self.pending
  self.pending = {}
  for _, wake in pairs(pending) do
    wake(nil, self.closed_message, self.closed_code)
  end
  if self.on_close then
    self.on_close(self.closed_message, self.closed_code)
  end
end

return rpc

--- msgpack-rpc over a channel: requests, responses and notifications, with descriptors beside them.
--
--   request       [0, id, method, params]
--   response      [1, id, error or nil, result]      error: { message, code }
--   notification  [2, method, params]
--
-- Both ends use it. The bytes of a peer are decoded under pcall: what isn't a message ends the
-- connection, never the process. A request runs in a task of its own.
local mpack = require("mpack")
local async = require("tidepool.async")
local msgpack = require("tidepool.msgpack")
local transport = require("tidepool.transport")

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

local function wrapped(value)
  if value == nil then
    return NIL
  end
  return value
end

local function send(self, message, fds)
  local ok, bytes = pcall(mpack.pack, message)
  if not ok then
    return nil, "can't encode message: " .. tostring(bytes), "EINVAL"
  end
  return self.transport:send(bytes, fds)
end

local function answer(self, id, result, message, code, fds)
  local response
  if result == nil and message ~= nil then
    response = { RESPONSE, id, { tostring(message), code or "EIO" }, NIL }
  else
    response = { RESPONSE, id, NIL, wrapped(result) }
  end
  local ok, err, err_code = send(self, response, fds)
  if not ok and err_code == "EMSGSIZE" then
    send(self, { RESPONSE, id, { "the answer is too large: " .. err, err_code }, NIL })
  end
  transport.close_all(fds)
end

local function handle_request(self, id, method, params, fds)
  async.spawn(function()
    local ok, result, message, code, out = xpcall(function()
      return self.on_request(self, method, params, fds, id)
    end, debug.traceback)
    transport.close_all(fds) -- a handler that keeps one has taken it
    if not ok then
      async.on_error(result)
      return answer(self, id, nil, "internal error in " .. method .. "; the server's log has it", "EINTERNAL")
    end
    answer(self, id, result, message, code, out)
  end)
end

local function handle_response(self, message, fds)
  local wake = self.pending[message[2]]
  self.pending[message[2]] = nil
  local failure = plain(message[3])
  if type(failure) == "table" then
    transport.close_all(fds)
    wake(nil, tostring(failure[1]), tostring(failure[2]))
  else
    wake(plain(message[4]), fds)
  end
end

local function dispatch(self, bytes, fds)
  local ok, message = msgpack.decode(bytes)
  if not ok or type(message) ~= "table" then
    transport.close_all(fds)
    return nil, "not a msgpack message"
  end
  local kind, second = message[1], message[2]
  if kind == REQUEST and type(second) == "number" and type(message[3]) == "string" and self.on_request then
    handle_request(self, second, message[3], plain(message[4]), fds)
  elseif kind == RESPONSE and second ~= nil and self.pending[second] then
    handle_response(self, message, fds)
  elseif kind == NOTIFICATION and type(second) == "string" then
    transport.close_all(fds)
    if self.on_notify then
      self.on_notify(second, plain(message[3]))
    end
  else
    transport.close_all(fds)
    return nil, "not a msgpack-rpc message"
  end
  return true
end

--- Takes a channel over and serves it from now on.
-- options.on_request(connection, method, params, fds, id) -> result, message, code, fds
-- options.on_notify(method, params); options.on_close(message, code).
function rpc.connection(channel, options)
  options = options or {}
  local self = setmetatable({
    pending = {},
    next_id = 1,
    on_request = options.on_request,
    on_notify = options.on_notify,
  }, Connection)
  self.transport = transport.open(channel, {
    on_message = function(bytes, fds)
      return dispatch(self, bytes, fds)
    end,
    on_close = function(message, code)
      local pending = self.pending
      self.pending = {}
      for _, wake in pairs(pending) do
        wake(nil, message, code)
      end
      if options.on_close then
        options.on_close(message, code)
      end
    end,
  })
  return self
end

--- Sends a request and waits for its answer: result, fds | nil, message, code.
-- A connection that is lost meanwhile answers its reason ("EPIPE", "ECONNRESET").
-- `on_id(id)` is told the request's number before it is sent.
function Connection:call(method, params, fds, on_id)
  local id = self.next_id
  self.next_id = id % 0x7fffffff + 1
  if on_id then
    on_id(id)
  end
  return async.wait(function(wake)
    self.pending[id] = wake
    local ok, message, code = send(self, { REQUEST, id, method, wrapped(params) }, fds)
    if not ok and self.pending[id] then
      self.pending[id] = nil
      wake(nil, message, code)
    end
  end)
end

function Connection:notify(method, params)
  return send(self, { NOTIFICATION, method, wrapped(params) })
end

function Connection:is_closed()
  return self.transport.closed
end

--- Ends the connection; every pending call fails with the reason.
function Connection:close(message, code)
  self.transport:close(message, code)
end

return rpc

--- Connections, for tasks: each operation of proxy.flow as a method that waits for its end.
--
-- One loop a process, in the egress process. The C flow does the work; here each token finds the task
-- that waits for it. An operation that ended at once doesn't wait at all. A connection is read by one
-- task and written by one at a time; what two tasks may do at once is read the one way and write the
-- other. Failures are nil, message, code ("EOF": closed where that is in order).
local async = require("tidepool.async")
local proxy = require("tidepool.proxy")

local flow = {}

local Loop = {}
Loop.__index = Loop

local Conn = {}
Conn.__index = Conn

local function deliver(self)
  local waiting = self.waiting
  for _, ended in ipairs(self.flow:run()) do
    local token = ended[1]
    local wake = waiting[token]
    waiting[token] = nil
    if wake then
      wake(unpack(ended, 2, ended.n))
    elseif self.handles[token] then
      local started = self.handles[token]
      self.handles[token] = nil
      started.ended:set(unpack(ended, 2, ended.n))
    end
    if self.closed then
      return
    end
  end
end

--- Opens the loop: loop | nil, message, code
function flow.open()
  local opened, message, code = proxy.flow.new()
  if not opened then
    return nil, message, code
  end
  local self = setmetatable({ flow = opened, waiting = {}, handles = {} }, Loop)
  self.watch, message, code = async.watch(opened:number(), "r", function()
    deliver(self)
  end)
  if not self.watch then
    opened:close()
    return nil, message, code
  end
  self.watch:start()
  return self
end

-- Its first two arguments stay on the task's stack while the rest is waited for: a connection that nobody
-- else holds must not be collected, and thereby closed, under its own operation.
local function keep(_, _, ...)
  return ...
end

-- What C returned when it began an operation of these connections: a token, or 0 and the results.
local function finish(self, one, other, token, ...)
  if token == 0 then
    return ...
  end
  return keep(one, other, async.wait(function(wake)
    self.waiting[token] = wake
  end))
end

local function wrap(self, conn)
  return setmetatable({ loop = self, conn = conn }, Conn)
end

--- Takes a connected socket over: conn | nil, message, code
function Loop:adopt(fd)
  local conn, message, code = self.flow:adopt(fd)
  if not conn then
    return nil, message, code
  end
  return wrap(self, conn)
end

--- Connects to an IP address within `timeout` seconds: conn | nil, message, code
function Loop:connect(address, port, timeout)
  local function done(conn, token, ...)
    if not conn then
      return nil, token, ...
    end
    local ok, message, code = finish(self, conn, nil, token, ...)
    if not ok then
      conn:reset()
      return nil, message, code
    end
    return wrap(self, conn)
  end
  return done(self.flow:connect(address, port, timeout))
end

--- Moves the body that `from`'s last head announced into `to`. options: framing "length" | "chunked" |
-- "none" | "eof"; scrub; tail, how many of the last bytes to return. `timeout`: seconds without progress.
-- Returns bytes, trailers or nil, tail or nil, masked secret's id or nil |
-- nil, message, code, "read" | "write", bytes, secret's id.
function Loop:pump(from, to, options, timeout)
  return finish(self, from, to, self.flow:pump(from.conn, to.conn, options, timeout))
end

--- Everything both ways until both have ended: bytes of a, bytes of b |
-- nil, message, code, bytes of a, bytes of b. options.scrub looks at what b sends.
function Loop:relay(a, b, idle_timeout, options)
  return finish(self, a, b, self.flow:relay(a.conn, b.conn, idle_timeout, options))
end

local Handle = {}
Handle.__index = Handle

-- An operation that somebody waits for later, or ends.
local function handle(self, one, other, token, ...)
  local started = setmetatable({ loop = self, one = one, other = other, token = token, ended = async.event() }, Handle)
  if token == 0 then
    started.ended:set(...)
  else
    self.handles[token] = started
  end
  return started
end

--- What the operation ended with; any number of tasks may wait.
function Handle:wait()
  return self.ended:wait()
end

function Handle:has_ended()
  return self.ended:is_set()
end

--- Ends it, with ECANCELED for who waits. False when it had ended already: Handle:wait() tells how.
function Handle:cancel()
  if self.token == 0 or self.ended:is_set() or self.loop.closed then
    return false
  end
  return self.loop.flow:cancel(self.token)
end

--- What it ended with, ending it after `grace` seconds if need be.
function Handle:finish(grace)
  if not self.ended:is_set() and grace > 0 then
    self.ended:wait(grace)
  end
  self:cancel()
  return self.ended:wait()
end

--- As Loop:pump, but returns at once, with a handle to :wait() for or to :cancel().
function Loop:start_pump(from, to, options, timeout)
  return handle(self, from, to, self.flow:pump(from.conn, to.conn, options, timeout))
end

--- As Loop:relay, but returns at once, with a handle.
function Loop:start_relay(a, b, idle_timeout, options)
  return handle(self, a, b, self.flow:relay(a.conn, b.conn, idle_timeout, options))
end

--- Closes every connection at once. Who waits is told ECANCELED.
function Loop:close()
  if self.closed then
    return
  end
  self.closed = true
  self.watch:close()
  self.flow:close()
  local waiting, handles = self.waiting, self.handles
  self.waiting, self.handles = {}, {}
  for _, wake in pairs(waiting) do
    wake(nil, "flow closed", "ECANCELED")
  end
  for _, started in pairs(handles) do
    started.ended:set(nil, "flow closed", "ECANCELED")
  end
end

--- What the peer speaks, its bytes stay unread: "tls", hello | "http", first line | "h2", bytes |
-- "other", bytes | "silent" (nothing within `timeout`) | nil, message, "EOF" ...
function Conn:peek(timeout)
  return finish(self.loop, self, nil, self.conn:peek(timeout))
end

--- The server's side of a TLS handshake: true | nil, message, code
function Conn:accept_tls(identity, timeout)
  return finish(self.loop, self, nil, self.conn:accept_tls(identity, timeout))
end

--- The client's side, the peer's certificate checked for `host`: true | nil, message, code
function Conn:connect_tls(trust, host, timeout)
  return finish(self.loop, self, nil, self.conn:connect_tls(trust, host, timeout))
end

--- The next head: a table | nil, message, code. side "request" | "response", which needs the method of
-- the request that it answers.
function Conn:read_head(side, timeout, method)
  return finish(self.loop, self, nil, self.conn:read_head(side, timeout, method))
end

--- The whole body, of at most `limit` bytes | nil, message, "EMSGSIZE" ...
function Conn:read_body(limit, timeout)
  return finish(self.loop, self, nil, self.conn:read_body(limit, timeout))
end

--- What has come, at least one byte and at most `most` (64 KiB) | nil, message, "EOF" ...
function Conn:read(timeout, most)
  return finish(self.loop, self, nil, self.conn:read(timeout, most))
end

--- True once the kernel has all of it | nil, message, code. `timeout`: seconds without progress. With `more`
-- it may wait for what is written next, so that both go in one record.
function Conn:write(bytes, timeout, more)
  return finish(self.loop, self, nil, self.conn:write(bytes, timeout, more))
end

--- A handle that ends when the peer closes (true) or says something ("data") while nobody reads.
-- :cancel() before the next read; false from it means that the connection is no good any more.
-- nil, message, "ETIMEDOUT" after `timeout` seconds without either.
function Conn:watch_close(timeout)
  return handle(self.loop, self, nil, self.conn:watch_close(timeout))
end

--- Queues a fatal TLS alert in plain, before any handshake. Close then.
function Conn:alert(number)
  return self.conn:alert(number)
end

--- Sends what is queued and the end, then closes, in the background.
function Conn:close()
  self.conn:close()
end

--- Closes at once, so that the peer sees a reset.
function Conn:reset()
  self.conn:reset()
end

--- { read, written }: bytes on the socket so far
function Conn:stats()
  return self.conn:stats()
end

function Conn:is_open()
  return self.conn:is_open()
end

function Conn:fd()
  return self.conn:fd()
end

--- { alpn, suite } once TLS has begun
function Conn:tls()
  return self.conn:tls()
end

return flow

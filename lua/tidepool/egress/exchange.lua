--- One request and its response: decided, changed, sent on, and streamed both ways.
--
-- Runs in the egress process, in the task of the client's connection. Bodies never pass Lua unless a
-- policy asked for one: core/proxy/flow.h pumps them. Whatever fails is told to the client with a reason,
-- as long as no response has begun, and written down either way.
--
-- Fields of an exchange: session, conn, loop, chain (the policies that it is decided by), head (of the
-- request), host, path, mismatch, body (if a policy wanted it), verdict, scrub, holds_secret, framing, upgrade (the
-- protocols asked for), up (the upstream's connection), pumping (the request body's pump), body_failure, status, sent and received (bytes of bodies),
-- used (names of the secrets that go out), outcome (for the audit, where the verdict does not tell), tail and kept_tail, last.
local async = require("tidepool.async")
local uv = require("luv")
local head = require("tidepool.egress.head")
local requests = require("tidepool.egress.request")
local responses = require("tidepool.egress.response")

local exchange = {}

local WRITE_TIMEOUT = 60 -- seconds without progress
local BODY_TIMEOUT = 600
local BODY_GRACE = 1 -- seconds for the rest of a body whose response is complete
local RESPONSE_TIMEOUT = 900 -- a model may think for minutes

-- While the upstream thinks, perhaps at a price, a client over TLS that goes away ends it. Not so over a plain
-- connection, where a client may have sent its end and still read.
local function watch_client(self)
  if not self.session.tls or not self.waiting then
    return
  end
  local watch, up = self.conn:watch_close(), self.up
  self.watch = watch
  async.spawn(function()
    if watch:wait() == true then
      self.client_gone = true
      up:reset()
    end
  end)
end

local function unwatch_client(self)
  self.waiting = false
  if self.watch then
    self.watch:cancel()
    self.watch = nil
  end
end

-- A body that breaks off on the client's side ends the wait for its response, and the upstream must not take
-- what it got for the whole. An upstream that stops reading may still answer.
local function guard(self, pump, up)
  async.spawn(function()
    local moved, _, code, side = pump:wait()
    if moved then
      watch_client(self)
    elseif side ~= "write" and code ~= "ECANCELED" then
      up:reset()
    end
  end)
end

-- Sends head and body; the body's pump goes on beside the response. true | nil, message, code.
local function send(self, bytes)
  local follows = not self.body and self.head.body ~= "none"
  local sent, message, code = self.up:write(self.body and bytes .. self.body or bytes, WRITE_TIMEOUT, follows)
  if not sent then
    return nil, message, code
  end
  self.sent = self.body and #self.body or 0
  if not follows then
    return true
  end
  self.pumping = self.loop:start_pump(self.conn, self.up, {
    framing = self.framing,
    scrub = self.session.guest.service.secrets:detector(),
  }, BODY_TIMEOUT)
  guard(self, self.pumping, self.up)
  return true
end

-- Reads the response's head, passing hints on. Returns it | nil, message, code.
local function read_head(self)
  while true do
    local response, message, code = self.up:read_head("response", RESPONSE_TIMEOUT, self.head.method)
    if not response then
      return nil, message, code
    elseif response.status >= 200 or response.status == 101 then
      return response
    elseif self.head.minor == 1 then
      local headers = head.end_to_end(response.headers)
      if not self.conn:write(responses.redact(self, head.response(response.status, response.reason, headers)), WRITE_TIMEOUT) then
        return nil, "the client has gone", "EPIPE"
      end
    end
  end
end

local function read_response(self)
  self.waiting = true
  if not self.pumping or self.pumping:has_ended() then -- one that ended at once was not waited for yet
    watch_client(self)
  end
  local response, message, code = read_head(self)
  unwatch_client(self)
  if self.client_gone then
    return nil, "the client has gone", "EPIPE"
  end
  return response, message, code
end

-- What may be sent twice (RFC 9110, 9.2.2).
local IDEMPOTENT = { GET = true, HEAD = true, OPTIONS = true, TRACE = true, PUT = true, DELETE = true }
local GONE = { EOF = true, ECONNRESET = true, EPIPE = true }

-- Connects, sends, and waits for the response to begin. A pooled connection may have been closed under us:
-- then once more, on a new one. Returns the response's head | nil, message, code.
local function ask(self, target, bytes)
  local guest = self.session.guest
  local message, code
  self.up = guest.pool:take(target.key)
  local pooled = self.up ~= nil
  for _ = 1, 2 do
    if not self.up then
      self.up, message, code = guest.service.upstream:open(target)
    end
    if not self.up then
      return nil, message, code
    end
    local sent, response
    sent, message, code = send(self, bytes)
    if sent then
      response, message, code = read_response(self)
      if response then
        return response
      end
    end
    if not (pooled and GONE[code] and not self.pumping and not self.client_gone and IDEMPOTENT[self.head.method]) then
      break
    end
    self.up:reset()
    self.up, pooled = nil, false
  end
  message = code == "EOF" and "it closed the connection" or message
  return nil, ("no response from %s: %s"):format(target.host or target.address, tostring(message)), code
end

-- Ends the request body's pump if it still runs after `grace` seconds. false when the client's body was not read
-- to its end: then nothing fits behind the response.
local function settle_body(self, grace)
  if not self.pumping then
    return true
  end
  local pump = self.pumping
  self.pumping = nil
  local bytes, message, code, side, moved = pump:finish(grace)
  self.sent = bytes or moved or 0
  if not bytes and side ~= "write" and code ~= "ECANCELED" then
    self.body_failure, self.body_code = message, code
  end
  return bytes ~= nil
end

-- What a failure of the upstream's side is to the client.
local GATEWAY_STATUS = { ETIMEDOUT = 504, EACCES = 403 }

-- Before a response has begun: the client gets one of ours.
local function fail(self, message, code)
  settle_body(self, 0)
  if self.up then
    self.up:reset()
    self.up = nil
  end
  if self.body_code == "EILSEQ" then
    return requests.refuse(self, 403, "a secret's placeholder is in the request's body, where it is not swapped")
  elseif self.body_failure then
    return requests.refuse(self, self.body_code == "ETIMEDOUT" and 408 or 400, "the request's body: " .. self.body_failure)
  end
  return requests.refuse(self, GATEWAY_STATUS[code] or 502, message, code == "EACCES" and "deny" or "error")
end

-- After the response: keeps or closes the upstream's connection. Returns whether the client's goes on.
local function finish(self, target, response)
  local body_done = settle_body(self, self.last and 0 or BODY_GRACE)
  if body_done and response.keep_alive then
    self.session.guest.pool:put(target.key, self.up)
  else
    self.up:close()
  end
  self.up = nil
  return body_done and not self.last
end

local function answer(self, target, response)
  if response.status == 101 then
    if not self.upgrade or not responses.is_upgrade(self, response) then
      return fail(self, "the upstream switched to a protocol that was not asked for")
    end
    self.status = 101
    responses.upgrade(self, response)
    return false
  end
  local passed, message, code = responses.pass(self, response)
  if passed then
    return finish(self, target, response)
  elseif not self.status then
    return fail(self, message, code)
  end
  settle_body(self, 0)
  message = self.body_failure and "the request's body: " .. self.body_failure or message
  self.outcome = { action = "error", reason = "cut off: " .. tostring(message), policy = self.verdict.policy }
  self.conn:reset() -- a length that is not reached, or no last chunk: the client must notice
  return false
end

-- Whether the client's connection takes another request.
local function go(self)
  if not requests.read_target(self) or not requests.read_wanted_body(self) or not requests.decide(self) then
    return self.kept or false
  end
  local target = requests.target(self)
  local bytes = requests.outgoing(self, target)
  if not bytes then
    return false
  end
  local response, message, code = ask(self, target, bytes)
  if not response then
    return fail(self, message, code)
  elseif responses.is_unsearchable(self, response) then
    return fail(self, "the upstream compressed its response, so it can't be searched for secrets", "EILSEQ")
  end
  return answer(self, target, response)
end

-- Writes it down, then lets the policies know.
local function record(self)
  local session = self.session
  local outcome = self.outcome or { action = "allow", policy = self.verdict and self.verdict.policy, reason = self.verdict and self.verdict.reason }
  local entry = {
    hook = "request",
    action = outcome.action,
    reason = outcome.reason,
    policy = outcome.policy,
    protocol = session.tls and "https" or "http",
    host = self.host or session.host,
    address = not session.host and session.address or nil,
    port = session.port,
    method = self.head.method,
    path = self.path or self.head.target,
    status = self.status,
    secrets = self.used and self.used[1] and self.used or nil,
    bytes_sent = self.sent,
    bytes_received = self.received,
    seconds = (uv.hrtime() - self.began) / 1e9,
  }
  session.guest:record(outcome, entry)
  local event = requests.event(self)
  for _, name in ipairs({ "action", "reason", "status", "bytes_sent", "bytes_received", "seconds" }) do
    event[name] = entry[name]
  end
  event.tail, event.body, event.policy = self.kept_tail, nil, outcome.policy
  self.chain:log(event)
  session.guest:save_states()
end

--- Serves one request whose head was read. `session`: guest, conn, host, address, port, tls, sni, mismatch,
-- changes (the connect verdict's), redirect. Returns whether the connection takes another request.
function exchange.run(session, request)
  local self = {
    session = session,
    conn = session.conn,
    loop = session.guest.service.loop,
    chain = session.guest.chain, -- a policy that changes meanwhile is for the next request
    head = request,
    began = uv.hrtime(),
    sent = 0,
    received = 0,
  }
  local ok, again = xpcall(go, debug.traceback, self)
  if not ok then
    async.on_error(again)
    again = false
    if not self.status then
      pcall(requests.refuse, self, 500, "internal error; the server's log has it")
    end
    self.outcome = { action = "deny", reason = "internal error; the server's log has it" }
  end
  if self.up then
    self.up:reset()
  end
  if self.pumping then
    settle_body(self, 0)
  end
  record(self)
  return again
end

return exchange

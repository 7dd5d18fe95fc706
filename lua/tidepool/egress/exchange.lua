--- One request and its response: decided, changed, sent on, and streamed both ways.
--
-- Runs in the egress process, in the task of the client's connection. Bodies never pass Lua unless a
-- policy asked for one: core/proxy/flow.h pumps them. Whatever fails is told to the client with a reason,
-- as long as no response has begun, and written down either way.
local async = require("tidepool.async")
local uv = require("luv")
local head = require("tidepool.egress.head")
local upstream = require("tidepool.egress.upstream")

local exchange = {}

local WRITE_TIMEOUT = 60 -- seconds without progress
local BODY_TIMEOUT = 600
local RESPONSE_TIMEOUT = 900 -- a model may think for minutes

local GATEWAY_STATUS = { ETIMEDOUT = 504, EACCES = 403 }

-- What a failure of the upstream's side is to the client.
local function gateway_status(code)
  return GATEWAY_STATUS[code] or 502
end

-- A request that can't be, in the words of the codec or ours.
local function refuse(self, status, reason)
  self.status = status
  self.conn:write(head.refusal(status, reason, self.head and self.head.method), WRITE_TIMEOUT)
  self.outcome = { action = "deny", reason = reason, policy = self.verdict and self.verdict.policy }
  return false
end

-- The request's target and host ------------------------------------------------------------------------

local DEFAULT_PORT = { [true] = 443, [false] = 80 }

-- "Example.com.:8443" -> "example.com", 8443 | nil: not a host.
local function split_host(text, tls)
  local host, port = text:match("^%[([%x:.]+)%]:?(%d*)$")
  if not host then
    host, port = text:match("^([^:%[%]@/?#%s]+):?(%d*)$")
  end
  if not host then
    return nil
  end
  return (host:lower():gsub("%.$", "")), tonumber(port) or DEFAULT_PORT[tls]
end

-- Brings an absolute-form target (RFC 9112, 3.2.2) to origin-form. Returns path, authority | nil, complaint.
local function split_target(target, tls)
  if target:sub(1, 1) == "/" or target == "*" then
    return target
  end
  local scheme, authority, path = target:match("^([%a][%w+.-]*)://([^/?#]*)(.*)$")
  if not scheme then
    return nil, "the request's target is neither a path nor a URL"
  elseif scheme:lower() ~= (tls and "https" or "http") then
    return nil, ("a request for %s:// came over %s"):format(scheme, tls and "TLS" or "plain HTTP")
  end
  return path:sub(1, 1) == "/" and path or "/" .. path, authority
end

-- Whether the Host header, the target and the connection agree: true, or what disagrees.
local function agreement(session, host, port)
  local expected = session.host or session.address
  if host ~= expected then
    return ("the request is for %s, the connection for %s"):format(host, expected)
  elseif port ~= session.port then
    return ("the request is for port %d, the connection for port %d"):format(port, session.port)
  end
  return true
end

-- Fills self.path, self.host, self.mismatch | false after a refusal.
local function read_target(self)
  local session, request = self.session, self.head
  if request.method == "CONNECT" then
    return refuse(self, 405, "CONNECT is not needed here: connect to the host itself")
  end
  local path, authority = split_target(request.target, session.tls)
  if not path then
    return refuse(self, 400, authority)
  end
  local given = head.get(request.headers, "host")
  local host, port = session.host or session.address, session.port
  if given or authority then
    host, port = split_host(authority or given, session.tls)
    if not host then
      return refuse(self, 400, "the Host header is not a host")
    end
  end
  if authority and given then
    local second, second_port = split_host(given, session.tls)
    if second ~= host or second_port ~= port then
      return refuse(self, 400, "the Host header and the request's URL name different hosts")
    end
  end
  self.path = path
  local agrees = agreement(session, host, port)
  self.mismatch = session.mismatch or (agrees ~= true and agrees) or nil
  self.host = session.host and host or (agrees ~= true and host) or nil
  return true
end

-- The decision -----------------------------------------------------------------------------------------

local function event_of(self)
  local session, request = self.session, self.head
  return {
    host = self.host,
    port = session.port,
    address = not session.host and session.address or nil,
    protocol = session.tls and "tls" or "http",
    tls = session.tls,
    sni = session.sni,
    mismatch = self.mismatch,
    method = request.method,
    path = self.path,
    headers = head.as_map(request.headers),
    body = self.body,
  }
end

-- Reads the body when a policy wants it: true | false after a refusal.
local function read_wanted_body(self)
  local wants = self.chain:wants(self.host or "")
  self.tail = wants.tail
  if not wants.body or self.head.body == "none" then
    return true
  end
  if self.head.expect_continue then
    self.conn:write("HTTP/1.1 100 Continue\r\n\r\n", WRITE_TIMEOUT)
  end
  local body, message, code = self.conn:read_body(wants.body, BODY_TIMEOUT)
  if not body then
    local too_large = ("the request's body is larger than %d bytes, which the policy wants to see"):format(wants.body)
    return refuse(self, code == "EMSGSIZE" and 413 or 400, code == "EMSGSIZE" and too_large or message)
  end
  self.body = body
  return true
end

-- Where placeholders have no business to be: the target, and a body that we hold.
local function misplaced(self)
  local secrets = self.session.guest.service.secrets
  local name = secrets:find(self.path)
  if name then
    return ("the placeholder of secret %s is in the request's path, where it is not swapped"):format(name)
  end
  name = self.body and secrets:find(self.body)
  if name then
    return ("the placeholder of secret %s is in the request's body, where it is not swapped"):format(name)
  end
end

-- true when the request goes on; false when it was answered here.
local function decide(self)
  local wrong = misplaced(self)
  if wrong then
    return refuse(self, 403, wrong)
  end
  local verdict = self.session.guest:decide_with(self.chain, "request", event_of(self))
  self.verdict = verdict
  if verdict.action == "deny" then
    return refuse(self, verdict.status or 403, verdict.reason)
  elseif verdict.action == "respond" then
    self.status = verdict.status
    self.conn:write(head.answer(verdict.status, verdict.headers, verdict.body, self.head.method), WRITE_TIMEOUT)
    self.outcome = { action = "respond", reason = verdict.reason, policy = verdict.policy }
    self.kept = self.body ~= nil or self.head.body == "none" -- else the rest of the body is in the way
    return false
  end
  return true
end

-- The upstream's side ------------------------------------------------------------------------------------

-- A verdict's way to the upstream: the connect verdict's, overridden by the request's.
local function target_of(self)
  local session, verdict = self.session, self.verdict
  local changes = setmetatable({}, { __index = function(_, name)
    local value = verdict.changes and verdict.changes[name]
    if value == nil then
      value = session.changes[name]
    end
    return value
  end })
  local host, port = self.host, session.port
  if verdict.action == "redirect" then
    host, port = split_host(verdict.host, session.tls)
    port = verdict.host:match(":%d+$") and port or session.port
  elseif session.redirect then
    host, port = session.redirect.host, session.redirect.port or session.port
  end
  return upstream.target(host, not host and session.address or nil, port, session.tls, changes)
end

local function host_header(target)
  local name = target.host or (target.address:find(":", 1, true) and "[" .. target.address .. "]" or target.address)
  return name
end

-- The request's head as it goes out | nil after a refusal.
local function outgoing(self, target)
  local session, request, verdict = self.session, self.head, self.verdict
  local headers = head.end_to_end(request.headers)
  local redirected = verdict.action == "redirect" or session.redirect
  if redirected or not head.get(headers, "host") then
    local port = target.to and session.port or target.port
    local suffix = port ~= DEFAULT_PORT[session.tls] and ":" .. port or ""
    head.set(headers, "Host", host_header(target) .. suffix)
  end
  head.change(headers, session.changes.headers)
  head.change(headers, verdict.changes and verdict.changes.headers)
  local secrets = session.guest.service.secrets
  local swapped, message = secrets:swap(headers, target.host, session.tls)
  if not swapped then
    refuse(self, 403, message)
    return nil
  end
  local scrub = secrets:masks()
  if verdict.changes and verdict.changes.scrub == false then
    scrub = nil
  end
  self.scrub = scrub
  -- Whether a value went out in this very request: then nothing may come back that can't be searched.
  self.holds_secret = scrub ~= nil and swapped > 0
  if scrub then
    for _, header in ipairs(headers) do
      if not self.holds_secret then
        self.holds_secret = scrub:text(header[2]) ~= header[2]
      end
    end
    head.set(headers, "Accept-Encoding", "identity")
    if self.holds_secret then
      head.set(headers, "Range", false) -- two halves of a secret could be fetched apart
      head.set(headers, "If-Range", false)
    end
  end
  local framing, length = request.body, request.length
  if self.body then
    framing, length = "length", #self.body
  end
  if self.body or request.body == "none" then
    head.set(headers, "Expect", false)
  end
  self.framing = framing
  local upgrade = request.upgrade and head.get(request.headers, "upgrade") or nil
  local path = verdict.changes and verdict.changes.path or self.path
  return head.request(request.method, path, headers, framing ~= "none" and framing or nil, length, upgrade)
end

-- Sends head and body; the body's pump goes on beside the response. true | nil, message, code.
local function send(self, bytes)
  local sent, message, code = self.up:write(self.body and bytes .. self.body or bytes, WRITE_TIMEOUT)
  if not sent then
    return nil, message, code
  end
  self.sent = self.body and #self.body or 0
  if self.body or self.head.body == "none" then
    return true
  end
  self.pumping = self.loop:start_pump(self.conn, self.up, {
    framing = self.framing,
    scrub = self.session.guest.service.secrets:detector(),
  }, BODY_TIMEOUT)
  return true
end

-- Reads the response's head, passing hints on. Returns it | nil, message, code.
local function read_response(self)
  while true do
    local response, message, code = self.up:read_head("response", RESPONSE_TIMEOUT, self.head.method)
    if not response then
      return nil, message, code
    elseif response.status >= 200 or response.status == 101 then
      return response
    elseif self.head.minor == 1 then
      local headers = head.end_to_end(response.headers)
      if not self.conn:write(self:redact(head.response(response.status, response.reason, headers)), WRITE_TIMEOUT) then
        return nil, "the client has gone", "EPIPE"
      end
    end
  end
end

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
    local again = pooled and not self.pumping and (code == "EOF" or code == "ECONNRESET" or code == "EPIPE")
    if not again then
      break
    end
    self.up:reset()
    self.up, pooled = nil, false
  end
  return nil, ("no response from %s: %s"):format(target.host or target.address, tostring(message)), code
end

-- Ends the request body's pump if it still runs. false when the client's body was not read to its end.
local function settle_body(self)
  if not self.pumping then
    return true
  end
  local pump = self.pumping
  self.pumping = nil
  local bytes, message, code, _, moved = pump:finish()
  self.sent = bytes or moved or 0
  self.body_failure = code
  return bytes ~= nil, message, code
end

-- A request body that held a placeholder.
local function body_verdict(self)
  if self.body_failure == "EILSEQ" then
    return "a secret's placeholder is in the request's body, where it is not swapped"
  end
end

local function failed(self, message, code)
  settle_body(self)
  if self.up then
    self.up:reset()
  end
  return refuse(self, body_verdict(self) and 403 or gateway_status(code), body_verdict(self) or message)
end

-- The response -------------------------------------------------------------------------------------------

local ENCODED = { gzip = true, deflate = true, br = true, zstd = true, compress = true, ["x-gzip"] = true }

-- Whether a body that may hold a secret can't be searched for it.
local function unsearchable(self, response)
  local encoding = self.holds_secret and response.body ~= "none" and head.get(response.headers, "content-encoding")
  return encoding and ENCODED[encoding:lower():match("[%w-]+") or ""]
end

local function response_event(self, response)
  local event = event_of(self)
  event.status, event.response_headers = response.status, head.as_map(response.headers)
  return event
end

-- How the client's side is framed, and whether its connection ends with this response.
local function frame_for(self, response)
  if response.body == "none" or response.body == "length" then
    return response.body, not self.head.keep_alive
  elseif self.head.minor == 0 then
    return "eof", true
  end
  return "chunked", not self.head.keep_alive
end

function exchange.redact(self, text)
  return self.scrub and (self.scrub:text(text)) or text
end

local function relay_upgraded(self, response)
  local headers = head.end_to_end(response.headers)
  local protocol = head.get(response.headers, "upgrade")
  if not self.conn:write(self:redact(head.response(101, response.reason, headers, nil, nil, false, protocol)), WRITE_TIMEOUT) then
    return false
  end
  local sent, received, _, sent_before, received_before = self.loop:relay(self.conn, self.up, nil, { scrub = self.scrub })
  self.sent = self.sent + (sent or sent_before or 0)
  self.received = type(received) == "number" and received or received_before or 0
  return false
end

-- Streams the response to the client. Returns whether the connection goes on.
local function respond(self, target, response)
  local headers = head.end_to_end(response.headers)
  local verdict = self.session.guest:decide_with(self.chain, "response", response_event(self, response))
  if verdict.action == "deny" then
    return failed(self, verdict.reason, "EACCES")
  end
  head.change(headers, verdict.changes and verdict.changes.headers)
  local framing, last = frame_for(self, response)
  -- A response to HEAD, and a 304, tell the length of what they don't carry.
  local length = response.length
  if framing == "none" and head.get(response.headers, "content-length") and response.status ~= 204 then
    framing, length = "length", tonumber(head.get(response.headers, "content-length"))
  end
  -- The client still sends a body that the upstream doesn't wait for: after the response, nothing fits.
  last = last or (self.pumping ~= nil and not self.pumping:is_done())
  local bytes = head.response(response.status, response.reason, headers, framing ~= "eof" and framing or nil, length, last)
  local written, message, code = self.conn:write(self:redact(bytes), WRITE_TIMEOUT)
  local complete = written
  if written and response.body ~= "none" then
    -- moved, trailers, tail | nil, message, code, side, moved so far
    local moved, second, third, _, partly = self.loop:pump(self.up, self.conn, {
      framing = framing, scrub = self.scrub, tail = self.tail,
    }, BODY_TIMEOUT)
    complete, self.received = moved ~= nil, moved or partly or 0
    if moved then
      self.kept_tail = third
    else
      message, code = second, third
    end
  end
  local body_done = settle_body(self)
  if complete and body_done and response.keep_alive then
    self.session.guest.pool:put(target.key, self.up)
  else
    self.up:close()
  end
  self.up = nil
  if not complete then
    self.outcome = { action = "allow", reason = "cut off: " .. tostring(message), policy = self.verdict.policy, code = code }
    self.conn:reset() -- a length that is not reached, or no last chunk: the client must notice
    return false
  end
  return not last and body_done
end

local function go(self)
  if not read_target(self) or not read_wanted_body(self) or not decide(self) then
    return self.kept or false
  end
  local target = target_of(self)
  local bytes = outgoing(self, target)
  if not bytes then
    return false
  end
  local response, message, code = ask(self, target, bytes)
  if not response then
    return failed(self, message, code)
  end
  if unsearchable(self, response) then
    return failed(self, "the upstream compressed its response, so it can't be searched for secrets", "EILSEQ")
  end
  self.status = response.status
  if response.status == 101 then
    relay_upgraded(self, response)
    self.up:close()
    return false
  end
  return respond(self, target, response)
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
    bytes_sent = self.sent,
    bytes_received = self.received,
    seconds = (uv.hrtime() - self.began) / 1e9,
  }
  session.guest:record(outcome, entry)
  local event = event_of(self)
  for _, name in ipairs({ "action", "reason", "status", "bytes_sent", "bytes_received", "seconds" }) do
    event[name] = entry[name]
  end
  event.tail, event.body, event.policy = self.kept_tail, nil, outcome.policy
  self.chain:log(event)
  session.guest:save_states()
end

local Exchange = { redact = exchange.redact }
Exchange.__index = Exchange

--- Serves one request whose head was read. `session`: guest, conn, host, address, port, tls, sni, mismatch,
-- changes (the connect verdict's), redirect. Returns whether the connection takes another request.
function exchange.run(session, request)
  local self = setmetatable({
    session = session,
    conn = session.conn,
    loop = session.guest.service.loop,
    chain = session.guest.chain, -- a policy that changes meanwhile is for the next request
    head = request,
    began = uv.hrtime(),
    sent = 0,
    received = 0,
  }, Exchange)
  local ok, again = xpcall(go, debug.traceback, self)
  if not ok then
    async.on_error(again)
    self.outcome = { action = "deny", reason = "internal error; the server's log has it" }
    again = false
  end
  if self.up then
    self.up:reset()
  end
  if self.pumping then
    settle_body(self)
  end
  record(self)
  return again
end

return exchange

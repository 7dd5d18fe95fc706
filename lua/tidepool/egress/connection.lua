--- One connection that a sandbox has made: who it is for, whether it may be, and what becomes of it.
--
-- Runs as a task in the egress process. The address it was made to names its host (names.lua), the first
-- bytes tell what it speaks; the policies' `connect` decides, and then it is HTTP, request by request,
-- or an opaque relay, or refused with a reason that the client gets to read where its protocol allows.
local uv = require("luv")
local async = require("tidepool.async")
local dns = require("tidepool.egress.dns")
local exchange = require("tidepool.egress.exchange")
local head = require("tidepool.egress.head")
local names = require("tidepool.egress.names")
local upstream = require("tidepool.egress.upstream")

local connection = {}

local PEEK_TIMEOUT = 0.25 -- seconds; who says nothing for so long may wait for the server to speak first
local HELLO_TIMEOUT = 10 -- seconds
local IDLE_TIMEOUT = 120 -- seconds between requests
local WRITE_TIMEOUT = 60
local TURN = 16 -- requests of one connection in one turn of the loop
local OUR_PORT, DNS_PORT = 61080, 53

local ALERT = { access_denied = 49, protocol_version = 70 }

local function elapsed(self)
  return (uv.hrtime() - self.began) / 1e9
end

local function record(self, verdict, about)
  about = about or {}
  about.hook = about.hook or "connect"
  about.host, about.port, about.protocol = self.host, self.port, about.protocol or self.protocol
  about.address = not self.host and self.address or nil
  about.sni = self.sni ~= self.host and self.sni or nil
  about.seconds = elapsed(self)
  self.guest:record(verdict, about)
end

local function redirect_of(verdict)
  if verdict.action == "redirect" then
    local host, port = verdict.host:match("^(.-):(%d+)$")
    return { host = host or verdict.host, port = tonumber(port) }
  end
end

local function event_of(self)
  return {
    host = self.host,
    address = not self.host and self.address or nil,
    port = self.port,
    protocol = self.protocol,
    tls = self.tls,
    sni = self.sni,
    alpn = self.alpn,
    mismatch = self.mismatch,
  }
end

-- Whether one that has said nothing yet may still be a client of TLS or HTTP that is slow to begin: on a busy
-- machine, reading the certificates it trusts takes longer than PEEK_TIMEOUT. Not so where the policies relay
-- whatever it is, since then the server may speak first, and not where they would refuse it all the same.
local function may_be_slow(self)
  local event = event_of(self)
  event.protocol, event.tls = "tcp", false
  if self.guest:decide("connect", event).action ~= "deny" then
    return false
  end
  event.tls = self.port ~= 80
  event.protocol = event.tls and "tls" or "http"
  return self.guest:decide("connect", event).action ~= "deny"
end

-- Finds out what the client speaks: fills protocol, tls, sni, mismatch. false when it has gone or can't be.
local function look(self)
  local kind, info = self.conn:peek(PEEK_TIMEOUT)
  if kind == "other" or kind == "silent" and may_be_slow(self) then
    kind, info = self.conn:peek(HELLO_TIMEOUT) -- "other" may be half of something: this tells at once which
  end
  if kind == "silent" then
    kind = "other"
  elseif kind == nil then
    return false
  end
  self.protocol = kind == "tls" and "tls" or (kind == "http" or kind == "h2") and "http" or "tcp"
  self.tls = kind == "tls"
  self.http2 = kind == "h2"
  if kind == "other" and info and info:byte() == 22 then
    -- A server may be more lenient than we are, and see a name in it.
    self.mismatch = "what begins like TLS is malformed, or asks for what is no host"
  elseif self.tls then
    self.hello, self.sni, self.alpn = info, info.sni, info.alpn
    if self.sni and self.sni ~= self.host then
      self.mismatch = ("TLS asks for %s, the connection is to %s"):format(self.sni, self.host or self.address)
    end
  end
  return true
end

-- Why a client that does not speak TLS 1.2 can't be served.
local function wrong_version(hello)
  for _, version in ipairs(hello.versions) do
    if version == 0x0304 then
      return "the client speaks only TLS 1.3; let it speak 1.2, or let a policy pass it through"
    end
  end
  return "the client speaks only versions of TLS before 1.2"
end

-- TLS with the client, under a certificate of the sandbox's own CA. true | false.
local function secure(self)
  local guest = self.guest
  if not self.hello.has_tls12 then
    self.conn:alert(ALERT.protocol_version)
    record(self, { action = "deny", reason = wrong_version(self.hello) })
    return false
  end
  guest:take_turn()
  local identity, message = guest:identity(self.sni or self.host or self.address)
  if not identity then
    record(self, { action = "deny", reason = "no certificate for this host: " .. tostring(message) })
    return false
  end
  local ok, why, code = self.conn:accept_tls(identity, HELLO_TIMEOUT)
  if not ok and code ~= "EOF" and code ~= "ECONNRESET" then
    record(self, { action = "deny", reason = "TLS with the client: " .. tostring(why) })
  end
  return ok
end

-- Says no in the client's own protocol where it can be told: HTTP gets a status and the reason.
local function refuse(self, verdict)
  record(self, verdict)
  local speaks_http = self.protocol == "http" and not self.http2
  if self.tls and self.guest.ca_files and self.hello.has_tls12 then
    self.guest:take_turn()
    local identity = self.guest:identity(self.sni or self.host or self.address)
    speaks_http = identity and self.conn:accept_tls(identity, HELLO_TIMEOUT)
  elseif self.tls then
    self.conn:alert(ALERT.access_denied)
  end
  if not speaks_http then
    return self.conn:reset()
  end
  local request = self.conn:read_head("request", HELLO_TIMEOUT)
  if request then
    local bytes = verdict.action == "respond"
      and head.answer(verdict.status, verdict.headers, verdict.body, request.method, true)
      or head.refusal(verdict.status or 403, verdict.reason, request.method)
    self.conn:write(bytes, WRITE_TIMEOUT)
  end
  self.conn:close()
end

-- An opaque relay: bytes both ways, whatever they are.
local function pass(self, verdict)
  local host, port = self.host, self.port
  if self.redirect then
    host, port = self.redirect.host, self.redirect.port or port
  end
  local target = upstream.target(host, not host and self.address or nil, port, false, verdict.changes or {})
  local up, message, code = self.guest.service.upstream:open(target)
  if not up then
    record(self, { action = code == "EACCES" and "deny" or "error", reason = message, policy = verdict.policy })
    return self.conn:reset()
  end
  local sent, received, failure = self.guest:relay(self.chain, self.conn, up, function()
    local now = self.guest:decide("connect", event_of(self))
    return now.action == verdict.action
  end)
  record(self, verdict, {
    action = verdict.action,
    reason = failure and "ended: " .. failure or verdict.reason,
    bytes_sent = sent, bytes_received = received,
  })
  up:close()
  self.conn:close()
end

local MALFORMED = { EBADMSG = 400, EMSGSIZE = 431 }

-- What connect said holds for the connection's requests, until the policies change.
local function still_connected(self)
  local verdict
  while self.chain ~= self.guest.chain do -- again when they change while this is decided
    self.chain = self.guest.chain
    verdict = self.guest:decide("connect", event_of(self))
    self.changes, self.redirect = verdict.changes or {}, redirect_of(verdict)
  end
  if not verdict or verdict.action == "allow" or verdict.action == "redirect" then
    return true
  end
  record(self, verdict)
  self.conn:write(head.refusal(verdict.status or 403, verdict.reason or "the policies have changed"), WRITE_TIMEOUT)
  return false
end

-- Requests, one after the other, as long as both sides keep the connection.
local function serve_http(self)
  local again, served = true, 0
  while again and not self.guest.stopped do
    served = served + 1
    if served % TURN == 0 then
      async.sleep(0) -- requests that policies answer, sent ahead of their responses, make us wait for nobody
    end
    local request, message, code = self.conn:read_head("request", IDLE_TIMEOUT)
    if request then
      again = still_connected(self) and exchange.run(self, request)
    else
      again = false
      if MALFORMED[code] then
        record(self, { action = "deny", reason = "malformed request: " .. message }, {
          hook = "request", status = MALFORMED[code], protocol = self.tls and "https" or "http",
        })
        self.conn:write(head.refusal(MALFORMED[code], message), WRITE_TIMEOUT)
      end
    end
  end
  self.conn:close()
end

local function serve(self)
  if self.port == DNS_PORT then
    return dns.stream(self.guest, self.conn)
  elseif self.port == OUR_PORT and (self.address == "192.0.2.1" or self.address == "100::1") then
    return record(self, { action = "deny", reason = "this is the proxy's own port; connect to the host itself" })
  elseif not look(self) then
    return record(self, { action = "note", reason = "closed before it asked for anything" })
  end
  if not self.host and names.is_pool(self.address) then -- whatever the policies say of addresses: this is none
    return refuse(self, { action = "deny", reason = "the address stands for no name, or for none any more; look the name up" })
  end
  self.chain = self.guest.chain
  local verdict = self.guest:decide("connect", event_of(self))
  self.changes, self.redirect = verdict.changes or {}, redirect_of(verdict)
  if verdict.action == "passthrough" then
    return pass(self, verdict)
  elseif verdict.action == "deny" or verdict.action == "respond" then
    return refuse(self, verdict)
  elseif self.protocol == "tcp" and verdict.action == "redirect" then
    return pass(self, verdict)
  elseif self.http2 then
    return refuse(self, { action = "deny", reason = "HTTP/2 without TLS is not spoken here; use HTTP/1.1", policy = verdict.policy })
  end
  if self.tls and not secure(self) then
    return
  end
  return serve_http(self)
end

--- Serves a connection that was accepted for a sandbox; `to` is what it was made to: { address, port }.
function connection.serve(guest, fd, to)
  local conn, message = guest.service.loop:adopt(fd)
  if not conn then
    fd:close()
    error(message)
  end
  guest.open[conn] = true
  local self = {
    guest = guest,
    conn = conn,
    address = to.address,
    port = to.port,
    host = guest.names:at(to.address),
    began = uv.hrtime(),
  }
  local ok, err = xpcall(serve, debug.traceback, self)
  conn:close() -- harmless when it was closed or reset
  if not ok then
    error(err, 0)
  end
end

return connection

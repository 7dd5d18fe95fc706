--- The client's half of an exchange: what the request is, whether it may be, and how it goes out.
--
-- Runs in the egress process. Functions of an exchange (exchange.lua), `self`, which says what its fields are.
local head = require("tidepool.egress.head")
local upstream = require("tidepool.egress.upstream")

local request = {}

local WRITE_TIMEOUT = 60 -- seconds without progress
local BODY_TIMEOUT = 600
local MOST_TOLD = 4096 -- hosts that a secret went to, of which a glob may permit any number

--- Ends the exchange with a response of ours, which says why. `action` is for the audit: "deny" unless the
-- fault is the upstream's, then "error". Returns false.
function request.refuse(self, status, reason, action)
  self.status = status
  self.conn:write(head.refusal(status, reason, self.head.method), WRITE_TIMEOUT)
  self.outcome = { action = action or "deny", reason = reason, policy = self.verdict and self.verdict.policy }
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

--- Fills path, host and mismatch | false after a refusal.
function request.read_target(self)
  local session, given = self.session, self.head
  if given.method == "CONNECT" then
    return request.refuse(self, 405, "CONNECT is not needed here: connect to the host itself")
  end
  local path, authority = split_target(given.target, session.tls)
  if not path then
    return request.refuse(self, 400, authority)
  end
  local header = head.get(given.headers, "host")
  local host, port = session.host or session.address, session.port
  if header or authority then
    host, port = split_host(authority or header, session.tls)
    if not host then
      return request.refuse(self, 400, "the Host header is not a host")
    end
  end
  if authority and header then
    local second, second_port = split_host(header, session.tls)
    if second ~= host or second_port ~= port then
      return request.refuse(self, 400, "the Host header and the request's URL name different hosts")
    end
  end
  self.path = path
  local agrees = agreement(session, host, port)
  self.mismatch = session.mismatch or (agrees ~= true and agrees) or nil
  self.host = session.host and host or (agrees ~= true and host) or nil
  return true
end

-- The decision -----------------------------------------------------------------------------------------

--- The request as policies see it.
function request.event(self)
  local session, given = self.session, self.head
  return {
    host = self.host,
    port = session.port,
    address = not session.host and session.address or nil,
    protocol = session.tls and "tls" or "http",
    tls = session.tls,
    sni = session.sni,
    mismatch = self.mismatch,
    method = given.method,
    path = self.path,
    headers = head.as_map(given.headers),
    body = self.body,
  }
end

--- Reads the body when a policy wants it: true | false after a refusal.
function request.read_wanted_body(self)
  local wants = self.chain:wants(self.host or "", request.event(self))
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
    return request.refuse(self, code == "EMSGSIZE" and 413 or 400, code == "EMSGSIZE" and too_large or message)
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

--- true when the request goes on; false when it was answered here.
function request.decide(self)
  local wrong = misplaced(self)
  if wrong then
    return request.refuse(self, 403, wrong)
  end
  local verdict = self.session.guest:decide_with(self.chain, "request", request.event(self))
  self.verdict = verdict
  if verdict.action == "deny" then
    return request.refuse(self, verdict.status or 403, verdict.reason)
  elseif verdict.action == "respond" then
    self.status = verdict.status
    -- The rest of a body that nobody reads would be in the next request's way.
    self.kept = self.head.keep_alive and self.head.minor == 1 and (self.body ~= nil or self.head.body == "none")
    self.conn:write(head.answer(verdict.status, verdict.headers, verdict.body, self.head.method, not self.kept), WRITE_TIMEOUT)
    self.outcome = { action = "respond", reason = verdict.reason, policy = verdict.policy }
    return false
  end
  return true
end

-- The upstream's side ------------------------------------------------------------------------------------

-- What the connect verdict changes, for this request: nothing when it goes to another host.
local function session_changes(self)
  return self.verdict.action == "redirect" and {} or self.session.changes
end

--- Where it goes: as the connect verdict says, overridden by the request's.
function request.target(self)
  local session, verdict = self.session, self.verdict
  local changes = {}
  for _, source in ipairs({ session_changes(self), verdict.changes or {} }) do
    for name, value in pairs(source) do
      changes[name] = value
    end
  end
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

-- The protocols that the client would switch to, without other forms of HTTP and TLS: behind those there are
-- requests that no policy would see.
local function upgrade_of(given)
  local wanted = given.upgrade and given.body == "none" and head.get(given.headers, "upgrade")
  local list = {}
  for protocol in (wanted or ""):gmatch("[^,%s]+") do
    local name = protocol:lower()
    if not (name:find("^h[23]c?$") or name:find("^http/") or name:find("^tls/")) then
      list[#list + 1] = protocol
    end
  end
  return #list > 0 and table.concat(list, ", ") or nil
end

-- Whether the upstream may know a secret, by this request or an earlier one, whose text it may have kept: then
-- nothing may come back that can't be searched.
local function may_know(self, target, goes_out)
  local guest, who = self.session.guest, target.host or target.address
  if goes_out and not guest.told[who] then
    guest.told_count = guest.told_count + 1
    if guest.told_count > MOST_TOLD then
      guest.told = setmetatable({}, { __index = function() return true end }) -- all of them, from here on
    end
    guest.told[who] = true
  end
  return guest.told[who] ~= nil
end

--- The request's head as it goes out | nil after a refusal.
function request.outgoing(self, target)
  local session, given, verdict = self.session, self.head, self.verdict
  local headers = head.end_to_end(given.headers)
  local redirected = verdict.action == "redirect" or session.redirect
  if redirected or not head.get(headers, "host") then
    local suffix = target.named_port ~= DEFAULT_PORT[session.tls] and ":" .. target.named_port or ""
    head.set(headers, "Host", host_header(target) .. suffix)
  end
  head.change(headers, session_changes(self).headers)
  head.change(headers, verdict.changes and verdict.changes.headers)
  local secrets = session.guest.service.secrets
  local swapped, message = secrets:swap(headers, target.host, session.tls)
  if not swapped then
    request.refuse(self, 403, message)
    return nil
  end
  local scrub = secrets:masks()
  if verdict.changes and verdict.changes.scrub == false then
    scrub = nil
  end
  self.scrub = scrub
  local holds
  self.used, holds = secrets:names_in(headers)
  self.holds_secret = scrub ~= nil and may_know(self, target, swapped > 0 or holds)
  if scrub then
    head.set(headers, "Accept-Encoding", "identity")
    head.set(headers, "Sec-WebSocket-Extensions", false) -- they compress
    if self.holds_secret then
      head.set(headers, "Range", false) -- two halves of a secret could be fetched apart
      head.set(headers, "If-Range", false)
    end
  end
  local framing, length = given.body, given.length
  if self.body then
    framing, length = "length", #self.body
  end
  if self.body or given.body == "none" then
    head.set(headers, "Expect", false)
  end
  self.framing = framing
  self.upgrade = upgrade_of(given)
  local path = verdict.changes and verdict.changes.path or self.path
  return head.request(given.method, path, headers, framing ~= "none" and framing or nil, length, self.upgrade)
end

return request

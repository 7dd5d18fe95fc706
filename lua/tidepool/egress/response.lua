--- The upstream's half of an exchange: its response, searched for secrets and streamed to the client.
--
-- Runs in the egress process. Functions of an exchange (exchange.lua), `self`, which says what its fields are.
local head = require("tidepool.egress.head")
local request = require("tidepool.egress.request")

local response = {}

local WRITE_TIMEOUT = 60 -- seconds without progress
local BODY_TIMEOUT = 600

--- Whether a body that may hold a secret can't be searched for it.
function response.is_unsearchable(self, given)
  if not self.holds_secret or given.body == "none" then
    return false
  end
  for _, header in ipairs(given.headers) do
    if header[1]:lower() == "content-encoding" and header[2]:lower():gsub("identity", ""):find("[^,%s]") then
      return true
    end
  end
  return false
end

local function event_of(self, given)
  local event = request.event(self)
  event.status, event.response_headers = given.status, head.as_map(given.headers)
  return event
end

-- Whether the client's connection ends with this response. It does when the upstream has answered before it read
-- the request's body and won't, or when a client that waits for leave to send it won't get any.
local function is_last(self, given)
  if not self.head.keep_alive or self.head.minor == 0 then
    return true
  end
  if not self.pumping then
    return false
  elseif self.pumping:has_ended() then
    return not self.pumping:wait()
  end
  return not given.keep_alive or given.status >= (self.head.expect_continue and 300 or 400)
end

-- How the client's side is framed.
local function frame_for(self, given)
  if given.body == "none" or given.body == "length" then
    return given.body
  end
  return self.head.minor == 0 and "eof" or "chunked"
end

--- A head without secrets.
function response.redact(self, text)
  return self.scrub and (self.scrub:text(text)) or text
end

--- Whether a 101 is one that was asked for.
function response.is_upgrade(self, given)
  local protocol = head.get(given.headers, "upgrade")
  for wanted in self.upgrade:gmatch("[^,%s]+") do
    if protocol and wanted:lower() == protocol:lower() then
      return true
    end
  end
  return false
end

--- WebSocket and its like: opaque from here on, but for what the policies say when they change.
function response.upgrade(self, given)
  local headers = head.end_to_end(given.headers)
  local protocol = head.get(given.headers, "upgrade")
  if not self.conn:write(response.redact(self, head.response(101, given.reason, headers, nil, nil, false, protocol)), WRITE_TIMEOUT) then
    return
  end
  local guest = self.session.guest
  local sent, received = guest:relay(self.chain, self.conn, self.up, function()
    return guest:decide("request", request.event(self)).action == self.verdict.action
  end, { scrub = self.scrub })
  self.sent, self.received = self.sent + sent, received
end

--- Streams the response to the client: true | nil, message, code, and then the client has seen a part of it or
-- nothing (`self.status` tells). Sets `last` when the client's connection takes no other request.
function response.pass(self, given)
  local headers = head.end_to_end(given.headers)
  local verdict = self.session.guest:decide_with(self.chain, "response", event_of(self, given))
  if verdict.action == "deny" then
    return nil, verdict.reason, "EACCES"
  end
  head.change(headers, verdict.changes and verdict.changes.headers)
  local framing = frame_for(self, given)
  -- A response to HEAD, and a 304, tell the length of what they don't carry.
  local announced, length = framing, given.length
  local told = head.get(given.headers, "content-length")
  if framing == "none" and told and given.status ~= 204 then
    announced, length = "length", tonumber(told)
  end
  self.last = is_last(self, given)
  self.status = given.status
  local bytes = head.response(given.status, given.reason, headers, announced, length, self.last)
  local follows = given.body ~= "none"
  local written, message, code = self.conn:write(response.redact(self, bytes), WRITE_TIMEOUT, follows)
  if not written or not follows then
    return written, message, code
  end
  -- moved, trailers, tail | nil, message, code, side, moved so far
  local moved, second, third, side, partly = self.loop:pump(self.up, self.conn, {
    framing = framing, scrub = self.scrub, tail = self.tail,
  }, BODY_TIMEOUT)
  self.received = moved or partly or 0
  if not moved then
    return nil, side == "write" and "the client has gone" or second, third
  end
  self.kept_tail = third
  return true
end

return response

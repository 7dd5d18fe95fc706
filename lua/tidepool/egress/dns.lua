--- The sandbox's name server: private addresses for names that a policy permits, NXDOMAIN for the rest.
--
-- Nothing is asked outside here: a name is resolved when a connection to it has been allowed, so queries
-- carry nothing out. Lives in the egress process; every byte is the sandbox's.
local async = require("tidepool.async")
local proxy = require("tidepool.proxy")
local names = require("tidepool.egress.names")

local dns = {}

local TTL = 60 -- seconds; an address lives as long as its sandbox, so this only bounds how long a denial is remembered
local UDP_LEAST, UDP_MOST = 512, 1232 -- bytes: RFC 1035, and what fits every path (DNS flag day 2020)
local TCP_MOST = 65535
local TURN = 64 -- datagrams in one turn of the loop
local STREAM_TURN = 32 -- queries of one connection in one turn of the loop
local IDLE = 10 -- seconds that a connection may be silent

local function reverse_v4(name)
  local d, c, b, a = name:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)%.in%-addr%.arpa$")
  return a and ("%s.%s.%s.%s"):format(a, b, c, d)
end

local function reverse_v6(name)
  local nibbles = name:match("^([%x.]+)%.ip6%.arpa$")
  local digits = nibbles and nibbles:gsub("%.", ""):reverse()
  if not digits or #digits ~= 32 then
    return nil
  end
  local prefix, index = digits:match("^fd74696465010000(%x%x%x%x%x%x%x%x)(%x%x%x%x%x%x%x%x)$")
  return prefix == "00000000" and names.v6(tonumber(index, 16)) or nil
end

local function pointer(guest, query)
  local address = reverse_v4(query.name) or reverse_v6(query.name)
  local host = address and guest.names:at(address)
  if not host then
    return { rcode = "NXDOMAIN", soa = true }
  end
  return { rcode = "NOERROR", records = query.type == "PTR" and { { type = "PTR", ttl = TTL, name = host } } or {}, soa = query.type ~= "PTR" }
end

local LOOPBACK = { A = "127.0.0.1", AAAA = "::1" }

-- The answer for a name whose addresses we know by type; other types exist without records.
local function with_addresses(query, addresses)
  local address = addresses[query.type]
  if not address then
    return { rcode = "NOERROR", records = {}, soa = true }
  end
  return { rcode = "NOERROR", records = { { type = query.type, ttl = TTL, address = address } } }
end

-- What to say to a well-formed query.
local function decide(guest, query)
  if query.opcode ~= 0 then
    return { rcode = "NOTIMP" }
  elseif query.class ~= 1 and query.class ~= "IN" then
    return { rcode = "REFUSED" }
  elseif query.name == "localhost" or query.name:match("%.localhost$") then
    return with_addresses(query, LOOPBACK)
  elseif query.name:match("%.arpa$") then
    return pointer(guest, query)
  end
  local known = guest.names.by_name[query.name]
  local verdict = guest:decide("resolve", { host = query.name })
  if verdict.action == "deny" or verdict.action == "respond" then
    guest:record(verdict, { hook = "resolve", host = query.name, protocol = "dns" })
    return { rcode = "NXDOMAIN", soa = true }
  end
  local index = guest.names:give(query.name)
  guest:tell_names()
  if not known then
    guest:record(verdict, { hook = "resolve", host = query.name, protocol = "dns" })
  end
  return with_addresses(query, { A = names.v4(index), AAAA = names.v6(index) })
end

local function record_malformed(guest, why)
  guest:record({ action = "deny", reason = "malformed DNS query: " .. why }, { hook = "resolve", protocol = "dns" })
end

-- The bytes to answer with, or nil when not even an id can be read.
local function answer(guest, bytes, stream)
  local query, why = proxy.dns.parse(bytes)
  if not query then
    record_malformed(guest, tostring(why))
    return proxy.dns.answer(bytes, { rcode = "FORMERR" }, UDP_LEAST)
  end
  local most = stream and TCP_MOST or math.max(UDP_LEAST, math.min(query.edns_size or UDP_LEAST, UDP_MOST))
  return proxy.dns.answer(bytes, query.rcode and { rcode = query.rcode } or decide(guest, query), most)
end

local function serve_datagram(guest, socket, bytes, from)
  local reply = answer(guest, bytes, false)
  if reply then
    proxy.socket.send(socket, reply, from) -- a full buffer loses it, as networks do
  end
end

--- Answers the datagrams on a socket of the sandbox from now on. Returns the watch, to be closed.
function dns.serve(guest, socket)
  local watch
  watch = assert(async.watch(socket:number(), "r", function()
    for _ = 1, TURN do
      local bytes, from = proxy.socket.receive(socket)
      if not bytes then
        return
      end
      if guest:may_begin() then
        async.spawn(guest.run, guest, serve_datagram, guest, socket, bytes, from)
      end
    end
  end))
  watch:start()
  return watch
end

local function u16(number)
  return string.char(math.floor(number / 256), number % 256)
end

--- Answers queries on a connection, RFC 7766: each behind two bytes of length.
function dns.stream(guest, conn)
  local buffer, answered = "", 0
  while true do
    local length = #buffer >= 2 and buffer:byte(1) * 256 + buffer:byte(2)
    if length and #buffer >= 2 + length then
      local reply = answer(guest, buffer:sub(3, 2 + length), true)
      buffer = buffer:sub(3 + length)
      if not reply or not conn:write(u16(#reply) .. reply, IDLE) then
        return
      end
      answered = answered + 1
      if answered % STREAM_TURN == 0 then
        async.sleep(0) -- who sends as fast as we answer never makes us wait, and the others would
      end
    else
      local bytes = conn:read(IDLE)
      if not bytes then
        return #buffer > 0 and record_malformed(guest, "it was cut off")
      end
      buffer = buffer .. bytes
    end
  end
end

return dns

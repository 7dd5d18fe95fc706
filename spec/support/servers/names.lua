-- A name server on 127.0.0.1:53 of whatever namespace it is started in, that answers by tidepool.proxy's
-- dns: one.example has an address of each kind, many.example more than a datagram takes. Prints a line
-- when it is ready, and one a query.
local uv = require("luv")
require("tidepool.core")
local dns = require("tidepool.proxy").dns

local function record(kind, address)
  return { type = kind, ttl = 60, address = address }
end

local many = {}
for i = 1, 32 do
  many[i] = record("A", "198.18.1." .. i)
end

local ZONE = {
  ["one.example"] = { A = { record("A", "198.18.0.1") }, AAAA = { record("AAAA", "fd74:6964:6501::1") } },
  ["many.example"] = { A = many },
  ["1.0.18.198.in-addr.arpa"] = { PTR = { { type = "PTR", ttl = 60, name = "one.example" } } },
}

local function answer(bytes, over, most)
  local query, why = dns.parse(bytes)
  print(over, query and query.name or why, query and query.type, query and query.edns_size)
  io.flush()
  if not query then
    return dns.answer(bytes, { rcode = "FORMERR" }, most)
  end
  local known = ZONE[query.name]
  local records = known and known[query.type]
  return dns.answer(bytes, { rcode = query.rcode or known and "NOERROR" or "NXDOMAIN", records = records, soa = not records }, most)
end

local udp = uv.new_udp()
assert(udp:bind("127.0.0.1", 53))
udp:recv_start(function(_, bytes, from)
  local reply = bytes and answer(bytes, "udp", 512)
  if reply then
    udp:send(reply, from.ip, from.port, function() end)
  end
end)

local tcp = uv.new_tcp()
assert(tcp:bind("127.0.0.1", 53))
assert(tcp:listen(16, function()
  local client = uv.new_tcp()
  tcp:accept(client)
  local waiting = ""
  client:read_start(function(_, bytes)
    if not bytes then
      return client:close()
    end
    waiting = waiting .. bytes
    while #waiting >= 2 and #waiting >= 2 + waiting:byte(1) * 256 + waiting:byte(2) do
      local length = waiting:byte(1) * 256 + waiting:byte(2)
      local reply = answer(waiting:sub(3, 2 + length), "tcp", 65535)
      client:write(string.char(math.floor(#reply / 256), #reply % 256) .. reply)
      waiting = waiting:sub(3 + length)
    end
  end)
end))
print("ready")
io.flush()
uv.run()

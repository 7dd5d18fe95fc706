-- Names to addresses, against a DNS server of our own on loopback that answers as each name asks it to.
local uv = require("luv")
local bit = require("bit")
local proxy = require("tidepool.proxy")
local support = require("spec.support")

local A, CNAME = 1, 5

local function u16(value)
  return string.char(bit.rshift(value, 8), value % 256)
end

local function wire_name(name)
  return name:gsub("([^.]+)%.?", function(label)
    return string.char(#label) .. label
  end) .. "\0"
end

local function record(name, kind, ttl, data)
  return wire_name(name) .. u16(kind) .. u16(1) .. u16(0) .. u16(ttl) .. u16(#data) .. data
end

--- id, name, type and the question's bytes of a query.
local function parse(query)
  local labels, at = {}, 13
  while query:byte(at) ~= 0 do
    local size = query:byte(at)
    labels[#labels + 1] = query:sub(at + 1, at + size)
    at = at + 1 + size
  end
  return query:sub(1, 2), table.concat(labels, "."), query:byte(at + 1) * 256 + query:byte(at + 2), query:sub(13, at + 4)
end

local function reply(id, flags, question, records)
  return id .. u16(flags) .. u16(1) .. u16(#records) .. u16(0) .. u16(0) .. question .. table.concat(records)
end

local v4 = string.char(203, 0, 113, 9)
local v6 = "\32\1\13\184" .. ("\0"):rep(11) .. "\7"

--- By the first label: what to answer, over UDP and over TCP. nil says nothing.
local answers = {
  both = function(name, kind)
    return { record(name, kind, kind == A and 300 or 60, kind == A and v4 or v6) }
  end,
  four = function(name, kind)
    return kind == A and { record(name, A, 30, v4), record(name, A, 20, string.char(203, 0, 113, 10)) } or {}
  end,
  alias = function(name, kind)
    return { record(name, CNAME, 5, wire_name("real.test")), record("real.test", kind, 90, kind == A and v4 or v6) }
  end,
  late = function(name, kind)
    return kind == A and { record(name, A, 30, v4) } or nil
  end,
  mute = function() end,
  empty = function()
    return {}
  end,
  missing = function()
    return {}, 3
  end,
  broken = function()
    return {}, 2
  end,
  long = function(name, kind, tcp)
    if not tcp then
      return {}, 0x200
    end
    local records = {}
    for i = 1, 30 do
      records[i] = kind == A and record(name, A, 9, string.char(203, 0, 113, i)) or nil
    end
    return records
  end,
}

local function answer(query, tcp)
  local id, name, kind, question = parse(query)
  local label = name:match("^[^.]*"):lower()
  if label == "cut" then
    return reply(id, 0x8180, question, { record(name, kind, 9, v4 .. v6):sub(1, -9) })
  elseif label == "liar" then
    -- Another's id, another's question, then rubbish: none is an answer to us.
    return { ("\255"):rep(2) .. reply(id, 0x8180, question, {}):sub(3), reply(id, 0x8180, wire_name("other.test") .. u16(kind) .. u16(1),
      { record("other.test", kind, 9, v4) }), "rubbish", "" }
  end
  local records, flags = answers[label](name, kind, tcp)
  return records and reply(id, 0x8180 + (flags or 0), question, records)
end

describe("the resolver", function()
  local udp, listener, server, clients, seen

  lazy_setup(function()
    clients, seen = {}, {}
    udp, listener = uv.new_udp(), uv.new_tcp()
    udp:bind("127.0.0.1", 0)
    local port = udp:getsockname().port
    server = "127.0.0.1:" .. port
    udp:recv_start(function(_, query, from)
      if not query then
        return
      end
      local id, name = parse(query)
      seen[name] = (seen[name] or 0) + 1
      seen.ids = (seen.ids or "") .. id
      local bytes = answer(query, false)
      for _, one in ipairs(type(bytes) == "table" and bytes or { bytes }) do
        udp:send(one, from.ip, from.port, function() end)
      end
    end)
    assert(listener:bind("127.0.0.1", port))
    listener:listen(16, function()
      local client, buffered = uv.new_tcp(), ""
      clients[#clients + 1] = client
      listener:accept(client)
      client:read_start(function(_, bytes)
        buffered = buffered .. (bytes or "")
        while #buffered >= 2 do
          local size = buffered:byte(1) * 256 + buffered:byte(2)
          if #buffered < size + 2 then
            break
          end
          local out = answer(buffered:sub(3, size + 2), true)
          buffered = buffered:sub(size + 3)
          client:write(u16(#out) .. out)
        end
      end)
    end)
  end)

  lazy_teardown(function()
    udp:close()
    listener:close()
    for _, client in ipairs(clients) do
      client:close()
    end
    uv.run("nowait")
  end)

  --- Waits as a user does: on the descriptor, or for as long as timeout() says.
  local function wait(resolver, wanted)
    local found, count, deadline = {}, 0, uv.hrtime() + 60e9
    local poll, timer = uv.new_poll(resolver:number()), uv.new_timer()
    while count < wanted and uv.hrtime() < deadline do
      poll:start("r", function()
        poll:stop()
      end)
      timer:start(math.ceil(math.min(resolver:timeout() or 1, 1) * 1000), 50, function() end)
      uv.run("once")
      for _, one in ipairs(resolver:run()) do
        found[one[1]] = one
        count = count + 1
      end
    end
    poll:close()
    timer:close()
    uv.run("nowait")
    return found
  end

  local function resolve(name, options)
    options = options or {}
    options.servers = options.servers or { server }
    options.timeout = options.timeout or 2
    options.tries = options.tries or 2
    local resolver = assert(proxy.resolver.new(options))
    local id = assert(resolver:query(name))
    local one = wait(resolver, 1)[id] or { nil, nil, "no answer", "none" }
    resolver:close()
    return one[2], one[3], one[4]
  end

  it("gives A and AAAA, IPv4 first, with the least TTL", function()
    assert.same({ { "203.0.113.9", "2001:db8::7" }, 60 }, { resolve("both.test") })
    assert.same({ { "203.0.113.9", "203.0.113.10" }, 20 }, { resolve("four.test.") })
  end)

  it("follows an alias, its TTL counting too", function()
    assert.same({ { "203.0.113.9", "2001:db8::7" }, 5 }, { resolve("alias.test") })
  end)

  it("asks over TCP when the answer doesn't fit", function()
    local addresses = assert(resolve("long.test"))
    assert.equal(30, #addresses)
  end)

  it("doesn't wait long for one family when it has the other", function()
    local start = uv.hrtime()
    assert.same({ "203.0.113.9" }, (resolve("late.test", { timeout = 60 })))
    assert.is_true((uv.hrtime() - start) / 1e9 < 30)
  end)

  it("tells why there is no address", function()
    for name, code in pairs({ missing = "ENOENT", empty = "ENODATA", broken = "EIO", cut = "EBADMSG", liar = "ETIMEDOUT" }) do
      local addresses, message, got = resolve(name .. ".test", { timeout = code == "ETIMEDOUT" and 0.15 or nil })
      assert.is_nil(addresses)
      assert.equal(code, got, name .. ": " .. tostring(message))
    end
    local nobody = uv.new_udp()
    nobody:bind("127.0.0.1", 0)
    local silent = "127.0.0.1:" .. nobody:getsockname().port
    assert.equal("ETIMEDOUT", (select(3, resolve("both.test", { servers = { silent }, timeout = 0.15 }))))
    nobody:close()
    uv.run("nowait")
    assert.equal("EIO", (select(3, resolve("both.test", { servers = { silent } }))))
    -- A dead nameserver is passed over.
    assert.same({ "203.0.113.9", "2001:db8::7" }, (resolve("both.test", { servers = { silent, server }, timeout = 0.15, tries = 10 })))
  end)

  it("answers the host's own names itself, whatever their case", function()
    local hosts = { ["Box.local"] = { "::1", "10.1.2.3", "10.1.2.2" }, other = { "10.9.9.9" } }
    assert.same({ { "10.1.2.3", "10.1.2.2", "::1" }, 60 }, { resolve("boX.LOCAL", { hosts = hosts, servers = {} }) })
    assert.same({ { "203.0.113.9", "2001:db8::7" }, 60 }, { resolve("both.test", { hosts = hosts }) })
  end)

  it("gives addresses back as they are, in their usual form alone", function()
    for _, text in ipairs({ "192.0.2.1", "2001:db8::1", "::ffff:1.2.3.4" }) do
      assert.same({ text }, (resolve(text, { servers = {} })))
    end
    local resolver = assert(proxy.resolver.new({ servers = { server } }))
    for _, text in ipairs({ "1.2.3", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "01.2.3.4", "1.2.3.4.", "a.0x",
      "fe80::1%eth0", "", ".", "a..b", "-a.test", "a-.test", "a b", "a/b", "a\0b", "ä.test", ("a"):rep(64) .. ".test", ("a."):rep(128) }) do
      assert.equal("EINVAL", (select(3, resolver:query(text))), text)
    end
    resolver:close()
  end)

  it("asks for many names at once, up to a limit", function()
    local resolver = assert(proxy.resolver.new({ servers = { server }, timeout = 3, tries = 1 }))
    local ids = {}
    for i = 1, 1024 do
      ids[i] = assert(resolver:query(("%s.n%d.test"):format(i <= 50 and "both" or "mute", i)))
    end
    assert.equal("EAGAIN", (select(3, resolver:query("both.more.test"))))
    local found = wait(resolver, 1024)
    for i = 1, 1024 do
      local one = found[ids[i]]
      assert.same(i <= 50 and { "203.0.113.9", "2001:db8::7" } or "ETIMEDOUT", one[2] or one[4])
    end
    assert.is_nil(resolver:timeout())
    local id = assert(resolver:query("both.more.test"))
    assert.is_table(wait(resolver, 1)[id][2])
    resolver:close()
  end)

  it("does not number its questions in a row", function()
    seen.ids = ""
    assert(resolve("both.test"))
    local first = seen.ids
    seen.ids = ""
    assert(resolve("both.test"))
    assert.are_not.equal(first, seen.ids)
  end)

  it("passes over what is no address among servers and hosts, as libc does, but not all servers", function()
    assert.same({ "203.0.113.9", "2001:db8::7" }, (resolve("both.test", { servers = { "ns.test", server, "fe80::1%eth0" } })))
    local hosts = { a = { "b" }, box = { "10.1", "10.1.2.3", "fe80::1%lo0" } }
    assert.same({ "10.1.2.3" }, (resolve("box", { servers = {}, hosts = hosts })))
    for _, text in ipairs({ "ns.test", "1.2.3.4:0", "1.2.3.4:70000", "1.2.3.4:53x", "[::1", "[::1]53", "" }) do
      assert.equal("EINVAL", (select(3, proxy.resolver.new({ servers = { text } }))), text)
    end
  end)

  it("says when there is no nameserver, and when it is closed", function()
    local resolver = assert(proxy.resolver.new({ servers = {} }))
    assert.equal("ENETUNREACH", (select(3, resolver:query("a.test"))))
    resolver:close()
    resolver:close()
    assert.has_error(function()
      resolver:query("a.test")
    end)
    assert.has_error(function()
      proxy.resolver.new({ tries = 0 })
    end)
    for _, text in ipairs({ "::1", "[::1]:53", "127.0.0.1" }) do
      assert(proxy.resolver.new({ servers = { text } })):close()
    end
  end)

  it("leaves no descriptor behind, whatever ran, and survives the collector", function()
    collectgarbage()
    local before = support.fd_count()
    for i = 1, 50 do
      local resolver = assert(proxy.resolver.new({ servers = { server } }))
      assert(resolver:query("liar.test"))
      resolver:run()
      if i % 2 == 0 then
        resolver:close()
      end
      resolver = nil -- luacheck: ignore 311
      collectgarbage()
    end
    collectgarbage()
    assert.equal(before, support.fd_count())
  end)
end)

describe("an address", function()
  it("is of its kind, also when another one carries it", function()
    local kinds = {
      public = { "1.1.1.1", "100.63.0.1", "100.128.0.1", "172.15.0.1", "172.32.0.1", "198.20.0.1", "2606:4700::1111", "::ffff:8.8.8.8",
        "64:ff9b::808:808", "2002:808:808::1", "2001:0:808:808::f7f7:f7f7" },
      private = { "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1", "198.19.255.255", "fd00::1",
        "fc12::1", "::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "2002:c0a8:1::", "fec0::1",
        "fd74:6964:6501::1" },
      loopback = { "127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "::ffff:0:127.0.0.1",
        "2001:0:808:808::80ff:fffe" },
      ["link-local"] = { "169.254.1.1", "fe80::1", "febf::1", "::ffff:169.254.0.1" },
      metadata = { "169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "64:ff9b::a9fe:a9fe",
        "169.254.170.2" },
      multicast = { "224.0.0.1", "239.255.255.255", "ff02::1" },
      unspecified = { "0.0.0.0", "::", "::ffff:0.0.0.0" },
      reserved = { "0.1.2.3", "240.0.0.1", "255.255.255.255", "192.0.0.8", "100::1", "4000::1", "::2", "2001:10::1" },
      documentation = { "192.0.2.1", "198.51.100.7", "203.0.113.9", "2001:db8::1" },
    }
    for kind, list in pairs(kinds) do
      for _, address in ipairs(list) do
        assert.equal(kind, proxy.resolver.classify(address), address)
      end
    end
    for _, text in ipairs({ "", "x", "1.2.3", "0x7f.0.0.1", "010.0.0.1", "1.2.3.4 ", "1.2.3.4\0", "::1%lo" }) do
      assert.equal("EINVAL", (select(3, proxy.resolver.classify(text))))
    end
  end)
end)

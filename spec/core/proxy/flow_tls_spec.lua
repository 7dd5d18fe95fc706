local proxy = require("tidepool.proxy")
local harness = require("spec.core.proxy.flow_harness")
local authority = require("spec.core.proxy.tls_harness").authority

describe("TLS on a flow", function()
  local ca, trust = authority()
  local bench
  before_each(function()
    bench = harness.open()
  end)
  after_each(function()
    bench:close()
  end)

  -- Both sides of a handshake: client, server.
  local function pair(host)
    local client, server = bench:pair()
    local accepting = server:accept_tls(ca:identity("example.test"), 5)
    local connecting = client:connect_tls(trust, host or "example.test", 5)
    assert(bench:wait(connecting))
    assert(bench:wait(accepting))
    return client, server
  end

  local function response(header, bytes)
    local client, server = pair()
    bench:wait(server:write("HTTP/1.1 200 OK\r\n" .. header .. "\r\n\r\n" .. (bytes or "")))
    assert.equal(200, bench:wait(client:read_head("response", 5, "GET")).status)
    return server, client
  end

  it("carries messages both ways", function()
    local client, server = pair()
    assert.equal("http/1.1", client:tls().alpn)
    assert.is_truthy(server:tls().suite:find("GCM", 1, true))
    bench:wait(client:write("POST / HTTP/1.1\r\nHost: example.test\r\nContent-Length: 5\r\n\r\nhello"))
    assert.equal("POST", bench:wait(server:read_head("request", 5)).method)
    assert.equal("hello", bench:wait(server:read_body(10, 5)))
    bench:wait(server:write("HTTP/1.1 204 No Content\r\n\r\n"))
    assert.equal(204, bench:wait(client:read_head("response", 5, "POST")).status)
    local watching = client:watch_close()
    server:close()
    assert.is_true(bench:wait(watching))
    assert.equal("EOF", (select(3, bench:wait(client:read(5)))))
  end)

  it("sends what waits for more in one record with it", function()
    local client, server = pair()
    local before = server:stats().written
    assert.is_true(bench:wait(server:write("HTTP/1.1 200 OK\r\n", 5, true)))
    assert.equal(before, server:stats().written)
    assert.is_true(bench:wait(server:write("Content-Length: 0\r\n\r\n", 5)))
    assert.is_true(server:stats().written - before < 2 * 37 + 29, "two records")
    assert.equal(200, bench:wait(client:read_head("response", 5, "GET")).status)
  end)

  it("begins after the hello was peeked at, and peeks under TLS too", function()
    local client, server = bench:pair()
    local connecting = client:connect_tls(trust, "example.test", 5)
    local kind, hello = bench:wait(server:peek(5))
    assert.same({ "tls", "example.test", true }, { kind, hello.sni, hello.has_tls12 })
    local accepting = server:accept_tls(ca:identity(hello.sni), 5)
    assert.is_true(bench:wait(accepting))
    assert.is_true(bench:wait(connecting))
    bench:wait(client:write("GET / HTTP/1.1\r\n"))
    assert.same({ "http", "GET / HTTP/1.1" }, { bench:wait(server:peek(5)) })
    assert.equal("GET / HTTP/1.1\r\n", bench:wait(server:read(5)))
  end)

  it("fails with what a person can do something about", function()
    local client, server = bench:pair()
    server:accept_tls(ca:identity("example.test"), 5)
    local ok, message, code = bench:wait(client:connect_tls(trust, "other.test", 5))
    assert.same({ nil, "EKEYREJECTED" }, { ok, code })
    assert.is_truthy(message:find("other.test", 1, true))

    local _, stranger = authority("a stranger")
    client, server = bench:pair()
    server:accept_tls(ca:identity("example.test"), 5)
    assert.equal("ENOKEY", (select(3, bench:wait(client:connect_tls(stranger, "example.test", 5)))))

    client, server = bench:pair()
    bench:wait(client:write("GET / HTTP/1.1\r\n\r\n"))
    code = select(3, bench:wait(server:accept_tls(ca:identity("example.test"), 5)))
    assert.is_true(code == "EPROTO" or code == "EPROTONOSUPPORT", code)

    client, server = bench:pair()
    local accepting = server:accept_tls(ca:identity("example.test"), 5)
    client:close()
    assert.equal("ECONNRESET", (select(3, bench:wait(accepting))))

    client, server = bench:pair()
    assert.equal("ETIMEDOUT", (select(3, bench:wait(server:accept_tls(ca:identity("example.test"), 0.2)))))
    assert.equal("EISCONN", (select(3, bench:wait(server:accept_tls(ca:identity("example.test"), 1)))))
    client:close()
  end)

  it("can be refused by an alert", function()
    local client, server = bench:pair()
    local connecting = client:connect_tls(trust, "example.test", 5)
    bench:wait(server:peek(5))
    assert.is_true(server:alert(70))
    server:close()
    local ok, message, code = bench:wait(connecting)
    assert.is_nil(ok)
    assert.is_true(code == "EPROTONOSUPPORT" or code == "EPROTO", tostring(message))
  end)

  it("tells a body that was ended from one that was cut off", function()
    local server, from = response("X: y", "hello")
    local reading = from:read_body(100, 5)
    server:close() -- says close_notify
    assert.equal("hello", bench:wait(reading))

    server, from = response("X: y", "hello")
    reading = from:read_body(100, 5)
    local fd = server:fd()
    assert.is_true(fd > 0)
    server:reset()
    assert.is_nil((bench:wait(reading)))
  end)

  it("pumps between two TLS connections, as it comes, and in constant memory", function()
    local size = 64 * 2 ^ 20
    local server, from = response("Content-Length: " .. size)
    local client, to = pair()
    local token = bench.flow:pump(from, to, { framing = "length" }, 10)
    bench:wait(server:write("first"))
    assert.equal("first", bench:wait(client:read(5)))
    local block = ("0123456789abcdef"):rep(2 ^ 14)
    local sent, got, writing = 5, 5, nil
    local before = harness.memory()
    while got < size do
      if not writing and sent < size then
        local piece = block:sub(1, size - sent)
        writing = server:write(piece, 10)
        sent = sent + #piece
      end
      got = got + #bench:wait(client:read(10))
      if writing == 0 or bench.ended[writing] then
        writing = nil
      end
    end
    assert.equal(size, (bench:wait(token)))
    assert.is_true(harness.memory() - before < 16 * 2 ^ 20)
  end)

  it("relays to a plain end, and ends both when either ends", function()
    local client, a = pair()
    local server, b = bench:pair()
    local token = bench.flow:relay(a, b, 5)
    bench:wait(client:write("hello"))
    assert.equal("hello", bench:wait(server:read(5)))
    bench:wait(server:write("bye"))
    server:close()
    assert.equal("bye", bench:wait(client:read(5)))
    assert.equal("EOF", (select(3, bench:wait(client:read(5)))))
    assert.same({ 5, 3 }, { bench:wait(token) })

    client, a = pair()
    server, b = bench:pair()
    token = bench.flow:relay(a, b, 5)
    bench:wait(client:write("hello"))
    client:close()
    assert.same({ "hello", "EOF" }, { bench:drain(server) })
    assert.same({ 5, 0 }, { bench:wait(token) })
  end)

  it("takes at most 100 KiB for two idle connections, and gives it back", function()
    local kept = {}
    local function open(count)
      for _ = 1, count do
        local client, server = pair()
        bench:wait(client:write("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
        bench:wait(server:read_head("request", 5))
        kept[#kept + 1] = { client, server }
      end
    end
    open(20)
    local before, descriptors = harness.memory(), harness.descriptors()
    open(100)
    local each = (harness.memory() - before) / 100
    assert.is_true(each <= 100 * 1024, ("%.0f KiB"):format(each / 1024))
    for i = 21, 120 do
      kept[i] = nil
    end
    collectgarbage()
    collectgarbage()
    bench:till(function()
      return harness.descriptors() == descriptors - 0
    end)
    assert.is_not_nil(proxy.flow)
  end)

  it("works under the collector's torture", function()
    harness.torture(function()
      for _ = 1, 3 do
        local client, server = pair()
        bench:wait(client:write("hello"))
        assert.equal("hello", bench:wait(server:read(5)))
        client:read(5)
      end
    end)
  end)
end)

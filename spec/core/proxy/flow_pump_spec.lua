local uv = require("luv")
local proxy = require("tidepool.proxy")
local harness = require("spec.core.proxy.flow_harness")

local CHUNKED = "Transfer-Encoding: chunked"

describe("a pump", function()
  local bench
  before_each(function()
    bench = harness.open()
  end)
  after_each(function()
    bench:close()
  end)

  -- Pumps one body; what was written, and the pump's results.
  local function pump(header, bytes, options, finish)
    local server, from = bench:response(header, bytes)
    local to, client = bench:pair()
    if finish then
      finish(server)
    end
    local results = { bench:wait(bench.flow:pump(from, to, options, 5)) }
    to:close()
    return (bench:drain(client)), unpack(results, 1, 6)
  end

  it("passes a body of known length, of none, and one that lasts until the end", function()
    assert.same({ "hello", 5 }, { pump("Content-Length: 5", "hello", { framing = "length" }) })
    assert.same({ "", 0 }, { pump("Content-Length: 0", "", { framing = "length" }) })
    assert.same({ "hello", 5 }, { pump("X: y", "hello", { framing = "eof" }, function(server)
      server:close()
    end) })
    assert.same({ "", 5 }, { pump("Content-Length: 5", "hello", { framing = "none" }) })
  end)

  it("frames a body anew, with its trailers", function()
    assert.same({ "5\r\nhello\r\n0\r\n\r\n", 5 }, { pump("Content-Length: 5", "hello", { framing = "chunked" }) })
    local written, moved, trailers = pump(CHUNKED, "3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n", { framing = "chunked" })
    assert.equal("3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n", written)
    assert.same({ 5, { { "X-Sum", "1" } } }, { moved, trailers })
    assert.equal("hello", (pump(CHUNKED, "3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n", { framing = "eof" })))
  end)

  it("keeps the tail of a body", function()
    local body = ("x"):rep(70000) .. "the end"
    local _, moved, _, tail = pump("Content-Length: " .. #body, body, { framing = "length", tail = 7 })
    assert.same({ #body, "the end" }, { moved, tail })
    _, _, _, tail = pump("Content-Length: 3", "end", { framing = "length", tail = 7 })
    assert.equal("end", tail)
  end)

  it("tells a body that was cut off or broken from one that ended", function()
    for _, case in ipairs({ { "Content-Length: 9", "hello" }, { CHUNKED, "5\r\nhello\r\n" }, { CHUNKED, "5\r\nhello\r\n0\r\n" } }) do
      local written, ok, _, code, side, moved = pump(case[1], case[2], { framing = "length" }, function(server)
        server:close()
      end)
      assert.same({ "hello", nil, "EBADMSG", "read", 5 }, { written, ok, code, side, moved })
    end
    assert.equal("EBADMSG", (select(4, pump(CHUNKED, "zz\r\n", { framing = "chunked" }))))
  end)

  it("leaves what follows the body alone", function()
    local server, from = bench:response("Content-Length: 2", "ok" .. "HTTP/1.1 204 No Content\r\n\r\n")
    local to = bench:pair()
    assert.equal(2, (bench:wait(bench.flow:pump(from, to, { framing = "length" }, 5))))
    assert.equal(204, bench:wait(from:read_head("response", 5, "GET")).status)
    server:close()
  end)

  it("ends when either side goes away, and says which", function()
    local server, from = bench:response("Content-Length: 100", "some")
    local to, client = bench:pair()
    local token = bench.flow:pump(from, to, { framing = "length" }, 5)
    client:reset()
    local ok, _, code, side = bench:wait(token)
    assert.same({ nil, "ECONNRESET", "write" }, { ok, code, side })
    server:close()

    server, from = bench:response("Content-Length: 100", "some")
    to = bench:pair()
    token = bench.flow:pump(from, to, { framing = "length" }, 5)
    server:reset()
    ok, _, code, side = bench:wait(token)
    assert.same({ nil, "ECONNRESET", "read" }, { ok, code, side })
  end)

  it("ends when cancelled, when nothing moves, when a connection is closed", function()
    local _, from = bench:response("Content-Length: 100", "some")
    local to = bench:pair()
    local token = bench.flow:pump(from, to, { framing = "length" }, 5)
    assert.has_error(function()
      from:read(1)
    end)
    assert.is_true(bench.flow:cancel(token))
    assert.same({ nil, "cancelled", "ECANCELED", "read", 4 }, { bench:wait(token) })
    assert.equal("ETIMEDOUT", (select(3, bench:wait(bench.flow:pump(from, to, { framing = "length" }, 0.2)))))
    token = bench.flow:pump(from, to, { framing = "length" })
    to:close()
    assert.equal("ECANCELED", (select(3, bench:wait(token))))
    assert.has_error(function()
      bench.flow:pump(from, to, { framing = "some" })
    end)
  end)

  it("passes on at once what has come", function()
    local server, from = bench:response("Content-Type: text/event-stream")
    local to, client = bench:pair()
    local token = bench.flow:pump(from, to, { framing = "chunked" }, 5)
    for i = 1, 5 do
      bench:wait(server:write("data: " .. i .. "\n\n"))
      assert.equal("9\r\ndata: " .. i .. "\n\n\r\n", bench:wait(client:read(5)))
    end
    server:close()
    assert.equal(45, (bench:wait(token)))
  end)

  it("masks secrets in bodies and trailers, however they are cut", function()
    local scrub = assert(proxy.scrub.new({ { "hunter2hunter2", 7 } }, "mask"))
    local server, from = bench:response(CHUNKED)
    local to, client = bench:pair()
    local token = bench.flow:pump(from, to, { framing = "length", scrub = scrub, tail = 64 }, 5)
    for piece in ("a hunter2hunter2 b"):gmatch(".") do
      bench:wait(server:write("1\r\n" .. piece .. "\r\n"))
      bench:run()
    end
    bench:wait(server:write("0\r\nX-Echo: hunter2hunter2\r\n\r\n"))
    local moved, trailers, tail, id = bench:wait(token)
    assert.same({ 18, "a ************** b", 7 }, { moved, tail, id })
    assert.equal("X-Echo", trailers[1][1])
    to:close()
    assert.equal("a ************** b", (bench:drain(client)))
    local written = pump(CHUNKED, "0\r\nX-Echo: hunter2hunter2\r\n\r\n", { framing = "chunked", scrub = scrub })
    assert.equal("0\r\nX-Echo: **************\r\n\r\n", written)
  end)

  it("stops at a secret that it is to detect, before it is through", function()
    local scrub = assert(proxy.scrub.new({ { "hunter2hunter2", 7 } }, "detect"))
    local written, ok, _, code, side, moved, id = pump("Content-Length: 40", ("x"):rep(20) .. "hunter2hunter2" .. ("x"):rep(6),
      { framing = "length", scrub = scrub })
    assert.same({ nil, "EILSEQ", "read", 7 }, { ok, code, side, select(1, id) })
    assert.is_nil(written:find("hunter", 1, true))
    assert.is_true(moved <= 20)
  end)

  it("moves much in constant memory to a reader that is slow", function()
    local size = 256 * 2 ^ 20
    local server, from = bench:response("Content-Length: " .. size)
    local to, client = bench:pair()
    local token = bench.flow:pump(from, to, { framing = "chunked", scrub = proxy.scrub.new({ { "hunter2hunter2", 1 } }) }, 10)
    local block = ("0123456789abcde\n"):rep(2 ^ 14)
    local sent, writing, got, before, most = 0, nil, 0, harness.memory(), 0
    for i = 1, math.huge do
      if not writing and sent < size then
        writing = server:write(block, 10)
        sent = sent + #block
      end
      bench:run()
      if writing == 0 or bench.ended[writing] then
        writing = nil
      end
      if i % 2 == 0 then
        local bytes = bench:wait(client:read(10))
        got = got + #bytes
      end
      if i % 500 == 0 then
        most = math.max(most, harness.memory() - before)
      end
      if bench.ended[token] then
        break
      end
    end
    assert.equal(size, (bench:wait(token)))
    to:close()
    got = got + #(bench:drain(client))
    assert.is_true(got > size)
    assert.is_true(most < 16 * 2 ^ 20, ("%.1f MB more"):format(most / 2 ^ 20))
  end)

  it("gives others their turn while it moves much", function()
    local server, from = bench:response("Content-Length: 1000000000000")
    local to, client = bench:pair()
    local sink = bench:pair()
    bench.flow:pump(from, to, { framing = "length" }, 5)
    bench:wait(client:write("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"))
    -- From one end to the other and back in the process itself: never idle.
    bench.flow:relay(server, client, 5)
    local near, far = bench:pair()
    for _ = 1, 100 do
      bench:wait(near:write("ping"))
      assert.equal("ping", bench:wait(far:read(5)))
    end
    sink:close()
  end)

  it("leaves nothing behind and works under the collector's torture", function()
    local before = harness.descriptors()
    harness.torture(function()
      for _ = 1, 5 do
        pump(CHUNKED, "3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n", { framing = "chunked", tail = 3,
          scrub = proxy.scrub.new({ { "hunter2hunter2", 1 } }) })
        local _, from = bench:response("Content-Length: 100", "some")
        bench.flow:pump(from, (bench:pair()), { framing = "length" }, 5)
      end
    end)
    collectgarbage()
    collectgarbage()
    bench:till(function()
      return harness.descriptors() == before
    end)
  end)
end)

describe("a relay", function()
  local bench
  before_each(function()
    bench = harness.open()
  end)
  after_each(function()
    bench:close()
  end)

  local kept -- the ends in the middle, which would be closed when collected
  local function relay(idle, options)
    local client, a = bench:pair()
    local server, b = bench:pair()
    kept = { kept, a, b }
    return client, server, (bench.flow:relay(a, b, idle, options))
  end

  it("passes everything both ways, what was peeked at first, and half-closes", function()
    local client, a = bench:pair()
    local server, b = bench:pair()
    bench:wait(client:write("hello"))
    assert.equal("other", (bench:wait(a:peek(0.2))))
    local token = bench.flow:relay(a, b, 5)
    assert.equal("hello", bench:wait(server:read(5)))
    bench:wait(server:write("welcome"))
    assert.equal("welcome", bench:wait(client:read(5)))
    client:close() -- its last bytes and its end; the answer still comes
    assert.equal("EOF", (select(3, bench:wait(server:read(5)))))
    bench:wait(server:write("bye"))
    server:close()
    assert.same({ 5, 10 }, { bench:wait(token) })
  end)

  it("pushes back on who writes too fast and loses nothing", function()
    local client, server, token = relay(10)
    local sent = ("0123456789abcdef"):rep(2 ^ 21)
    local writing = client:write(sent, 10)
    assert.is_true(writing > 0)
    local till = uv.hrtime() + 0.2e9
    bench:till(function()
      return uv.hrtime() > till
    end)
    assert.is_nil(bench.ended[writing])
    local got = {}
    while true do
      local bytes = bench:wait(server:read(5))
      if not bytes then
        break
      end
      got[#got + 1] = bytes
      if bench.ended[writing] then
        client:close()
      end
    end
    assert.is_true(table.concat(got) == sent)
    server:close()
    assert.same({ #sent, 0 }, { bench:wait(token) })
  end)

  it("ends by a reset, by silence, by being cancelled, with what had moved", function()
    local client, server, token = relay(5)
    bench:wait(client:write("hello"))
    bench:wait(server:read(5))
    server:reset()
    assert.same({ nil, "read: Connection reset by peer", "ECONNRESET", 5, 0 }, { bench:wait(token) })
    token = select(3, relay(0.2))
    assert.equal("ETIMEDOUT", (select(3, bench:wait(token))))
    token = select(3, relay())
    bench.flow:cancel(token)
    assert.equal("ECANCELED", (select(3, bench:wait(token))))
  end)

  it("masks what the second end sends, and doesn't keep a harmless beginning for long", function()
    local scrub = assert(proxy.scrub.new({ { "hunter2hunter2", 7 } }, "mask"))
    local client, server, token = relay(5, { scrub = scrub })
    bench:wait(client:write("hunter2hunter2"))
    assert.equal("hunter2hunter2", bench:wait(server:read(5))) -- the sandbox may say what it likes
    bench:wait(server:write("you said hunter2h"))
    bench:run()
    bench:wait(server:write("unter2 to me"))
    local got = ""
    while #got < 26 do
      got = got .. bench:wait(client:read(5))
    end
    assert.equal("you said ************** to me", got)
    bench:wait(server:write("a hunter"))
    assert.equal("a ", bench:wait(client:read(5)))
    local began = uv.hrtime()
    assert.equal("hunter", bench:wait(client:read(5)))
    local waited = (uv.hrtime() - began) / 1e9
    assert.is_true(waited > 0.7 and waited < 30, waited)
    bench:wait(server:write("hunte"))
    server:close()
    client:close()
    bench:wait(token)
  end)
end)

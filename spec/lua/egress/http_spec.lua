-- HTTP through the egress process, from a program inside to a server outside and back: everything that a
-- message may look like, byte for byte.
local cjson = require("cjson")
local outside = require("spec.support.outside")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local HOST = "echo.test"

describe("HTTP through the egress process", function()
  local world, box, echo

  setup(function()
    world = outside.new()
    echo = world:serve(HOST, function(leaf) return web.echo({ leaf = leaf }) end)
    world:serve("plain.test", function() return web.echo() end, false)
    world:serve("nginx.test", function(leaf)
      return web.nginx({ leaf = leaf, http = "log_format conn '$connection $request'; ", access_log = "access_log off;",
        locations = "location / { add_header X-Connection $connection always; }" })
    end)
    box = world:sandbox()
  end)

  -- One request on a connection of its own: the answer's head and body, and all that talk tells.
  local function ask(first, more, config)
    local host = config and config.name or HOST
    local text = ("%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s"):format(first, host, more or "\r\n")
    local said = talk.say(box, host, text, config)
    local head, body = said.text:match("^(.-\r\n\r\n)(.*)$")
    return head or said.text, body, said
  end

  local function steps(list, config)
    config = config or {}
    config.host, config.steps, config.tls = config.host or HOST, list, config.tls ~= false
    return talk.run(box, config)
  end

  it("passes a request on as it was, without what belongs to a connection alone", function()
    local head, body = ask("PUT /echo?a=b%20c", "X-Mine: yes\r\nTE: trailers\r\nKeep-Alive: 5\r\nContent-Length: 5\r\n\r\nhello")
    assert.matches("^HTTP/1.1 200 ", head)
    local seen = cjson.decode(body)
    assert.equal("PUT /echo?a=b%20c HTTP/1.1\r\nHost: echo.test\r\nX-Mine: yes\r\nContent-Length: 5\r\n", seen.head)
    assert.equal("hello", seen.body)
    assert.equal("TLSv1.2", seen.tls.version)
  end)

  it("tells an empty body from none", function()
    local _, body = ask("POST /echo", "Content-Length: 0\r\n\r\n")
    assert.matches("Content%-Length: 0\r\n", cjson.decode(body).head)
    _, body = ask("POST /echo")
    assert.not_matches("Content%-Length", cjson.decode(body).head)
  end)

  it("answers HEAD, 204 and 304 with a head alone", function()
    local head, body = ask("HEAD /bytes?size=123456")
    assert.matches("Content%-Length: 123456\r\n", head)
    assert.equal("", body)
    for _, status in ipairs({ 204, 304 }) do
      head, body = ask("GET /status/" .. status)
      assert.matches("^HTTP/1.1 " .. status, head)
      assert.matches("ETag: \"x\"", head)
      assert.not_matches("Content%-Length", head)
      assert.equal("", body)
    end
  end)

  it("passes hints on before the response is there", function()
    local said = steps({
      { send = "GET /hints?delay=2 HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\n\r\n" },
    })
    assert.matches("^HTTP/1.1 103 .*Link: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 .*after hints\n$", said.text)
    assert.is_true(said.pieces[#said.pieces][1] - said.pieces[1][1] > 0.5)
  end)

  it("keeps chunks and trailers in both directions", function()
    local head, body = ask("POST /trailers", "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nX-T: yes\r\n\r\n")
    assert.matches("Transfer%-Encoding: chunked\r\n", head)
    assert.matches("Trailer: X%-Digest\r\n", head)
    assert.matches("hello world\r\n0\r\nX%-Digest: b94d27b9934d3e08", body)
    body = select(2, ask("POST /echo", "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\nb\r\nhello world\r\n0\r\nX-T: yes\r\n\r\n"))
    local seen = cjson.decode(body)
    assert.equal("hello world", seen.body)
    assert.same({ { "X-T", "yes" } }, seen.trailers)
  end)

  it("reads chunks of any size, however they arrive", function()
    local result = assert(box:exec("curl -sS 'https://echo.test/chunked?drip=1' | sha256sum; curl -sS 'https://echo.test/bytes?size=87396' | sha256sum"))
    local one, other = result.stdout:match("^(%x+)  %-\n(%x+)")
    assert.equal(other, one)
  end)

  it("delays no event of a stream", function()
    local _, body, said = ask("GET /events?count=4&interval=0.6")
    assert.matches("data: event 4 at", body)
    local times = {}
    for _, piece in ipairs(said.pieces) do
      times[#times + 1] = piece[1]
    end
    -- The head with the first event, or before it; the last one comes 1.8 s after that.
    assert.is_true(#times >= 2 and times[#times] - times[1] > 0.8, table.concat(times, " "))
  end)

  it("lets a client wait for leave to send its body", function()
    local said = steps({
      { send = "POST /echo HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n" },
      { await = "100 Continue\r\n\r\n" }, { send = "hello" },
    })
    assert.matches("^HTTP/1.1 100 .*HTTP/1.1 200 .*\"body\": \"hello\"", said.text)
  end)

  it("tells it when the upstream gives no leave, and ends the connection", function()
    for path, status in pairs({ ["/expect-fail"] = 417, ["/early"] = 413 }) do
      local said = steps({
        { send = "POST " .. path .. " HTTP/1.1\r\nHost: echo.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n" },
      })
      assert.matches("^HTTP/1.1 " .. status .. " .*Connection: close\r\n", said.text)
      assert.equal("eof", said.ended)
      assert.is_true(said.pieces[#said.pieces][1] < 15)
    end
  end)

  it("brings a refusal to a client that is still sending", function()
    for _, host in ipairs({ HOST, "plain.test" }) do
      local said = steps({
        { send = ("POST /early HTTP/1.1\r\nHost: %s\r\nContent-Length: 30000000\r\n\r\n"):format(host) }, { send_zeros = 30000000 },
      }, { host = host, tls = host == HOST })
      assert.matches("^HTTP/1.1 413 .*Connection: close\r\n.*too large\n$", said.text)
      local entry = talk.entry(box, { host = host, path = "/early", status = 413, method = "POST", bytes_received = 10 })
      assert.is_true(entry.bytes_sent < 30000000)
    end
  end)

  it("serves one request after the other on a connection, also when they are sent at once", function()
    local said = steps({
      { send = "GET /status/200 HTTP/1.1\r\nHost: echo.test\r\n\r\n"
        .. "POST /status/201 HTTP/1.1\r\nHost: echo.test\r\nContent-Length: 3\r\n\r\nabc"
        .. "GET /status/202 HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\n\r\n" },
    })
    assert.matches("^HTTP/1.1 200 .*status 200\nHTTP/1.1 201 .*status 201\nHTTP/1.1 202 .*status 202\n$", said.text)
    assert.equal("eof", said.ended)
  end)

  it("uses one upstream connection for the requests of many", function()
    local seen, count = {}, 0
    for _ = 1, 3 do
      local result = assert(box:exec("for path in / /page.txt /none; do curl -sSD - -o /dev/null https://nginx.test$path | grep -i ^x-connection; done"))
      for number in result.stdout:gmatch("%d+") do
        count = count + (seen[number] and 0 or 1)
        seen[number] = true
      end
    end
    assert.equal(1, count, count .. " connections")
  end)

  it("speaks to a client of HTTP/1.0, whose body ends with the connection", function()
    local said = talk.say(box, HOST, "GET /chunked?sizes=10,20,30 HTTP/1.0\r\nHost: echo.test\r\nConnection: keep-alive\r\n\r\n")
    local head = said.text:match("^(.-\r\n\r\n)")
    assert.not_matches("Transfer%-Encoding", head)
    assert.matches("Connection: close", head)
    assert.equal(60, said.total - #head)
    assert.equal("eof", said.ended)
  end)

  it("never lets a response that was cut off look whole", function()
    for _, path in ipairs({ "/cut", "/cut?chunked=1", "/cut?reset=1" }) do
      local _, _, said = ask("GET " .. path)
      assert.not_equal("eof", said.ended)
      said = talk.say(box, "plain.test", "GET " .. path .. " HTTP/1.0\r\nHost: plain.test\r\n\r\n", { tls = false })
      assert.equal("reset", said.ended)
    end
    assert.is_truthy(talk.entry(box, { action = "error", path = "/cut", reason = "cut off", bytes_received = 100, status = 200 }))
  end)

  it("never lets a request that was cut off look whole", function()
    steps({ { send = "POST /sink HTTP/1.1\r\nHost: echo.test\r\nContent-Length: 50\r\n\r\nhalf" }, { sleep = 0.2 }, { cut = true } })
    local entry = talk.entry(box, { path = "/sink", method = "POST", status = 400 })
    assert.matches("the request's body", entry.reason)
    assert.equal(4, entry.bytes_sent)
  end)

  it("writes down who asked what of whom, the bytes and the time", function()
    ask("POST /slow?delay=0.2&token=abc", "Content-Length: 7\r\n\r\n1234567")
    local entry = talk.entry(box, { path = "/slow", method = "POST" })
    assert.equal(box.name, entry.sandbox)
    assert.same({ "allow", "request", "https", HOST, 443, 200, 7, 8, "allow_hosts" }, {
      entry.action, entry.hook, entry.protocol, entry.host, entry.port, entry.status, entry.bytes_sent,
      entry.bytes_received, entry.policy,
    })
    assert.equal("/slow?...", entry.path)
    assert.is_true(entry.seconds > 0.19 and entry.seconds < 60 and math.abs(entry.time - os.time()) < 300)
  end)

  it("does not go on waiting for an answer whose client has gone", function()
    box:exec("curl -sS -m 1 'https://echo.test/slow?delay=30'; curl -sS -m 1 -d body 'https://echo.test/slow?delay=30'")
    for _, method in ipairs({ "GET", "POST" }) do
      local entry = assert(talk.entry(box, { method = method, path = "/slow", reason = "the client has gone" }), method)
      assert.is_true(entry.seconds < 25)
    end
    assert.equal("at last\n", box:exec("curl -sS 'https://echo.test/slow?delay=0.1'").stdout)
  end)

  it("lets the upstream see nothing of the connections inside", function()
    for _, request in ipairs(echo.requests()) do
      for _, header in ipairs(request.headers) do
        assert.not_matches("^[Vv]ia$", header[1])
        assert.not_matches("^[Xx]%-[Ff]orwarded", header[1])
      end
    end
  end)
end)

-- What can go wrong outside, and what the client inside and the log get to know of it; and services that are
-- not HTTP at all.
local certificates = require("spec.support.certificates")
local outside = require("spec.support.outside")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

-- What the client reads when the upstream's certificate is of this form (certificates.bad).
local REASONS = {
  expired = "expired on %d+%-%d+%-%d+",
  future = "is not valid before %d+%-%d+%-%d+",
  wrong_host = "is for someone%-else%.test, not wrong%-host%.test",
  self_signed = "is self%-signed",
  unknown_issuer = "its issuer \"Stranger\" is not known",
  same_name_issuer = "is not known",
  weak_key = "has a weak key",
  client_only = "is not for a TLS server",
  missing_intermediate = "did not send an intermediate certificate",
}

local function host_of(form)
  return form:gsub("_", "-") .. ".test"
end

describe("an upstream", function()
  local world, box, nginx, echo

  local function get(host, more, config)
    return talk.say(box, host, ("GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n"):format(host, more or ""), config)
  end

  setup(function()
    world = outside.new()
    for form in pairs(REASONS) do
      local host = host_of(form)
      world:point(host, web.openssl({ leaf = certificates.bad[form](world.ca, host) }).port)
    end
    world:serve("tls13.test", function(leaf) return web.openssl({ leaf = leaf, flags = { "-tls1_3" } }) end)
    world:serve("pass13.test", function(leaf) return web.openssl({ leaf = leaf, flags = { "-tls1_3" } }) end)
    echo = world:serve("echo.test", function(leaf) return web.echo({ leaf = leaf }) end)
    nginx = world:serve("brief.test", function(leaf)
      return web.nginx({ leaf = leaf, locations = "location / { keepalive_timeout 1s; dav_methods PUT; }" })
    end)
    world:point("shut.test", 1)
    world:point("mute.test", web.tcp("silent").port)
    world.hosts[#world.hosts + 1] = "nowhere.test"
    for _, kind in ipairs({ "lines", "count", "echo" }) do
      world.to["tcp-" .. kind .. ".test"] = "127.0.0.1:" .. web.tcp(kind).port
    end
    world.to["tcp-shut.test"] = "127.0.0.1:1"
    box = world:sandbox(world:policies({
      passthrough = { "pass13.test" },
      tcp = { "tcp-lines.test:22", "tcp-count.test:5432", "tcp-echo.test:7", "tcp-shut.test:22" },
    }))
    -- Takes its time, so it goes first; the last test reads what it got.
    assert(box:exec("curl -sS -i https://mute.test/ >/tmp/mute 2>&1 &"))
  end)

  for form, reason in pairs(REASONS) do
    it("is refused for its certificate: " .. form:gsub("_", " "), function()
      local said = get(host_of(form))
      assert.matches("^HTTP/1.1 502 .*\r\n\r\ntidepool: TLS with " .. host_of(form):gsub("%p", "%%%0") .. ": .*" .. reason, said.text)
      local entry = talk.entry(box, { host = host_of(form), hook = "request" })
      assert.same({ "error", 502, "GET", 0 }, { entry.action, entry.status, entry.method, entry.bytes_received })
      assert.matches(reason, entry.reason)
    end)
  end

  it("that speaks only TLS 1.3 is told apart", function()
    assert.matches("^HTTP/1.1 502 .*tls13.test speaks only TLS 1.3, the proxy TLS 1.2", get("tls13.test").text)
    assert.is_truthy(talk.entry(box, { action = "error", host = "tls13.test", reason = "TLS 1.3" }))
  end)

  it("that speaks only TLS 1.3 is reached where its TLS is passed through", function()
    local result = assert(box:exec("curl -sS --insecure https://pass13.test/"))
    assert.matches("TLSv1.3", result.stdout)
    local entry = talk.entry(box, { action = "passthrough", host = "pass13.test" })
    assert.is_true(entry.bytes_sent > 300 and entry.bytes_received > 1000)
    -- Nobody vouches for it then but its own certificate, which the sandbox does not know.
    assert.matches("certificate", box:exec("curl -sS https://pass13.test/").stderr)
  end)

  it("is not asked by a client that speaks only TLS 1.3, which is told why", function()
    local said = get("echo.test", "", { versions = "1.3" })
    assert.matches("^tls .*PROTOCOL_VERSION", said.ended)
    assert.is_truthy(talk.entry(box, { action = "deny", host = "echo.test", hook = "connect", reason = "only TLS 1.3" }))
    assert.matches("alert number 70", box:exec("openssl s_client -connect echo.test:443 -tls1_1 </dev/null").stderr)
    assert.is_truthy(talk.entry(box, { action = "deny", host = "echo.test", hook = "connect", reason = "before 1.2" }))
  end)

  it("is not asked by a client that speaks only HTTP/2, and by one that would rather, in HTTP/1.1", function()
    assert.matches("NO_APPLICATION_PROTOCOL", (talk.run(box, { host = "echo.test", tls = true, alpn = { "h2" } }).ended:gsub(" ", "_"):upper()))
    assert.is_truthy(talk.entry(box, { action = "deny", host = "echo.test", hook = "connect", reason = "ALPN" }))
    assert.equal("1.1 200", box:exec("curl -sS --http2 -o /dev/null -w '%{http_version} %{http_code}' https://echo.test/echo").stdout)
  end)

  it("that refuses, or has no address, is a 502 with the reason", function()
    assert.matches("^HTTP/1.1 502 .*connect to shut.test port 1: .*Connection refused", get("shut.test").text)
    assert.matches("^HTTP/1.1 502 .*Connection refused", get("shut.test", "", { tls = false }).text)
    assert.matches("^HTTP/1.1 502 .*nowhere.test can't be resolved: ", get("nowhere.test").text)
    assert.is_truthy(talk.entry(box, { action = "error", status = 502, host = "nowhere.test", reason = "can't be resolved" }))
  end)

  it("that hangs up instead of answering is a 502", function()
    local said = talk.say(box, "echo.test", "GET /hang-up HTTP/1.1\r\nHost: echo.test\r\n\r\n")
    assert.matches("^HTTP/1.1 502 .*no response from echo.test: it closed the connection", said.text)
    assert.is_truthy(talk.entry(box, { action = "error", path = "/hang-up", status = 502 }))
  end)

  it("that answers what is no HTTP is a 502", function()
    for _, bytes in ipairs({ "SSH-2.0-x\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
      "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" }) do
      local hex = bytes:gsub(".", function(char) return ("%02x"):format(char:byte()) end)
      local said = talk.say(box, "echo.test", ("GET /raw?hex=%s HTTP/1.1\r\nHost: echo.test\r\n\r\n"):format(hex))
      assert.matches("^HTTP/1.1 502 ", said.text, said.ended .. ": " .. bytes)
    end
  end)

  it("that closed an idle connection is asked again on a new one, whatever the method", function()
    for _ = 1, 2 do
      local result = assert(box:exec([[for method in GET POST; do
        curl -sS -o /dev/null -w '%{http_code} ' -X $method -d x https://brief.test/page.txt; sleep 1.3; done]]))
      assert.matches("^%d%d%d %d%d%d $", result.stdout)
      assert.not_matches("50%d", result.stdout)
    end
    assert.equal(4, #nginx:requests())
  end)

  it("that closes it just as it is asked again gets no POST twice", function()
    local count = #echo.requests()
    local result = assert(box:exec([[for path in echo hang-up; do curl -sS -o /dev/null -w '%{http_code} ' -d '' https://echo.test/$path; done;
      for path in echo hang-up; do curl -sS -o /dev/null -w '%{http_code} ' https://echo.test/$path; done]]))
    assert.equal("200 502 200 502 ", result.stdout)
    assert.equal(2 + 3, #echo.requests() - count) -- GET /hang-up was tried on a new connection too
  end)

  it("may be the first to speak, as ssh and databases are", function()
    local said = talk.run(box, { host = "tcp-lines.test", port = 22, steps = {
      { await = "220 hello" }, { send = "abc\r\n" }, { await = "ABC" }, { send = "quit\r\n" },
    } })
    assert.matches("^220 hello, connection %d+\r\nABC\r\n221 bye\r\n$", said.text)
    local entry = talk.entry(box, { host = "tcp-lines.test", hook = "connect" })
    assert.same({ "passthrough", "tcp", 22, 11, said.total }, {
      entry.action, entry.protocol, entry.port, entry.bytes_sent, entry.bytes_received,
    })
  end)

  it("gets the end of what a client sends, and can still answer", function()
    local said = talk.run(box, { host = "tcp-count.test", port = 5432, steps = { { send_zeros = 3000000 }, { ["end"] = true } } })
    assert.equal("3000000\n", said.text)
    said = talk.run(box, { host = "tcp-echo.test", port = 7, steps = { { send = "x" }, { await = "x" }, { send = "yz" }, { ["end"] = true } } })
    assert.same({ "xyz", "eof" }, { said.text, said.ended })
  end)

  it("that refuses a relay resets the client, and the log has why", function()
    assert.equal("reset", talk.run(box, { host = "tcp-shut.test", port = 22 }).ended)
    assert.is_truthy(talk.entry(box, { action = "error", host = "tcp-shut.test", reason = "Connection refused" }))
  end)

  it("is not reached by what is not HTTP unless a policy relays it", function()
    assert.equal("reset", talk.run(box, { host = "echo.test", port = 80, steps = { { send = "\0\1\2\3" } } }).ended)
    assert.is_truthy(talk.entry(box, { action = "deny", host = "echo.test", port = 80, reason = "not HTTP" }))
    assert.equal("reset", talk.run(box, { host = "echo.test", port = 25, steps = { { send = "EHLO\r\n" } } }).ended)
    assert.is_truthy(talk.entry(box, { action = "deny", host = "echo.test", port = 25, reason = "port is not on the list" }))
  end)

  it("that says nothing is a 504", function()
    local text = support.eventually(function()
      local read = assert(box:exec("cat /tmp/mute")).stdout
      return read ~= "" and read
    end)
    assert.matches("^HTTP/1.1 504 .*TLS with mute.test: timed out", text)
    assert.is_truthy(talk.entry(box, { action = "error", status = 504, host = "mute.test" }))
  end)
end)

-- Requests that two readers could read in two ways, and those that say one thing and do another: each is refused
-- before a byte of it reaches the upstream, and written down.
local outside = require("spec.support.outside")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local HOST = "Host: echo.test\r\n"
local CHUNKED = "POST /no HTTP/1.1\r\n" .. HOST .. "Transfer-Encoding: chunked\r\n\r\n"

-- What it is, its bytes, the status, a part of the reason.
local REFUSED = {
  { "both lengths", "POST /no HTTP/1.1\r\n" .. HOST .. "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Transfer-Encoding" },
  { "two lengths", "POST /no HTTP/1.1\r\n" .. HOST .. "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "Content-Length" },
  { "a negative length", "POST /no HTTP/1.1\r\n" .. HOST .. "Content-Length: -5\r\n\r\n", 400, "Content-Length" },
  { "a signed length", "POST /no HTTP/1.1\r\n" .. HOST .. "Content-Length: +5\r\n\r\nhello", 400, "Content-Length" },
  { "a length that overflows", "POST /no HTTP/1.1\r\n" .. HOST .. "Content-Length: 99999999999999999999\r\n\r\n", 400, "Content-Length" },
  { "a coding nearly like chunked", "POST /no HTTP/1.1\r\n" .. HOST .. "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "Transfer-Encoding" },
  { "two codings", "POST /no HTTP/1.1\r\n" .. HOST .. "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "Transfer-Encoding" },
  { "a hidden coding", "POST /no HTTP/1.1\r\n" .. HOST .. "Transfer-Encoding: \11chunked\r\n\r\n0\r\n\r\n", 400, "" },
  { "a folded header", "GET /no HTTP/1.1\r\n" .. HOST .. "X-A: a\r\n b\r\n\r\n", 400, "folded" },
  { "a space before the colon", "GET /no HTTP/1.1\r\n" .. HOST .. "X-A : a\r\n\r\n", 400, "colon" },
  { "lines that end with LF", "GET /no HTTP/1.1\n" .. HOST .. "\n", 400, "LF alone" },
  { "a CR inside a header", "GET /no HTTP/1.1\r\n" .. HOST .. "X-A: a\rX-B: b\r\n\r\n", 400, "CR" },
  { "a NUL inside a header", "GET /no HTTP/1.1\r\n" .. HOST .. "X-A: a\0b\r\n\r\n", 400, "control character" },
  { "a line break in the target", "GET /no\r\nX: y HTTP/1.1\r\n" .. HOST .. "\r\n", 400, "version" },
  { "a space in the target", "GET /no /no HTTP/1.1\r\n" .. HOST .. "\r\n", 400, "version" },
  { "a request of HTTP/0.9", "GET /no\r\n", 400, "version" },
  { "HTTP/2, known beforehand", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "HTTP/2" },
  { "no Host", "GET /no HTTP/1.1\r\n\r\n", 400, "no Host" },
  { "the same Host twice", "GET /no HTTP/1.1\r\n" .. HOST .. HOST .. "\r\n", 400, "more than one Host" },
  { "two Hosts", "GET /no HTTP/1.1\r\n" .. HOST .. "Host: evil.test\r\n\r\n", 400, "more than one Host" },
  { "a user in the Host", "GET /no HTTP/1.1\r\nHost: evil.test@echo.test\r\n\r\n", 400, "Host" },
  { "another Host than the connection's", "GET /no HTTP/1.1\r\nHost: plain.test\r\n\r\n", 403, "the request is for plain.test" },
  { "a Host with another port", "GET /no HTTP/1.1\r\nHost: echo.test:8443\r\n\r\n", 403, "port 8443" },
  { "a URL of another host", "GET https://plain.test/no HTTP/1.1\r\nHost: plain.test\r\n\r\n", 403, "the request is for plain.test" },
  { "a URL and a Host that differ", "GET https://evil.test/no HTTP/1.1\r\n" .. HOST .. "\r\n", 400, "different hosts" },
  { "a URL of another scheme", "GET http://echo.test/no HTTP/1.1\r\n" .. HOST .. "\r\n", 400, "came over TLS" },
  { "CONNECT", "CONNECT echo.test:443 HTTP/1.1\r\n" .. HOST .. "\r\n", 405, "CONNECT" },
  { "an asterisk where a path belongs", "GET * HTTP/1.1\r\n" .. HOST .. "\r\n", 400, "neither a path nor a URL" },
  { "a header of more than 64 KiB", "GET /no HTTP/1.1\r\n" .. HOST .. "X-A: " .. ("a"):rep(70000) .. "\r\n\r\n", 431, "more than 65536 bytes" },
  { "more than 256 headers", "GET /no HTTP/1.1\r\n" .. HOST .. ("X-A: b\r\n"):rep(300) .. "\r\n", 431, "more than 256 headers" },
  { "no HTTP at all", "\0\1\2 what is this\r\n\r\n", 400, "" },
}

-- Refused when its head has gone on already: the upstream must not take the body for a whole one.
local BROKEN = {
  { "a chunk's size in C", CHUNKED .. "0x5\r\nhello\r\n0\r\n\r\n", "chunk" },
  { "a chunk's size with a sign", CHUNKED .. "-5\r\nhello\r\n0\r\n\r\n", "chunk" },
  { "a chunk's size that overflows", CHUNKED .. "10000000000000005\r\nhello\r\n0\r\n\r\n", "chunk" },
  { "a chunk longer than it says", CHUNKED .. "5\r\nhelloworld\r\n0\r\n\r\n", "chunk" },
  { "a chunk's line that ends with LF", CHUNKED .. "5\nhello\r\n0\r\n\r\n", "" },
  { "a trailer that is folded", CHUNKED .. "5\r\nhello\r\n0\r\nX-A: a\r\n b\r\n\r\n", "" },
}

describe("a request that is not plain", function()
  local world, box, echo

  setup(function()
    world = outside.new()
    echo = world:serve("echo.test", function(leaf) return web.echo({ leaf = leaf }) end)
    world:serve("plain.test", function() return web.echo() end, false)
    box = world:sandbox()
  end)

  for _, case in ipairs(REFUSED) do
    it("is refused for " .. case[1], function()
      local before = #echo.requests()
      local said = talk.say(box, "echo.test", case[2], { patience = 5 })
      assert.matches("^HTTP/1.1 " .. case[3] .. " .*\r\nConnection: close\r\n\r\ntidepool: ", said.text)
      assert.equal("eof", said.ended)
      assert.is_truthy(said.text:match("\r\n\r\n(.*)$"):find(case[4], 1, true), said.text)
      assert.equal(before, #echo.requests())
      local entry = talk.entry(box, { action = "deny", hook = "request", protocol = "https", status = case[3], reason = case[4] })
      assert.is_truthy(entry, "it is not in the log")
      assert.equal(box.name, entry.sandbox)
    end)
  end

  for _, case in ipairs(BROKEN) do
    it("ends with its body for " .. case[1], function()
      local said = talk.say(box, "echo.test", case[2], { patience = 5 })
      assert.matches("^HTTP/1.1 400 .*\r\n\r\ntidepool: the request's body: .*" .. case[3], said.text)
      assert.is_truthy(talk.entry(box, { action = "deny", path = "/no", reason = "the request's body: ", status = 400 }))
    end)
  end

  it("is no cover for a second one, since what follows a body is read as a request", function()
    local said = talk.say(box, "echo.test", "POST /status/200 HTTP/1.1\r\n" .. HOST
      .. "Content-Length: 4\r\n\r\nabcdGET /status/201 HTTP/1.1\r\nHost: plain.test\r\n\r\n")
    assert.matches("^HTTP/1.1 200 .*HTTP/1.1 403 .*the request is for plain.test", said.text)
  end)

  it("is refused when TLS asks for another name than the one that was looked up", function()
    local said = talk.say(box, "echo.test", "GET /echo HTTP/1.1\r\nHost: evil.test\r\n\r\n", { sni = "evil.test" })
    assert.matches("^HTTP/1.1 403 .*TLS asks for evil.test, the connection is to echo.test", said.text)
    local entry = talk.entry(box, { action = "deny", hook = "connect", host = "echo.test", sni = "evil.test" })
    assert.matches("mismatch", entry.reason)
  end)

  it("is refused as HTTP/2 without TLS", function()
    local said = talk.say(box, "plain.test", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", { tls = false })
    assert.equal("reset", said.ended)
    assert.is_truthy(talk.entry(box, { action = "deny", host = "plain.test", reason = "HTTP/2" }))
  end)

  it("does not switch to HTTP/2 by an upgrade", function()
    local said = talk.say(box, "echo.test", "GET /echo HTTP/1.1\r\n" .. HOST
      .. "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n")
    assert.matches("^HTTP/1.1 200 ", said.text)
    local requests = echo.requests()
    assert.equal("GET /echo HTTP/1.1\r\nHost: echo.test\r\n", requests[#requests].head)
  end)

  it("is nothing that a large head or an empty line before it makes of one", function()
    local said = talk.say(box, "echo.test", "\r\nGET /status/200 HTTP/1.1\r\n" .. HOST .. "Connection: close\r\nX-A: "
      .. ("a"):rep(60000) .. "\r\n\r\n")
    assert.matches("^HTTP/1.1 200 ", said.text)
    said = talk.say(box, "echo.test", "GET https://Echo.Test:443/status/200?x HTTP/1.1\r\nHost: ECHO.test.\r\nConnection: close\r\n\r\n")
    assert.matches("^HTTP/1.1 200 ", said.text)
  end)
end)

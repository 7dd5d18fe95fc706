-- The HTTP/1 reader, over bytes alone: what it makes of good messages, however they are cut.
require("tidepool.core")
local http = require("tidepool.proxy").http
local harness = require("spec.core.proxy.http_harness")

local read, one, request, get = harness.read, harness.one, harness.request, harness.get
local post, chunked, refused, cut, bytewise = harness.post, harness.chunked, harness.refused, harness.cut, harness.bytewise

describe("the HTTP reader", function()
  it("reads a request's line, headers and absent body", function()
    local head, body = one("request", request { "GET /a?b=c HTTP/1.1", "Host: example.org:8080",
      "X-One:  two three \t", "x-empty:", "X-Two:v" })
    assert.same({
      method = "GET", target = "/a?b=c", minor = 1, body = "none", keep_alive = true, upgrade = false,
      expect_continue = false,
      headers = { { "Host", "example.org:8080" }, { "X-One", "two three" }, { "x-empty", "" }, { "X-Two", "v" } },
    }, head)
    assert.equal("", body)
  end)

  it("reads a response's status, with a reason or without", function()
    local head, body = one("response", request({ "HTTP/1.1 404 Not Found", "Content-Length: 2" }, "no"))
    assert.equal(404, head.status)
    assert.equal("Not Found", head.reason)
    assert.equal(2, head.length)
    assert.equal("no", body)
    for _, line in ipairs { "HTTP/1.1 200", "HTTP/1.1 200 " } do
      local plain = one("response", request { line, "Content-Length: 0" })
      assert.equal(200, plain.status)
      assert.equal("", plain.reason)
      assert.equal("length", plain.body)
    end
  end)

  it("takes exactly one message and leaves the next one's bytes alone", function()
    local text = post({ "Content-Length: 5" }, "hello") .. chunked("3\r\nabc\r\n0\r\n\r\n") .. get()
    local messages, code = read("request", { text })
    assert.is_nil(code)
    assert.equal(3, #messages)
    assert.equal("hello", messages[1].body)
    assert.equal("abc", messages[2].body)
    assert.equal("GET", messages[3].head.method)

    local reader = http.reader("request")
    local first = post({ "Content-Length: 5" })
    assert.equal(#first, (reader:head(first .. "helloGET")))
    local used, span, complete = reader:body("helloGET")
    assert.same({ 5, "hello", true }, { used, span, complete })
  end)

  it("reads the same however a message is cut", function()
    local streams = {
      request = post({ "Content-Length: 5", "X: y " }, "hello") .. "\r\n"
        .. chunked("5;ext=\"a b\"\r\nhello\r\n0A\r\n0123456789\r\n000\r\nX-Sum: 1\r\nX-Empty:\r\n\r\n") .. get("Connection: close"),
      response = request { "HTTP/1.1 100 Continue" }
        .. request({ "HTTP/1.1 200 OK", "Transfer-Encoding: Chunked", "Trailer: X" }, "1\r\na\r\n0\r\nX: y\r\n\r\n")
        .. request { "HTTP/1.1 304 Not Modified", "Content-Length: 7" }
        .. request({ "HTTP/1.0 200 OK" }, "until the end"),
    }
    for side, text in pairs(streams) do
      local whole, code, why = read(side, { text })
      assert.is_nil(code, why)
      assert.equal(side == "request" and 3 or 4, #whole)
      for at = 1, #text - 1 do
        local again, failed = read(side, cut(text, at))
        assert.is_nil(failed)
        assert.same(whole, again, "cut at " .. at)
      end
      assert.same(whole, (read(side, bytewise(text))))
    end
  end)

  it("refuses the same, with the same words, however a message is cut", function()
    for _, text in ipairs {
      get("A: b\rc"), get("A: b\nC: d"), get("A: b\0"), "GET  / HTTP/1.1\r\n\r\n",
      post({ "Content-Length: 1", "Content-Length: 1" }, "a"), chunked("5\rX"), chunked("3\r\nabcd\r\n"),
      chunked("0\r\nHost: b\r\n\r\n"), chunked(("1;" .. ("a"):rep(300)) .. "\r\n"), get(("a"):rep(70000)),
    } do
      local _, code, why = read("request", { text })
      assert.is_truthy(code)
      for at = 1, math.min(#text - 1, 400) do
        local _, code_again, why_again = read("request", cut(text, at))
        assert.same({ code, why }, { code_again, why_again }, "cut at " .. at)
      end
      local _, code_again, why_again = read("request", bytewise(text))
      assert.same({ code, why }, { code_again, why_again })
    end
  end)

  it("knows trailers, once the body is complete", function()
    local _, body, message = one("request", chunked("2\r\nab\r\n0\r\nX-Sum: 7\r\n\r\n"))
    assert.equal("ab", body)
    assert.same({ { "X-Sum", "7" } }, message.trailers)
  end)

  describe("ends a response without a body at its head", function()
    it("when it answers HEAD", function()
      for _, framing in ipairs { "Content-Length: 100", "Transfer-Encoding: chunked", "X: y" } do
        local head = one("response", request { "HTTP/1.1 200 OK", framing }, "HEAD")
        assert.equal("none", head.body)
        assert.is_true(head.keep_alive)
      end
    end)

    it("when it is interim, 204 or 304", function()
      for _, line in ipairs { "HTTP/1.1 103 Early Hints", "HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified" } do
        assert.equal("none", one("response", request { line }).body)
      end
      assert.equal("none", one("response", request { "HTTP/1.1 304 OK", "Transfer-Encoding: chunked" }).body)
      assert.equal("none", one("response", request { "HTTP/1.1 204 OK", "Content-Length: 0" }).body)
    end)

    it("and remembers HEAD over interim ones, but not longer", function()
      local text = request { "HTTP/1.1 100 Continue" } .. request { "HTTP/1.1 200 OK", "Content-Length: 3" }
        .. request({ "HTTP/1.1 200 OK", "Content-Length: 3" }, "abc")
      local messages = read("response", { text }, "HEAD")
      assert.equal(3, #messages)
      assert.equal("none", messages[2].head.body)
      assert.equal("abc", messages[3].body)
    end)
  end)

  it("hands over to another protocol after 101 and after a CONNECT that succeeded", function()
    local head, _, message = one("response", request({ "HTTP/1.1 101 Switching Protocols", "Upgrade: websocket",
      "Connection: keep-alive, Upgrade" }, "\1\2\0"))
    assert.equal("upgrade", head.body)
    assert.is_true(head.upgrade)
    assert.equal("\1\2\0", message.rest)
    assert.equal("upgrade", one("response", request { "HTTP/1.1 200 OK" }, "CONNECT").body)
    local refusal = one("response", request { "HTTP/1.1 403 Forbidden", "Content-Length: 0" }, "CONNECT")
    assert.equal("length", refusal.body)
    local reader = http.reader("response")
    reader:expect("CONNECT")
    reader:head(request { "HTTP/1.1 200 OK" })
    local _, _, code = reader:head("HTTP/1.1 200 OK\r\n")
    assert.equal("EINVAL", code)
  end)

  it("lets a response without framing last until the connection ends", function()
    local reader = http.reader("response")
    local text = request({ "HTTP/1.1 200 OK", "Connection: keep-alive" })
    local _, head = reader:head(text)
    assert.equal("eof", head.body)
    assert.is_false(head.keep_alive)
    assert.same({ 3, "abc", false }, { reader:body("abc") })
    assert.is_true(reader:finish())
    assert.same({ 0, "", true }, { reader:body("") })
  end)

  it("says when a message was cut off", function()
    assert.is_true(http.reader("request"):finish())
    for _, text in ipairs { "GET / HT", get():sub(1, -2), post({ "Content-Length: 3" }, "ab"), chunked(""),
      chunked("3\r\nab"), chunked("3\r\nabc\r\n"), chunked("0\r\n") } do
      local _, code, _, reader = read("request", { text })
      assert.is_nil(code)
      local _, message, ended = reader:finish()
      assert.equal("EBADMSG", ended)
      assert.is_truthy(message:find("ended in the middle", 1, true))
    end
    local _, _, _, reader = read("request", { get() })
    assert.is_true(reader:finish())
  end)

  it("knows whether the sender means to go on", function()
    local function goes_on(version, ...)
      return one("request", request { "GET / HTTP/" .. version, "Host: a", ... }).keep_alive
    end
    assert.is_true(goes_on("1.1"))
    assert.is_false(goes_on("1.1", "Connection: foo, Close"))
    assert.is_false(goes_on("1.1", "Connection: keep-alive", "Connection: close"))
    assert.is_true(goes_on("1.1", "Connection: closed"))
    assert.is_true(goes_on("1.1", "Proxy-Connection: close"))
    assert.is_false(goes_on("1.0"))
    assert.is_true(goes_on("1.0", "Connection: Keep-Alive"))
    assert.is_false(goes_on("1.0", "Connection: keep-alive, close"))
  end)

  it("takes an upgrade only from Connection and Upgrade together", function()
    local function upgrades(...)
      return one("request", get(...)).upgrade
    end
    assert.is_true(upgrades("Connection: Upgrade", "Upgrade: websocket"))
    assert.is_true(upgrades("Connection: keep-alive , upgrade", "Upgrade: websocket"))
    assert.is_false(upgrades("Upgrade: websocket"))
    assert.is_false(upgrades("Connection: upgrade"))
    assert.is_false(upgrades("Proxy-Connection: upgrade", "Upgrade: websocket"))
    assert.equal("none", one("request", get("Connection: Upgrade", "Upgrade: websocket")).body)
    -- A body ends where it ends, whatever protocol was asked for.
    local messages = read("request", { post({ "Connection: upgrade", "Upgrade: h2c", "Transfer-Encoding: chunked" },
      "1\r\na\r\n0\r\n\r\n") .. get() })
    assert.equal(2, #messages)
  end)

  it("sees Expect: 100-continue, in HTTP/1.1", function()
    assert.is_true(one("request", post({ "Expect: 100-Continue", "Content-Length: 0" })).expect_continue)
    assert.is_false(one("request", request { "POST / HTTP/1.0", "Expect: 100-continue" }).expect_continue)
    assert.is_false(one("request", post({ "Expect: something" })).expect_continue)
  end)

  it("delivers each form of target, and lets the caller judge those with a host", function()
    for _, line in ipairs { "OPTIONS * HTTP/1.1", "GET http://b/c HTTP/1.1", "GET https://b:1/ HTTP/1.1",
      "CONNECT b:443 HTTP/1.1", "GET //b/c HTTP/1.1", "GET /%00%0d%0a HTTP/1.1" } do
      local head = one("request", request { line, "Host: a" })
      assert.equal(line, ("%s %s HTTP/1.1"):format(head.method, head.target))
    end
  end)

  it("allows one empty line before a request, as RFC 9112 asks", function()
    assert.equal("GET", one("request", "\r\n" .. get()).method)
    refused("request", "\r\n\r\n" .. get(), "empty line")
    refused("request", "\n" .. get(), "LF alone")
    refused("response", "\r\nHTTP/1.1 200 OK\r\n\r\n", "empty line")
  end)
end)

describe("an HTTP reader's memory", function()
  it("survives a collector that runs all the time", function()
    collectgarbage("setpause", 1)
    collectgarbage("setstepmul", 10000)
    finally(function()
      collectgarbage("setpause", 200)
      collectgarbage("setstepmul", 200)
    end)
    for i = 1, 200 do
      local messages = read("request", cut(chunked("3\r\nabc\r\n0\r\nX: y\r\n\r\n") .. get(), i % 60))
      assert.equal(2, #messages)
    end
  end)

  it("raises for arguments of the wrong type", function()
    assert.has_error(function() http.reader("sideways") end)
    assert.has_error(function() http.reader("request"):head({}) end)
    assert.has_error(function() http.reader("request").head({}, "") end)
  end)

  it("is given back on request, in the middle of a body too", function()
    local reader = http.reader("request")
    reader:head(chunked(""))
    reader:forget()
    local used, span = reader:body("1\r\na\r\n")
    assert.same({ 4, "a" }, { used, span })
    assert.is_true(select(3, reader:body("\r\n0\r\nA: b\r\n\r\n")))
    reader:forget()
    assert.same({}, reader:trailers())
    reader:head("GET / HT")
    reader:forget()
    assert.equal("GET", select(2, reader:head("TP/1.1\r\nHost: a\r\n\r\n")).method)
  end)
end)

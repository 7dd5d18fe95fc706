-- The HTTP/1 reader, over bytes alone: what it makes of good messages however they are cut, and that
-- whatever two readers could understand differently is refused.
require("tidepool.core")
local http = require("tidepool.proxy").http

-- Reads messages out of `pieces` the way a connection would, until the bytes or the patience end.
local function read(side, pieces, method)
  local reader = http.reader(side)
  if method then
    reader:expect(method)
  end
  local messages, current, code, why = {}, nil, nil, nil
  for _, piece in ipairs(pieces) do
    local rest = piece
    local idle = false
    while not idle and not code do
      local used
      if not current then
        local head, third
        used, head, third = reader:head(rest)
        if not used then
          why, code = head, third
          break
        end
        idle = not head
        current = head and { head = head, parts = {} }
      else
        local span, complete
        used, span, complete = reader:body(rest)
        if not used then
          why, code = span, complete
          break
        end
        current.parts[#current.parts + 1] = span
        if complete then
          messages[#messages + 1] = { head = current.head, body = table.concat(current.parts),
            trailers = reader:trailers() }
          current = nil
        end
        idle = not complete and #rest == used and span == ""
        if complete and messages[#messages].head.body == "upgrade" then
          messages[#messages].rest = rest:sub(used + 1)
          return messages, nil, nil, reader
        end
      end
      rest = rest:sub(used + 1)
    end
  end
  if current and not code then
    messages[#messages + 1] = { head = current.head, body = table.concat(current.parts), partial = true }
  end
  return messages, code, why, reader
end

local function one(side, text, method)
  local messages, code, why, reader = read(side, { text }, method)
  assert.is_nil(why)
  assert.is_nil(code)
  assert.equal(1, #messages)
  return messages[1].head, messages[1].body, messages[1], reader
end

local function request(lines, body)
  return table.concat(lines, "\r\n") .. "\r\n\r\n" .. (body or "")
end

local function get(...)
  return request({ "GET / HTTP/1.1", "Host: a", ... })
end

local function post(lines, body)
  return request({ "POST / HTTP/1.1", "Host: a", unpack(lines) }, body)
end

local function chunked(body)
  return post({ "Transfer-Encoding: chunked" }, body)
end

local function refused(side, text, word, method)
  local messages, code, why = read(side, { text }, method)
  assert.equal("EBADMSG", code, ("not refused: %q"):format(text:sub(1, 200)))
  if word then
    assert.is_truthy(why:lower():find(word:lower(), 1, true), ("%q doesn't say %q"):format(why, word))
  end
  return messages
end

local function cut(text, at)
  return { text:sub(1, at), text:sub(at + 1) }
end

local function bytewise(text)
  local pieces = {}
  for i = 1, #text do
    pieces[i] = text:sub(i, i)
  end
  return pieces
end

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

describe("the HTTP reader refuses", function()
  it("both length headers, in either order, also in a response", function()
    refused("request", post({ "Content-Length: 5", "Transfer-Encoding: chunked" }, "0\r\n\r\n"))
    refused("request", post({ "Transfer-Encoding: chunked", "Content-Length: 5" }, "0\r\n\r\n"))
    refused("response", request { "HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Content-Length: 5" })
  end)

  it("a Content-Length that is not one plain number", function()
    for _, value in ipairs { "", "+5", "-5", "5 5", "5,5", "5, 5", "0x5", "5.0", "5a", "9223372036854775808",
      "18446744073709551617", "99999999999999999999999", "\"5\"" } do
      refused("request", post({ "Content-Length: " .. value }, "hello"))
      refused("response", request({ "HTTP/1.1 200 OK", "Content-Length: " .. value }, "hello"))
    end
    refused("request", post({ "Content-Length: 5", "Content-Length: 5" }, "hello"))
    refused("request", post({ "Content-Length: 5", "content-length: 6" }, "hello"))
    assert.equal(2 ^ 63, read("request", { post { "Content-Length: 9223372036854775807" } })[1].head.length)
  end)

  it("a Transfer-Encoding that is not exactly chunked", function()
    for _, value in ipairs { "", "identity", "gzip, chunked", "chunked, gzip", "chunked, chunked", "chunked,",
      ",chunked", "xchunked", "chunkedx", "chunked;q=1", "\"chunked\"", "chunked identity", "chun\1ked" } do
      refused("request", post({ "Transfer-Encoding: " .. value }, "0\r\n\r\n"))
      refused("response", request { "HTTP/1.1 200 OK", "Transfer-Encoding: " .. value })
    end
    refused("request", post({ "Transfer-Encoding: chunked", "Transfer-Encoding: chunked" }, "0\r\n\r\n"))
    refused("request", post({ "Transfer-Encoding: chunked", "Transfer-Encoding: identity" }, "0\r\n\r\n"))
    refused("request", request { "POST / HTTP/1.0", "Transfer-Encoding: chunked" }, "1.0")
    refused("response", request { "HTTP/1.0 200 OK", "Transfer-Encoding: chunked" }, "1.0")
  end)

  it("line ends other than CRLF, and folded lines", function()
    refused("request", "GET / HTTP/1.1\nHost: a\r\n\r\n", "LF alone")
    refused("request", "GET / HTTP/1.1\r\nHost: a\n\r\n", "LF alone")
    refused("request", "GET / HTTP/1.1\r\nHost: a\r\n\n", "LF alone")
    refused("request", "GET /\nHost: a\r\n\r\n", "LF alone") -- HTTP/0.9 by a bare LF, llhttp issue 877
    refused("request", get("A: b\rC: d"), "CR in the middle")
    refused("request", get("A: b\r\r"), "CR in the middle")
    refused("request", get("A: b", " c"), "folded")
    refused("request", get("A:", "\tb"), "folded")
    refused("request", request { "GET / HTTP/1.1", " Host: a" }, "folded")
    refused("response", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", "LF alone")
  end)

  it("control characters wherever they stand", function()
    for byte = 0, 127 do
      if (byte < 32 and byte ~= 9 and byte ~= 10 and byte ~= 13) or byte == 127 then
        local c = string.char(byte)
        refused("request", get("A: b" .. c .. "d"), "control character")
        refused("request", get("A" .. c .. ": b"), "control character")
        refused("request", request { "GET /" .. c .. " HTTP/1.1", "Host: a" }, "control character")
        refused("response", request { "HTTP/1.1 200 O" .. c, "Content-Length: 0" }, "control character")
      end
    end
    refused("request", request { "GET /\t HTTP/1.1", "Host: a" })
    assert.same({ "X", "\128\255 \t." }, one("request", get("X: \128\255 \t.")).headers[2])
  end)

  it("header names that are none", function()
    for _, line in ipairs { "A : b", "A\t: b", ": b", "A b: c", "A", "A(): b", "\"A\": b", "\195\164: b", "A;: b" } do
      refused("request", get(line))
    end
  end)

  it("request lines that are odd", function()
    for _, line in ipairs { "GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "GET\t/ HTTP/1.1",
      "GET / HTTP/1.2", "GET / HTTP/0.9", "GET / HTTP/2.0", "GET / HTTP/3.0", "GET / http/1.1", "GET / HTTP/1.10",
      "GET / HTTP/01.1", "GET /", "GET", "GET HTTP/1.1", "G(T / HTTP/1.1", "get / HTTP/1.1", "NONSENSE / HTTP/1.1",
      "GET / RTSP/1.0", "SOURCE / ICE/1.0", "GET example.org HTTP/1.1", "GET * HTTP/1.1", "GET ftp://a/ HTTP/1.1",
      "GET http:// HTTP/1.1", "CONNECT /a HTTP/1.1", "GET /a#b HTTP/1.1", "GET /\195\164 HTTP/1.1", "GET /a b HTTP/1.1" } do
      refused("request", request { line, "Host: a" })
    end
  end)

  it("the preface of HTTP/2, by its name", function()
    refused("request", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2")
  end)

  it("a Host that is missing, repeated or no host", function()
    refused("request", request { "GET / HTTP/1.1" }, "Host")
    refused("request", request { "GET / HTTP/1.1", "Host: a", "host: a" }, "Host")
    refused("request", request { "GET / HTTP/1.0", "Host: a", "Host: b" }, "Host")
    for _, value in ipairs { "a b", "a,b", "a@b", "a/b", "a?b", "a\\b", "a#b", "a%00b" } do
      refused("request", request { "GET / HTTP/1.1", "Host: " .. value }, "Host")
    end
    assert.equal(0, one("request", request { "GET / HTTP/1.0" }).minor)
  end)

  it("status lines that are odd", function()
    for _, line in ipairs { "HTTP/1.1 99 OK", "HTTP/1.1 099 OK", "HTTP/1.1 600 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 20",
      "HTTP/1.1 +20 OK", "HTTP/1.1  200 OK", "HTTP/2.0 200 OK", "HTTP/1.1 200OK", "HTTP/1.1", "ICY 200 OK", "200 OK" } do
      refused("response", request { line, "Content-Length: 0" })
    end
  end)

  it("responses that announce a body they can't have, or a switch they don't name", function()
    refused("response", request { "HTTP/1.1 204 OK", "Content-Length: 5" }, "204")
    refused("response", request { "HTTP/1.1 204 OK", "Transfer-Encoding: chunked" }, "204")
    refused("response", request { "HTTP/1.1 103 OK", "Content-Length: 5" }, "103")
    refused("response", request { "HTTP/1.1 101 OK" }, "101")
    refused("response", request { "HTTP/1.1 200 OK", "Content-Length: 5" }, "200", "CONNECT")
    refused("request", request { "CONNECT a:1 HTTP/1.1", "Host: a", "Content-Length: 1" }, "CONNECT")
  end)

  it("chunk sizes with anything odd", function()
    for _, size in ipairs { "", " 3", "3 ", "+3", "-3", "0x3", "3h", "3 ;a", "3\t", "g", "10000000000000003",
      "00000000000000003", "fffffffffffffffff", "ffffffffffffffff", "8000000000000000", "3;\128", "3;a\1", "3,3" } do
      refused("request", chunked(size .. "\r\nabc\r\n0\r\n\r\n"))
    end
  end)

  it("chunks whose ends are not where they should be", function()
    refused("request", chunked("3\r\nabcd\r\n0\r\n\r\n"), "CRLF")
    refused("request", chunked("3\r\nab\r\n0\r\n\r\n"), "CRLF")
    refused("request", chunked("3\r\nabc\n0\r\n\r\n"), "CRLF")
    refused("request", chunked("3\r\nabc\r0\r\n\r\n"), "CRLF")
    refused("request", chunked("3\r\nabcXX0\r\n\r\n"), "CRLF")
    refused("request", chunked("3\nabc\r\n0\r\n\r\n"), "LF alone")
    refused("request", chunked("3\rXabc\r\n0\r\n\r\n"))
    refused("request", chunked("0\r\n\n"), "LF alone")
  end)

  it("trailers that frame, route or fold", function()
    for _, line in ipairs { "Content-Length: 5", "Transfer-Encoding: chunked", "Host: b", "Connection: close", "A : b",
      ": b", "A: b\rC", "A: b\nC: d", " A: b", "A: b\0" } do
      refused("request", chunked("0\r\n" .. line .. "\r\n\r\n"))
    end
  end)

  it("heads, trailers and extensions beyond their limits", function()
    local function too_large(text)
      local _, code = read("request", { text })
      assert.equal("EMSGSIZE", code)
    end
    local lines = {}
    for i = 1, 255 do
      lines[i] = "A: b"
    end
    assert.equal(256, #one("request", get(unpack(lines))).headers)
    lines[256] = "A: b"
    too_large(get(unpack(lines)))
    local frame = #get("A: ")
    assert.equal(65536 - frame, #one("request", get("A: " .. ("a"):rep(65536 - frame))).headers[2][2])
    too_large(get("A: " .. ("a"):rep(65537 - frame)))
    too_large("GET /" .. ("a"):rep(70000))
    too_large(chunked("0\r\nA: " .. ("a"):rep(17000)))
    too_large(chunked("1;" .. ("a"):rep(300)))
    -- A byte a chunk, each with a long extension: read cheaply, for ever.
    too_large(chunked(("1;" .. ("a"):rep(200) .. "\r\nx\r\n"):rep(100)))
  end)

  it("to go on after an error", function()
    local reader = http.reader("request")
    assert.is_nil((reader:head("NONSENSE\r\n")))
    local _, _, code = reader:head(get())
    assert.equal("EBADMSG", code)
    local _, _, body_code = reader:body("")
    assert.equal("EBADMSG", body_code)
    local _, _, end_code = reader:finish()
    assert.equal("EBADMSG", end_code)
  end)

  it("a head while a body is due, and a body before any head", function()
    local reader = http.reader("request")
    local _, _, early = reader:body("x")
    assert.equal("EINVAL", early)
    reader:head(post { "Content-Length: 5" })
    local _, _, code = reader:head(get())
    assert.equal("EINVAL", code)
    assert.same({ 5, "hello", true }, { reader:body("hello") })
    assert.is_truthy(reader:head(get()))
  end)
end)

describe("what has smuggled requests past llhttp before is refused:", function()
  it("CVE-2022-32213, a Transfer-Encoding whose last coding is not chunked", function()
    refused("request", post({ "Transfer-Encoding: chunked-false" }, "1\r\na\r\n0\r\n\r\n"))
    refused("request", post({ "Transfer-Encoding: chunked,\tx" }, "0\r\n\r\n"))
  end)

  it("CVE-2022-32214, headers divided by LF alone", function()
    refused("request", "GET / HTTP/1.1\r\nHost: a\nContent-Length: 5\r\n\r\nhello", "LF alone")
  end)

  it("CVE-2022-32215, a Transfer-Encoding over several lines", function()
    refused("request", post({ "Transfer-Encoding: chunked", " , identity" }, "0\r\n\r\n"), "folded")
    refused("request", post({ "Transfer-Encoding:", " chunked" }, "0\r\n\r\n"), "folded")
  end)

  it("CVE-2022-35256, a header value that ends without CRLF", function()
    refused("request", "GET / HTTP/1.1\r\nHost: a\r\nA: b\rTransfer-Encoding: chunked\r\n\r\n", "CR in the middle")
    refused("request", "GET / HTTP/1.1\r\nHost: a\r\nA:\n Transfer-Encoding: chunked\r\n\r\n", "LF alone")
  end)

  it("CVE-2023-30589, an empty value and a header divided by CR alone", function()
    refused("request", "POST / HTTP/1.1\r\nHost: a\r\nX-Abc: \rxTransfer-Encoding: chunked\r\n\r\n", "CR in the middle")
  end)

  it("CVE-2024-22019, chunk extensions without end", function()
    local _, code = read("request", { chunked("1;" .. ("a"):rep(1e6)) })
    assert.equal("EMSGSIZE", code)
  end)

  it("CVE-2024-27982, a Content-Length behind a space", function()
    refused("request", "POST / HTTP/1.1\r\n Content-Length: 5\r\nHost: a\r\n\r\nhello", "folded")
    refused("request", post({ "Transfer-Encoding: chunked", " Content-Length: 5" }, "0\r\n\r\n"), "folded")
  end)

  it("CVE-2025-23167, a head that ends with CRLF CR and something else", function()
    refused("request", "GET / HTTP/1.1\r\nHost: a\r\n\rX")
    -- Whatever follows: the head is not over.
    refused("request", "GET / HTTP/1.1\r\nHost: a\r\n\rXGET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
  end)

  it("CVE-2025-22871 and CVE-2025-55315, LF alone in a chunk's line", function()
    refused("request", chunked("1;a\nb\r\nx\r\n0\r\n\r\n"), "LF alone")
    refused("request", chunked("1\nx\r\n0\r\n\r\n"), "LF alone")
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

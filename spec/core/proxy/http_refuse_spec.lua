-- What two readers could understand differently, the HTTP/1 reader refuses: each way in which a request
-- has been smuggled past a proxy that we know of.
require("tidepool.core")
local http = require("tidepool.proxy").http
local harness = require("spec.core.proxy.http_harness")

local read, one, request, get = harness.read, harness.one, harness.request, harness.get
local post, chunked, refused = harness.post, harness.chunked, harness.refused

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

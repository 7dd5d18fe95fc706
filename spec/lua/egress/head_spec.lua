local head = require("tidepool.egress.head")

describe("a head that goes on", function()
  it("leaves out what is of one connection, and what Connection names", function()
    local list = head.end_to_end({
      { "Host", "a" }, { "Connection", "keep-alive, X-Secret-Hop" }, { "X-Secret-Hop", "1" }, { "Keep-Alive", "5" },
      { "Transfer-Encoding", "chunked" }, { "Content-Length", "5" }, { "TE", "trailers" }, { "Upgrade", "h2c" },
      { "Proxy-Authorization", "x" }, { "Accept", "*/*" },
    })
    assert.same({ { "Host", "a" }, { "Accept", "*/*" } }, list)
  end)

  it("keeps what a request means, whatever Connection names", function()
    local list = head.end_to_end({ { "Connection", "authorization, host, close" }, { "Authorization", "x" }, { "Host", "a" } })
    assert.same({ { "Authorization", "x" }, { "Host", "a" } }, list)
  end)

  it("gives policies one value a name", function()
    local map = head.as_map({ { "Accept", "a" }, { "ACCEPT", "b" }, { "Cookie", "x=1" }, { "cookie", "y=2" } })
    assert.same({ accept = "a, b", cookie = "x=1; y=2" }, map)
  end)

  it("sets a header once, in its place, and removes one", function()
    local headers = { { "A", "1" }, { "X-Key", "old" }, { "B", "2" }, { "x-key", "older" } }
    head.change(headers, { ["X-KEY"] = "new", b = false })
    assert.same({ { "A", "1" }, { "X-KEY", "new" } }, headers)
  end)

  it("has the framing that it is given and no other", function()
    assert.equal("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000000\r\n\r\n",
      head.request("PUT", "/x", { { "Host", "a" } }, "length", 5e9))
    assert.equal("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
      head.response(200, "OK", {}, "chunked", nil, true))
    assert.equal("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
      head.response(101, "Switching Protocols", {}, nil, nil, false, "websocket"))
  end)

  it("says why it refuses, in the body and in a header, on one line", function()
    local bytes = head.refusal(403, "no\r\nSet-Cookie: x", "GET")
    assert.truthy(bytes:find("HTTP/1.1 403 Forbidden\r\n", 1, true))
    assert.truthy(bytes:find("X-Tidepool-Reason: no??Set-Cookie: x\r\n", 1, true))
    assert.is_nil(head.refusal(403, "no", "HEAD"):find("tidepool: no\n", 1, true))
  end)

  it("answers for a policy with its body, and with none where a status has none", function()
    assert.equal("HTTP/1.1 200 OK\r\nx-a: 1\r\nContent-Length: 2\r\n\r\nhi", head.answer(200, { ["x-a"] = "1" }, "hi", "GET"))
    assert.equal("HTTP/1.1 204 No Content\r\n\r\n", head.answer(204, nil, "hi", "GET"))
  end)
end)

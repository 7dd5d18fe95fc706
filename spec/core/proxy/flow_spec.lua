local uv = require("luv")
local core = require("tidepool.core")
local proxy = require("tidepool.proxy")
local harness = require("spec.core.proxy.flow_harness")

local REQUEST = "POST /upload HTTP/1.1\r\nHost: example.test\r\nContent-Length: 5\r\n\r\n"

describe("a flow", function()
  local bench
  before_each(function()
    bench = harness.open()
  end)
  after_each(function()
    bench:close()
  end)

  describe("connection", function()
    it("is made to an address, or says why not", function()
      local near, far = bench:pair()
      assert.is_true(bench:wait(near:write("hello")))
      assert.equal("hello", bench:wait(far:read(5)))
      assert.same({ read = 0, written = 5 }, near:stats())
      assert.same({ read = 5, written = 0 }, far:stats())
      local free = uv.new_tcp()
      free:bind("127.0.0.1", 0)
      local port = free:getsockname().port
      free:close()
      uv.run("nowait")
      local _, token, ok, message, code = bench.flow:connect("127.0.0.1", port, 5)
      if token ~= 0 then
        ok, message, code = bench:wait(token)
      end
      assert.same({ nil, "connect: Connection refused", "ECONNREFUSED" }, { ok, message, code })
      assert.equal("EINVAL", (select(3, bench.flow:connect("localhost", port, 5))))
    end)

    it("tells a full queue from a peer that went away", function()
      local near, far = bench:pair()
      local token = near:write(("x"):rep(32 * 2 ^ 20))
      assert.is_true(token > 0)
      far:reset()
      assert.equal("ECONNRESET", (select(3, bench:wait(token))))
      assert.is_nil((bench:wait(near:write("more"))))
    end)

    it("tells a peer that ended in order from one that reset", function()
      local near, far = bench:pair()
      local token = near:read_head("response", 5, "GET")
      far:close()
      assert.same({ nil, "closed between messages", "EOF" }, { bench:wait(token) })
      near, far = bench:pair()
      token = near:read_head("response", 5, "GET")
      far:reset()
      assert.equal("ECONNRESET", (select(3, bench:wait(token))))
    end)

    it("sends what is queued before it closes", function()
      local near, far = bench:pair()
      local sent = ("0123456789abcdef"):rep(2 ^ 12)
      assert.is_true(bench:wait(near:write(sent)))
      near:close()
      assert.same({ sent, "EOF" }, { bench:drain(far) })
    end)

    it("delivers its last words to a peer that has not finished speaking", function()
      local near, far = bench:pair()
      near:write(("x"):rep(2 ^ 20))
      assert(bench:wait(far:peek(5)))
      assert(bench:wait(far:write("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")))
      far:close() -- most of the upload is unread
      assert.equal(403, bench:wait(near:read_head("response", 5, "POST")).status)
    end)

    it("raises on a second reader or writer, and once it was closed lets operations fail", function()
      local near, far = bench:pair()
      near:read(5)
      assert.has_error(function()
        near:peek(5)
      end)
      assert.has_error(function()
        near:read_head("neither", 5)
      end)
      assert.has_error(function()
        near:write({})
      end)
      assert.has_error(function()
        bench.flow:relay(far, far, 1)
      end)
      far:close()
      far:close()
      assert.is_false(far:is_open())
      assert.equal("EPIPE", (select(3, bench:wait(far:write("x")))))
      assert.equal("EPIPE", (select(3, bench:wait(far:read(1)))))
      far:reset()
      assert.is_nil(far:fd())
    end)

    it("notices that an idle peer closes or speaks", function()
      local near, far = bench:pair()
      local token = near:watch_close()
      far:close()
      assert.is_true(bench:wait(token))
      near, far = bench:pair()
      token = near:watch_close()
      bench:run()
      assert.is_true(bench.flow:cancel(token))
      assert.is_false(bench.flow:cancel(token))
      local reading = near:read_head("response", 5, "GET") -- at once, though the end was not told yet
      assert.equal("ECANCELED", (select(3, bench:wait(token))))
      bench:wait(far:write("HTTP/1.1 204 No Content\r\n\r\nunasked"))
      assert.equal(204, bench:wait(reading).status)
      assert.equal("data", bench:wait(near:watch_close(5)))
      assert.equal("unasked", bench:wait(near:read(5)))
      assert.equal("ETIMEDOUT", (select(3, bench:wait(near:watch_close(0.1)))))
    end)

    it("leaves no descriptor behind, closed or collected, with or without something under way", function()
      local before = harness.descriptors()
      for i = 1, 50 do
        local near, far = bench:pair()
        near:read_head("response", 30, "GET")
        far:write(("x"):rep(2 ^ 20))
        if i % 3 == 0 then
          near:close()
          far:close()
        elseif i % 3 == 1 then
          far:reset()
        end
      end
      collectgarbage()
      collectgarbage()
      bench:till(function()
        return harness.descriptors() == before
      end)
      for _ = 1, 20 do
        bench.flow:connect("127.0.0.1", 1, 5)
        bench.flow:connect("nowhere", 1, 5)
      end
      collectgarbage()
      collectgarbage()
      bench:run()
      assert.equal(before, harness.descriptors())
      for _ = 1, 5 do
        proxy.flow.new():close()
        proxy.flow.new()
      end
      collectgarbage()
      collectgarbage()
      assert.equal(before, harness.descriptors())
    end)

    it("works while everything is collected all the time", function()
      harness.torture(function()
        for _ = 1, 10 do
          local near, far = bench:pair()
          local token = far:read_head("request", 5)
          assert(bench:wait(near:write(REQUEST .. "hello")))
          assert.equal("/upload", bench:wait(token).target)
          assert.equal("hello", bench:wait(far:read_body(100, 5)))
          far:write(("x"):rep(2 ^ 20))
        end
      end)
    end)
  end)

  describe("time limit", function()
    it("ends an operation that nothing ends, and not much later", function()
      local near, far = bench:pair()
      local began = uv.hrtime()
      assert.same({ nil, "timed out", "ETIMEDOUT" }, { bench:wait(near:read_head("response", 0.3, "GET")) })
      local took = (uv.hrtime() - began) / 1e9
      assert.is_true(took >= 0.3 and took < 30, took)
      assert.equal("ETIMEDOUT", (select(3, bench:wait(near:write(("x"):rep(32 * 2 ^ 20), 0.2)))))
      far:close()
    end)

    it("counts from the last progress for a write", function()
      local near, far = bench:pair()
      local token = near:write(("x"):rep(64 * 2 ^ 20), 2)
      local began = uv.hrtime()
      while uv.hrtime() - began < 3e9 do
        bench:wait(far:read(5))
        bench:wait(far:watch_close(0.05)) -- there is more, and all of it would take long
        uv.sleep(1)
      end
      assert.is_true(bench.ended[token] == nil or bench.ended[token][2] == true)
    end)

    it("is kept by the descriptor that Lua waits on", function()
      local near = bench:pair()
      local token = near:read(0.2)
      local poll = uv.new_poll(bench.flow:number())
      local woken
      poll:start("r", function()
        bench:run()
        woken = bench.ended[token]
      end)
      while not woken do
        uv.run("once")
      end
      poll:close()
      assert.equal("ETIMEDOUT", woken[4])
    end)

    it("is kept for hundreds at once, more than one call tells of", function()
      local tokens = {}
      local conns, far = {}, {}
      for i = 1, 300 do
        local one
        one, far[i] = assert(core.fd.pair())
        conns[i] = bench.flow:adopt(one)
        tokens[i] = conns[i]:watch_close(0.1 + i % 7 / 10)
      end
      for _, token in ipairs(tokens) do
        assert.equal("ETIMEDOUT", (select(3, bench:wait(token))))
      end
    end)
  end)

  describe("peek", function()
    local function peek(bytes, after)
      local near, far = bench:pair()
      bench:wait(near:write(bytes))
      if after then
        after(near)
      end
      local results = { bench:wait(far:peek(0.3)) }
      if results[1] and #bytes > 0 and bytes ~= "" and not after then
        assert.equal(bytes, bench:wait(far:read(1))) -- all of it is still there
      end
      return unpack(results)
    end

    it("tells what a client speaks and takes nothing of it", function()
      assert.same({ "http", "POST /upload HTTP/1.1" }, { peek(REQUEST) })
      assert.same({ "http", "OPTIONS * HTTP/1.0" }, { peek("OPTIONS * HTTP/1.0\n\n") })
      assert.same("h2", (peek("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0")))
      assert.same({ "other", "SSH-2.0-OpenSSH\r\n" }, { peek("SSH-2.0-OpenSSH\r\n") })
      assert.same({ "other", "EHLO me\r\n" }, { peek("EHLO me\r\n") })
      assert.same({ "other", "\22\3\1\0\4nope" }, { peek("\22\3\1\0\4nope") })
      assert.same({ "other", "GET /half" }, { peek("GET /half") })
      assert.same({ "silent" }, { peek("") })
    end)

    it("tells one that closes first", function()
      assert.same({ nil, "closed before it said anything", "EOF" }, { peek("", function(near)
        near:close()
      end) })
      assert.same({ "other", "GET /half" }, { peek("GET /half", function(near)
        near:close()
      end) })
    end)
  end)

  describe("message", function()
    it("is read head by head, body by body", function()
      local near, far = bench:pair()
      bench:wait(near:write(REQUEST .. "hello" .. REQUEST:gsub("5", "0") .. "GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
      local head = bench:wait(far:read_head("request", 5))
      assert.same({ "POST", "length", 5 }, { head.method, head.body, head.length })
      assert.equal("EINVAL", (select(3, bench:wait(far:read_head("request", 5)))))
      assert.equal("hello", bench:wait(far:read_body(5, 5)))
      assert.equal(0, bench:wait(far:read_head("request", 5)).length)
      assert.equal("", bench:wait(far:read_body(5, 5)))
      assert.equal("none", bench:wait(far:read_head("request", 5)).body)
      assert.equal("", bench:wait(far:read_body(5, 5)))
      assert.has_error(function()
        far:read_head("response", 5, "GET")
      end)
    end)

    it("is refused when it is broken, too large or cut off", function()
      local near, far = bench:pair()
      bench:wait(near:write("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"))
      assert.equal("EBADMSG", (select(3, bench:wait(far:read_head("request", 5)))))
      near, far = bench:pair()
      near:write("GET / HTTP/1.1\r\nX: " .. ("x"):rep(2 ^ 17))
      assert.equal("EMSGSIZE", (select(3, bench:wait(far:read_head("request", 5)))))
      near, far = bench:pair()
      bench:wait(near:write("GET / HTTP/1.1\r\nHo"))
      near:close()
      assert.equal("EBADMSG", (select(3, bench:wait(far:read_head("request", 5)))))
      near, far = bench:pair()
      bench:wait(near:write(REQUEST .. "hel"))
      near:close()
      bench:wait(far:read_head("request", 5))
      assert.equal("EBADMSG", (select(3, bench:wait(far:read_body(5, 5)))))
      near, far = bench:pair()
      bench:wait(near:write(REQUEST .. "hello"))
      bench:wait(far:read_head("request", 5))
      assert.equal("EMSGSIZE", (select(3, bench:wait(far:read_body(4, 5)))))
    end)

    it("comes as slowly as it likes, byte by byte", function()
      local near, far = bench:pair()
      local token = far:read_head("request", 5)
      for byte in REQUEST:gmatch(".") do
        bench:wait(near:write(byte))
        bench:run()
      end
      assert.equal("/upload", bench:wait(token).target)
    end)
  end)
end)

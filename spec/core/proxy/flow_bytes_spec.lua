local async = require("tidepool.async")
local core = require("tidepool.core")
local flow = require("tidepool.egress.flow")
local proxy = require("tidepool.proxy")
local authority = require("spec.core.proxy.tls_harness").authority

-- The same bytes in each run, but none that repeat: a mistake in their order shows.
local function noise(size)
  local state, parts = 88172645, {}
  for i = 1, size / 4 do
    state = (state * 1103515245 + 12345) % 2147483648
    parts[i] = string.char(state % 251, math.floor(state / 256) % 256, math.floor(state / 65536) % 256, i % 256)
  end
  return table.concat(parts)
end

-- Cuts a text into pieces of these sizes, in turn.
local function cut(text, sizes)
  local pieces, at = {}, 1
  while at <= #text do
    local size = sizes[#pieces % #sizes + 1]
    pieces[#pieces + 1] = text:sub(at, at + size - 1)
    at = at + size
  end
  return pieces
end

describe("every byte of a body arrives", function()
  local ca, trust = authority()
  local scrub = assert(proxy.scrub.new({ { "hunter2hunter2", 1 } }, "mask"))
  local body = noise(400000)
  local chunks = {}
  for i, piece in ipairs(cut(body, { 1, 15, 16, 17, 4096, 30000, 70000 })) do
    chunks[i] = ("%x\r\n%s\r\n"):format(#piece, piece)
  end
  local head = {
    length = "HTTP/1.1 200 OK\r\nContent-Length: " .. #body .. "\r\n\r\n",
    chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
  }
  local text = { length = head.length .. body, chunked = head.chunked .. table.concat(chunks) .. "0\r\n\r\n" }

  -- A server's end and ours of a connection, under TLS or not.
  local function pair(loop, secured)
    local one, two = assert(core.fd.pair())
    local server, client = loop:adopt(one), loop:adopt(two)
    if secured then
      async.all({
        function()
          assert(server:accept_tls(ca:identity("example.test"), 5))
        end,
        function()
          assert(client:connect_tls(trust, "example.test", 5))
        end,
      })
    end
    return server, client
  end

  local function carry(source, framing, from_tls, to_tls, scrubbed)
    local loop = assert(flow.open())
    local server, from = pair(loop, from_tls)
    local to, client = pair(loop, to_tls)
    local results = async.all({
      function()
        for _, piece in ipairs(cut(text[source], { 1, 2, 7, 100, 1400, 16384, 16385, 65536, 3 })) do
          assert(server:write(piece, 5))
        end
      end,
      function()
        assert(from:read_head("response", 5, "GET"))
        assert(to:write(head[framing], 5))
        return assert(loop:pump(from, to, { framing = framing, scrub = scrubbed and scrub or nil }, 5))
      end,
      function()
        assert(client:read_head("response", 5, "GET"))
        return assert(client:read_body(#body, 5))
      end,
    })
    loop:close()
    assert.equal(#body, results[2][1])
    assert.is_true(results[3][1] == body)
  end

  for _, source in ipairs({ "length", "chunked" }) do
    for _, framing in ipairs({ "length", "chunked" }) do
      it(("from %s to %s, plain and under TLS, scrubbed and not"):format(source, framing), function()
        for bits = 0, 7 do
          async.run(carry, source, framing, bits % 2 == 1, math.floor(bits / 2) % 2 == 1, bits >= 4)
        end
      end)
    end
  end
end)

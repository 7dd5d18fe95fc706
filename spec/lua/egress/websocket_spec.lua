-- Connections that begin as HTTP and go on as something else: WebSocket, and what else a server switches to.
local outside = require("spec.support.outside")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
local KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" -- of RFC 6455, 1.3

local function size_of(length, masked)
  if length < 126 then
    return string.char(masked + length)
  elseif length < 65536 then
    return string.char(masked + 126, bit.rshift(length, 8), length % 256)
  end
  return string.char(masked + 127, 0, 0, 0, 0, bit.rshift(length, 24), bit.rshift(length, 16) % 256, bit.rshift(length, 8) % 256, length % 256)
end

-- A client's frame, masked with zeros, which change nothing.
local function frame(opcode, data)
  return string.char(128 + opcode) .. size_of(#data, 128) .. "\0\0\0\0" .. data
end

-- A server's frame.
local function reply(opcode, data)
  return string.char(128 + opcode) .. size_of(#data, 0) .. data
end

local function handshake(host)
  return ("GET /chat HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"):format(host)
    .. "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " .. KEY .. "\r\n\r\n"
end

describe("an upgraded connection", function()
  local world, box

  setup(function()
    world = outside.new()
    world:serve("ws.test", function(leaf) return web.websocket({ leaf = leaf }) end)
    world:serve("plain.test", function() return web.websocket() end, false)
    world:serve("echo.test", function(leaf) return web.echo({ leaf = leaf }) end)
    box = world:sandbox()
  end)

  local function converse(host, steps)
    table.insert(steps, 1, { send = handshake(host) })
    local said = talk.run(box, { host = host, tls = host ~= "plain.test", steps = steps })
    local head, rest = said.text:match("^(.-\r\n\r\n)(.*)$")
    return head, rest, said
  end

  it("carries WebSocket messages both ways, over TLS and without", function()
    for _, host in ipairs({ "ws.test", "plain.test" }) do
      local head, rest, said = converse(host, {
        { await = ACCEPT }, { send = frame(TEXT, "hello") }, { await = "hello" }, { send = frame(PING, "you") },
        { await = reply(PONG, "you") }, { send = frame(BINARY, "\0\255\200") }, { send = frame(CLOSE, "\3\232") },
      })
      assert.matches("^HTTP/1.1 101 .*Upgrade: websocket\r\n", head)
      assert.equal(reply(TEXT, "hello") .. reply(PONG, "you") .. reply(BINARY, "\0\255\200") .. reply(CLOSE, "\3\232"), rest)
      assert.equal("eof", said.ended)
      local entry = talk.entry(box, { host = host, path = "/chat" })
      assert.same({ "allow", 101, #rest }, { entry.action, entry.status, entry.bytes_received })
      assert.equal(#(frame(TEXT, "hello") .. frame(PING, "you") .. frame(BINARY, "abc") .. frame(CLOSE, "ab")), entry.bytes_sent)
    end
  end)

  it("carries large messages, and those that are sent with the handshake", function()
    local long = ("0123456789abcdef"):rep(20000)
    local _, rest = converse("ws.test", { { send = frame(TEXT, long) .. frame(CLOSE, "") } })
    assert.is_true(rest == reply(TEXT, long) .. reply(CLOSE, ""))
    local _, _, said = converse("ws.test", { { send = frame(TEXT, "big 3000000") }, { send = frame(CLOSE, "") } })
    assert.is_true(said.total > 3000000)
  end)

  it("delays no message", function()
    local _, _, said = converse("ws.test", {
      { await = ACCEPT }, { sleep = 0.3 }, { send = frame(TEXT, "tick") }, { await = "tick" }, { send = frame(CLOSE, "") },
    })
    assert.is_true(said.pieces[2][1] - 0.3 < 15, "it took " .. said.pieces[2][1] - 0.3)
  end)

  it("carries whatever protocol both sides agree on", function()
    local said = talk.run(box, { host = "echo.test", tls = true, steps = {
      { send = "GET /upgrade HTTP/1.1\r\nHost: echo.test\r\nConnection: Upgrade\r\nUpgrade: lines/1.0, h2c\r\n\r\nfirst" },
      { await = "first" }, { send = "\0\1\2GET / HTTP/1.1\r\n\r\n" }, { await = "HTTP/1.1\r\n\r\n" },
    }, patience = 0 })
    assert.matches("^HTTP/1.1 101 .*Upgrade: lines/1.0\r\n\r\nfirst%z\1\2GET / HTTP/1.1\r\n\r\n$", said.text)
  end)

  it("is an ordinary one where the upstream does not switch", function()
    local said = talk.run(box, { host = "echo.test", tls = true, steps = {
      { send = "GET /status/200 HTTP/1.1\r\nHost: echo.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" },
      { await = "status 200" },
      { send = "GET /status/201 HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\n\r\n" },
    } })
    assert.matches("^HTTP/1.1 200 .*HTTP/1.1 201 ", said.text)
  end)

  it("ends on both sides when one resets it", function()
    converse("ws.test", { { await = ACCEPT }, { send = frame(TEXT, "bye") }, { await = "bye" }, { cut = true } })
    local entry = talk.entry(box, { host = "ws.test", path = "/chat", bytes_sent = #frame(TEXT, "bye") })
    assert.equal(#reply(TEXT, "bye"), entry.bytes_received)
  end)

  it("is cut when the policies say no to it later", function()
    local process = assert(box:start({ "sh", "-c", "exec python3 - >/tmp/cut 2>&1 <<'END'\n" .. [[
import socket, ssl
raw = socket.create_connection(("ws.test", 443), 10)
context = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
tls = context.wrap_socket(raw, server_hostname="ws.test", suppress_ragged_eofs=False)
tls.sendall(b"""]] .. handshake("ws.test"):gsub("\r\n", "\\r\\n") .. [[""")
print(tls.recv(12), flush=True)
tls.settimeout(100)
try:
    while tls.recv(1000): pass
    print("ended")
except OSError as error:
    print("cut", type(error).__name__)
]] .. "END\n" }, { name = "ws" }))
    assert.is_truthy(support.eventually(function()
      return box:exec("cat /tmp/cut").stdout:find("101", 1, true)
    end))
    assert(box:egress_set(world:policies({ methods = { "POST" } })))
    process:wait(120)
    assert.matches("101.*\ncut", box:exec("cat /tmp/cut").stdout)
    assert(box:egress_set(world:policies()))
  end)

  it("is refused where its request is", function()
    assert(box:egress_set(world:policies({ methods = { "POST" } })))
    local head = converse("ws.test", {})
    assert.matches("^HTTP/1.1 405 .*method is not on the list", head)
    assert(box:egress_set(world:policies()))
  end)
end)

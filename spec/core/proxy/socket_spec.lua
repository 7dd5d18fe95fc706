local uv = require("luv")
local core = require("tidepool.core")
local proxy = require("tidepool.proxy")
local harness = require("spec.core.proxy.flow_harness")

-- A listener of luv's, its descriptor and its port.
local function listener(address)
  local tcp = uv.new_tcp()
  assert(tcp:bind(address, 0))
  assert(tcp:listen(16, function() end))
  return tcp, tcp:fileno(), tcp:getsockname().port
end

-- A client that luv doesn't serve: its loop would also accept.
local clients = assert(proxy.flow.new())
local function connect(address, port)
  return assert(clients:connect(address, port, 5))
end

local function udp(address)
  local socket = uv.new_udp()
  assert(socket:bind(address, 0))
  return socket, socket:fileno(), socket:getsockname().port
end

local function till(try)
  for _ = 1, 20000 do
    local one, two, code = try()
    if one then
      return one, two
    end
    assert.equal("EAGAIN", code)
    uv.sleep(1)
  end
  error("nothing came")
end

local function closing(...)
  for _, handle in ipairs({ ... }) do
    handle:close()
  end
  uv.run("nowait")
end

describe("steered sockets", function()
  it("tell whom a client asked for and who it is, in IPv4 and IPv6", function()
    for _, address in ipairs({ "127.0.0.1", "::1" }) do
      local tcp, fd, port = listener(address)
      assert.equal("EAGAIN", (select(3, proxy.socket.accept(fd))))
      local client = connect(address, port)
      local conn, ends = till(function()
        return proxy.socket.accept(fd)
      end)
      assert.same({ address, port, address }, { ends.address, ends.port, ends.peer_address })
      assert.is_true(ends.peer_port > 0 and ends.peer_port ~= port)
      assert.equal("socket", core.fd.kind(conn))
      conn:close()
      closing(client, tcp)
    end
  end)

  it("show an IPv4 client of an IPv6 listener as what it is", function()
    local tcp, fd, port = listener("::")
    local client = connect("127.0.0.1", port)
    local conn, ends = till(function()
      return proxy.socket.accept(fd)
    end)
    assert.same({ "127.0.0.1", "127.0.0.1" }, { ends.address, ends.peer_address })
    conn:close()
    closing(client, tcp)
  end)

  it("answer a datagram from the address that it was sent to", function()
    for any, addresses in pairs({ ["0.0.0.0"] = { "127.0.0.1", "127.0.0.77" }, ["::"] = { "::1" } }) do
      local socket, fd, port = udp(any)
      assert.is_true(proxy.socket.want_address(fd))
      for _, address in ipairs(addresses) do
        local client, got, from = uv.new_udp(), nil, nil
        client:bind(any == "::" and "::1" or "127.0.0.1", 0)
        client:recv_start(function(_, bytes, peer)
          if bytes then
            got, from = bytes, peer
          end
        end)
        client:try_send("question", address, port)
        local bytes, peer = till(function()
          return proxy.socket.receive(fd)
        end)
        assert.equal("question", bytes)
        assert.is_true(proxy.socket.send(fd, "answer", peer))
        while not got do
          uv.run("once")
        end
        assert.same({ "answer", address, port }, { got, from.ip, from.port })
        closing(client)
      end
      assert.equal("EAGAIN", (select(3, proxy.socket.receive(fd))))
      closing(socket)
    end
  end)

  it("fail with a code and raise on wrong arguments", function()
    local file = assert(core.fd.open("/dev/null", "r"))
    assert.equal("ENOTSOCK", (select(3, proxy.socket.accept(file))))
    assert.equal("ENOTSOCK", (select(3, proxy.socket.receive(file))))
    assert.equal("ENOTSOCK", (select(3, proxy.socket.want_address(file))))
    assert.has_error(function()
      proxy.socket.send(file, "x", "not from receive")
    end)
    assert.has_error(function()
      proxy.socket.accept("listener")
    end)
    file:close()
  end)

  it("leave no descriptor behind, and answer EMFILE when there is none left", function()
    local tcp, fd, port = listener("127.0.0.1")
    local before = harness.descriptors()
    harness.torture(function()
      for _ = 1, 50 do
        local client = connect("127.0.0.1", port)
        till(function()
          return proxy.socket.accept(fd)
        end)
        closing(client)
      end
    end)
    collectgarbage()
    collectgarbage()
    assert.equal(before, harness.descriptors())
    local client, kept, code = connect("127.0.0.1", port), {}, nil
    while not code do
      local file, _, failure = core.fd.open("/dev/null", "r")
      kept[#kept + 1], code = file, failure
    end
    assert.equal("EMFILE", (select(3, proxy.socket.accept(fd))))
    for _, file in ipairs(kept) do
      file:close()
    end
    till(function()
      return proxy.socket.accept(fd)
    end):close()
    closing(client, tcp)
  end)
end)

local uv = require("luv")
local core = require("tidepool.core")

local function pair()
  local one, two = assert(core.fd.pair())
  return core.channel.wrap(one), core.channel.wrap(two)
end

local function descriptors()
  local count, scan = 0, assert(uv.fs_scandir("/proc/self/fd"))
  while uv.fs_scandir_next(scan) do
    count = count + 1
  end
  return count
end

describe("a channel", function()
  it("carries messages in their order", function()
    local one, two = pair()
    for i = 1, 100 do
      assert.is_true(one:send("message " .. i))
    end
    for i = 1, 100 do
      assert.equal("message " .. i, (two:receive()))
    end
    assert.equal("EAGAIN", (select(3, two:receive())))
    one:close()
    assert.equal("EPIPE", (select(3, two:receive())))
    assert.equal("EPIPE", (select(3, two:send("x"))))
    two:close()
  end)

  it("carries descriptors with the message that they belong to", function()
    local one, two = pair()
    local file, other = assert(core.fd.open("/dev/null", "r")), assert(core.fd.open("/", "rd"))
    assert(one:send("none"))
    assert(one:send("two", { file, other }))
    assert(one:send("one", { other }))
    assert.is_nil(select(2, two:receive()))
    local bytes, fds = two:receive()
    assert.same({ "two", "char", "directory" }, { bytes, core.fd.kind(fds[1]), core.fd.kind(fds[2]) })
    bytes, fds = two:receive()
    assert.same({ "one", "directory", 1 }, { bytes, core.fd.kind(fds[1]), #fds })
    one:close()
    two:close()
  end)

  it("queues what the peer does not take, up to a limit, and loses nothing", function()
    local one, two = pair()
    local block, sent, code = ("x"):rep(500000), 0, nil
    while not code do
      local ok, _, failure = one:send(block)
      code = ok == nil and failure or nil
      sent = sent + (code and 0 or 1)
    end
    assert.equal("ENOBUFS", code)
    assert.is_true(sent >= 16)
    local got = 0
    while got < sent do
      local bytes, _, why = two:receive()
      if bytes then
        assert.equal(#block, #bytes)
        got = got + 1
      else
        assert.equal("EAGAIN", why)
        one:flush()
      end
    end
    assert.is_true(one:flush())
    one:close()
    two:close()
  end)

  it("refuses messages over the limit and raises on wrong arguments", function()
    local one, two = pair()
    assert.equal("EMSGSIZE", (select(3, one:send(("x"):rep(4 * 2 ^ 20 + 1)))))
    assert.has_error(function()
      one:send({})
    end)
    assert.has_error(function()
      one:send("x", { "not a descriptor" })
    end)
    one:close()
    one:close()
    assert.is_nil(one:number())
    assert.equal("EPIPE", (select(3, one:send("x"))))
    two:close()
  end)

  it("closes what it owns when it is collected", function()
    collectgarbage()
    collectgarbage()
    local before = descriptors()
    for _ = 1, 50 do
      local one, two = pair()
      local file = assert(core.fd.open("/dev/null", "r"))
      one:send("kept", { file, file, file })
      one:send(("x"):rep(1000000), { file })
      two:receive()
    end
    collectgarbage()
    collectgarbage()
    assert.equal(before, descriptors())
  end)

  it("says who connected", function()
    local path = os.tmpname() .. ".sock"
    local listener = assert(core.channel.listen(path))
    local client = assert(core.channel.connect(path))
    local _, peer = assert(core.channel.accept(listener))
    assert.equal(uv.os_getpid(), peer.pid)
    assert.equal("EAGAIN", (select(3, core.channel.accept(listener))))
    assert.equal(tonumber("600", 8), uv.fs_stat(path).mode % 512)
    os.remove(path)
    assert.equal("ENOENT", (select(3, core.channel.connect(path))))
    client:close()
    listener:close()
  end)
end)

describe("descriptors", function()
  it("are duplicated, locked, read and written", function()
    local one, two = assert(core.fd.pair())
    local copy = assert(core.fd.duplicate(one))
    one:close()
    assert.equal(2, core.fd.write(copy, "xhi", 1))
    assert.equal("hi", core.fd.read(two, 10))
    local _, _, code = core.fd.duplicate(999999)
    assert.equal("EBADF", code)
    local path = os.tmpname()
    local held, other = assert(core.fd.open(path, "rw")), assert(core.fd.open(path, "rw"))
    assert.is_true(core.fd.lock(held))
    _, _, code = core.fd.lock(other)
    assert.equal("EAGAIN", code)
    held:close()
    assert.is_true(core.fd.lock(other))
    os.remove(path)
  end)
end)

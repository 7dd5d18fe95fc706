local core = require("tidepool.core")
local ffi = require("ffi")
pcall(ffi.cdef, "long write(int fd, const void *bytes, unsigned long length);")

local function header(length, fds, reserved)
  return string.char(length % 256, math.floor(length / 256) % 256, math.floor(length / 65536) % 256, math.floor(length / 16777216))
    .. string.char(fds or 0, 0, reserved or 0, 0)
end

--- A channel whose peer is a raw descriptor.
local function channel_and_peer()
  local ours, theirs = assert(core.fd.pair())
  return core.channel.wrap(ours), theirs
end

local function write(fd, bytes)
  assert(tonumber(ffi.C.write(fd:number(), bytes, #bytes)) == #bytes)
end

describe("frames", function()
  it("come out whole, however they were cut", function()
    local channel, peer = channel_and_peer()
    local bytes = header(5) .. "hello" .. header(0) .. header(3) .. "abc"
    local found = {}
    for at = 1, #bytes do
      write(peer, bytes:sub(at, at))
      local payload, _, code = channel:receive()
      if payload then
        found[#found + 1] = payload
      else
        assert.equal("EAGAIN", code)
      end
    end
    assert.same({ "hello", "", "abc" }, found)
    peer:close()
    assert.equal("EPIPE", (select(3, channel:receive())))
    channel:close()
  end)

  it("are refused when they are too long, claim what did not come or are none", function()
    for bytes, want in pairs({
      [header(4 * 2 ^ 20 + 1)] = "EMSGSIZE",
      [header(4294967295)] = "EMSGSIZE",
      [header(0, 9)] = "EBADMSG",
      [header(0, 0, 1)] = "EBADMSG",
      [header(1, 1) .. "x"] = "EBADMSG",
    }) do
      local channel, peer = channel_and_peer()
      write(peer, bytes)
      assert.equal(want, (select(3, channel:receive())))
      channel:close()
      peer:close()
    end
  end)
end)

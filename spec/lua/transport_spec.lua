-- Messages over a channel on the loop: whole, in order, and one end for everything that breaks.
local support = require("spec.support")
local async = require("tidepool.async")
local core = require("tidepool.core")
local transport = require("tidepool.transport")

local function nothing()
  return true
end

-- A transport and the channel at its other end.
local function pair(options)
  local ours, theirs = assert(core.fd.pair())
  local closed = {}
  local opened = transport.open(core.channel.wrap(ours), {
    on_message = options and options.on_message or nothing,
    on_close = function(message, code)
      closed[#closed + 1] = { message, code }
    end,
  })
  return opened, core.channel.wrap(theirs), closed
end

-- The next message at a bare channel.
local function receive(channel)
  while true do
    local bytes, fds, code = channel:receive()
    if bytes then
      return bytes, fds
    end
    assert.equal("EAGAIN", code)
    assert(async.readable(channel:number(), 60))
  end
end

describe("a transport", function()
  it("queues what a slow peer doesn't take, whole, in order, with its descriptors", function()
    async.run(function()
      local to, peer = pair()
      local null = assert(core.fd.open("/dev/null"))
      local large = ("x"):rep(600000)
      for i = 1, 5 do
        assert.is_true(to:send(i .. large, i % 2 == 1 and { null } or nil))
      end
      null:close() -- a queued message has its own
      for i = 1, 5 do
        local bytes, fds = receive(peer)
        assert.is_true(bytes == i .. large)
        assert.equal(i % 2, #(fds or {}))
        transport.close_all(fds)
      end
      to:close()
      peer:close()
    end)
  end)

  it("takes any number of messages that came at once", function()
    async.run(function()
      local seen = {}
      local all = async.event()
      local to, peer = pair({
        on_message = function(bytes)
          seen[#seen + 1] = bytes
          if #seen == 1000 then
            all:set(true)
          end
          return true
        end,
      })
      for i = 1, 1000 do
        peer:send(tostring(i))
      end
      while not peer:flush() do
        assert(async.writable(peer:number(), 60))
      end
      assert(all:wait(60))
      for i = 1, 1000 do
        assert.equal(tostring(i), seen[i])
      end
      to:close()
      peer:close()
    end)
  end)

  it("lives on when a message is too large, and says so", function()
    async.run(function()
      local to, peer, closed = pair()
      local sent, _, code = to:send(("x"):rep(2 ^ 25))
      assert.is_nil(sent)
      assert.equal("EMSGSIZE", code)
      assert.is_true(to:send("small"))
      assert.equal("small", (receive(peer)))
      assert.same({}, closed)
      to:close()
      peer:close()
    end)
  end)

  it("ends once, with a reason that every later send gives too", function()
    async.run(function()
      local cases = {
        { "EPIPE", function(_, peer) peer:close() end },
        { "EBADMSG", function(_, peer) peer:send("refuse me") end },
        { "ECANCELED", function(to) to:close("we are done", "ECANCELED") end },
      }
      for _, case in ipairs(cases) do
        local to, peer, closed = pair({
          on_message = function()
            return false, "not wanted"
          end,
        })
        case[2](to, peer)
        assert(support.eventually(function()
          return #closed > 0
        end))
        to:close("again", "EIO")
        assert.equal(1, #closed)
        assert.equal(case[1], closed[1][2])
        local sent, message, code = to:send("x")
        assert.is_nil(sent)
        assert.same(closed[1], { message, code })
        peer:close()
      end
    end)
  end)

  it("gives up a peer that never reads, and what was queued for it", function()
    async.run(function()
      local to, peer, closed = pair()
      local before = support.fd_count()
      local piece, code = ("x"):rep(2 ^ 19), nil
      local null = assert(core.fd.open("/dev/null"))
      for _ = 1, 100 do
        local sent, _, why = to:send(piece, { null })
        if not sent then
          code = why
          break
        end
      end
      null:close()
      assert.equal("ENOBUFS", code)
      assert.equal("ENOBUFS", closed[1][2])
      peer:close()
      async.sleep(0)
      assert.is_true(support.fd_count() < before)
    end)
  end)
end)

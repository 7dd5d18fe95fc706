-- The server's link to an init: late, missing and malformed replies, and a link that breaks.
local support = require("spec.support")
local async = require("tidepool.async")
local core = require("tidepool.core")
local link = require("tidepool.server.link")
local ffi = require("ffi")

local NONCE = ("n"):rep(16)
local WELCOME, OK, FAILED, PROCESS = 64, 65, 66, 68

local function u32(number)
  return string.char(number % 256, math.floor(number / 256) % 256, math.floor(number / 65536) % 256, math.floor(number / 2 ^ 24))
end

local function reply(kind, serial, body)
  return string.char(kind, 0, 0, 0) .. u32(serial) .. (body or "")
end

-- A link to an init that the spec plays: `init:send(bytes)`, `init:serial()` of the next request.
local function played(options)
  local ours, theirs = assert(core.fd.pair())
  local init = { channel = core.channel.wrap(theirs) }
  function init.send(_, bytes, fds)
    assert(init.channel:send(bytes, fds))
  end
  function init.serial()
    while true do
      local bytes = init.channel:receive()
      if bytes then
        return bytes:byte(5) + bytes:byte(6) * 256
      end
      assert(async.readable(init.channel:number(), 60))
    end
  end
  local connect = core.init.connect
  core.init.connect = function()
    return core.channel.wrap(ours)
  end
  local opening = async.spawn(link.open, 1, NONCE, options or { on_exit = function() end })
  core.init.connect = connect
  init:send(reply(WELCOME, init:serial(), u32(1) .. NONCE .. u32(0)))
  local _, opened = opening:join()
  return opened, init
end

describe("the link to an init", function()
  it("takes a reply that comes after its time limit, and goes on", function()
    async.run(function()
      local to, init = played()
      assert.same({ nil, "init did not answer connect in time", "ETIMEDOUT" },
        { to:request("connect", { family = 4, port = 80 }, nil, 0.02) })
      local before = support.fd_count()
      init:send(reply(69, init:serial()), { assert(core.fd.open("/dev/null")) })
      local task = async.spawn(to.request, to, "forget", { id = 1 })
      init:send(reply(OK, init:serial()))
      local _, answer = task:join()
      assert.equal("ok", answer.type)
      collectgarbage()
      collectgarbage()
      assert.is_true(support.fd_count() <= before)
      to:close()
      init.channel:close()
    end)
  end)

  it("gathers a list, and keeps a failure's step", function()
    async.run(function()
      local to, init = played()
      local listing = async.spawn(to.request, to, "list", {})
      local serial = init:serial()
      local zero = u32(0)
      local body = u32(7) .. u32(70) .. zero .. u32(1) .. u32(3) .. zero:rep(10) .. zero:rep(4) .. zero
      init:send(reply(PROCESS, serial, body))
      init:send(reply(OK, serial))
      local _, list = listing:join()
      assert.equal(1, #list)
      assert.equal(7, list[1].id)
      assert.equal(3, list[1].code)

      local starting = async.spawn(to.request, to, "start", { argv = { "x" } })
      init:send(reply(FAILED, init:serial(), u32(2) .. u32(2) .. u32(4) .. "gone"))
      local _, result, message, code, step = starting:join()
      assert.same({ nil, "gone", "ENOENT", "cwd" }, { result, message, code, step })
      to:close()
      init.channel:close()
    end)
  end)

  it("ends at what is no message of init's, and whoever waits is told that it stopped", function()
    for _, bytes in ipairs({ "", "junk", reply(200, 5), reply(OK, 99), reply(OK, 2, "more") }) do
      async.run(function()
        local closed
        local to, init = played({
          on_exit = function() end,
          on_close = function(_, code)
            closed = code
          end,
        })
        local waiting = async.spawn(to.request, to, "forget", { id = 1 })
        init:serial()
        init:send(bytes)
        local _, result, message, code = waiting:join()
        assert.is_nil(result)
        assert.matches("^init: ", message)
        assert.equal("ESTOPPED", code)
        async.sleep(0) -- those who wait are told first
        assert.equal("EBADMSG", closed)
        assert.equal("ESTOPPED", select(3, to:request("list", {})))
        init.channel:close()
      end)
    end
  end)

  it("refuses a request that is too large and goes on", function()
    async.run(function()
      local to, init = played()
      local result, _, code = to:request("start", { argv = { ("x"):rep(2 ^ 25) } })
      assert.is_nil(result)
      assert.is_true(code == "E2BIG" or code == "EMSGSIZE")
      assert.is_falsy(to:is_closed())
      to:close()
      init.channel:close()
    end)
  end)
end)

ffi.cdef([[
  long syscall(long number, ...);
  int tidepool_spec_shutdown(int fd, int how) __asm__("shutdown");
  int tidepool_spec_close(int fd) __asm__("close");
]])

-- Breaks the connection of these two processes as no one else could: by shutting down the first one's
-- end of it. Returns how many there were.
local function break_link(pid, peer_pid)
  local PIDFD_OPEN, PIDFD_GETFD = 434, 438
  local pidfd = ffi.C.syscall(PIDFD_OPEN, ffi.cast("int", pid), ffi.cast("int", 0))
  assert(pidfd >= 0)
  local ours, theirs = {}, {}
  for line in support.run({ "ss", "-xpnH" }).stdout:gmatch("[^\n]+") do
    local inode, peer = line:match("ESTAB%s+%d+%s+%d+%s+%S+%s+(%d+)%s+%*%s+(%d+)")
    if inode and line:find("pid=" .. pid .. ",", 1, true) then
      ours[inode] = peer
    elseif inode and line:find("pid=" .. peer_pid .. ",", 1, true) then
      theirs[inode] = true
    end
  end
  local broken = 0
  for _, number in ipairs(support.names("/proc/" .. pid .. "/fd")) do
    local inode = (require("luv").fs_readlink("/proc/" .. pid .. "/fd/" .. number) or ""):match("^socket:%[(%d+)%]$")
    if inode and theirs[ours[inode]] then
      local fd = ffi.C.syscall(PIDFD_GETFD, ffi.cast("int", pidfd), ffi.cast("int", tonumber(number)), ffi.cast("int", 0))
      if fd >= 0 then
        ffi.C.tidepool_spec_shutdown(fd, 2)
        ffi.C.tidepool_spec_close(fd)
        broken = broken + 1
      end
    end
  end
  ffi.C.tidepool_spec_close(pidfd)
  return broken
end

describe("a link that breaks while init lives", function()
  it("is made again by itself, and tells those who wait what ended meanwhile", function()
    local server = support.server()
    local box = server:sandbox()
    local pid = box:info().pid
    async.run(function()
      local task = async.spawn(box.exec, box, "sleep 0.3; exit 5")
      local long = assert(box:start("sleep 1; exit 6", { name = "long" }))
      async.sleep(0.1)
      assert.equal(1, break_link(server:pid(), pid))
      local _, result = task:join()
      assert.equal(5, assert(result).exit_code)
      assert.equal(6, assert(long:wait(60)).exit_code)
    end)
    assert.equal(pid, box:info().pid)
    assert.equal("running", box:info().state)
    assert.equal("ok\n", box:exec("echo ok").stdout)
  end)
end)

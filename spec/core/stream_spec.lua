local uv = require("luv")
local core = require("tidepool.core")
package.path = "spec/core/?.lua;" .. package.path
local harness = require("init_harness")

local function u32(value)
  return string.char(value % 256, math.floor(value / 256) % 256, math.floor(value / 65536) % 256, math.floor(value / 16777216))
end

local function frame(kind, stream, offset, payload)
  return string.char(kind, stream, 0, 0) .. u32(#payload) .. u32(offset) .. u32(0) .. payload
end

describe("the stream decoder", function()
  it("finds frames however the bytes are cut", function()
    local bytes = frame(1, 2, 5, "hello")
      .. frame(2, 0, 10, u32(7) .. u32(0))
      .. frame(5, 0, 17, "")
      .. frame(3, 0, 17, u32(2) .. u32(9) .. u32(500000000) .. u32(0))
    for size = 1, #bytes do
      local decoder, found = core.stream.decoder(), {}
      for at = 1, #bytes, size do
        decoder:feed(bytes:sub(at, at + size - 1))
        while true do
          local values = { decoder:next() }
          if not values[1] then
            assert.equal("EAGAIN", values[3])
            break
          end
          found[#found + 1] = values
        end
      end
      assert.same({
        { "data", 2, 5, "hello" },
        { "lost", 10, 7 },
        { "stdin_closed" },
        { "exit", "signal", 9, 0.5, 17 },
      }, found)
    end
  end)

  it("refuses what is not a frame", function()
    for _, bytes in ipairs({
      frame(9, 0, 0, ""),
      frame(1, 3, 0, "x"),
      frame(1, 1, 0, ""),
      frame(2, 0, 0, "short"),
      frame(3, 0, 0, u32(7) .. u32(0) .. u32(0) .. u32(0)),
      string.char(1, 1, 0, 1) .. u32(1) .. u32(0) .. u32(0) .. "x",
      string.char(1, 1, 0, 0) .. u32(65537) .. u32(0) .. u32(0),
    }) do
      local decoder = core.stream.decoder()
      decoder:feed(bytes)
      assert.equal("EBADMSG", (select(3, decoder:next())))
    end
  end)
end)

-- The bytes of stdin in what a client has sent, as init takes them: of a frame that is cut, what is there.
local function stdin_of(bytes)
  local parts, at = {}, 1
  while at + 7 <= #bytes do
    local a, b, c, d = bytes:byte(at + 4, at + 7)
    local length = a + b * 256 + c * 65536 + d * 16777216
    assert(bytes:byte(at) == 1, "not a frame of stdin")
    parts[#parts + 1] = bytes:sub(at + 8, at + 7 + length)
    at = at + 8 + length
  end
  return table.concat(parts)
end

describe("a stream whose socket broke", function()
  -- All that is there to be read.
  local function drain(fd)
    local parts = {}
    while true do
      local bytes = core.fd.read(fd, 1000)
      if not bytes or bytes == "" then
        return table.concat(parts)
      end
      parts[#parts + 1] = bytes
    end
  end

  it("is resumed by another with exactly what was not taken, wherever the cut is", function()
    math.randomseed(3)
    for _ = 1, 60 do
      local ours, theirs = assert(core.fd.pair())
      local stream, given = core.stream.open(ours), {}
      local broken
      repeat
        local piece = string.char(math.random(97, 122)):rep(math.random(1, 70000))
        local taken, _, code = stream:write(piece)
        given[#given + 1] = taken and piece:sub(1, taken)
        broken = code == "EAGAIN"
      until broken
      local first = drain(theirs)
      if math.random(2) == 1 then
        stream:flush()
        first = first .. drain(theirs)
      end
      theirs:close()
      local next_ours, next_theirs = assert(core.fd.pair())
      local fresh = core.stream.open(next_ours)
      assert(fresh:resume(stream))
      stream:close()
      assert.is_true(fresh:flush())
      assert.equal(5, fresh:write("after"))
      assert.is_true(table.concat(given) .. "after" == stdin_of(first) .. stdin_of(drain(next_theirs)))
      fresh:close()
      next_theirs:close()
    end
  end)
end)

describe("an attached stream", function()
  local init

  if not harness.available() then
    pending("needs root and tidepool-init")
    return
  end

  setup(function()
    init = harness.start()
  end)

  teardown(function()
    init:stop()
  end)

  it("carries stdout and stderr apart, byte for byte", function()
    local result = init:sh("printf 'a\\000\\377b'; printf 'error' >&2")
    assert.equal("a\0\255b", result.stdout)
    assert.equal("error", result.stderr)
  end)

  it("carries 20 MB through a small ring without a loss", function()
    for _ = 1, 3 do
      local _, stream = init:start({ argv = { "head", "-c", "20000000", "/dev/zero" }, ring = 65536 })
      local result = harness.collect(stream)
      stream:close()
      assert.equal(20000000, #result.stdout)
      assert.equal(0, result.lost)
    end
  end)

  it("keeps the order of alternating streams through a small ring", function()
    local result = init:sh("i=0; while [ $i -lt 3000 ]; do echo $i; echo $i >&2; i=$((i+1)); done", { ring = 4096 })
    local want = {}
    for i = 0, 2999 do
      want[#want + 1] = i .. "\n"
    end
    assert.equal(table.concat(want), result.stdout)
    assert.equal(table.concat(want), result.stderr)
  end)

  it("pushes back on the writer while a lossless reader waits", function()
    local answer, stream = init:start({
      argv = { "sh", "-c", "head -c 3000000 /dev/zero; echo finished > /tmp/finished" },
      ring = 65536,
    })
    uv.sleep(200)
    assert.not_equal("finished\n", init:sh("cat /tmp/finished").stdout)
    local result = harness.collect(stream)
    assert.equal(3000000, #result.stdout)
    assert.equal(0, result.lost)
    assert.equal(0, init:exit_of(answer.id).dropped)
    stream:close()
  end)

  it("lets the process go on when the lossless reader goes away", function()
    local answer, stream = init:start({ argv = { "sh", "-c", "head -c 3000000 /dev/zero; exit 6" }, ring = 65536 })
    uv.sleep(100)
    stream:close()
    assert.equal(6, init:exit_of(answer.id).code)
  end)

  it("tells a slow reader what it lost instead of waiting for it", function()
    local answer, stream = init:start({
      argv = { "sh", "-c", "head -c 5000000 /dev/zero; printf end" },
      ring = 65536,
      lossless = false,
    })
    assert.equal(0, init:exit_of(answer.id).code)
    local result = harness.collect(stream)
    stream:close()
    assert.is_true(result.lost > 0)
    assert.equal(5000003, result.lost + #result.stdout)
    assert.equal("end", result.stdout:sub(-3))
    assert.equal(5000003, result.exit.offset)
  end)

  it("serves several readers at their own pace", function()
    local answer, first = init:start({ argv = { "sh", "-c", "read x; seq 1 20000; read y" }, stdin = true, input = true })
    local _, second = init:attach(answer.id, { follow = true })
    local _, idle = init:attach(answer.id, { follow = true })
    harness.write(first, "go\n")
    local text = assert(harness.expect(second, "\n20000\n"))
    assert.equal(text, assert(harness.expect(first, "\n20000\n")))
    harness.write(first, "end\n")
    assert.equal(0, harness.collect(first).exit.code)
    assert.equal(text, harness.collect(idle).stdout)
  end)

  it("attaches at any offset, follows or ends", function()
    local answer, stream = init:start({ argv = { "sh", "-c", "printf 0123456789; read x" }, stdin = true, input = true })
    assert(harness.expect(stream, "9"))
    local _, partial = init:attach(answer.id, { offset = 4 })
    local result = harness.collect(partial)
    assert.same({ "456789", true }, { result.stdout, result.ended })
    local _, beyond = init:attach(answer.id, { offset = 4000 })
    assert.same({ "", true }, { (harness.collect(beyond)).stdout, true })
    harness.eof(stream)
    assert.equal("exit", harness.frame(stream).type)
    local _, late = init:attach(answer.id, { offset = 8, follow = true })
    result = harness.collect(late)
    assert.same({ "89", "code" }, { result.stdout, result.exit.kind })
    local failed = init:attach(9999, {})
    assert.equal("ESRCH", failed.code)
  end)

  it("ends a client that sends garbage and nothing else", function()
    local answer, stream = init:start({ argv = { "sleep", "60" } })
    local ours, theirs = assert(core.fd.pair())
    init:request("attach", { id = answer.id, follow = true, input = true }, { theirs })
    theirs:close()
    local channel = core.channel.wrap(ours)
    channel:send(("\255"):rep(100))
    assert.is_true(harness.poll(channel:number(), false))
    assert.not_equal("EAGAIN", (select(3, channel:receive())))
    assert.equal("ok", init:request("signal", { id = answer.id, signal = 9 }).type)
    assert.equal("signal", harness.collect(stream).exit.kind)
  end)

  describe("input", function()
    it("reaches the process and ends", function()
      local _, stream = init:start({ argv = { "cat" }, stdin = true, input = true })
      assert.is_true(harness.write(stream, "hello "))
      assert.is_true(harness.write(stream, "world"))
      harness.eof(stream)
      local result = harness.collect(stream)
      assert.same({ "hello world", 0 }, { result.stdout, result.exit.code })
    end)

    it("is /dev/null when nobody wants to write", function()
      local result = init:sh("cat; readlink /proc/self/fd/0")
      assert.equal("/dev/null\n", result.stdout)
    end)

    it("carries megabytes with back pressure to the writer", function()
      local answer, stream = init:start({ argv = { "sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done; wc -c" }, stdin = true, input = true })
      local sent = 0
      local block = ("x"):rep(65536)
      while true do
        local count, _, code = stream:write(block)
        if not count then
          assert.equal("EAGAIN", code)
          if not harness.poll(stream:number(), true, 0.1) then
            break
          end
        end
        sent = sent + (count or 0)
      end
      assert.is_true(sent > 65536 and sent < 2000000, tostring(sent))
      init:sh("touch /tmp/go")
      local size = 4000000
      assert.is_true(harness.write(stream, ("y"):rep(size - sent)))
      harness.eof(stream)
      assert.equal(size .. "\n", harness.collect(stream).stdout)
      init:exit_of(answer.id)
    end)

    it("is told when the process reads no more", function()
      local _, stream = init:start({ argv = { "sh", "-c", "exec <&-; sleep 0.3" }, stdin = true, input = true })
      assert.equal("stdin_closed", harness.frame(stream).type)
      harness.write(stream, "nobody")
      assert.equal(0, harness.collect(stream).exit.code)
    end)

    it("counts though the writer is gone", function()
      local answer, stream = init:start({
        argv = { "sh", "-c", "sleep 0.3; wc -c > /tmp/counted" },
        stdin = true,
        input = true,
      })
      local bytes = ("z"):rep(200000)
      local at = 1
      while at <= #bytes do
        local count = stream:write(bytes:sub(at))
        if not count and not harness.poll(stream:number(), true, 0.1) then
          break
        end
        at = at + (count or 0)
      end
      while not stream:flush() do
        assert(harness.poll(stream:number(), true))
      end
      while not stream:eof() do
        assert(harness.poll(stream:number(), true))
      end
      stream:close()
      init:exit_of(answer.id)
      assert.equal((at - 1) .. "\n", init:sh("cat /tmp/counted").stdout)
    end)

    it("counts though nobody reads the answer", function()
      local answer, stream = init:start({ argv = { "sh", "-c", "sleep 0.2; tee /tmp/teed; sleep 0.1" }, stdin = true, input = true, lossless = false })
      assert.is_true(harness.write(stream, ("z"):rep(150000)))
      stream:close()
      uv.sleep(300)
      local _, second = init:attach(answer.id, { input = true, follow = true })
      harness.eof(second)
      second:close()
      assert.equal(0, init:exit_of(answer.id).code)
      assert.is_true(tonumber(init:sh("wc -c < /tmp/teed").stdout) >= 100000)
    end)

    it("of a client that may not write is ignored", function()
      local answer, stream = init:start({ argv = { "cat" }, stdin = true, input = true })
      local _, other = init:attach(answer.id, { follow = true })
      harness.write(other, "intruder")
      harness.eof(other)
      uv.sleep(50)
      harness.write(stream, "owner")
      harness.eof(stream)
      assert.equal("owner", harness.collect(stream).stdout)
    end)
  end)

  describe("terminal", function()
    it("is a terminal with a size, resized by its client", function()
      local _, stream = init:start({
        argv = { "sh", "-c", "tty; stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done" },
        tty = true,
        input = true,
        cols = 100,
        rows = 30,
      })
      local text = assert(harness.expect(stream, "ready"))
      assert.match("/dev/pts/%d+\r\n30 100\r\n", text)
      assert.is_true(stream:resize(120, 40))
      local result = harness.collect(stream)
      assert.match("40 120\r\n", result.stdout)
      assert.equal(0, result.exit.code)
    end)

    it("sends Ctrl-C to the foreground job", function()
      local _, stream = init:start({ argv = { "bash", "--norc", "-i" }, tty = true, input = true, env = { "PS1=> " } })
      assert(harness.expect(stream, "> "))
      harness.write(stream, "sleep 60\n")
      assert(harness.expect(stream, "sleep 60"))
      uv.sleep(100)
      harness.write(stream, "\3")
      assert(harness.expect(stream, "> "))
      harness.write(stream, "echo status=$?\n")
      assert(harness.expect(stream, "status=130"))
      harness.write(stream, "exit 9\n")
      assert.equal(9, harness.collect(stream).exit.code)
    end)

    it("has an end of input", function()
      local _, stream = init:start({ argv = { "cat" }, tty = true, input = true })
      harness.write(stream, "line\n")
      assert(harness.expect(stream, "line\r\nline\r\n"))
      harness.eof(stream)
      assert.equal(0, harness.collect(stream).exit.code)
    end)

    it("takes several writers and outlives them all", function()
      local answer, one = init:start({ argv = { "cat" }, tty = true, input = true })
      local _, two = init:attach(answer.id, { follow = true, input = true })
      harness.write(one, "from one\n")
      assert(harness.expect(two, "from one\r\nfrom one\r\n"))
      harness.write(two, "from two\n")
      assert(harness.expect(one, "from two\r\nfrom two\r\n"))
      one:close()
      two:close()
      uv.sleep(50)
      local _, three = init:attach(answer.id, { follow = true, input = true })
      assert(harness.expect(three, "from two\r\nfrom two\r\n"))
      harness.write(three, "\4")
      assert.equal(0, harness.collect(three).exit.code)
    end)

    it("gives all of a last burst before the exit", function()
      for _ = 1, 20 do
        local _, stream = init:start({ argv = { "seq", "1", "2000" }, tty = true })
        local result = harness.collect(stream)
        stream:close()
        assert.match("\n2000\r\n$", result.stdout)
        assert.equal(2000, select(2, result.stdout:gsub("\n", "")))
      end
    end)

    it("belongs to its user", function()
      local _, stream = init:start({ argv = { "sh", "-c", "stat -c %U $(tty)" }, tty = true })
      assert.equal("agent\r\n", harness.collect(stream).stdout)
    end)
  end)

  it("leaves no descriptor behind, whatever clients do", function()
    local before = init:fd_count()
    for i = 1, 60 do
      local _, stream = init:start({
        argv = { "sh", "-c", "head -c 500000 /dev/zero" },
        tty = i % 3 == 0,
        stdin = i % 2 == 0,
        input = true,
        lossless = i % 4 == 0,
        ring = 16384,
      })
      if i % 5 == 0 then
        harness.collect(stream)
      end
      stream:close()
    end
    assert.is_true(harness.eventually(function()
      return init:fd_count() <= before
    end))
  end)
end)

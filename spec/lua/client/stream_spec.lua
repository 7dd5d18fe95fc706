-- A client's end of an attach socket, against frames that the spec writes, and of saved frames.
local support = require("spec.support")
local async = require("tidepool.async")
local core = require("tidepool.core")
local stream = require("tidepool.client.stream")

local function bytes_of(number, size)
  local out = {}
  for i = 1, size do
    out[i] = string.char(number % 256)
    number = math.floor(number / 256)
  end
  return table.concat(out)
end

local function frame(kind, number, offset, payload)
  return string.char(kind, number, 0, 0) .. bytes_of(#payload, 4) .. bytes_of(offset, 8) .. payload
end

local function exit_frame(code, offset)
  return frame(3, 0, offset, bytes_of(1, 4) .. bytes_of(code, 4) .. bytes_of(1500000000, 8))
end

local function pair()
  local ours, theirs = assert(core.fd.pair())
  return stream.open(ours), theirs
end

describe("a stream", function()
  it("gives frames in whatever pieces they come, and then the end", function()
    async.run(function()
      local reader, writer = pair()
      local text = frame(1, 1, 0, "out") .. frame(1, 2, 3, "err") .. frame(2, 0, 6, bytes_of(10, 8)) .. exit_frame(7, 16)
      async.spawn(function()
        for at = 1, #text, 5 do
          assert(core.fd.write(writer, text:sub(at, at + 4)))
          async.sleep(0)
        end
        writer:close()
      end)
      local seen, gaps = {}, {}
      local last = assert(reader:pump(function(number, bytes, offset)
        seen[#seen + 1] = ("%d:%s@%d"):format(number, bytes, offset)
      end, function(count, offset)
        gaps[#gaps + 1] = { count, offset }
      end))
      assert.same({ "1:out@0", "2:err@3" }, seen)
      assert.same({ { 10, 6 } }, gaps)
      assert.same({ "exit", "code", 7, 1.5 }, { last.type, last.kind, last.code, last.wall })
      assert.same({ nil, "EPIPE" }, { (reader:read()), select(3, reader:read()) })
      reader:close()
    end)
  end)

  it("says so at the time limit, when it is closed meanwhile, and when what comes is no frame", function()
    async.run(function()
      local reader, writer = pair()
      assert.equal("ETIMEDOUT", select(3, reader:read(0.01)))
      async.after(0.01, function()
        reader:close()
      end)
      assert.equal("ECANCELED", select(3, reader:read()))
      assert.equal("ECANCELED", select(3, reader:read()))
      writer:close()

      local other, liar = pair()
      assert(core.fd.write(liar, ("\255"):rep(32)))
      assert.equal("EBADMSG", select(3, other:read(60)))
      other:close()
      liar:close()
    end)
  end)

  it("writes as much as is wanted while the other side reads slowly, in order, and its end", function()
    async.run(function()
      local reader, writer = pair()
      local text = ("0123456789abcdef"):rep(100000)
      local task = async.spawn(function()
        assert(reader:write(text))
        assert(reader:eof())
      end)
      local parts, ended = {}, false
      local buffer = ""
      while not ended do
        local bytes, _, code = core.fd.read(writer, 65536)
        if bytes then
          buffer = buffer .. bytes
        else
          assert.equal("EAGAIN", code)
          assert(async.readable(writer:number(), 60))
        end
        while #buffer >= 8 do
          local size = buffer:byte(5) + buffer:byte(6) * 256 + buffer:byte(7) * 65536
          if #buffer < 8 + size then
            break
          end
          ended = buffer:byte(1) == 2
          parts[#parts + 1] = buffer:sub(9, 8 + size)
          buffer = buffer:sub(9 + size)
        end
      end
      assert(task:join())
      assert.is_true(table.concat(parts) == text)
      writer:close()
      assert.equal("EPIPE", select(3, reader:write(("x"):rep(1000000))))
      reader:close()
    end)
  end)

  it("reads saved frames from a file, and from the offset that is wanted", function()
    local path = support.scratch() .. "/frames"
    local file = assert(io.open(path, "w"))
    file:write(frame(2, 0, 0, bytes_of(4, 8)), frame(1, 1, 4, "abcdef"), frame(1, 2, 10, "gh"), frame(4, 0, 12, ""))
    file:close()
    local function read_from(since)
      local text, lost = {}, 0
      local reader = stream.open(assert(core.fd.open(path)), since)
      local last = assert(reader:pump(function(_, bytes)
        text[#text + 1] = bytes
      end, function(count)
        lost = lost + count
      end))
      assert.equal("end", last.type)
      reader:close()
      return table.concat(text), lost
    end
    assert.same({ "abcdefgh", 4 }, { read_from() })
    assert.same({ "abcdefgh", 1 }, { read_from(3) })
    assert.same({ "cdefgh", 0 }, { read_from(6) })
    assert.same({ "", 0 }, { read_from(12) })
  end)

  it("leaves no descriptor behind", function()
    async.run(function()
      local before = support.fd_count()
      for _ = 1, 50 do
        local reader, writer = pair()
        reader:write("x")
        reader:read(0)
        reader:close()
        writer:close()
      end
      async.sleep(0)
      assert.equal(before, support.fd_count())
    end)
  end)
end)

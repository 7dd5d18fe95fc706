-- CRIU's image files, and the little that is changed in them.
local image = require("tidepool.server.memory.image")

local MAGIC = "\1\2\3\4\5\6\7\8"

local function file(...)
  local out = { MAGIC }
  for _, entry in ipairs({ ... }) do
    out[#out + 1] = string.char(#entry % 256, math.floor(#entry / 256), 0, 0) .. entry
  end
  return table.concat(out)
end

describe("an image of CRIU's", function()
  it("keeps every byte when nothing is changed", function()
    local entry = "\8\150\1" .. "\18\7testing" .. "\29\1\2\3\4" .. "\33\1\2\3\4\5\6\7\8"
    local bytes = file(entry, "", entry)
    assert.equal(bytes, image.map(bytes, function() end))
  end)

  it("gets the id range that is wanted", function()
    local old = image.encode({ { 1, image.encode({ { 1, 0 }, { 2, 100000 }, { 3, 65536 } }) } })
    local bytes = assert(image.map_ids(file(old), 4000000000, 65536))
    local extent = image.encode({ { 1, 0 }, { 2, 4000000000 }, { 3, 65536 } })
    assert.equal(file(image.encode({ { 1, extent }, { 2, extent } })), bytes)
    local inner = assert(image.fields(assert(image.fields(bytes:sub(13)))[2][2]))
    assert.same({ 0, 4000000000, 65536 }, { inner[1][2], inner[2][2], inner[3][2] })
  end)

  it("has the one mount writable and no other", function()
    local function mount(flags, path)
      return image.encode({ { 1, 5 }, { 5, flags }, { 6, "/" }, { 7, path } })
    end
    local bytes = file(mount(2097159, "/.tidepool"), mount(2097159, "/.tidepool2"), mount(6, "./.tidepool"))
    assert.equal(file(mount(2097158, "/.tidepool"), mount(2097159, "/.tidepool2"), mount(6, "./.tidepool")),
      image.writable(bytes, "/.tidepool"))
  end)

  it("has another host name, and nothing else changed", function()
    local function uts(name)
      return image.encode({ { 1, name }, { 2, "(none)" } })
    end
    assert.equal(file(uts("agent-42-1")), image.rename_host(file(uts("a")), "agent-42-1"))
  end)

  it("has its expired periodic timers due at once, and the others as they were", function()
    local function timer(ticks, left, every)
      local entry = image.encode({ { 1, 47 }, { 5, ticks }, { 7, 0 }, { 8, left }, { 9, 0 }, { 10, every } })
      return image.encode({ { 1, 17 }, { 2, 47 }, { 12, entry } })
    end
    local others = { timer(0, 0, 50), timer(1, 0, 0), timer(3, 20, 50), image.encode({ { 1, 1 }, { 3, "\8\1" } }) }
    assert.equal(file(timer(1, 1, 50), unpack(others)), image.arm_timers(file(timer(1, 0, 50), unpack(others))))
  end)

  it("is refused when it is cut, wherever that is", function()
    local bytes = file("\8\150\1" .. "\18\7testing" .. "\29\1\2\3\4")
    local whole = { [#MAGIC] = true, [#bytes] = true }
    for size = 0, #bytes do
      local found, _, code = image.map(bytes:sub(1, size), function() end)
      assert.equal(whole[size] and bytes:sub(1, size) or nil, found)
      assert.equal(not whole[size] and "EBADMSG" or nil, code)
    end
    assert.equal("EBADMSG", (select(3, image.fields("\11\1")))) -- a kind that nobody writes any more
  end)
end)

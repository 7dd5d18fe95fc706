-- Gathering output: a limit a stream, and a count of what did not fit.
local collect = require("tidepool.client.collect")

describe("collected output", function()
  it("is the bytes as they came, each stream for itself", function()
    local sink, _, result = collect.new({})
    sink(1, "a\0")
    sink(2, "\255")
    sink(1, "b")
    assert.same({ stdout = "a\0b", stderr = "\255", dropped = 0 }, result())
  end)

  it("keeps at most the limit of each stream and counts the rest, and what was lost before", function()
    local sink, lost, result = collect.new({ limit = 4 })
    sink(1, "abc")
    sink(1, "def")
    sink(1, "ghi")
    sink(2, "1234")
    lost(100)
    assert.same({ stdout = "abcd", stderr = "1234", dropped = 105 }, result())
  end)

  it("is not kept when somebody takes it live, unless both are wanted", function()
    local seen = {}
    local function on_output(name, bytes)
      seen[#seen + 1] = name .. ":" .. bytes
    end
    local sink, _, result = collect.new({ on_output = on_output })
    sink(1, "a")
    sink(2, "b")
    assert.same({ "stdout:a", "stderr:b" }, seen)
    assert.same({ stdout = "", stderr = "", dropped = 0 }, result())
    sink, _, result = collect.new({ on_output = on_output, collect = true, limit = 1 })
    sink(1, "cd")
    assert.equal("stdout:cd", seen[3])
    assert.same({ stdout = "c", stderr = "", dropped = 1 }, result())
  end)
end)

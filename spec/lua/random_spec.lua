local random = require("tidepool.random")

describe("random names", function()
  it("are lower-case hexadecimal digits, two a byte, and never twice the same", function()
    local seen = {}
    for _ = 1, 1000 do
      local name = random.hex(8)
      assert.matches("^[0-9a-f]+$", name)
      assert.equal(16, #name)
      assert.is_nil(seen[name])
      seen[name] = true
    end
  end)
end)

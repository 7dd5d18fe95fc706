-- Certificate authorities made ahead.
local async = require("tidepool.async")
local reserve = require("tidepool.server.egress.reserve")
local support = require("spec.support")

describe("the reserve of certificate authorities", function()
  it("gives each once, and is full again when nobody takes any", function()
    async.run(function()
      local made, given = 0, {}
      local stock = reserve.new(function()
        made = made + 1
        return { number = made }
      end)
      stock:fill()
      assert.truthy(support.eventually(function() return made == 16 end))
      for _ = 1, 10 do
        given[stock:take().number] = true
      end
      assert.truthy(support.eventually(function() return made == 26 end))
      for _ = 1, 16 do
        given[stock:take().number] = true
      end
      for i = 1, 26 do
        assert.is_true(given[i])
      end
      assert.is_nil(stock:take())
      assert.truthy(support.eventually(function() return made == 42 end))
      stock:close()
    end)
  end)

  it("tries again later when nobody can make one", function()
    async.run(function()
      local able, tries = false, 0
      local stock = reserve.new(function()
        tries = tries + 1
        return able and {} or nil
      end)
      stock:fill()
      assert.truthy(support.eventually(function() return tries == 1 end))
      able = true
      assert.is_nil(stock:take())
      assert.truthy(support.eventually(function() return tries == 17 end))
      stock:close()
    end)
  end)
end)

-- The environment, its declarations for the editor and what the linter knows are one list of names.
local paths = require("tidepool.paths")
local environment = require("tidepool.egress.policy.environment")

local function read(name)
  local file = assert(io.open(paths.repo() .. "/" .. name))
  local text = file:read("*a")
  file:close()
  return text
end

local function names()
  local instance = { name = "p", services = {}, seen = {}, state = {} }
  return getmetatable(environment.new(instance, function() end)).__index
end

describe("what a policy can name", function()
  it("is declared for editors", function()
    local meta = read("lua/tidepool/meta/policy.lua")
    for name, value in pairs(names()) do
      local declared = meta:find("\nfunction " .. name .. "(", 1, true) or meta:find("\n" .. name .. " = ", 1, true)
      assert.is_truthy(declared or meta:find("`" .. name .. "`", 1, true), name .. " " .. type(value))
    end
  end)

  it("is known to the linter", function()
    local known = read(".luacheckrc"):match("stds%.policies = (%b{})")
    for name in pairs(names()) do
      assert.is_truthy(known:find("\"" .. name .. "\"", 1, true) or known:find("\n    " .. name .. " = ", 1, true), name)
    end
  end)
end)

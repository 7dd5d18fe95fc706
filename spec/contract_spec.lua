-- What each C module exports, what the editor's reference declares and what the specs exercise are
-- compared by name, so that none drifts from the others.
local paths = require("tidepool.paths")

local function read(path)
  local file = assert(io.open(path))
  local text = file:read("*a")
  file:close()
  return text
end

local function all_specs()
  local pipe = io.popen(("find '%s/spec' -name '*_spec.lua'"):format(paths.repo()))
  local texts = {}
  for path in pipe:lines() do
    if not path:find("contract_spec", 1, true) then
      texts[#texts + 1] = read(path)
    end
  end
  pipe:close()
  return table.concat(texts, "\n")
end

for _, module in ipairs({ "core", "proxy" }) do
  describe("the C module tidepool." .. module, function()
    local exported = require("tidepool." .. module)
    local meta = read(("%s/lua/tidepool/meta/%s.lua"):format(paths.repo(), module))
    local declared = {}
    for part, name in meta:gmatch("\nfunction " .. module .. "%.([%w_]+)%.([%w_]+)%(") do
      declared[part .. "." .. name] = true
    end

    it("declares each function it exports", function()
      for part, functions in pairs(exported) do
        for name, value in pairs(functions) do
          if type(value) == "function" then
            assert.is_true(declared[part .. "." .. name] or false, ("not declared: %s.%s.%s"):format(module, part, name))
          end
        end
      end
    end)

    it("exports each function that is declared", function()
      for full in pairs(declared) do
        local part, name = full:match("^(.-)%.(.*)$")
        assert.is_function((exported[part] or {})[name], ("not exported: %s.%s"):format(module, full))
      end
    end)

    it("has a spec that calls each function, directly or by the module that wraps it", function()
      local specs = all_specs()
      for full in pairs(declared) do
        local name = full:match("%.(.*)$")
        assert.is_truthy(specs:find(name, 1, true), ("no spec names %s.%s"):format(module, full))
      end
    end)
  end)
end

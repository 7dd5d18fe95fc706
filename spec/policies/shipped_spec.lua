-- Every policy that comes with us brings cases, and all of them hold.
local cases = require("tidepool.egress.policy.cases")
local paths = require("tidepool.paths")
local uv = require("luv")

local function read(path)
  local file = assert(io.open(path))
  local text = file:read("*a")
  file:close()
  return text
end

local scan = assert(uv.fs_scandir(paths.repo() .. "/policies"))
local file = uv.fs_scandir_next(scan)
while file do
  local name = file:match("^(.*)%.lua$")
  local text = read(paths.repo() .. "/policies/" .. file)

  describe("policy " .. name, function()
    local results, definition = cases.run(text)

    it("loads, and is called as its file", function()
      assert(results, tostring(definition))
      assert.equal(name, definition.name)
      assert.is_true(#results > 0)
    end)

    for _, result in ipairs(results or {}) do
      it(result.name, function()
        assert(result.ok, result.message)
      end)
    end
  end)
  file = uv.fs_scandir_next(scan)
end

-- Every example is run as its head says, and ends with its result.
local uv = require("luv")
local paths = require("tidepool.paths")
local support = require("spec.support")

local RESULTS = {
  ["01_first_light.lua"] = "first light: bzip2 was built and passed its own tests",
  ["02_terminal.lua"] = "terminal: all %d+ steps worked",
  ["03_background.lua"] = "background: the process outlived the server",
  ["04_credentials.lua"] = "credentials: cloned and pushed with no token inside, then pushing was turned off",
  ["05_registries.lua"] = "registries: .+", -- which of them this host has
  ["06_branches.lua"] = "branches: of three patches one passed and was promoted: allow the last group",
  ["07_hibernate.lua"] = "hibernate: the variables outlived the server, and eight branches went on from them",
}

local names = {}
for name in uv.fs_scandir_next, assert(uv.fs_scandir(paths.repo() .. "/examples")) do
  if name:match("^%d+_.*%.lua$") then
    names[#names + 1] = name
  end
end
table.sort(names)

describe("the examples", function()
  setup(function()
    support.needs_root()
    support.image("debian")
  end)

  -- What an example needs from a mirror, whose lack makes it pending: a function of why, or nil.
  local NEEDS = {
    ["07_hibernate.lua"] = function()
      local got, message = require("sandbox").memory.install()
      return not got and "needs CRIU: " .. message or nil
    end,
  }

  for _, name in ipairs(names) do
    it("run to their result: " .. name, function()
      local lack = NEEDS[name] and NEEDS[name]()
      if lack then
        return pending(lack)
      end
      local result = support.cli({ "run", paths.repo() .. "/examples/" .. name })
      local output = result.stdout .. result.stderr
      assert.equal(0, result.code, output:sub(-2000))
      assert.matches(assert(RESULTS[name], "no result is known for " .. name) .. "\n$", result.stdout)
    end)
  end

  it("leave no sandbox behind", function()
    for _, info in ipairs(assert(require("sandbox").ls())) do
      assert.is_nil(info.labels.example, info.name)
    end
  end)
end)

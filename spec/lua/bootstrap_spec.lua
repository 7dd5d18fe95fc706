local uv = require("luv")
local bootstrap = require("tidepool.bootstrap")
local paths = require("tidepool.paths")
local support = require("spec.support")

describe("the package list", function()
  it("names each package once, with a known group and a reason", function()
    local groups = { run = true, build = true, image = true, example = true, test = true, bench = true }
    local seen = {}
    for _, package in ipairs(bootstrap.packages) do
      assert.is_nil(seen[package[1]], package[1])
      seen[package[1]] = true
      assert.is_true(groups[package[2]], package[1])
      assert.is_true(#package[3] > 0, package[1])
    end
  end)

  it("knows what is not installed, and the command that installs it", function()
    table.insert(bootstrap.packages, { "tidepool-no-such-package", "spec", "to be missing" })
    finally(function()
      table.remove(bootstrap.packages)
    end)
    local missing = bootstrap.missing({ "spec" })
    assert.equal("tidepool-no-such-package", missing[#missing][1])
    assert.matches("^apt%-get install .* tidepool%-no%-such%-package$", bootstrap.install_command(missing))
  end)
end)

describe("a bootstrap", function()
  it("builds what is stale, and only that", function()
    local build = support.scratch() .. "/build"
    local env = { "PATH=" .. os.getenv("PATH"), "TIDEPOOL_BUILD=" .. build }
    local first = support.cli({ "nosuchverb" }, { env = env })
    assert.matches("building: done", first.stderr, 1, true)
    assert.truthy(uv.fs_stat(build .. "/tidepool/core.so"))
    local second = support.cli({ "nosuchverb" }, { env = env })
    assert.is_nil(second.stderr:find("building", 1, true))

    assert(os.remove(build .. "/build.stamp"))
    local third = support.cli({ "nosuchverb" }, { env = env })
    assert.matches("building: done", third.stderr, 1, true)
  end)

  it("shows the end of the log when the build fails, and where the rest is", function()
    -- A checkout of its own, so that its sources can be broken.
    local copy = support.scratch() .. "/copy"
    assert(uv.fs_mkdir(copy, 493))
    support.run({ "cp", "-a", paths.repo() .. "/sandbox.lua", paths.repo() .. "/lua", paths.repo() .. "/core",
      paths.repo() .. "/CMakeLists.txt", copy })
    local file = assert(io.open(copy .. "/core/error.c", "a"))
    file:write("\nthis is not C;\n")
    file:close()
    local result = support.run({ copy .. "/sandbox.lua", "nosuchverb", env = { "PATH=" .. os.getenv("PATH") } })
    assert.equal(125, result.code)
    assert.matches("building: failed", result.stderr, 1, true)
    assert.matches("this is not C", result.stderr, 1, true)
    assert.matches(copy .. "/.build/build.log", result.stderr, 1, true)
  end)
end)

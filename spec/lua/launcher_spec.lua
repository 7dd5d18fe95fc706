local uv = require("luv")
local paths = require("tidepool.paths")
local support = require("spec.support")

local function write(path, text)
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
end

describe("./sandbox.lua", function()
  it("runs through a symbolic link, from any directory", function()
    local directory = support.scratch()
    assert(uv.fs_symlink(paths.launcher(), directory .. "/pool"))
    local result = support.run({ "./pool", "version", cwd = directory })
    assert.equal(0, result.code)
    assert.matches("^tidepool %d", result.stdout)
  end)

  it("loads no module from the working directory, which may be a stranger's", function()
    local directory = support.scratch()
    write(directory .. "/luv.lua", "os.exit(66)")
    write(directory .. "/cjson.lua", "os.exit(66)")
    local result = support.run({ paths.launcher(), "doctor", "--json", cwd = directory })
    assert.not_equal(66, result.code)
  end)

  it("gives help without installing or building anything", function()
    local build = support.scratch() .. "/build"
    for _, words in ipairs({ { "help" }, { "exec", "--help" }, { "--help" }, {} }) do
      local env = { "PATH=" .. os.getenv("PATH"), "TIDEPOOL_BUILD=" .. build }
      local result = support.cli(words, { env = env })
      assert.equal(0, result.code)
      assert.matches("Usage", result.stdout)
    end
    assert.is_nil(uv.fs_stat(build))
  end)

  it("takes little to start when there is nothing to install or build", function()
    support.cli({ "nosuchverb" }) -- builds, if the sources changed
    -- Its CPU time, which tells the same on a machine that is busy with other things.
    local result = support.run({ "bash", "-c", 'TIMEFORMAT="%U %S"; time "$0" nosuchverb 2>/dev/null; exit 0', paths.launcher() })
    local user, system = result.stderr:match("^([%d.]+) ([%d.]+)\n$")
    assert.is_true(user + system < 1, result.stderr)
  end)

  it("keeps the rest of the command line of a script for the script", function()
    local script = support.scratch() .. "/script.lua"
    write(script, 'print(#arg, arg[1], arg[2], require("sandbox") == require("tidepool.facade"))')
    support.image("debian")
    local result = support.cli({ "run", script, "--help", "two words" })
    assert.equal("", result.stderr)
    assert.equal("2\t--help\ttwo words\ttrue\n", result.stdout)
  end)
end)

describe("require \"sandbox\"", function()
  it("needs only the checkout in package.path", function()
    local script = support.scratch() .. "/script.lua"
    write(script, ([[
      package.path = %q .. "/?.lua;" .. package.path
      local sandbox = require "sandbox"
      print(type(sandbox.open), type(sandbox.all))
    ]]):format(paths.repo()))
    local result = support.run({ "luajit", script, cwd = "/", env = {
      "PATH=" .. os.getenv("PATH"),
      "TIDEPOOL_BUILD=" .. paths.build(),
    } })
    assert.equal("", result.stderr)
    assert.equal("function\tfunction\n", result.stdout)
  end)
end)

local uv = require("luv")
local doctor = require("tidepool.doctor")
local paths = require("tidepool.paths")
local support = require("spec.support")

describe("doctor", function()
  it("has a finding in every row, and for each lack its cost and its cure", function()
    local list = doctor.check()
    assert.is_true(#list > 15)
    for _, row in ipairs(list) do
      assert.truthy(({ ok = true, warn = true, fail = true })[row.status], row.name)
      assert.is_true(#row.found > 0, row.name)
      if row.status ~= "ok" then
        assert.is_true(row.cost ~= nil and #row.cost > 0, row.name)
        assert.is_true(row.fix ~= nil and #row.fix > 0, row.name)
      end
    end
  end)

  it("prints the same as a table and as JSON", function()
    local result = support.cli({ "doctor", "--json" })
    local list = require("cjson").decode(result.stdout)
    local text = doctor.render(list)
    for _, row in ipairs(list) do
      assert.truthy(text:find(row.found, 1, true), row.name)
    end
  end)

  it("fails nothing on a machine on which sandboxes run", function()
    support.needs_root()
    support.sandbox()
    assert.equal(0, support.cli({ "doctor" }).code)
  end)

  it("proves CRIU whatever its caller holds open", function()
    support.needs_root()
    local server = support.shared()
    local got, message = server.client:call("memory_install", {})
    if not got then
      pending("needs CRIU: " .. message)
    end
    local script = 'exec 9>"$1"; flock 9; exec "$2" doctor --json'
    local result = support.run({ "sh", "-ec", script, "sh", support.scratch() .. "/lock", paths.launcher() })
    for _, row in ipairs(require("cjson").decode(result.stdout)) do
      if row.name == "CRIU" then
        assert.match("has dumped and restored a process", row.found)
      end
    end
  end)

  it("works without root, and says what it could not check", function()
    support.needs_root()
    -- A copy that anyone may read: the checkout may be in root's home.
    local copy = assert(uv.fs_mkdtemp("/var/tmp/tidepool-doctor-XXXXXX"))
    finally(function()
      support.run({ "rm", "-rf", copy })
    end)
    support.run({ "cp", "-r", paths.launcher(), paths.repo() .. "/lua", copy })
    support.run({ "chmod", "-R", "a+rX", copy })
    local result = support.run({ "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
      "luajit", copy .. "/sandbox.lua", "doctor", cwd = "/" })
    assert.matches("not root", result.stdout, 1, true)
  end)

  it("refuses an option that it doesn't know", function()
    local result = support.cli({ "doctor", "--fix" })
    assert.equal(125, result.code)
    assert.matches("unknown option: --fix", result.stderr, 1, true)
  end)
end)

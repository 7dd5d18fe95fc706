-- What a test run tells and leaves: runs of their own, of a few files that are made here.
local paths = require("tidepool.paths")
local support = require("spec.support")
local uv = require("luv")

describe("a test run", function()
  local repo, build

  setup(function()
    support.needs_root()
    repo, build = support.scratch(), support.scratch()
    uv.fs_mkdir(repo .. "/spec", 493)
    for _, name in ipairs({ "lua", "sandbox.lua", "spec/support" }) do
      assert(uv.fs_symlink(paths.repo() .. "/" .. name, repo .. "/" .. name))
    end
    for _, name in ipairs(support.names(paths.build())) do
      if not name:find("^test%-state") then
        assert(uv.fs_symlink(paths.build() .. "/" .. name, build .. "/" .. name))
      end
    end
    assert(uv.fs_copyfile(paths.repo() .. "/.busted", repo .. "/.busted"))
  end)

  -- Runs one spec file: { code, signal, stdout, stderr }.
  local function run(text)
    local file = assert(io.open(repo .. "/spec/made_spec.lua", "w"))
    file:write(text)
    file:close()
    return support.run({
      "luajit", "-e", 'require("luv"); os.exit(require("tidepool.testing").main({ "made_spec" }))',
      cwd = repo,
      env = {
        "PATH=" .. os.getenv("PATH"), "TIDEPOOL_BUILD=" .. build,
        "LUA_PATH=" .. repo .. "/lua/?.lua;" .. repo .. "/lua/?/init.lua;;", "LUA_CPATH=" .. build .. "/?.so;;",
      },
    })
  end

  it("tells what failed once more at its end, and counts", function()
    local result = run([[
      describe("a number", function()
        it("is not another", function() assert.equal(1, 2) end)
        for i = 1, 200 do
          it("is " .. i, function() assert.equal(i, i) end)
        end
      end)
    ]])
    assert.equal(1, result.code)
    assert.matches("\nfailed: spec/made_spec%.lua\n  FAIL a number is not another\n.*Expected:\n.-\n201 passed, 1 failed, 0 skipped\n$", result.stdout)
  end)

  it("tells the last words of a file that broke off", function()
    local result = run([[
      describe("a program", function()
        it("goes on", function() end)
        it("ends", function() print("the last words") io.stdout:flush() os.exit(3, false) end)
      end)
    ]])
    assert.equal(1, result.code)
    assert.matches("\nfailed: spec/made_spec%.lua\n.*the last words\n.*ended with 3 before its last test did\n1 passed, 1 failed, 0 skipped\n$", result.stdout)
  end)

  it("ends what one before it left, which was killed", function()
    local note = support.scratch() .. "/note"
    local first = run(([[
      local support, uv = require("spec.support"), require("luv")
      it("is killed, and who runs it", function()
        local file = io.open(%q, "w")
        file:write(support.shared():pid(), " ", os.getenv("TIDEPOOL_TEST_ROOT"))
        file:close()
        uv.kill(uv.os_getppid(), "sigkill")
        uv.kill(uv.os_getpid(), "sigkill")
      end)
    ]]):format(note))
    assert.equal(9, first.signal)
    local pid, root = support.read(note):match("^(%d+) (.+)$")
    assert.is_true(support.alive(pid))
    local second = run([[
      it("has a server", function() assert.is_true(require("spec.support").shared():pid() > 0) end)
    ]])
    support.run({ "rm", "-rf", "--one-file-system", root })
    assert.equal(0, second.code, second.stdout .. second.stderr)
    assert.matches("an earlier run left a server: " .. pid, second.stdout, 1, true)
    assert.is_false(support.alive(pid))
  end)
end)

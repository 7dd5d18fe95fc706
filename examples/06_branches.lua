-- Branches: a real project with a failing test, three ideas, and the one that works is kept.
--
--   sudo ./sandbox.lua run examples/06_branches.lua
--
-- The sandbox with the project is forked in three, as it stands: sources, built objects, everything. Each
-- branch tries another patch, all at the same time, and none can hurt the others.
local uv = require "luv"
local sandbox = require "sandbox"
local with_source = require "examples.source_package"

local function say(format, ...)
  print(("==> " .. format):format(...))
  io.stdout:flush()
end

local function milliseconds(fn)
  local began = uv.hrtime()
  local result = fn()
  return result, (uv.hrtime() - began) / 1e6
end

local box = assert(sandbox.open("branches-tour", { image = "debian", type = "standard-3", labels = { example = "06" } }))

-- What the machine is asked to do, in whichever sandbox.
local function shell(where, line)
  return assert(where:exec(line, { cwd = "/workspace/src", timeout = 600 }))
end

local function passes_tests(where)
  return shell(where, "make -j2 all").exit_code == 0 and shell(where, "make test").exit_code == 0
end

say("bzip2, built and tested as its authors left it")
with_source("bzip2", function() end, function(path, name)
  assert(box:upload(path, "/workspace/" .. name))
  assert(box:exec { "sh", "-c", "mkdir -p src && tar -xf " .. name .. " -C src --strip-components=1" })
end)
assert(passes_tests(box), "bzip2 does not pass its own tests")

-- The regression that somebody has to find: a limit that is one too low.
local LIMIT = "nGroups > BZ_N_GROUPS"
assert(shell(box, ("sed -i 's/%s/nGroups >= BZ_N_GROUPS/' decompress.c && grep -n 'nGroups >=' decompress.c"):format(LIMIT)).exit_code == 0)
assert(not passes_tests(box), "the tests don't notice")
say("a regression: now its tests fail")

-- From here on the broken state can be had again at any time, whatever happens to it.
local snapshot = assert(box:snapshot("broken"))
say("%s: the sandbox stood still for %.1f ms", snapshot.snapshot, snapshot.pause * 1000)

local ideas = {
  { "raise the number of groups", "sed -i 's/define BZ_N_GROUPS 6/define BZ_N_GROUPS 7/' bzlib_private.h" },
  { "check nothing at all", "sed -i 's/nGroups < 2 || nGroups >= BZ_N_GROUPS/nGroups/' decompress.c" },
  { "allow the last group", "sed -i 's/nGroups >= BZ_N_GROUPS/nGroups > BZ_N_GROUPS/' decompress.c" },
}

local outcomes, took = milliseconds(function()
  return assert(box:fork(#ideas, function(branch, i)
    assert(shell(branch, ideas[i][2]).exit_code == 0)
    return passes_tests(branch)
  end))
end)
for i, outcome in ipairs(outcomes) do
  say("%s, %s: %s", outcome.branch.name, ideas[i][1], outcome.result and "passes" or outcome.error or "fails")
end
say("three branches tried in %.1f s", took / 1000)

-- What fails goes; the winner takes the sandbox's place, in one step.
local winner
for i, outcome in ipairs(outcomes) do
  if outcome.ok and outcome.result and not winner then
    winner = ideas[i][1]
    assert(outcome.branch:promote())
  else
    assert(outcome.branch:destroy())
  end
end
assert(winner, "no branch passes")
assert(passes_tests(box), "what was promoted does not pass")

-- The name is the same, the files are the winner's; and the snapshot tells what the patch was.
assert(box:snapshot("mended"))
for _, one in ipairs(assert(sandbox.snapshot.diff("branches-tour@broken", "branches-tour@mended")).changed) do
  if one.path:find("%.[ch]$") then
    say("changed: %s", one.path)
  end
end

assert(sandbox.snapshot.rm("branches-tour@broken"))
assert(sandbox.snapshot.rm("branches-tour@mended"))
assert(box:destroy())
print(("branches: of three patches one passed and was promoted: %s"):format(winner))

-- Loops over tables under the compiler, in processes of their own: what goes wrong stays wrong in one.
local support = require("spec.support")

-- After some ten thousand turns the compiler gives the outer loop up; from then on LuaJIT's own `pairs`
-- ends after one entry (in the version of Debian 12).
local LOOP = [[
local inner = { 1, 2, 3, 4, 5 }
local outer = { a = inner, b = inner, c = inner, d = inner, e = inner }
local function back_to_the_interpreter(...)
  for _ = 1, 100 do end
end
for turn = 1, 100000 do
  back_to_the_interpreter()
  local count = 0
  for _, list in pairs(outer) do
    for _ in pairs(list) do end
    count = count + 1
  end
  assert(count == 5, turn)
end
local seen = {}
for key, value in pairs({ "x", word = 2, [3.5] = false }) do
  seen[#seen + 1] = tostring(key) .. "=" .. tostring(value)
end
table.sort(seen)
io.write(table.concat(seen, " "), "\n")
for _ in pairs({}) do
  error("an empty table has an entry")
end
print(select(2, pcall(function() return (pairs(nil)) end)))
]]

describe("pairs", function()
  local function write(text)
    local path = support.scratch() .. "/loop.lua"
    local file = assert(io.open(path, "w"))
    file:write(text)
    file:close()
    return path
  end

  it("gives every entry, however often the compiler gave up", function()
    local result = support.run({ "luajit", "-e", "require('tidepool.iteration')", write(LOOP) })
    assert.equal("", result.stderr)
    assert.matches("^1=x 3%.5=false word=2\n", result.stdout)
    assert.matches("loop%.lua:%d+: bad argument #1 to 'pairs' %(table expected, got nil%)\n$", result.stdout)
  end)

  it("is that one in what ./sandbox.lua runs", function()
    support.image("debian") -- `run` sees to it that there is one
    local result = support.cli({ "run", write("print(debug.getinfo(pairs, 'S').short_src)") })
    assert.matches("tidepool/iteration%.lua", result.stdout)
  end)

  it("is not gone round by loops over next", function()
    local result = support.run({ "grep", "-rnE", "in next *,", require("tidepool.paths").repo() .. "/lua" })
    result.stdout = result.stdout:gsub("[^\n]*/iteration%.lua:[^\n]*\n", "")
    assert.equal("", result.stdout)
  end)
end)

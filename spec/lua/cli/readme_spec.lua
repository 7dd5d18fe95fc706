-- The README shows only what there is.
local args = require("tidepool.cli.args")
local commands = require("tidepool.cli.commands")
local paths = require("tidepool.paths")
local verbs = require("tidepool.verbs")

local function read(name)
  local file = assert(io.open(paths.repo() .. "/" .. name))
  local text = file:read("*a")
  file:close()
  return text
end

-- Words of a shell line, quotes removed, cut at a comment, pipe or redirection.
local function words_of(line)
  line = line:gsub("%s+#.*$", "")
  line = line:gsub("'([^']*)'", function(quoted)
    return (quoted:gsub("%s", "\1"))
  end)
  local words = {}
  for word in line:gmatch("%S+") do
    words[#words + 1] = (word:gsub("\1", " "))
  end
  return words
end

describe("the README", function()
  local text = read("README.md")

  it("shows commands that the command line takes", function()
    local count = 0
    for block in text:gmatch("```sh\n(.-)```") do
      for line in block:gmatch("[^\n]+") do
        local command = line:match("^sudo %./sandbox%.lua (.*)$") or line:match("^%./sandbox%.lua (.*)$")
        if command then
          count = count + 1
          local found, rest = args.find(commands, words_of(command))
          assert(found, line .. ": " .. tostring(rest))
          local values, message = args.parse(found, rest)
          assert(values, line .. ": " .. tostring(message))
        end
      end
    end
    assert.is_true(count > 10)
  end)

  it("lists every verb", function()
    local tables = text:match("\n## Verbs\n(.-)\n## ")
    for _, command in ipairs(commands.list) do
      local name = command.name:match("^image ") and command.name:match(" (.*)$") or command.name
      assert.is_truthy(tables:find(name, 1, true), command.name)
    end
  end)

  it("shows Lua that compiles, and methods that exist", function()
    for block in text:gmatch("```lua\n(.-)```") do
      assert(loadstring(block))
    end
    local box = require("tidepool.client.box")
    local made = box.new({}, "x")
    local listed = text:match("%- `box`:(.-)\n%- A process")
    for name in listed:gmatch("`([%w_]+)`") do
      assert.is_function(made[name], name)
    end
    local process = made:process("p")
    for name in text:match("%- A process:(.-) It is a name"):gmatch("`([%w_]+)`") do
      assert.is_function(process[name], name)
    end
  end)

  it("has the instance types of the verbs table", function()
    for name, limits in pairs(verbs.types) do
      local cpu, memory, disk = text:match("\n| " .. name:gsub("%-", "%%-") .. " ?[^|]*| ([%d/]+) | (%d+ %aiB) | (%d+) GB |")
      assert.is_string(cpu, name)
      local over = cpu:match("^1/(%d+)$")
      assert.equal(limits.cpu, over and 1 / over or tonumber(cpu), name)
      local number, unit = memory:match("(%d+) (%aiB)")
      assert.equal(limits.memory, number * (unit == "GiB" and 2 ^ 30 or 2 ^ 20), name)
      assert.equal(limits.disk, disk * 10 ^ 9, name)
    end
  end)
end)

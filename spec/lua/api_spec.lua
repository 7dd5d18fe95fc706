-- The Lua API, the editor's reference and the README name the same functions, and each has its types.
local paths = require("tidepool.paths")

local function read(path)
  local file = assert(io.open(paths.repo() .. "/" .. path))
  local text = file:read("*a")
  file:close()
  return text
end

-- "Class:method" or "sandbox.name" -> the comment block above it.
local function documented(path)
  local found, block = {}, {}
  for line in read(path):gmatch("([^\n]*)\n") do
    local name = line:match("^%s*function ([%w_.:]+)%(") or line:match("^(%u%l+%.[%w_]+) = on_connection") or line:match("^(sandbox%.[%w_.]+) = [%a(]")
    if line:match("^%s*%-%-") then
      block[#block + 1] = line
    else
      if name then
        found[name] = table.concat(block, "\n")
      end
      block = {}
    end
  end
  return found
end

describe("the Lua API", function()
  local files = {
    "lua/tidepool/facade.lua", "lua/tidepool/client/box.lua", "lua/tidepool/client/process.lua", "lua/tidepool/client/session.lua",
    "lua/tidepool/client/stream.lua", "lua/tidepool/client/files.lua", "lua/tidepool/client/box_files.lua", "lua/tidepool/client/init.lua", "lua/tidepool/client/collect.lua",
  }

  it("declares the parameters and results of each public function", function()
    for _, path in ipairs(files) do
      for name, block in pairs(documented(path)) do
        local bare = block == "" or not (block:find("---@return", 1, true) or block:find("---@type", 1, true) or block:find("---@param", 1, true))
        -- Those that take and give nothing have nothing to declare.
        local nothing = name:match(":close$") or name:match(":detach$")
        assert.is_false(bare and not nothing, path .. ": " .. name .. " has no types")
        for parameter in (read(path):match("function " .. name:gsub("%p", "%%%0") .. "%(([^)]*)%)") or ""):gmatch("[%w_]+") do
          if parameter ~= "self" and not block:find("---@type", 1, true) then
            assert.is_truthy(block:find("@param " .. parameter, 1, true), path .. ": " .. name .. " does not declare " .. parameter)
          end
        end
      end
    end
  end)

  it("has each function that the README names, and the README names each of a sandbox and a process", function()
    local text = read("README.md"):match("\n## Lua\n(.-)\n## ")
    local box = require("tidepool.client.box").new({}, "x")
    local process = box:process("p")
    local described = {
      box = { object = box, text = text:match("\n%- `box`:(.-)\n%- ") },
      process = { object = process, text = text:match("\n%- A process:(.-)\n%- ") },
    }
    local skipped = { agent = true, files = true, close = true, touch = true, connect = true, info = true }
    for what, part in pairs(described) do
      local named = {}
      for name in part.text:gmatch("`([%w_]+)`") do
        named[name] = true
        assert.is_function(part.object[name], what .. " has no " .. name)
      end
      for name, value in pairs(getmetatable(part.object).__index) do
        if type(value) == "function" and not name:find("^__") and not skipped[name] then
          assert.is_true(named[name] or false, "the README does not name " .. what .. ":" .. name)
        end
      end
    end
    local sandbox = require("sandbox")
    for name in text:match("\n%- `sandbox`:(.-)\n%- "):gmatch("`([%w_.]+)`") do
      local value = sandbox
      for part in name:gmatch("[%w_]+") do
        value = value[part]
      end
      assert.is_function(value, "sandbox has no " .. name)
    end
  end)
end)

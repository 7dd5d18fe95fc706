--- `policy test`: a policy's own cases, in the caller's process. No server, no sandbox, no network.
local paths = require("tidepool.paths")

local FAILED = 1

local function read(path)
  local file = io.open(path, "rb")
  if not file then
    return nil
  end
  local text = file:read("*a")
  file:close()
  return text
end

-- A path, or the name of a policy: the state directory's own before those that come with us.
local function find(word)
  if word:find("/", 1, true) or word:sub(-4) == ".lua" then
    return read(word), word:match("([^/]+)%.lua$")
  end
  local file = "/policies/" .. word .. ".lua"
  return read(paths.state() .. file) or read(paths.repo() .. file), word
end

local function show(name, results, failed)
  local lines = {}
  for _, result in ipairs(results) do
    lines[#lines + 1] = result.ok and "ok      " .. result.name or ("FAILED  %s: %s"):format(result.name, result.message)
  end
  lines[#lines + 1] = ("%s: %d cases, %d failed"):format(name, #results, failed)
  return table.concat(lines, "\n") .. "\n"
end

local function run(context, values)
  local text, name = find(values.file)
  if not text then
    return context:fail(values.file .. ": no such policy", "ENOENT")
  end
  local results, definition = require("tidepool.egress.policy.cases").run(text, name)
  if not results then
    return context:fail(definition, "EINVAL", FAILED)
  end
  local failed = 0
  for _, result in ipairs(results) do
    failed = failed + (result.ok and 0 or 1)
  end
  context:result({ name = definition.name, cases = results, failed = failed }, function()
    return show(definition.name, results, failed)
  end)
  return failed > 0 and FAILED or 0
end

return {
  {
    name = "policy test",
    group = "tool",
    about = "Run the cases that a policy brings along: 0 when all hold, 1 when not.",
    outside = true,
    params = { { name = "file", type = "string", positional = 1, required = true, about = "a file, or the name of a policy" } },
    errors = { "ENOENT", "EINVAL" },
    run = run,
    example = "policy test github",
  },
}

--- The commands: every verb that has a place on the command line, and the client's own.
--
-- A file of a group returns a list. An entry with the name of a verb's command adds to it (its own
-- `params`, `run`, `details`); another is a command of its own. A verb that no file mentions works all
-- the same: its parameters are sent as parsed and its result is shown field by field.
local verbs = require("tidepool.verbs")

local FILES = { "sandboxes", "processes", "terminals", "files", "egress", "secrets", "snapshots", "archives", "images", "storage", "tools", "policy_test" }

local commands = { list = {}, by_name = {} }

local function add(command)
  commands.list[#commands.list + 1] = command
  commands.by_name[command.name] = command
  return command
end

for _, verb in ipairs(verbs.list) do
  if verb.cli then
    local command = add({ name = verb.cli, verb = verb.name, params = {} })
    for _, field in ipairs({ "about", "group", "errors", "example", "result", "wakes" }) do
      command[field] = verb[field]
    end
    for i, param in ipairs(verb.params) do
      command.params[i] = param
    end
  end
end

local function extend(command, extra)
  for key, value in pairs(extra) do
    if key == "params" then
      for _, param in ipairs(value) do
        local place = #command.params + 1
        for i, present in ipairs(command.params) do
          place = present.name == param.name and i or place
        end
        command.params[place] = param
      end
    else
      command[key] = value
    end
  end
end

for _, file in ipairs(FILES) do
  for _, extra in ipairs(require("tidepool.cli." .. file)) do
    local command = commands.by_name[extra.name]
    if command then
      extend(command, extra)
    else
      extra.params = extra.params or {}
      add(extra)
    end
  end
end

--- What of the parsed values the verb itself takes.
function commands.params(command, values)
  local params = {}
  for _, param in ipairs(verbs.by_name[command.verb].params) do
    params[param.name] = values[param.name]
  end
  return params
end

return commands

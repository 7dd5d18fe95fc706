--- snapshot export, import: they take a while, and tell how far they are.
local commands_of = "tidepool.cli.commands" -- which requires this file
local format = require("tidepool.cli.format")
local paths = require("tidepool.paths")

local function show_file(result)
  local text = ("%s: %s, %d files of %s in %d layer%s\n"):format(format.clean(result.file), format.size(result.size),
    result.entries, format.size(result.bytes), result.layers, result.layers == 1 and "" or "s")
  if result.skipped > 0 then
    text = text .. ("left out: %d devices, sockets or names that a layer can't hold\n"):format(result.skipped)
  end
  return text
end

local function show_snapshot(info)
  return format.clean(info.snapshot) .. "\n"
end

-- Progress goes to standard error as it comes.
local function job(show)
  return function(context, values, command)
    local params = require(commands_of).params(command, values)
    params.file = paths.absolute(params.file) -- the server stands elsewhere
    local result, message, code = context:connect():call(command.verb, params, nil, function(line)
      context:note(format.clean(line))
    end)
    if not result then
      return context:fail(message, code)
    end
    return context:result(result, show)
  end
end

return {
  { name = "snapshot export", run = job(show_file) },
  { name = "snapshot import", run = job(show_snapshot) },
}

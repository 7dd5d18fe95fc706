--- storage grow, check: how they are shown, and the check of a pool for which no server can start.
local commands_of = "tidepool.cli.commands" -- which requires this file
local format = require("tidepool.cli.format")

local function show_grown(result)
  return ("the pool has %s, before %s\n"):format(format.size(result.size), format.size(result.before))
end

local function show_check(result)
  local out = { result.said and format.clean(result.said, true) or "" }
  if result.bytes then
    out[#out + 1] = format.size(result.bytes) .. " were read; "
  end
  for kind, count in pairs(result.damage or {}) do
    out[#out + 1] = ("%d %s, "):format(count, format.clean(kind))
  end
  out[#out + 1] = result.errors == 0 and "no damage was found\n" or "there is damage: dmesg names the files\n"
  return table.concat(out)
end

local function check(context, values, command)
  local client = context:connect()
  local result, message, code = client:call(command.verb, require(commands_of).params(command, values))
  if code == "ENOSERVER" then
    local why = message
    result, message, code = require("tidepool.server.storage.pool_care").offline(client.state .. "/pool.img")
    if result then
      context:note(format.clean(why))
    end
  end
  if not result then
    return context:fail(message, code)
  end
  context:result(result, show_check)
  return result.errors == 0 and 0 or 1
end

return {
  { name = "storage grow", show = show_grown },
  { name = "storage check", run = check },
}

--- Help, derived from the declared commands, so that it can't say what the parser doesn't do.
local args = require("tidepool.cli.args")
local format = require("tidepool.cli.format")

local help = {}

local GROUPS = {
  { "sandbox", "Sandboxes" },
  { "process", "Processes and terminals" },
  { "file", "Files" },
  { "snapshot", "Snapshots, branches, sleep" },
  { "egress", "Egress and secrets" },
  { "image", "Images" },
  { "server", "The server" },
  { "tool", "Tools" },
}

local PROGRAM = "./sandbox.lua"

--- The one line that shows how a command is written.
function help.usage(command)
  local words, options = { PROGRAM, command.name }, false
  for _, param in ipairs(command.params) do
    options = options or param.flag ~= nil
  end
  words[#words + 1] = options and "[OPTIONS]" or nil
  local positional, rest = {}, nil
  for _, param in ipairs(command.params) do
    if param.positional then
      local label = args.label(param) .. (param.repeated and "..." or "")
      positional[param.positional] = param.required and label or "[" .. label .. "]"
    elseif param.rest then
      rest = param.dashes == false and "[ARGS...]" or (param.required and "-- ARGV..." or "[-- ARGV...]")
    end
  end
  for _, word in ipairs(positional) do
    words[#words + 1] = word
  end
  words[#words + 1] = rest
  return table.concat(words, " ")
end

local UNITS = {
  bytes = "SIZE",
  seconds = "TIME",
  map = "K=V",
  integer = "N",
  number = "N",
  octal = "MODE",
  offset = "BYTES",
  name = "NAME",
}

local function show_default(param)
  if param.default == nil then
    return ""
  end
  local shown = tostring(param.default)
  if param.type == "bytes" then
    shown = format.size(param.default)
  elseif param.type == "seconds" then
    shown = shown .. " s"
  end
  return " (default " .. shown .. ")"
end

local function option_line(param)
  local left = (param.short and param.short .. ", " or "    ") .. param.flag
  if param.type ~= "boolean" then
    left = left .. " " .. (param.metavar or UNITS[param.type] or "TEXT")
  end
  return { left, (param.about or "") .. show_default(param) .. (param.repeated and "; may be repeated" or "") }
end

--- Everything about one command.
function help.command(command)
  local out = { "Usage: ", help.usage(command), "\n\n", command.about, "\n" }
  if command.details then
    out[#out + 1] = "\n" .. command.details .. "\n"
  end

  local positional, options = {}, {}
  for _, param in ipairs(command.params) do
    if param.positional then
      positional[param.positional] = { args.label(param), (param.about or "") .. show_default(param) }
    elseif param.rest then
      positional[#positional + 1] = { param.dashes == false and "ARGS" or "ARGV", param.about or "" }
    elseif param.flag then
      options[#options + 1] = option_line(param)
    end
  end
  for _, own in ipairs(args.own) do
    options[#options + 1] = option_line(own)
  end
  if #positional > 0 then
    out[#out + 1] = "\nArguments:\n" .. format.definitions(positional)
  end
  out[#out + 1] = "\nOptions:\n" .. format.definitions(options)
  if command.result then
    out[#out + 1] = "\nWith --json: " .. command.result .. ".\n"
  end
  if command.wakes then
    out[#out + 1] = "\nStarts the sandbox when it is stopped.\n"
  end
  if command.errors and #command.errors > 0 then
    out[#out + 1] = "\nErrors: " .. table.concat(command.errors, ", ") .. "\n"
  end
  if command.example then
    out[#out + 1] = "\nExample:\n  " .. PROGRAM .. " " .. command.example .. "\n"
  end
  return table.concat(out)
end

--- The first page.
function help.overview(commands)
  local out = {
    "Tidepool: a persistent Linux machine for each of your agents, on hardware you own.\n\n",
    "Usage: ", PROGRAM, " VERB [OPTIONS] [ARGUMENTS]\n",
  }
  for _, group in ipairs(GROUPS) do
    local lines = {}
    for _, command in ipairs(commands.list) do
      if command.group == group[1] then
        lines[#lines + 1] = { command.name, command.about }
      end
    end
    if #lines > 0 then
      out[#out + 1] = "\n" .. group[2] .. ":\n" .. format.definitions(lines)
    end
  end
  out[#out + 1] = "\nEvery verb has --help and --json. The server starts by itself.\n"
  out[#out + 1] = "Exit status: exec's is the command's; 124 a timeout, 125 an error of ours, 126 and 127 as in a shell.\n"
  return table.concat(out)
end

--- Help about a group's verbs ("image") or nil when no verb starts with the word.
function help.group(commands, word)
  local lines = {}
  for _, command in ipairs(commands.list) do
    if command.name:sub(1, #word + 1) == word .. " " then
      lines[#lines + 1] = { command.name, command.about }
    end
  end
  if #lines > 0 then
    return "Usage: " .. PROGRAM .. " " .. word .. " VERB [OPTIONS]\n\n" .. format.definitions(lines)
  end
end

return help

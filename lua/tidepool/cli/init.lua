--- The command line: ./sandbox.lua VERB. Runs in the caller's process, with the caller's rights.
--
-- Results go to standard output, everything else to standard error. 125 is the exit status of an
-- error of ours, and its line ends in a stable code.
local args = require("tidepool.cli.args")
local format = require("tidepool.cli.format")
local help = require("tidepool.cli.help")

local cli = {}

cli.VERSION = "0.1.0"

local FAILED = 125

local Context = {}
Context.__index = Context

--- The client of the server, which starts by itself.
function Context:connect()
  self.client = self.client or require("tidepool.client").new()
  return self.client
end

function Context.print(_, text)
  io.stdout:write(text)
end

function Context.note(_, text)
  io.stderr:write(text, "\n")
end

--- Tells of a failure and returns the exit status (125 unless another is given).
function Context:fail(message, code, status)
  io.stdout:flush()
  if self.json then
    self:print(format.json({ error = { message = message, code = code or "EIO" } }) .. "\n")
  end
  self:note(("tidepool: %s (%s)"):format(format.clean(message, true), code or "EIO"))
  return status or FAILED
end

--- Prints a verb's result: as JSON when asked for, else through `show` (field by field by default).
function Context:result(value, show)
  if self.json then
    self:print(format.json(value) .. "\n")
  elseif show then
    self:print(show(value))
  elseif type(value) == "table" then
    self:print(format.any(value))
  end
  return 0
end

--- Sends the command's verb: result | nil, message, code.
function Context:call(command, values, fds)
  return self:connect():call(command.verb, require("tidepool.cli.commands").params(command, values), fds)
end

local function run_verb(context, values, command)
  local result, message, code = context:call(command, values)
  if result == nil then
    return context:fail(message, code)
  end
  return context:result(result, command.show)
end

local function show_help(commands, words)
  if #words == 0 then
    io.stdout:write(help.overview(commands))
    return 0
  end
  local command, message, code = args.find(commands, words)
  if command then
    io.stdout:write(help.command(command))
    return 0
  end
  local group = #words == 1 and help.group(commands, words[1])
  if group then
    io.stdout:write(group)
    return 0
  end
  return Context:fail(message, code)
end

local function run(context, command, values)
  local body = command.run or run_verb
  if command.outside then -- starts tasks of its own
    return body(context, values, command)
  end
  return require("tidepool.async").run(function()
    local status = body(context, values, command)
    if context.client then
      context.client:close()
    end
    return status
  end)
end

-- Also when the rest of the command line was wrong: a script wants its error as JSON too.
local function wants_json(values, words)
  if values then
    return values.json
  end
  for _, word in ipairs(words) do
    if word == "--" then
      return false
    elseif word == "--json" then
      return true
    end
  end
end

--- Runs one command line and returns its exit status.
---@param words string[] the words behind the program's name
---@return integer status
function cli.main(words)
  words = { unpack(words) }
  local commands = require("tidepool.cli.commands")
  local first = words[1]
  if first == nil or first == "help" or first == "--help" or first == "-h" then
    local rest = { unpack(words, 2) }
    return show_help(commands, rest[1] ~= nil and rest[1]:sub(1, 1) == "-" and {} or rest)
  elseif first == "--version" or first == "-V" then
    words = { "version", unpack(words, 2) }
  end

  local command, rest, code = args.find(commands, words)
  if not command then
    local group = help.group(commands, first)
    if group and (words[2] == nil or words[2] == "--help" or words[2] == "-h") then
      io[words[2] and "stdout" or "stderr"]:write(group)
      return words[2] and 0 or FAILED
    end
    local status = Context:fail(rest, code)
    Context:note("Try ./sandbox.lua help.")
    return status
  end

  local values, message
  values, message, code = args.parse(command, rest)
  local context = setmetatable({ json = wants_json(values, rest) }, Context)
  if not values then
    local status = context:fail(command.name .. ": " .. message, code)
    context:note("Try ./sandbox.lua " .. command.name .. " --help.")
    return status
  elseif values.help then
    context:print(help.command(command))
    return 0
  end

  local ok, status = xpcall(run, function(err)
    return type(err) == "string" and debug.traceback(err, 2) or err
  end, context, command, values)
  if not ok then
    return context:fail("internal error: " .. tostring(status), "EINTERNAL")
  end
  io.stdout:flush()
  return status or 0
end

return cli

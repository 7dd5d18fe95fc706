--- secret set, ls, rm, placeholder. A value is read here, from where no other user of the machine can see
--- it, and goes to the server over its socket; it is never printed.
local uv = require("luv")
local format = require("tidepool.cli.format")
local read_file = require("tidepool.file").read

local SOURCES = {
  { name = "file", type = "string", flag = "--file", about = "read the value from a file" },
  { name = "variable", type = "string", flag = "--env", about = "take it from an environment variable" },
  { name = "command", type = "string", flag = "--command", about = "take what a shell command prints" },
  { name = "source", type = "string", positional = 2, values = { "-" }, metavar = "-", about = "read it from standard input (the default)" },
}

-- A line typed by a person, unseen. By a shell, since it puts the terminal right also when they give up with
-- Ctrl-C, which ends us at once.
local UNSEEN = [[
trap 'stty echo; exit 130' INT TERM HUP
stty -echo
IFS= read -r line
stty echo
printf %s "$line"
]]

local function read_unseen()
  io.stderr:write("Secret (not shown): ")
  io.stderr:flush()
  local pipe = io.popen(UNSEEN)
  local line = pipe and pipe:read("*a")
  if pipe then
    pipe:close()
  end
  io.stderr:write("\n")
  return line ~= "" and line or nil
end

local function from_command(command)
  local made, message, code = require("tidepool.async").command({ "/bin/sh", "-c", command, stdin = 0, stdout = "pipe", stderr = 2 })
  if not made then
    return nil, message, code
  elseif made.code ~= 0 or made.signal ~= 0 then
    return nil, "the command failed with status " .. made.code, "ESCRIPT"
  end
  return made.stdout
end

-- The value from whichever source was named | nil, message, code.
local function read_value(values)
  local count = 0
  for _, source in ipairs(SOURCES) do
    count = count + (values[source.name] and 1 or 0)
  end
  if count > 1 then
    return nil, "give one source of the value, not several", "EINVAL"
  elseif values.file then
    local bytes, message = read_file(values.file)
    return bytes, message, "ENOENT"
  elseif values.variable then
    local value = os.getenv(values.variable)
    return value, "no such environment variable: " .. values.variable, "ENOENT"
  elseif values.command then
    return from_command(values.command)
  elseif uv.guess_handle(0) == "tty" then
    return read_unseen(), "no value was given", "EINVAL"
  end
  return io.read("*a")
end

local function set(context, values)
  local value, message, code = read_value(values)
  if not value then
    return context:fail("secret set: " .. message, code)
  end
  local hosts
  for _, list in ipairs(values.hosts or {}) do
    hosts = hosts or {}
    for host in list:gmatch("[^,%s]+") do
      hosts[#hosts + 1] = host
    end
  end
  local made
  made, message, code = context:connect():call("secret_set", {
    secret = values.secret,
    value = (value:gsub("\r?\n$", "")), -- an editor's, or echo's
    hosts = hosts,
    placeholder = values.placeholder,
  })
  if not made then
    return context:fail(message, code)
  end
  made.hosts = format.array(made.hosts)
  return context:result(made, function()
    return made.name .. "\n"
  end)
end

local function show_list(list)
  return format.table({
    { "NAME", "name" },
    { "HOSTS", function(row) return table.concat(row.hosts or {}, ",") end },
    { "CREATED", function(row) return format.ago(row.created) end },
    { "USED", function(row) return format.ago(row.used) end },
    { "PLACEHOLDER", "placeholder" },
    { "PROBLEM", "problem" },
  }, list)
end

return {
  { name = "secret set", params = SOURCES, run = set,
    details = "The value comes from standard input unless an option says otherwise; one newline at its end is dropped. "
      .. "From a terminal it is read without being shown." },
  {
    name = "secret ls",
    run = function(context, values, command)
      local list, message, code = context:call(command, values)
      if not list then
        return context:fail(message, code)
      end
      for _, row in ipairs(list) do
        row.hosts = format.array(row.hosts)
      end
      return context:result(format.array(list), show_list)
    end,
  },
  {
    name = "secret placeholder",
    show = function(text)
      return text .. "\n"
    end,
  },
}

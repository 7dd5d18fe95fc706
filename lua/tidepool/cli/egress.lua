--- egress set, add, rm, show, log; policy ls, show.
local format = require("tidepool.cli.format")
local policy = require("tidepool.client.policy")

local POLICY = { name = "policy", type = "string", positional = 2, required = true, about = "a policy's name, or its file" }
local OPTIONS = {
  name = "options", type = "map", positional = 3, repeated = true, metavar = "KEY=VALUE",
  about = "its options; @FILE as a value is what is in the file",
}

local function options_line(options)
  local list = {}
  for key, value in pairs(options or {}) do
    if type(value) == "table" then
      value = format.json(value)
    end
    value = tostring(value)
    if #value > 100 or value:find("\n") then
      value = ("(%d bytes)"):format(#value)
    end
    list[#list + 1] = key .. "=" .. value
  end
  table.sort(list)
  return table.concat(list, " ")
end

local function show(info)
  local counters, lines = info.counters, {}
  local state = info.state
  if info.process then
    state = ("served by egress process %d, pid %d"):format(info.process.number, info.process.pid)
  elseif info.problem then
    state = ("%s: %s"):format(state, info.problem)
  end
  for i, member in ipairs(info.policies) do
    lines[#lines + 1] = { i == 1 and "policies" or "", ("%-20s %s%s"):format(member.name, options_line(member.options), member.file and " (from a file)" or "") }
  end
  lines[#lines + 1] = { "revision", info.revision }
  lines[#lines + 1] = { "state", state }
  lines[#lines + 1] = { "decided", ("%d allowed, %d denied"):format(counters.allowed, counters.denied) }
  lines[#lines + 1] = { "moved", ("%s sent, %s received"):format(format.size(counters.bytes_sent), format.size(counters.bytes_received)) }
  lines[#lines + 1] = counters.last and { "last", format.ago(counters.last) } or nil
  local out = {}
  for i, line in ipairs(lines) do
    out[i] = ("%-10s %s\n"):format(line[1], (format.clean(line[2]):gsub("%s+$", "")))
  end
  return table.concat(out)
end

-- set and add: the words of one policy.
local function change(context, values, command)
  local options, message, code = policy.options(values.options)
  local made
  if options then
    made, message, code = policy.one(values.policy, options)
  end
  if not made then
    return context:fail(command.name .. ": " .. message, code)
  end
  local result
  result, message, code = context:connect():call(command.verb, { name = values.name, policies = { made } })
  if not result then
    return context:fail(message, code)
  end
  return context:result(result, show)
end

-- Who or what a decision was about.
local function target(entry)
  local text = entry.host or entry.address or entry.sni or "-"
  if entry.port then
    text = text .. ":" .. ("%d"):format(entry.port)
  end
  if entry.method then
    text = ("%s %s%s"):format(entry.method, text, entry.path or "")
  end
  return text
end

local function outcome(entry)
  local parts = {}
  if entry.status then
    parts[#parts + 1] = ("%d"):format(entry.status)
  end
  if (entry.bytes_sent or 0) + (entry.bytes_received or 0) > 0 then
    parts[#parts + 1] = ("%s up %s down"):format(format.size(entry.bytes_sent or 0), format.size(entry.bytes_received or 0))
  end
  parts[#parts + 1] = entry.reason or entry.text
  parts[#parts + 1] = entry.policy and "(" .. entry.policy .. ")" or nil
  if (entry.count or 1) > 1 then
    parts[#parts + 1] = ("x%d"):format(entry.count)
  end
  return table.concat(parts, "  ")
end

local function line_of(entry)
  local time = os.date("%Y-%m-%d %H:%M:%S", math.floor(entry.time))
  return format.clean(("%s  %-11s %-8s %-40s %s"):format(time, entry.action, entry.hook or "-", target(entry), outcome(entry))):gsub("%s+$", "") .. "\n"
end

local function print_lines(context, list)
  for _, entry in ipairs(list) do
    context:print(context.json and format.json(entry) .. "\n" or line_of(entry))
  end
  io.stdout:flush()
end

local WAIT = 25 -- seconds of one request that waits

local function log(context, values)
  local client = context:connect()
  local query = { name = values.name, limit = values.limit, action = values.denied and "deny" or nil }
  local list, message, code = client:call("egress_log", query)
  if not list then
    return context:fail(message, code)
  elseif not values.follow then
    return context:result(format.array(list), function()
      local lines = {}
      for i, entry in ipairs(list) do
        lines[i] = line_of(entry)
      end
      return table.concat(lines)
    end)
  end
  query.after, query.wait, query.limit = 0, WAIT, nil
  while list do
    print_lines(context, list)
    query.after = list[#list] and list[#list].seq or query.after
    list, message, code = client:call("egress_log", query)
  end
  return context:fail(message, code)
end

local function show_policies(list)
  return format.table({ { "NAME", "name" }, { "ABOUT", "about" }, { "FILE", "path" } }, list)
end

return {
  { name = "egress set", params = { POLICY, OPTIONS }, run = change },
  { name = "egress add", params = { POLICY, OPTIONS }, run = change },
  { name = "egress rm", show = show },
  { name = "egress show", show = show },
  {
    name = "egress log",
    params = {
      { name = "follow", type = "boolean", flag = "--follow", short = "-f", about = "go on as decisions are made" },
      { name = "denied", type = "boolean", flag = "--denied", about = "only what was denied" },
    },
    run = log,
  },
  {
    name = "policy ls",
    run = function(context, values, command)
      local list, message, code = context:call(command, values)
      if not list then
        return context:fail(message, code)
      end
      return context:result(format.array(list), show_policies)
    end,
  },
  {
    name = "policy show",
    show = function(found)
      return found.text
    end,
  },
}

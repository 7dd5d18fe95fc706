--- create, open, ls, info, stop, destroy: how their results are shown.
local format = require("tidepool.cli.format")

local function pairs_of(map)
  local list = {}
  for key, value in pairs(map or {}) do
    list[#list + 1] = key .. "=" .. tostring(value)
  end
  table.sort(list)
  return table.concat(list, ",")
end

local function cpu(limits)
  return ("%.4g vCPU"):format(limits.cpu)
end

local function show_list(list)
  return format.table({
    { "NAME", "name" },
    { "STATE", "state" },
    { "IMAGE", "image" },
    { "TYPE", "type" },
    { "PROCESSES", "processes" },
    { "CREATED", function(row) return format.ago(row.created) end },
    { "LABELS", function(row) return pairs_of(row.labels) end },
    { "REASON", "reason" },
  }, list)
end

local function of(used, limit, show)
  if used == nil then
    return limit and "limit " .. show(limit) or "-"
  end
  return show(used) .. (limit and " of " .. show(limit) or "")
end

local function show_sandbox(info)
  local usage, limits = info.usage or {}, info.limits or {}
  local lines = {
    { "name", info.name },
    { "state", info.state .. (info.reason and " (" .. info.reason .. ")" or "") },
    { "image", info.image },
    { "type", info.type },
    { "created", format.ago(info.created) },
    { "pid on the host", info.pid },
    { "processes", of(info.processes, nil, tostring) },
    { "CPU", cpu(limits) .. (usage.cpu_seconds and (", used %.2f s"):format(usage.cpu_seconds) or "") },
    { "memory", of(usage.memory, limits.memory, format.size) },
    { "memory peak", usage.memory_peak and format.size(usage.memory_peak) },
    { "pids", of(usage.pids, limits.pids, tostring) },
    { "disk", of(usage.disk, limits.disk, format.size) },
    { "labels", pairs_of(info.labels) },
    { "environment", pairs_of(info.env) },
    { "egress", info.egress },
    { "continues", info.parent },
    { "branch of", info.branch_of },
    { "not enforced", info.unenforced and table.concat(info.unenforced, "; ") },
  }
  local out = {}
  for _, line in ipairs(lines) do
    if line[2] ~= nil and line[2] ~= "" then
      out[#out + 1] = ("%-17s%s\n"):format(line[1], format.clean(line[2]))
    end
  end
  return table.concat(out)
end

local function show_server(info)
  local out = {
    ("%-17s%s\n"):format("server", "pid " .. info.pid .. ", version " .. info.version),
    ("%-17s%s\n"):format("since", format.ago(info.started)),
    ("%-17s%s\n"):format("state directory", info.state_directory),
    ("%-17s%s\n"):format("run directory", info.run_directory),
    ("%-17s%s\n"):format("log", info.log),
    ("%-17s%d, %d running\n"):format("sandboxes", info.sandboxes, info.running),
    ("%-17s%s\n"):format("cgroups", info.cgroups),
    ("%-17s%s (%s); %s, %s used, %s free\n"):format("storage", info.storage.driver, info.storage.why,
      format.size(info.storage.size), format.size(info.storage.used), format.size(info.storage.free)),
  }
  for i, one in ipairs(info.egress or {}) do
    local state = one.pid and ("pid %d, %d sandboxes"):format(one.pid, one.sandboxes) or one.problem or "starting"
    out[#out + 1] = ("%-17s%d: %s\n"):format(i == 1 and "egress" or "", one.number, format.clean(state))
  end
  if info.unenforced and #info.unenforced > 0 then
    out[#out + 1] = ("%-17s%s\n"):format("not enforced", table.concat(info.unenforced, "; "))
  end
  return table.concat(out)
end

local function name_only(info)
  return info.name .. "\n"
end

-- One sandbox after the other, as docker's rm takes several.
local function each_name(context, values, command)
  local results, status = {}, 0
  for _, name in ipairs(values.name) do
    local call = { grace = values.grace, name = name }
    local result, message, code = context:call(command, call)
    if result == nil then
      status = context:fail(message, code)
    else
      results[#results + 1] = type(result) == "table" and result or { name = name, destroyed = true }
      if not context.json then
        context:print(name .. "\n")
      end
    end
  end
  if context.json and #results > 0 then
    context:print(format.json(#values.name == 1 and results[1] or results) .. "\n")
  end
  return status
end

-- The default image is built when it turns out to be missing: not before the words make sense, nor for
-- a sandbox that is there.
local function provision(context, values, command)
  for i, text in ipairs(values.egress or {}) do
    local parsed, why, reason = require("tidepool.client.policy").parse(text)
    if not parsed then
      return context:fail(command.name .. ": option --egress: " .. why, reason)
    end
    values.egress[i] = parsed
  end
  local result, message, code = context:call(command, values)
  if result == nil and code == "ENOIMAGE" and (values.image or "debian") == "debian" then
    local built
    built, message, code = require("tidepool.bootstrap").default_image(1)
    if built then
      result, message, code = context:call(command, values)
    end
  end
  if result == nil then
    return context:fail(message, code)
  end
  return context:result(result, command.show)
end

local NAMES = { name = "name", type = "name", positional = 1, required = true, repeated = true, about = "the sandboxes" }

return {
  { name = "create", show = name_only, run = provision },
  { name = "open", show = name_only, run = provision },
  {
    name = "ls",
    run = function(context, values, command)
      local list, message, code = context:call(command, values)
      if not list then
        return context:fail(message, code)
      end
      return context:result(format.array(list), show_list)
    end,
  },
  {
    name = "info",
    show = function(info)
      return info.name and show_sandbox(info) or show_server(info)
    end,
  },
  { name = "stop", params = { NAMES }, run = each_name },
  { name = "destroy", params = { NAMES }, run = each_name },
}

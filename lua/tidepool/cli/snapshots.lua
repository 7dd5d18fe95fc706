--- snapshot create, ls, rm, diff, keep; restore, rollback, fork, promote, freeze, wake: how they are shown.
local format = require("tidepool.cli.format")

local function milliseconds(seconds)
  return seconds and ("%.1f ms"):format(seconds * 1000) or "-"
end

local function show_snapshot(info)
  local memory = info.memory and ("; memory: %s"):format(format.size(info.memory_size)) or ""
  return ("%s\nfrozen for %s of %s%s\n"):format(format.clean(info.snapshot), milliseconds(info.pause), milliseconds(info.total), memory)
end

-- Children below their parents, each by age; indented where there are several, since a chain may be long.
local function as_tree(list)
  local children, known, rows = {}, {}, {}
  for _, info in ipairs(list) do
    known[info.snapshot] = true
  end
  for _, info in ipairs(list) do
    local above = info.parent and known[info.parent] and info.parent or ""
    children[above] = children[above] or {}
    table.insert(children[above], info)
  end
  local stack = { { children[""] or {}, 1, 0 } }
  while #stack > 0 do
    local top = stack[#stack]
    local info = top[1][top[2]]
    top[2] = top[2] + 1
    if not info then
      stack[#stack] = nil
    else
      rows[#rows + 1] = { info = info, depth = top[3] }
      local below = children[info.snapshot] or {}
      stack[#stack + 1] = { below, 1, top[3] + (#below > 1 and 1 or 0) }
    end
  end
  return rows
end

local function labels_of(info)
  local list = {}
  for key, value in pairs(info.labels or {}) do
    list[#list + 1] = key .. "=" .. value
  end
  table.sort(list)
  return table.concat(list, ",")
end

local function show_list(list)
  return format.table({
    { "SNAPSHOT", function(row) return ("  "):rep(row.depth) .. row.info.snapshot end },
    { "PARENT", function(row) return row.info.parent end },
    { "ALONE", function(row) return format.size(row.info.size) end },
    { "CREATED", function(row) return format.ago(row.info.created) end },
    { "MEMORY", function(row) return row.info.memory and "yes" or "no" end },
    { "LABELS", function(row) return labels_of(row.info) end },
  }, as_tree(list))
end

local function list_of(show)
  return function(context, values, command)
    local list, message, code = context:call(command, values)
    if not list then
      return context:fail(message, code)
    end
    return context:result(format.array(list), show)
  end
end

local function lines(list)
  local out = {}
  for i, item in ipairs(list) do
    out[i] = format.clean(item) .. "\n"
  end
  return table.concat(out)
end

local function names(list)
  local out = {}
  for i, info in ipairs(list) do
    out[i] = info.name .. "\n"
  end
  return table.concat(out)
end

local function size_of(one)
  if one.kind ~= "file" then
    return one.kind
  elseif one.old_size and one.size and one.old_size ~= one.size then
    return format.size(one.old_size) .. " -> " .. format.size(one.size)
  end
  return format.size(one.size or one.old_size)
end

-- One line a path, as git's --name-status has it.
local function show_diff(result)
  local rows = {}
  for _, pair in ipairs({ { "A", result.added }, { "M", result.changed }, { "D", result.deleted } }) do
    for _, one in ipairs(pair[2]) do
      rows[#rows + 1] = { path = one.path, line = ("%s  %-20s  %s\n"):format(pair[1], size_of(one), format.clean(one.path)) }
    end
  end
  table.sort(rows, function(a, b)
    return a.path < b.path
  end)
  for i, row in ipairs(rows) do
    rows[i] = row.line
  end
  return table.concat(rows)
end

local function diff(context, values)
  local result, message, code = require("tidepool.client.diff").between(context:connect(), values.from, values.to)
  if not result then
    return context:fail(message, code)
  end
  for _, list in pairs(result) do
    format.array(list)
  end
  return context:result(result, show_diff)
end

local function name_only(info)
  return info.name .. "\n"
end

local function show_dump(took)
  if not took.bytes then
    return "" -- it slept already
  end
  local line = ("%s in %.2f s"):format(format.size(took.bytes), took.seconds)
  if took.connections_reset > 0 then
    line = ("%s; connections to the outside that end: %d"):format(line, took.connections_reset)
  end
  return line .. "\n"
end

-- Gets CRIU, with its progress as notes: { version } | nil, message, code.
local function obtain(context, replace)
  return context:connect():call("memory_install", { replace = replace }, nil, function(line)
    context:note(format.clean(line))
  end)
end

-- The first one on a machine gets CRIU by itself.
local function hibernate(context, values, command)
  local took, message, code = context:call(command, values)
  if code == "ENOPKG" then
    local got
    got, message, code = obtain(context)
    if got then
      took, message, code = context:call(command, values)
    end
  end
  if not took then
    return context:fail(message, code)
  end
  return context:result(took, show_dump)
end

return {
  { name = "snapshot create", show = show_snapshot },
  { name = "snapshot ls", run = list_of(show_list) },
  { name = "snapshot diff", run = diff },
  { name = "snapshot keep", run = list_of(lines) },
  { name = "restore", show = name_only },
  { name = "rollback", show = name_only },
  { name = "fork", run = list_of(names) },
  { name = "promote", show = name_only },
  { name = "freeze", show = name_only },
  { name = "hibernate", run = hibernate },
  {
    name = "memory install",
    run = function(context, values)
      local got, message, code = obtain(context, values.replace)
      if not got then
        return context:fail(message, code)
      end
      return context:result(got, function()
        return "CRIU " .. got.version .. "\n"
      end)
    end,
  },
  { name = "wake", show = name_only },
}

--- A policy's options: the schema it declares, and the values a user gives.
--
-- Pure; runs wherever policies do. A value may be text, as the command line gives it; then it is
-- converted ("a,b" for lists, "k:v,k:v" for maps). Nothing unknown, missing or of the wrong type
-- passes, because an option that is silently ignored is a hole that no one sees.
local hosts = require("tidepool.egress.policy.hosts")
local lists = require("tidepool.egress.policy.lists")

local options = {}

local MOST_ENTRIES = 4096
local FACTORS = { [""] = 1, b = 1, k = 2 ^ 10, m = 2 ^ 20, g = 2 ^ 30, t = 2 ^ 40 }
local SECONDS = { [""] = 1, ms = 0.001, s = 1, m = 60, h = 3600, d = 86400 }
local TRUE = { ["true"] = true, yes = true, on = true, ["1"] = true }
local FALSE = { ["false"] = true, no = true, off = true, ["0"] = true }

local function trim(text)
  return (text:match("^%s*(.-)%s*$"))
end

local function split(text)
  local list = {}
  for entry in text:gmatch("[^,\n]+") do
    entry = trim(entry)
    if entry ~= "" then
      list[#list + 1] = entry
    end
  end
  return list
end

-- A plain list of strings, or of numbers where they may be, from a list or from "a,b".
local function strings(value, numbers)
  if type(value) == "string" then
    return split(value)
  elseif type(value) ~= "table" then
    return nil
  end
  local list, count = {}, 0
  for _ in pairs(value) do
    count = count + 1
  end
  if count ~= #value or count > MOST_ENTRIES then
    return nil
  end
  for i, entry in ipairs(value) do
    if type(entry) ~= "string" and not (numbers and type(entry) == "number") then
      return nil
    end
    list[i] = entry
  end
  return list
end

local function map_of(text)
  local map = {}
  for _, entry in ipairs(split(text)) do
    local key, value = entry:match("^([^:]+):(.*)$")
    if not key then
      return nil
    end
    map[trim(key)] = trim(value)
  end
  return map
end

local function number(value)
  if type(value) == "string" then
    value = tonumber(trim(value))
  end
  if type(value) ~= "number" or value ~= value or value == math.huge or value == -math.huge then
    return nil
  end
  return value
end

local function scaled(pattern, units)
  return function(value)
    if type(value) ~= "string" then
      return number(value)
    end
    local digits, unit = trim(value):lower():match(pattern)
    digits = tonumber(digits)
    return digits and units[unit] and digits * units[unit] or nil
  end
end

-- Each: the value as hooks see it | nil, and what was expected.
local TYPES = {
  string = { function(value) return type(value) == "string" and value or nil end, "text" },
  number = { number, "a number" },
  integer = {
    function(value)
      value = number(value)
      return value and value % 1 == 0 and math.abs(value) <= 2 ^ 53 and value or nil
    end,
    "a whole number",
  },
  bytes = { scaled("^([%d.]+)([bkmgt]?)i?b?$", FACTORS), "a number of bytes (64K, 10M)" },
  seconds = { scaled("^([%d.]+)(%a*)$", SECONDS), "a time (10, 5m, 1h)" },
  boolean = {
    function(value)
      if type(value) == "boolean" then
        return value
      elseif type(value) ~= "string" then
        return nil
      end
      if FALSE[value:lower()] then
        return false
      end
      return TRUE[value:lower()]
    end,
    "true or false",
  },
  host = { hosts.name, "a host name" },
  host_list = {
    function(value)
      local list = strings(value)
      return list and lists.hosts(list)
    end,
    "a list of host names, each exact, *.below or *",
  },
  port_list = {
    function(value)
      local list = strings(value, true)
      return list and lists.ports(list)
    end,
    "a list of ports, 1 to 65535",
  },
  glob_list = {
    function(value)
      local list = strings(value)
      return list and lists.globs(list)
    end,
    "a list of names, in which * stands for any characters",
  },
  string_list = { function(value) return strings(value) end, "a list" },
  map = {
    function(value)
      if type(value) == "string" then
        value = map_of(value)
      end
      if type(value) ~= "table" then
        return nil
      end
      local map, count = {}, 0
      for key, entry in pairs(value) do
        count = count + 1
        if type(key) ~= "string" or type(entry) ~= "string" or count > MOST_ENTRIES then
          return nil
        end
        map[key] = entry
      end
      return map
    end,
    "a map (key:value,key:value)",
  },
  pem = {
    function(value)
      return type(value) == "string" and value:find("-----BEGIN CERTIFICATE-----", 1, true) and value or nil
    end,
    "certificates in PEM (key=@file reads a file)",
  },
  secret = {
    function(value)
      return type(value) == "string" and value:match("^[%w][%w_.-]*$") and #value <= 64 and value or nil
    end,
    "the name of a secret",
  },
  enum = { function(value) return type(value) == "string" and value or nil end, "one of" },
}

local FIELDS = { type = "string", about = "string", required = "boolean", values = "table", least = "number", most = "number", default = "any" }

local function expected(spec)
  if spec.type == "enum" then
    return "one of " .. table.concat(spec.values, ", ")
  end
  return TYPES[spec.type][2]
end

local function allowed(spec, value)
  if spec.values then
    for _, candidate in ipairs(spec.values) do
      if candidate == value then
        return true
      end
    end
    return nil, "one of " .. table.concat(spec.values, ", ")
  end
  local size = type(value) == "number" and value or type(value) == "table" and #value or type(value) == "string" and #value
  if spec.least and size and size < spec.least then
    return nil, "at least " .. spec.least
  elseif spec.most and size and size > spec.most then
    return nil, "at most " .. spec.most
  end
  return true
end

local function convert(name, spec, given)
  local value = TYPES[spec.type][1](given)
  if value == nil then
    return nil, ("option %s: expected %s"):format(name, expected(spec))
  end
  local ok, wanted = allowed(spec, value)
  if not ok then
    return nil, ("option %s: expected %s"):format(name, wanted)
  end
  return value
end

local function check_spec(name, spec)
  if type(name) ~= "string" or not name:match("^[%a_][%w_]*$") then
    return nil, "an option's name must be a plain word"
  elseif type(spec) ~= "table" or not TYPES[spec.type] then
    return nil, ("option %s: its type is unknown"):format(name)
  elseif spec.type == "enum" and type(spec.values) ~= "table" then
    return nil, ("option %s: an enum needs values"):format(name)
  end
  for field, value in pairs(spec) do
    local wanted = FIELDS[field]
    if not wanted or (wanted ~= "any" and type(value) ~= wanted) then
      return nil, ("option %s: %s is not understood here"):format(name, tostring(field))
    end
  end
  if spec.default ~= nil then
    local value, message = convert(name, spec, spec.default)
    return value ~= nil or nil, message
  end
  return true
end

--- Whether the table is a schema: true | nil, message.
function options.check_schema(schema)
  for name, spec in pairs(schema) do
    local ok, message = check_spec(name, spec)
    if not ok then
      return nil, message
    end
  end
  return true
end

local function names_of(schema)
  local names = {}
  for name in pairs(schema) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

--- The given values, checked and converted, with the defaults: table | nil, message.
function options.check(schema, given)
  given = given or {}
  if type(given) ~= "table" then
    return nil, "options must be a table"
  end
  local names = names_of(schema)
  for name in pairs(given) do
    if not schema[name] then
      local known = #names > 0 and "it knows " .. table.concat(names, ", ") or "it takes none"
      return nil, ("unknown option %s: %s"):format(tostring(name), known)
    end
  end
  local checked = {}
  for _, name in ipairs(names) do
    local spec = schema[name]
    local value = given[name]
    if value == nil then
      value = spec.default
    end
    if value ~= nil then
      local converted, message = convert(name, spec, value)
      if converted == nil then
        return nil, message
      end
      checked[name] = converted
    elseif spec.required then
      return nil, ("option %s is required: %s"):format(name, spec.about or expected(spec))
    end
  end
  return checked
end

return options

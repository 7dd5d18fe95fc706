--- Lists that options hold, each with a method `has`. Pure; runs wherever policies do.
local hosts = require("tidepool.egress.policy.hosts")

local lists = {}

-- A function and not a table of methods: policy code would reach that table through `list.__index`, and
-- with it the lists of every other policy.
local function kind(has)
  return {
    __index = function(_, name)
      return name == "has" and has or nil
    end,
  }
end

local function any(list, matches, value)
  for i = 1, #list do
    if matches(list[i], value) then
      return true
    end
  end
  return false
end

-- No host (an address that was given out for no name) is never on a list, not even on that of `*`.
local Hosts = kind(function(list, host)
  return type(host) == "string" and any(list, hosts.match, host)
end)

-- No port is that of a name that is being resolved: what may be connected to at some port may be.
local Ports = kind(function(list, port)
  return port == nil and #list > 0 or any(list, rawequal, port)
end)

-- The parts between stars, each at its first place behind the one before: in linear time, whatever the text.
local function glob_matches(glob, text)
  local head, rest = glob:match("^([^*]*)%*(.*)$")
  if not head then
    return glob == text
  elseif text:sub(1, #head) ~= head then
    return false
  end
  local at = #head + 1
  for part in rest:gmatch("([^*]*)%*") do
    local _, last = text:find(part, at, true)
    if not last then
      return false
    end
    at = last + 1
  end
  local tail = rest:match("[^*]*$")
  return #text - #tail + 1 >= at and text:sub(#text - #tail + 1) == tail
end

local Globs = kind(function(list, text)
  return type(text) == "string" and any(list, glob_matches, text)
end)

local function list_of(entries, convert, meta)
  local list = setmetatable({}, meta)
  for i, entry in ipairs(entries) do
    local value = convert(entry)
    if not value then
      return nil, tostring(entry)
    end
    list[i] = value
  end
  return list
end

local function port_of(entry)
  local port = tonumber(entry)
  return port and port % 1 == 0 and port >= 1 and port <= 65535 and port or nil
end

--- A list of hosts, each exact, *.below or *: list | nil, the entry that is none.
function lists.hosts(entries)
  return list_of(entries, hosts.glob, Hosts)
end

--- A list of ports, 1 to 65535: list | nil, the entry that is none. Text becomes a number.
function lists.ports(entries)
  return list_of(entries, port_of, Ports)
end

--- A list of texts, in which * stands for any characters.
function lists.globs(entries)
  return list_of(entries, tostring, Globs)
end

return lists

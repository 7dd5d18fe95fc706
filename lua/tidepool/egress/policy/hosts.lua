--- Host names and the globs that name many of them. Pure; runs wherever policies do.
--
-- `*.x` stands for any depth below x and not for x itself, `*` for every host; a `*` anywhere else is
-- refused, because `api*.x` reads as if it were safe and is not. Names compare in lower case and
-- without the root's dot.
local hosts = {}

local MAX_NAME = 253

--- The name as it is compared.
function hosts.normal(name)
  name = name:lower()
  if name:sub(-1) == "." then
    name = name:sub(1, -2)
  end
  return name
end

local function is_address(name)
  return name:match("^%d+%.%d+%.%d+%.%d+$") ~= nil or name:match("^%[?[%x:]*:[%x:.]*%]?$") ~= nil
end

--- A host name or address literal, normalised; nil when it is neither.
function hosts.name(text)
  if type(text) ~= "string" or text == "" or #text > MAX_NAME + 1 then
    return nil
  end
  local name = hosts.normal(text)
  if is_address(name) then
    return name
  end
  if name == "" or name:find("[^%w%-_.]") or name:find("..", 1, true) or name:sub(1, 1) == "." then
    return nil
  end
  for label in name:gmatch("[^.]+") do
    if #label > 63 or label:sub(1, 1) == "-" then
      return nil
    end
  end
  return name
end

--- A glob, normalised; nil when it isn't one.
function hosts.glob(text)
  if text == "*" then
    return text
  end
  local below = type(text) == "string" and text:match("^%*%.(.+)$")
  if below then
    local name = hosts.name(below)
    return name and not is_address(name) and "*." .. name or nil
  end
  return hosts.name(text)
end

--- Whether the glob stands for the host.
function hosts.match(glob, host)
  if type(glob) ~= "string" or type(host) ~= "string" then
    return false
  end
  glob, host = hosts.normal(glob), hosts.normal(host)
  if glob == "*" or glob == host then
    return true
  end
  local below = glob:match("^%*(%..+)$")
  return below ~= nil and #host > #below and host:sub(-#below) == below
end

--- "host", "host:port" or "[v6]:port": name, port or nil; nil when it isn't one.
function hosts.split(text)
  if type(text) ~= "string" then
    return nil
  end
  local name, port = text:match("^%[([%x:.]+)%]:(%d+)$")
  if not name then
    name, port = text:match("^([^:]+):(%d+)$")
  end
  if not name then
    name = text:match("^%[([%x:.]+)%]$") or text
  end
  name = hosts.name(name)
  port = port and tonumber(port)
  if not name or (port and (port < 1 or port > 65535)) then
    return nil
  end
  return name, port
end

local Map = {}
Map.__index = Map

--- The value of the exact name, else of the longest glob, else of `*`.
function Map:find(host)
  if type(host) ~= "string" then
    return nil
  end
  host = hosts.normal(host)
  local value = self.exact[host]
  if value ~= nil then
    return value
  end
  local at = host:find(".", 1, true)
  while at do
    value = self.below[host:sub(at + 1)]
    if value ~= nil then
      return value
    end
    at = host:find(".", at + 1, true)
  end
  return self.any
end

--- From a table glob -> value: map | nil, the key that is no glob.
function hosts.map(entries)
  local map = setmetatable({ exact = {}, below = {}, any = nil }, Map)
  for key, value in pairs(entries) do
    local glob = hosts.glob(key)
    if not glob then
      return nil, tostring(key)
    elseif glob == "*" then
      map.any = value
    elseif glob:sub(1, 2) == "*." then
      map.below[glob:sub(3)] = value
    else
      map.exact[glob] = value
    end
  end
  return map
end

return hosts

--- Egress policies as people write them, as the verbs take them. Runs in the client, with its rights: a
--- policy's file is read here and sent as text.
local read_file = require("tidepool.file").read

local policy = {}

--- Whether a word means a file and no name.
local function is_path(word)
  return word:find("/", 1, true) ~= nil or word:sub(-4) == ".lua"
end

--- One policy: a name or a file ("./mine.lua"), and its options. Returns it | nil, message, code.
---@param word string
---@param options? table<string, any>
---@return { name: string, options: table, text: string? }? policy
---@return string? message
---@return string? code "ENOENT"
function policy.one(word, options)
  if not is_path(word) then
    return { name = word, options = options or {} }
  end
  local text, message = read_file(word)
  if not text then
    return nil, "policy: " .. message, "ENOENT"
  end
  return { name = word:match("([^/]+)$"):gsub("%.lua$", ""), options = options or {}, text = text }
end

--- A list: each a word as above, or { word, option = value, ... }; or one word alone.
---@param given string|(string|table)[]
---@return table[]? policies
---@return string? message
---@return string? code "EINVAL", "ENOENT"
function policy.list(given)
  local list = {}
  for i, item in ipairs(type(given) == "table" and given or { given }) do
    local word, options = item, {}
    if type(item) == "table" then
      word = item[1]
      for key, value in pairs(item) do
        if type(key) == "string" then
          options[key] = value
        end
      end
    end
    if type(word) ~= "string" then
      return nil, "a policy is a name, or a table that begins with one", "EINVAL"
    end
    local made, message, code = policy.one(word, options)
    if not made then
      return nil, message, code
    end
    list[i] = made
  end
  return list
end

-- "@file" as an option's value stands for what is in the file, "@@" for one "@".
local function value_of(text)
  if text:sub(1, 2) == "@@" then
    return text:sub(2)
  elseif text:sub(1, 1) == "@" then
    local bytes, message = read_file(text:sub(2))
    if not bytes then
      return nil, message, "ENOENT"
    end
    return (bytes:gsub("\n$", ""))
  end
  return text
end

--- Options of the command line, all of them texts: "@file" is read.
---@param map? table<string, string>
---@return table<string, string>? options
---@return string? message
---@return string? code "ENOENT"
function policy.options(map)
  local options = {}
  for key, text in pairs(map or {}) do
    local value, message, code = value_of(text)
    if not value then
      return nil, ("option %s: %s"):format(key, message), code
    end
    options[key] = value
  end
  return options
end

--- "POLICY,key=value,key=value" of the command line. A piece without "=" goes on with the value before it, so
--- that lists work: "allow_hosts,hosts=a.test,b.test".
---@param text string
---@return table? policy
---@return string? message
---@return string? code "EINVAL", "ENOENT"
function policy.parse(text)
  local word, rest = text:match("^([^,]+),?(.*)$")
  if not word then
    return nil, "expected POLICY[,key=value...], got " .. text, "EINVAL"
  end
  local map, last = {}, nil
  for piece in rest:gmatch("[^,]+") do
    local key, value = piece:match("^([%w_-]+)=(.*)$")
    if key then
      map[key], last = value, key
    elseif last then
      map[last] = map[last] .. "," .. piece
    else
      return nil, "expected key=value after " .. word .. ", got " .. piece, "EINVAL"
    end
  end
  local options, message, code = policy.options(map)
  if not options then
    return nil, message, code
  end
  return policy.one(word, options)
end

return policy

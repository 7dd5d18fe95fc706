--- Loads a policy's text: what it declares, its options, and instances of it.
--
-- Runs in the egress process and in the CLI. The text is source, never bytecode (mode "t"), and is never
-- compiled by the JIT, which would silence the instruction budget. A definition is what the text says;
-- an instance is the text run once more for one sandbox, so that no local of it is shared by two.
local budget = require("tidepool.egress.policy.budget")
local environment = require("tidepool.egress.policy.environment")
local hosts = require("tidepool.egress.policy.hosts")
local options = require("tidepool.egress.policy.options")

local load_policy = {}

local MOST_TEXT = 1048576
local MOST_BODY = 67108864

local FIELDS = {
  name = { "string" },
  about = { "string" },
  version = { "string", "number" },
  options = { "table" },
  resolve = { "function" },
  connect = { "function" },
  request = { "function" },
  response = { "function" },
  log = { "function" },
  hosts = { "table", "function" },
  body = { "number", "function" },
  tail = { "number", "function" },
  cases = { "table" },
}
local HANDLER = {
  resolve = { "function" },
  connect = { "function" },
  request = { "function" },
  response = { "function" },
  log = { "function" },
  body = { "number", "function" },
  tail = { "number", "function" },
}
local HOOKS = { "resolve", "connect", "request", "response", "log" }

local function is_one_of(kinds, value)
  for _, kind in ipairs(kinds) do
    if type(value) == kind then
      return true
    end
  end
end

local function check_fields(what, fields, value)
  for key, field in pairs(value) do
    local kinds = fields[key]
    if not kinds then
      return nil, ("%s: %s is unknown"):format(what, tostring(key)), key
    elseif not is_one_of(kinds, field) then
      return nil, ("%s: %s must be a %s"):format(what, key, table.concat(kinds, " or a ")), key
    end
  end
  for _, key in ipairs({ "body", "tail" }) do
    local limit = value[key]
    if type(limit) == "number" and not (limit >= 0 and limit <= MOST_BODY) then
      return nil, ("%s: %s must be 0 to %d bytes"):format(what, key, MOST_BODY), key
    end
  end
  return true
end

-- The handlers by host: map | nil, message.
local function check_hosts(value)
  if type(value) ~= "table" then
    return nil, "hosts: its function must return a table"
  end
  for host, handler in pairs(value) do
    if type(handler) ~= "table" then
      return nil, ("hosts: %s must be a table of handlers"):format(tostring(host)), host
    end
    local ok, message, key = check_fields(("hosts: %s"):format(tostring(host)), HANDLER, handler)
    if not ok then
      return nil, message, key
    end
  end
  local map, wrong = hosts.map(value)
  if not map then
    return nil, ("hosts: %q is no host, *.below or *"):format(wrong), wrong
  end
  return map
end

local function check_declared(value)
  if type(value) ~= "table" then
    return nil, "policy{...} takes a table"
  end
  local ok, message, key = check_fields("policy", FIELDS, value)
  if not ok then
    return nil, message, key
  end
  if not value.name or not value.name:match("^[%w][%w_.-]*$") or #value.name > 64 then
    return nil, "policy: name must be a plain word", "name"
  elseif not value.about or value.about == "" then
    return nil, "policy: about must say what it does", "name"
  end
  local schema = value.options or {}
  ok, message = options.check_schema(schema)
  if not ok then
    return nil, message, message:match("^option ([%w_]+)") or "options"
  end
  if type(value.hosts) == "table" then
    local map
    map, message, key = check_hosts(value.hosts)
    if not map then
      return nil, message, key
    end
  end
  return true
end

-- Where the text says it, as well as that can be told: the first line where the key is set.
local function line_of(text, key)
  local number = 0
  for line in (text .. "\n"):gmatch("(.-)\n") do
    number = number + 1
    local at, last = line:find(tostring(key), 1, true)
    if at and line:sub(last + 1):match("^[\"']?%]?%s*=") then
      return number
    end
  end
  return 1
end

--- An error of the policy's as people read it: "message (file:line)".
function load_policy.told(message, fn)
  local file, line, text = message:match("^([^:\n]+):(%d+): (.*)$")
  if file then
    return ("%s (%s:%s)"):format(text, file, line)
  elseif fn then
    local info = debug.getinfo(fn, "S")
    return ("%s (%s:%d)"):format(message, info.short_src, info.linedefined)
  end
  return message
end

-- Runs the text: what it declares | nil, message.
local function declare(text, file, instance)
  local declared
  local env = environment.new(instance, function(value)
    declared = value
    return value
  end)
  local chunk, message = load(text, "=" .. file, "t", env)
  if not chunk then
    return nil, load_policy.told(message)
  end
  jit.off(chunk, true)
  local ok, value = budget.run("policy " .. instance.name .. ", being loaded", chunk)
  if not ok then
    return nil, load_policy.told(value, chunk)
  elseif declared == nil or value ~= declared then
    return nil, ("it must end in: return policy { ... } (%s:1)"):format(file)
  end
  return declared
end

-- Its handlers by host, for these options: map or false | nil, message.
local function handlers(declared, name, values)
  local table_or_function = declared.hosts
  if table_or_function == nil then
    return false
  elseif type(table_or_function) == "table" then
    return check_hosts(table_or_function)
  end
  local ok, value = budget.run("policy " .. name .. ", its hosts", table_or_function, values)
  if not ok then
    return nil, load_policy.told(value, table_or_function)
  end
  local map, message = check_hosts(value)
  if not map then
    return nil, load_policy.told(message, table_or_function)
  end
  return map
end

local Definition = {}
Definition.__index = Definition

--- The options as hooks will see them: table | nil, message. Also tries the hosts they lead to.
function Definition:options(given)
  local values, message = options.check(self.schema, given)
  if not values then
    return nil, message
  end
  local map
  map, message = handlers(self.declared, self.name, values)
  if map == nil then
    return nil, message
  end
  return values
end

--- What it says of itself, as plain data.
function Definition:describe()
  local hooks = {}
  for _, hook in ipairs(HOOKS) do
    if self.declared[hook] then
      hooks[#hooks + 1] = hook
    end
  end
  return {
    name = self.name,
    about = self.about,
    version = self.version,
    options = self.schema,
    hooks = hooks,
    cases = self.declared.cases and #self.declared.cases or 0,
  }
end

--- Runs the text for one sandbox: instance | nil, message.
-- `values` are what Definition:options returned; `state` is the table kept for it, if any.
function Definition:instance(values, services, state)
  local message
  values, message = options.check(self.schema, values) -- a copy: hooks of two sandboxes share no table
  if not values then
    return nil, message
  end
  local instance = {
    name = self.name,
    options = values,
    services = services,
    state = state or {},
    seen = {}, -- value -> name of each secret that its code has got
    touched = false,
    live = false, -- secrets, fetch and log are for hooks
  }
  local declared
  declared, message = declare(self.text, self.file, instance)
  if not declared then
    return nil, message
  end
  instance.handlers, message = handlers(declared, self.name, values)
  if instance.handlers == nil then
    return nil, message
  end
  instance.hooks = {}
  for _, field in ipairs({ "resolve", "connect", "request", "response", "log", "body", "tail" }) do
    instance.hooks[field] = declared[field]
  end
  instance.live = true
  return instance
end

--- Loads the text of a policy: definition | nil, message.
---@param text string source
---@param name string? what it is called where it is attached; else the name it gives itself
---@param services table? for `now`
function load_policy.load(text, name, services)
  if type(text) ~= "string" or #text > MOST_TEXT then
    return nil, "a policy is text of at most " .. MOST_TEXT .. " bytes"
  end
  local file = (name or "policy") .. ".lua"
  local instance = { name = name or "policy", services = services or {}, seen = {}, state = {}, live = false }
  local declared, message = declare(text, file, instance)
  if not declared then
    return nil, message
  end
  local ok, key
  ok, message, key = check_declared(declared)
  if not ok then
    return nil, ("%s (%s:%d)"):format(message, file, line_of(text, key))
  end
  return setmetatable({
    name = name or declared.name,
    about = declared.about,
    version = declared.version,
    schema = declared.options or {},
    declared = declared,
    text = text,
    file = file,
  }, Definition)
end

return load_policy

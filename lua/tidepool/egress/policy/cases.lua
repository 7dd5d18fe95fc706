--- Runs a policy's own cases: `policy test`, and the specs of the policies that we ship.
--
-- Nothing is needed but the text: no sandbox, no network, no secret of the host's. A case is
-- { "a sentence", options =, secrets = { name = value }, hook =, event = {...}, expect = {...} }, or has
-- `steps`, a list of { hook =, event =, expect = } that share one state. `fetch` is a table url ->
-- response, or a function; `now` the time; `state` what was kept before; `sandbox` its name, labels.
-- `expect` is an action, or a table of what the verdict must hold: `reason` is a pattern, `headers` and
-- the other changes are looked for in the changes (for respond, in the response), `state` must be held by
-- the state afterwards, `refused` is a pattern for the message that refuses the options.
local chain = require("tidepool.egress.policy.chain")
local load_policy = require("tidepool.egress.policy.load")

local cases = {}

local FIELDS = {
  "options", "secrets", "hook", "event", "expect", "steps", "fetch", "now", "state", "sandbox",
}
local known = {}
for _, name in ipairs(FIELDS) do
  known[name] = true
end

local PORTS = { tls = 443, http = 80 }

-- The event with what every event of its kind has.
local function whole(hook, event)
  local full = {}
  for key, value in pairs(event or {}) do
    full[key] = value
  end
  if full.protocol == nil and hook ~= "resolve" then
    full.protocol = "tls"
  end
  full.tls = full.protocol == "tls"
  if hook ~= "resolve" then
    full.port = full.port or PORTS[full.protocol]
  end
  if hook == "request" or hook == "response" or hook == "log" then
    full.method = full.method or "GET"
    full.path = full.path or "/"
    full.headers = full.headers or {}
  end
  return full
end

local function services_of(case)
  return {
    now = function()
      return case.now or 1700000000
    end,
    secret = function(name)
      return case.secrets and case.secrets[name]
    end,
    log = function() end,
    fetch = function(request)
      local fetch = case.fetch or {}
      local response = type(fetch) == "function" and fetch(request) or type(fetch) == "table" and fetch[request.url]
      if not response then
        return nil, "no route to " .. request.url, "ENETUNREACH"
      end
      return response
    end,
  }
end

local function show(value)
  if type(value) ~= "table" then
    return type(value) == "string" and ("%q"):format(value) or tostring(value)
  end
  local parts = {}
  for key, field in pairs(value) do
    parts[#parts + 1] = tostring(key) .. " = " .. show(field)
  end
  table.sort(parts)
  return "{ " .. table.concat(parts, ", ") .. " }"
end

-- Whether `got` holds all of `expected`: true | nil, what differs.
local function holds(name, expected, got)
  if type(expected) == "table" and type(got) == "table" then
    for key, value in pairs(expected) do
      local ok, message = holds(name .. "." .. tostring(key), value, got[key])
      if not ok then
        return nil, message
      end
    end
    return true
  end
  if expected == got or (expected == false and got == nil) then
    return true
  end
  return nil, ("%s: expected %s, got %s"):format(name, show(expected), show(got))
end

local function value_of(got, key, states)
  if key == "state" then
    return states
  elseif key == "headers" and got.action ~= "respond" then
    return got.changes.headers or {}
  elseif got.changes[key] ~= nil then
    return got.changes[key]
  end
  return got[key]
end

local function matches(expect, got, states)
  if type(expect) == "string" then
    expect = { action = expect }
  elseif type(expect) ~= "table" then
    return nil, "expect is missing"
  end
  for key, expected in pairs(expect) do
    local ok, message
    if key == "reason" then
      ok = got.reason ~= nil and got.reason:find(expected) ~= nil
      message = ("reason: expected %s, got %s"):format(show(expected), show(got.reason))
    else
      ok, message = holds(tostring(key), expected, value_of(got, key, states))
    end
    if not ok then
      local why = got.reason and expect.reason == nil and (" (%s)"):format(got.reason) or ""
      return nil, message .. why
    end
  end
  return true
end

local function run_step(made, name, step)
  local hook = step.hook or "request"
  local event = whole(hook, step.event)
  if hook == "log" then
    made:log(event)
    return step.expect == nil or matches(step.expect, { changes = {} }, made:states()[name])
  end
  local wants = made:wants(event.host, event)
  if not wants.body then
    event.body = nil -- a policy that doesn't ask for the body doesn't see it
  end
  local got = made:decide(hook, event)
  return matches(step.expect, got, made:states()[name])
end

local function refused(case, message)
  local pattern = type(case.expect) == "table" and case.expect.refused
  if not pattern then
    return nil, message
  elseif not message then
    return nil, "the options should have been refused"
  elseif not message:find(pattern) then
    return nil, ("refused: expected %s, got %s"):format(show(pattern), show(message))
  end
  return true
end

local function run_case(definition, case)
  for key in pairs(case) do
    if key ~= 1 and not known[key] then
      return nil, ("%s is not understood in a case"):format(tostring(key))
    end
  end
  local options, message = definition:options(case.options)
  if not options or (type(case.expect) == "table" and case.expect.refused) then
    return refused(case, message)
  end
  local sandbox = { id = "case", name = "case", labels = {}, image = "minimal" }
  for key, value in pairs(case.sandbox or {}) do
    sandbox[key] = value
  end
  local states = { [definition.name] = case.state }
  local made = chain.new({ { definition = definition, options = options } }, sandbox, services_of(case), states)
  for i, step in ipairs(case.steps or { case }) do
    local ok
    ok, message = run_step(made, definition.name, step)
    if not ok then
      return nil, case.steps and ("step %d: %s"):format(i, message) or message
    end
  end
  return true
end

--- Runs the cases in the text of a policy: list of { name, ok, message }, definition | nil, message.
function cases.run(text, name)
  local definition, message = load_policy.load(text, name)
  if not definition then
    return nil, message
  end
  local results = {}
  for i, case in ipairs(definition.declared.cases or {}) do
    local title = type(case) == "table" and case[1]
    if type(title) ~= "string" then
      return nil, ("case %d: a case is a table that begins with a sentence"):format(i)
    end
    local ok
    ok, message = run_case(definition, case)
    results[i] = { name = title, ok = ok == true, message = message }
  end
  return results, definition
end

return cases

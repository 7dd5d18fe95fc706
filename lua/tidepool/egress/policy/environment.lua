--- What a policy's code can name: a safe part of Lua, the verdicts, and the services.
--
-- Built once for each policy of each sandbox, so that nothing one sandbox's policy keeps is seen by
-- another's. There is no load, require, io, os, debug, ffi, jit, coroutine, setmetatable, getmetatable,
-- rawset, setfenv or collectgarbage, and no way to the tables behind `string` and its like but copies.
-- Lua's own part of it is data here, so that a reader sees all there is.
local bit = require("bit")
local cjson = require("cjson")
local budget = require("tidepool.egress.policy.budget")
local hosts = require("tidepool.egress.policy.hosts")
local verdict = require("tidepool.egress.policy.verdict")

local environment = {}

local MOST_REPEATED = 1048576
local MOST_JSON = 8388608
local MOST_LOG = 1000
local JSON_DEPTH = 64

local BASE = { "assert", "error", "ipairs", "next", "pairs", "select", "tonumber", "tostring", "type", "unpack" }
local LIBRARIES = {
  string = { "byte", "char", "find", "format", "gmatch", "gsub", "len", "lower", "match", "reverse", "sub", "upper" },
  table = { "concat", "insert", "maxn", "remove", "sort" },
  math = {
    "abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cosh", "deg", "exp", "floor", "fmod", "frexp", "huge",
    "ldexp", "log", "log10", "max", "min", "modf", "pi", "pow", "rad", "random", "sin", "sinh", "sqrt", "tan", "tanh",
  },
}
local FROM = { string = string, table = table, math = math }

-- string.rep(text, n), but not a gigabyte from one instruction, nor from a hundred.
local plain_rep = string.rep
local BYTES = 50 -- that count as an instruction
local function rep(text, n)
  local times = tonumber(n) -- which "9" is, too
  local length = times and #tostring(text) * times or 0
  if length > MOST_REPEATED then
    error(("string.rep: more than %d bytes"):format(MOST_REPEATED), 2)
  elseif length > 0 then -- and no NaN
    budget.spend(length / BYTES)
  end
  return plain_rep(text, n)
end

local function library(name)
  local copy = {}
  for _, key in ipairs(LIBRARIES[name]) do
    copy[key] = FROM[name][key]
  end
  return copy
end

-- What string methods find while policy code runs. The policy's own `string` is another copy, so it
-- can't change this one.
local bounded = library("string")
bounded.rep = rep
budget.bounded = bounded

local json = cjson.new()
json.encode_max_depth(JSON_DEPTH)
json.decode_max_depth(JSON_DEPTH)
environment.json = json

local function json_encode(value)
  local ok, text = pcall(json.encode, value)
  if not ok then
    error(tostring(text), 2)
  end
  return text
end

-- nil, message when it isn't JSON: the text is most often someone else's.
local function json_decode(text)
  if type(text) ~= "string" then
    return nil, "not a string"
  elseif #text > MOST_JSON then
    return nil, "more than " .. MOST_JSON .. " bytes"
  end
  local ok, value = pcall(json.decode, text)
  if not ok then
    return nil, tostring(value)
  end
  return value
end

local digest
local function digests()
  digest = digest or budget.outside(require, "tidepool.proxy").digest
  return digest
end

-- Called inside the run, so that what a large body takes is counted as the policy's time.
local function digesting(name)
  return function(...)
    return digests()[name](...)
  end
end

local function hexed(name)
  return function(...)
    return digests().hex(digests()[name](...))
  end
end

local sha256, hmac = digesting("sha256"), digesting("hmac_sha256")
local DIGESTS = {
  base64 = digesting("base64"),
  unbase64 = digesting("unbase64"),
  hex = digesting("hex"),
  sha256 = sha256,
  sha256_hex = hexed("sha256"),
  hmac = hmac,
  hmac_sha256 = hmac,
  hmac_hex = hexed("hmac_sha256"),
}

--- The text without the secrets that the policy has seen.
function environment.redact(seen, text)
  for value, name in pairs(seen) do
    local at, last = text:find(value, 1, true)
    while at do
      local mark = "[secret " .. name .. "]"
      text = text:sub(1, at - 1) .. mark .. text:sub(last + 1)
      at, last = text:find(value, at + #mark, true)
    end
  end
  return text
end

local function need(fn, name)
  if not fn then
    error(name .. " is not available here", 3)
  end
  return fn
end

local function secret_of(instance)
  return function(name)
    if type(name) ~= "string" then
      error("secret needs a name", 2)
    end
    local value = budget.outside(need(instance.live and instance.services.secret, "secret"), name)
    if type(value) ~= "string" or value == "" then
      error(("secret %q is not there"):format(name), 2)
    end
    instance.seen[value] = name
    return value
  end
end

local function log_of(instance)
  return function(text)
    local service = instance.live and instance.services.log
    if service then
      text = environment.redact(instance.seen, tostring(text)):sub(1, MOST_LOG)
      budget.outside(service, instance.name, text)
    end
  end
end

local FETCH = {
  url = "string", method = "string", headers = "table", body = "string", timeout = "number", limit = "number",
  to = "string", private = "boolean", ca = "string",
}

local function check_fetch(request)
  if type(request) ~= "table" or type(request.url) ~= "string" then
    error("fetch needs a table with a url", 3)
  end
  local checked = {}
  for field, value in pairs(request) do
    if FETCH[field] ~= type(value) then
      error(("fetch: %s is not understood"):format(tostring(field)), 3)
    end
    checked[field] = value
  end
  return checked
end

local function fetch_of(instance)
  return function(request)
    local service = need(instance.live and instance.services.fetch, "fetch")
    request = check_fetch(request)
    local run = budget.current()
    run.fetches = run.fetches + 1
    local left = budget.FETCH_SECONDS - run.waited
    if run.fetches > budget.FETCHES or left <= 0 then
      budget.exceed("fetch budget")
    end
    request.timeout = math.min(request.timeout or left, left)
    local now = instance.services.now
    return budget.outside(function()
      local started = now()
      local response, message, code = service(request)
      run.waited = run.waited + (now() - started)
      return response, message, code
    end)
  end
end

-- What the options `to`, `private` and `ca` ask for, which policies have alike.
local function upstream(event, options, headers)
  return {
    headers = headers,
    to = options.to and event.host and options.to[event.host],
    private = options.private or nil,
    ca = options.ca,
  }
end

local function no_global(_, name)
  error(("%q can't be set: a policy has no globals; use local, or state"):format(tostring(name)), 2)
end

--- The environment for one instance of a policy, and what changes in it later: `set_state(table)` and
-- `state()`, which is nil as long as the policy never looked at its state.
function environment.new(instance, declare)
  local env = {
    policy = declare,
    pcall = budget.pcall,
    string = library("string"),
    table = library("table"),
    math = library("math"),
    bit = {},
    json = { encode = json_encode, decode = json_decode, null = cjson.null },
    match = hosts.match,
    upstream = upstream,
    secret = secret_of(instance),
    log = log_of(instance),
    fetch = fetch_of(instance),
    now = function()
      return budget.outside(instance.services.now)
    end,
  }
  env.string.rep = rep
  for name, fn in pairs(bit) do
    env.bit[name] = fn
  end
  for _, name in ipairs(BASE) do
    env[name] = _G[name]
  end
  for name, fn in pairs(DIGESTS) do
    env[name] = fn
  end
  for name, fn in pairs(verdict.constructors) do
    env[name] = fn
  end
  -- `state` is found by a function, so that a policy without state costs nothing to keep.
  setmetatable(env, {
    __index = function(_, name)
      if name == "state" then
        instance.touched = true
        return instance.state
      end
    end,
  })
  return setmetatable({}, { __index = env, __newindex = no_global })
end

return environment

--- Verdicts: what a hook decides, checked when it is made.
--
-- Pure; runs wherever policies do. A hook gets an opaque token back from `allow{...}` and its like, so
-- that what was checked is what is carried out, and a mistake is told with the policy's own line.
-- A plain verdict is { action, reason, status, host, headers, body, changes }; `host` is "host" or
-- "host:port"; `changes` holds headers, path, to, private, ca, mismatch, scrub.
local hosts = require("tidepool.egress.policy.hosts")

local verdict = {}

local made = setmetatable({}, { __mode = "k" }) -- token -> plain verdict

local MOST_HEADERS = 64
local MOST_VALUE = 16384
local MOST_REASON = 500
local MOST_BODY = 1048576

-- These frame the message or belong to one connection: with them a policy could smuggle a request.
local FRAMING = {
  ["content-length"] = true,
  ["transfer-encoding"] = true,
  connection = true,
  ["keep-alive"] = true,
  ["proxy-connection"] = true,
  upgrade = true,
  te = true,
  trailer = true,
  expect = true,
}

local function fail(text, ...)
  error(text:format(...), 0)
end

local function check_header(name, value)
  if type(name) ~= "string" or name == "" or name:find("[^%w!#$%%&'*+%-.^_`|~]") then
    fail("%q is not the name of a header", tostring(name))
  elseif FRAMING[name:lower()] then
    fail("header %s can't be set: it frames the message", name)
  elseif value == false then
    return false
  elseif type(value) == "number" then
    value = ("%.14g"):format(value)
  end
  if type(value) ~= "string" then
    fail("header %s must be text, or false to remove it", name)
  elseif value:find("[%z\1-\8\10-\31\127]") then
    fail("header %s holds a control character", name)
  elseif #value > MOST_VALUE then
    fail("header %s is too long", name)
  end
  return value
end

local function check_headers(headers)
  if headers == nil then
    return nil
  elseif type(headers) ~= "table" then
    fail("headers must be a table")
  end
  local checked, count = {}, 0
  for name, value in pairs(headers) do
    checked[type(name) == "string" and name:lower() or name] = check_header(name, value)
    count = count + 1
    if count > MOST_HEADERS then
      fail("more than %d headers", MOST_HEADERS)
    end
  end
  return checked
end

local function is_ip(name)
  return name:match("^%d+%.%d+%.%d+%.%d+$") ~= nil or name:find(":", 1, true) ~= nil
end

local function flag(name)
  return function(value)
    if type(value) ~= "boolean" then
      fail("%s must be true or false", name)
    end
    return value
  end
end

local CHANGES = {
  headers = check_headers,
  path = function(path)
    if type(path) ~= "string" or path:sub(1, 1) ~= "/" or path:find("[%z\1-\32\127-\255#]") or #path > MOST_VALUE then
      fail("path must start with / and hold no space, # or control character")
    end
    return path
  end,
  to = function(to)
    local name, port = hosts.split(to)
    if not name or not port or not is_ip(name) then
      fail("to must be \"address:port\"")
    end
    return to
  end,
  ca = function(pem)
    if type(pem) ~= "string" or not pem:find("-----BEGIN CERTIFICATE-----", 1, true) then
      fail("ca must be certificates in PEM")
    end
    return pem
  end,
  private = flag("private"),
  mismatch = flag("mismatch"),
  scrub = flag("scrub"),
}

local function check_changes(changes, permitted)
  local checked = {}
  if changes == nil then
    return checked
  elseif type(changes) ~= "table" then
    fail("expected a table of changes, got %s", type(changes))
  end
  for name, value in pairs(changes) do
    if not CHANGES[name] or (permitted and not permitted[name]) then
      fail("%s can't be changed here", tostring(name))
    end
    checked[name] = CHANGES[name](value)
  end
  return checked
end

local function check_reason(reason, default)
  if reason == nil then
    return default
  elseif type(reason) ~= "string" then
    fail("a reason must be text")
  end
  return (reason:sub(1, MOST_REASON):gsub("%c", " "))
end

local function check_status(status, default, least, most)
  if status == nil then
    return default
  elseif type(status) ~= "number" or status % 1 ~= 0 or status < least or status > most then
    fail("status must be %d to %d", least, most)
  end
  return status
end

local function token(plain)
  local key = {}
  made[key] = plain
  return key
end

local build = {}

function build.allow(changes)
  return { action = "allow", changes = check_changes(changes) }
end

function build.deny(reason, status)
  return {
    action = "deny",
    reason = check_reason(reason, "denied"),
    status = check_status(status, 403, 400, 599),
    changes = {},
  }
end

local OPAQUE = { to = true, private = true, mismatch = true }

function build.passthrough(changes)
  return { action = "passthrough", changes = check_changes(changes, OPAQUE) }
end

function build.redirect(target, changes)
  local host, port = hosts.split(target)
  if not host then
    fail("redirect needs \"host\" or \"host:port\"")
  end
  local name = host:find(":", 1, true) and "[" .. host .. "]" or host
  return { action = "redirect", host = port and name .. ":" .. port or name, changes = check_changes(changes) }
end

function build.respond(status, headers, body)
  if body ~= nil and (type(body) ~= "string" or #body > MOST_BODY) then
    fail("body must be text of at most %d bytes", MOST_BODY)
  end
  return {
    action = "respond",
    status = check_status(status, 200, 200, 599),
    headers = check_headers(headers) or {},
    body = body or "",
    changes = {},
  }
end

--- The constructors as a policy calls them; an error names the line of the call.
verdict.constructors = {}
for name, make in pairs(build) do
  verdict.constructors[name] = function(...)
    local ok, plain = pcall(make, ...)
    if not ok then
      error(type(plain) == "string" and name .. ": " .. plain or plain, type(plain) == "string" and 2 or 0)
    end
    return token(plain)
  end
end

--- The plain verdict behind what a hook returned, as a copy; nil for anything else.
function verdict.plain(value)
  local plain = type(value) == "table" and made[value]
  if not plain then
    return nil
  end
  local copy = {}
  for key, field in pairs(plain) do
    copy[key] = field
  end
  copy.changes = {}
  for key, field in pairs(plain.changes) do
    copy.changes[key] = field
  end
  return copy
end

--- A plain verdict of the engine's own.
function verdict.denied(reason, status)
  return build.deny(reason, status)
end

function verdict.allowed()
  return build.allow()
end

return verdict

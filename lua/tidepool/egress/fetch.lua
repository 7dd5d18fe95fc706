--- What a policy asks the outside by itself, for instance to exchange a token.
--
-- A request of the policy's, so no policy decides about it; private addresses stay refused unless it says
-- `private` or `to`. One connection, one small response, one time limit.
local async = require("tidepool.async")
local head = require("tidepool.egress.head")
local upstream = require("tidepool.egress.upstream")

local fetch = {}

local TIMEOUT, LONGEST = 5, 10 -- seconds
local LIMIT, MOST = 65536, 1048576 -- bytes of a response's body

local function parse(url)
  local scheme, authority, path = tostring(url):match("^(https?)://([^/?#]+)([^#]*)")
  if not scheme then
    return nil, "fetch: not an http or https URL"
  end
  local host, port = authority:match("^([%w._-]+):?(%d*)$")
  if not host then
    return nil, "fetch: the URL's host is malformed"
  end
  local tls = scheme == "https"
  path = path:sub(1, 1) == "/" and path or "/" .. path
  if path:find("[%c ]") then
    return nil, "fetch: the URL's path is malformed"
  end
  return { host = host:lower(), port = tonumber(port) or (tls and 443 or 80), tls = tls, path = path, authority = authority }
end

-- Ours to write, or with them a second request could be hidden in the first.
local FRAMING = { ["content-length"] = true, ["transfer-encoding"] = true, connection = true, upgrade = true, expect = true, te = true }

-- What a policy got from a sandbox may be in any of it: nil, or what is wrong.
local function complaint_about(request)
  if request.method and not request.method:find("^%a[%a-]*$") then
    return "fetch: the method is malformed"
  end
  if request.to and not upstream.is_address(request.to) then
    return "fetch: to must be \"address:port\""
  end
  for name, value in pairs(request.headers or {}) do
    if type(name) ~= "string" or name == "" or name:find("[^%w!#$%%&'*+%-.^_`|~]") or FRAMING[name:lower()] then
      return ("fetch: header %q can't be set"):format(tostring(name))
    elseif type(value) ~= "string" or value:find("[%z\1-\8\10-\31\127]") then
      return ("fetch: header %s is no text, or holds a control character"):format(name)
    end
  end
end

local function method_of(request)
  return (request.method or ((request.body or "") ~= "" and "POST" or "GET")):upper()
end

local function exchange(conn, url, request, limit, timeout)
  local headers = { { "Host", url.authority }, { "User-Agent", "tidepool" }, { "Accept-Encoding", "identity" } }
  for name, value in pairs(request.headers or {}) do
    head.set(headers, name, value)
  end
  head.set(headers, "Connection", "close")
  local body = request.body or ""
  local method = method_of(request)
  local framing = (body ~= "" or method == "POST" or method == "PUT") and "length" or nil
  local sent, message, code = conn:write(head.request(method, url.path, headers, framing, #body) .. body, timeout)
  if not sent then
    return nil, message, code
  end
  local response
  repeat
    response, message, code = conn:read_head("response", timeout, method)
    if not response then
      return nil, message, code
    end
  until response.status >= 200
  local bytes = ""
  if response.body ~= "none" then
    bytes, message, code = conn:read_body(limit, timeout)
    if not bytes then
      return nil, message, code
    end
  end
  return { status = response.status, headers = head.as_map(response.headers), body = bytes }
end

-- It leaves through us as well, so it is written down.
local function record(guest, url, request, response, message, code)
  local action = response and "allow" or code == "EACCES" and "deny" or "error"
  guest:record({ action = action, reason = message or "asked by a policy" }, {
    hook = "fetch", protocol = url.tls and "https" or "http", host = url.host, port = url.port,
    method = method_of(request), path = url.path, status = response and response.status,
  })
end

--- request: url, method, headers, body, timeout (seconds, 10 at most), limit (bytes of the response's body),
-- to, private, ca as in a verdict. Returns { status, headers, body } | nil, message, code.
function fetch.run(guest, request)
  local url, complaint = parse(request.url)
  complaint = complaint or complaint_about(request)
  if complaint then
    return nil, complaint, "EINVAL"
  end
  local timeout = math.min(tonumber(request.timeout) or TIMEOUT, LONGEST)
  local limit = math.min(tonumber(request.limit) or LIMIT, MOST)
  local target = upstream.target(url.host, nil, url.port, url.tls, request)
  local done, late, conn = async.event(), false, nil
  async.spawn(function()
    local response, message, code
    conn, message, code = guest.service.upstream:open(target)
    if conn and not late then
      response, message, code = exchange(conn, url, request, limit, timeout)
    end
    if conn then
      conn:reset()
    end
    done:set(response, message, code)
  end)
  local response, message, code = done:wait(timeout)
  if response == nil and code == "ETIMEDOUT" then
    late = true
    if conn then
      conn:reset()
    end
  end
  record(guest, url, request, response, message, code)
  return response, response and nil or "fetch " .. url.host .. ": " .. tostring(message), code
end

return fetch

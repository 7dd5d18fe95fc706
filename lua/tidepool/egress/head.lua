--- HTTP heads, as text: what goes on to the other side and what must not.
--
-- What the codec has read is strict already (core/proxy/http.h); here a head is written anew, so that no
-- byte of a peer's own framing goes through.
local head = {}

-- Of one connection, not of the message (RFC 9110, 7.6.1), or ours to write.
local HOP_BY_HOP = {
  connection = true, ["keep-alive"] = true, ["proxy-connection"] = true, ["proxy-authenticate"] = true,
  ["proxy-authorization"] = true, te = true, ["transfer-encoding"] = true, ["content-length"] = true,
  upgrade = true, ["http2-settings"] = true,
}

-- What a Connection header names is of that connection too; these stay whatever it says, since without
-- them a request means something else.
local KEPT = { host = true, authorization = true, cookie = true, ["content-type"] = true, expect = true }

local function listed(headers)
  local names = {}
  for _, header in ipairs(headers) do
    if header[1]:lower() == "connection" then
      for name in header[2]:gmatch("[^,%s]+") do
        name = name:lower()
        names[name] = not KEPT[name] or nil
      end
    end
  end
  return names
end

--- The headers that go on: a new list of { name, value }.
function head.end_to_end(headers)
  local dropped, list = listed(headers), {}
  for _, header in ipairs(headers) do
    local name = header[1]:lower()
    if not HOP_BY_HOP[name] and not dropped[name] then
      list[#list + 1] = { header[1], header[2] }
    end
  end
  return list
end

--- By lower-case name, several values joined by ", ": what a policy sees.
function head.as_map(headers)
  local map = {}
  for _, header in ipairs(headers) do
    local name = header[1]:lower()
    map[name] = map[name] and map[name] .. (name == "cookie" and "; " or ", ") .. header[2] or header[2]
  end
  return map
end

--- The first value of a header, or nil.
function head.get(headers, wanted)
  for _, header in ipairs(headers) do
    if header[1]:lower() == wanted then
      return header[2]
    end
  end
end

--- Sets a header, in place, where the first of that name was; value false removes it.
function head.set(headers, name, value)
  local lower, place = name:lower(), nil
  for i = #headers, 1, -1 do
    if headers[i][1]:lower() == lower then
      table.remove(headers, i)
      place = i
    end
  end
  if value then
    table.insert(headers, place or #headers + 1, { name, value })
  end
end

--- Applies a verdict's headers: a map of name to value, or to false.
function head.change(headers, changes)
  for name, value in pairs(changes or {}) do
    head.set(headers, name, value)
  end
end

local function text(first, headers)
  local lines = { first }
  for _, header in ipairs(headers) do
    lines[#lines + 1] = header[1] .. ": " .. header[2]
  end
  lines[#lines + 1] = "\r\n"
  return table.concat(lines, "\r\n")
end

local function add_framing(headers, framing, length)
  if framing == "chunked" then
    headers[#headers + 1] = { "Transfer-Encoding", "chunked" }
  elseif framing == "length" then
    headers[#headers + 1] = { "Content-Length", ("%.0f"):format(length) }
  end
end

--- The head of a request to an upstream. `upgrade`: the protocol asked for, or nil.
function head.request(method, path, headers, framing, length, upgrade)
  add_framing(headers, framing, length)
  if upgrade then
    headers[#headers + 1] = { "Connection", "Upgrade" }
    headers[#headers + 1] = { "Upgrade", upgrade }
  end
  return text(("%s %s HTTP/1.1"):format(method, path), headers)
end

--- The head of a response to the client. `last`: the connection closes after it.
function head.response(status, reason, headers, framing, length, last, upgrade)
  add_framing(headers, framing, length)
  if upgrade then
    headers[#headers + 1] = { "Connection", "Upgrade" }
    headers[#headers + 1] = { "Upgrade", upgrade }
  elseif last then
    headers[#headers + 1] = { "Connection", "close" }
  end
  return text(("HTTP/1.1 %d %s"):format(status, reason or ""), headers)
end

local REASONS = {
  [201] = "Created", [202] = "Accepted", [204] = "No Content", [301] = "Moved Permanently", [302] = "Found",
  [303] = "See Other", [304] = "Not Modified", [307] = "Temporary Redirect", [401] = "Unauthorized", [404] = "Not Found",
  [400] = "Bad Request", [403] = "Forbidden", [405] = "Method Not Allowed", [408] = "Request Timeout", [413] = "Content Too Large",
  [421] = "Misdirected Request", [429] = "Too Many Requests", [431] = "Request Header Fields Too Large",
  [500] = "Internal Server Error", [502] = "Bad Gateway", [503] = "Service Unavailable", [504] = "Gateway Timeout",
}

-- The names of errors that say less than the sentence before them.
local NAMES = { ": Bad message$", ": Message too long$", ": No such file or directory$", ": Illegal byte sequence$" }

--- A failure's message as a person wants to read it.
function head.reason(message)
  for _, name in ipairs(NAMES) do
    message = message:gsub(name, "")
  end
  return message
end

--- A whole response of ours, as bytes: a line that says why, for whoever reads the client's output.
function head.refusal(status, why, method)
  why = head.reason(why)
  local body = "tidepool: " .. why .. "\n"
  local headers = {
    { "Content-Type", "text/plain; charset=utf-8" },
    { "X-Tidepool-Reason", (why:gsub("[^\32-\126]", "?")) },
    { "Content-Length", tostring(#body) },
  }
  local first = head.response(status, REASONS[status] or "Refused", headers, nil, nil, true)
  return method == "HEAD" and first or first .. body
end

--- A whole response that a policy made, as bytes. `last`: the connection closes after it.
function head.answer(status, headers, body, method, last)
  local list = {}
  for name, value in pairs(headers or {}) do
    list[#list + 1] = { name, value }
  end
  local bodyless = status < 200 or status == 204 or status == 304
  body = bodyless and "" or body or ""
  local first = head.response(status, REASONS[status] or (status < 300 and "OK" or "Refused"), list, not bodyless and "length" or nil, #body, last)
  return method == "HEAD" and first or first .. body
end

return head

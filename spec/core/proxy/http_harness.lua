-- How specs of the HTTP reader feed it, and the messages they are about.
require("tidepool.core")
local assert = require("luassert")
local http = require("tidepool.proxy").http

local harness = {}

-- Reads messages out of `pieces` the way a connection would, until the bytes or the patience end.
function harness.read(side, pieces, method)
  local reader = http.reader(side)
  if method then
    reader:expect(method)
  end
  local messages, current, code, why = {}, nil, nil, nil
  for _, piece in ipairs(pieces) do
    local rest = piece
    local idle = false
    while not idle and not code do
      local used
      if not current then
        local head, third
        used, head, third = reader:head(rest)
        if not used then
          why, code = head, third
          break
        end
        idle = not head
        current = head and { head = head, parts = {} }
      else
        local span, complete
        used, span, complete = reader:body(rest)
        if not used then
          why, code = span, complete
          break
        end
        current.parts[#current.parts + 1] = span
        if complete then
          messages[#messages + 1] = { head = current.head, body = table.concat(current.parts),
            trailers = reader:trailers() }
          current = nil
        end
        idle = not complete and #rest == used and span == ""
        if complete and messages[#messages].head.body == "upgrade" then
          messages[#messages].rest = rest:sub(used + 1)
          return messages, nil, nil, reader
        end
      end
      rest = rest:sub(used + 1)
    end
  end
  if current and not code then
    messages[#messages + 1] = { head = current.head, body = table.concat(current.parts), partial = true }
  end
  return messages, code, why, reader
end

function harness.one(side, text, method)
  local messages, code, why, reader = harness.read(side, { text }, method)
  assert.is_nil(why)
  assert.is_nil(code)
  assert.equal(1, #messages)
  return messages[1].head, messages[1].body, messages[1], reader
end

function harness.request(lines, body)
  return table.concat(lines, "\r\n") .. "\r\n\r\n" .. (body or "")
end

function harness.get(...)
  return harness.request({ "GET / HTTP/1.1", "Host: a", ... })
end

function harness.post(lines, body)
  return harness.request({ "POST / HTTP/1.1", "Host: a", unpack(lines) }, body)
end

function harness.chunked(body)
  return harness.post({ "Transfer-Encoding: chunked" }, body)
end

function harness.refused(side, text, word, method)
  local messages, code, why = harness.read(side, { text }, method)
  assert.equal("EBADMSG", code, ("not refused: %q"):format(text:sub(1, 200)))
  if word then
    assert.is_truthy(why:lower():find(word:lower(), 1, true), ("%q doesn't say %q"):format(why, word))
  end
  return messages
end

function harness.cut(text, at)
  return { text:sub(1, at), text:sub(at + 1) }
end

function harness.bytewise(text)
  local pieces = {}
  for i = 1, #text do
    pieces[i] = text:sub(i, i)
  end
  return pieces
end

return harness

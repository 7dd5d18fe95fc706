--- What a person or a script sees: aligned tables, sizes, times, JSON.
--
-- Pure functions from values to text. JSON output is one document a command. Contents (output, files)
-- are UTF-8 text or, when they are not valid UTF-8, base64, and a field `encoding` says which; any other
-- string that is not UTF-8, such as a path, becomes { "base64": "..." }.
local format = {}

-- Loaded late: help must work before any package is installed.
local cjson
local function json_codec()
  if not cjson then
    cjson = require("cjson").new()
    cjson.encode_sparse_array(true)
    cjson.encode_number_precision(14)
  end
  return cjson
end

local ARRAY = { __name = "array" }

--- Marks a table as a JSON list, also when it is empty.
function format.array(list)
  return setmetatable(list or {}, ARRAY)
end

-- A copy that cjson can write. It takes an empty table for {}: where a list is meant we have to say so.
local function prepare(value, codec)
  local kind = type(value)
  if kind == "string" then
    return format.is_utf8(value) and value or { base64 = format.base64(value) }
  elseif kind == "number" then
    return value == value and math.abs(value) < math.huge and value or codec.null
  elseif kind == "boolean" or kind == "nil" then
    return value
  elseif kind ~= "table" then
    return codec.null -- msgpack's nil is a userdata
  end
  local copy = {}
  for key, inner in pairs(value) do
    copy[type(key) == "number" and key or tostring(key)] = prepare(inner, codec)
  end
  if getmetatable(value) == ARRAY and next(copy) == nil then
    return "\0[]"
  end
  return copy
end

--- One JSON document on one line.
function format.json(value)
  local codec = json_codec()
  local text = codec.encode(prepare(value, codec))
  return (text:gsub('"\\u0000%[%]"', "[]"):gsub("\\/", "/"))
end

--- Whether the bytes are valid UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF).
function format.is_utf8(bytes)
  if not bytes:find("[\128-\255]") then
    return true
  end
  local i, n = 1, #bytes
  while i <= n do
    local a, b, c, d = bytes:byte(i, i + 3)
    local function continues(x)
      return x and x >= 0x80 and x <= 0xBF
    end
    if a < 0x80 then
      i = i + 1
    elseif a >= 0xC2 and a <= 0xDF and continues(b) then
      i = i + 2
    elseif a >= 0xE0 and a <= 0xEF and continues(b) and continues(c)
      and (a ~= 0xE0 or b >= 0xA0) and (a ~= 0xED or b <= 0x9F) then
      i = i + 3
    elseif a >= 0xF0 and a <= 0xF4 and continues(b) and continues(c) and continues(d)
      and (a ~= 0xF0 or b >= 0x90) and (a ~= 0xF4 or b <= 0x8F) then
      i = i + 4
    else
      return false
    end
  end
  return true
end

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

function format.base64(bytes)
  local out = {}
  for i = 1, #bytes, 3 do
    local a, b, c = bytes:byte(i, i + 2)
    local word = a * 65536 + (b or 0) * 256 + (c or 0)
    for shift = 3, 0, -1 do
      local digit = math.floor(word / 64 ^ shift) % 64 + 1
      out[#out + 1] = ALPHABET:sub(digit, digit)
    end
    if not c then
      out[#out] = "="
    end
    if not b then
      out[#out - 1] = "="
    end
  end
  return table.concat(out)
end

--- Puts bytes into a JSON object: fields[name], and fields.encoding when they are base64. Several
-- streams of one object share the encoding, so give them together: { stdout = ..., stderr = ... }.
function format.bytes(fields, streams)
  local encoding = "utf-8"
  for _, bytes in pairs(streams) do
    if not format.is_utf8(bytes) then
      encoding = "base64"
    end
  end
  for name, bytes in pairs(streams) do
    fields[name] = encoding == "base64" and format.base64(bytes) or bytes
  end
  fields.encoding = encoding
  return fields
end

--- Bytes for a person: "0 B", "512 MiB", "1.5 GiB".
function format.size(bytes)
  if not bytes then
    return "-"
  end
  local units, unit = { "B", "KiB", "MiB", "GiB", "TiB" }, 1
  while bytes >= 1024 and unit < #units do
    bytes, unit = bytes / 1024, unit + 1
  end
  if bytes == math.floor(bytes) or bytes >= 100 then
    return ("%d %s"):format(math.floor(bytes + 0.5), units[unit])
  end
  return ("%.1f %s"):format(bytes, units[unit])
end

--- Seconds for a person: "0.4 s", "12 s", "3 min", "5 h", "2 d".
function format.duration(seconds)
  if not seconds then
    return "-"
  end
  if seconds < 10 then
    return ("%.1f s"):format(seconds)
  elseif seconds < 120 then
    return ("%d s"):format(seconds)
  elseif seconds < 7200 then
    return ("%d min"):format(seconds / 60)
  elseif seconds < 172800 then
    return ("%d h"):format(seconds / 3600)
  end
  return ("%d d"):format(seconds / 86400)
end

--- How long ago a Unix time was.
function format.ago(time, now)
  return time and format.duration(math.max(0, (now or os.time()) - time)) .. " ago" or "-"
end

--- "-rw-r--r--" of a mode and a kind ("file", "directory", "link", ...).
function format.mode(mode, kind)
  local letters = { file = "-", directory = "d", link = "l", symlink = "l", fifo = "p", socket = "s", char = "c", block = "b" }
  local text = letters[kind] or "?"
  for shift = 6, 0, -3 do
    local bits = math.floor(mode / 2 ^ shift) % 8
    text = text .. (bits >= 4 and "r" or "-") .. (bits % 4 >= 2 and "w" or "-") .. (bits % 2 == 1 and "x" or "-")
  end
  return text
end

--- Argv as a shell would need it.
function format.argv(argv)
  local words = {}
  for i, word in ipairs(argv or {}) do
    if word == "" or word:find("[^%w_@%%+=:,./-]") then
      word = "'" .. word:gsub("'", "'\\''") .. "'"
    end
    words[i] = word
  end
  return table.concat(words, " ")
end

local function escape(bytes)
  return (bytes:gsub(".", function(char)
    return ("\\x%02x"):format(char:byte())
  end))
end

-- What a terminal obeys, or shows in another order than it reads: C1 controls (U+009B is CSI), line and
-- paragraph separators, marks and overrides of direction.
local obeyed = { "\194[\128-\159]", "\226\128[\142\143\168-\174]", "\226\129[\166-\169]" }

--- Bytes from a sandbox made harmless for a terminal: no control characters, nothing but UTF-8; `lines`
-- leaves newlines.
function format.clean(text, lines)
  text = tostring(text):gsub(lines and "[%z\1-\8\11-\31\127]" or "[%z\1-\31\127]", escape)
  if not text:find("[\128-\255]") then
    return text
  elseif not format.is_utf8(text) then
    return (text:gsub("[\128-\255]", escape))
  end
  for _, pattern in ipairs(obeyed) do
    text = text:gsub(pattern, escape)
  end
  return text
end

-- Columns that a UTF-8 text takes, near enough for names and paths.
local function width(text)
  local _, continuation = text:gsub("[\128-\191]", "")
  return #text - continuation
end

--- Rows as aligned columns under upper-case headings. columns = { { "NAME", field or fn }, ... }.
function format.table(columns, rows)
  local cells, widths = { {} }, {}
  for c, column in ipairs(columns) do
    cells[1][c] = column[1]
    widths[c] = width(column[1])
  end
  for r, row in ipairs(rows) do
    cells[r + 1] = {}
    for c, column in ipairs(columns) do
      local value = column[2]
      if type(value) == "function" then
        value = value(row)
      else
        value = row[value]
      end
      if value == nil or value == "" then
        value = "-"
      end
      value = format.clean(value)
      cells[r + 1][c] = value
      widths[c] = math.max(widths[c], width(value))
    end
  end
  local lines = {}
  for r, line in ipairs(cells) do
    local parts = {}
    for c, cell in ipairs(line) do
      parts[c] = c == #line and cell or cell .. (" "):rep(widths[c] - width(cell))
    end
    lines[r] = table.concat(parts, "   ")
  end
  return table.concat(lines, "\n") .. "\n"
end

--- A value that no command knows how to show: fields below each other, lists as rows.
function format.any(value, indent)
  indent = indent or ""
  if type(value) ~= "table" then
    return indent .. format.clean(value) .. "\n"
  end
  if #value > 0 then
    local lines = {}
    for i, item in ipairs(value) do
      if type(item) == "table" then
        lines[i] = format.any(item, indent) .. (i < #value and "\n" or "")
      else
        lines[i] = indent .. format.clean(item) .. "\n"
      end
    end
    return table.concat(lines)
  end
  local keys, longest = {}, 0
  for key in pairs(value) do
    keys[#keys + 1] = tostring(key)
    longest = math.max(longest, #format.clean(key))
  end
  table.sort(keys)
  local lines = {}
  for i, key in ipairs(keys) do
    local inner, shown = value[key], format.clean(key)
    if type(inner) == "table" then
      lines[i] = next(inner) == nil and "" or indent .. shown .. "\n" .. format.any(inner, indent .. "  ")
    else
      lines[i] = indent .. shown .. (" "):rep(longest - #shown + 2) .. format.clean(inner) .. "\n"
    end
  end
  return table.concat(lines)
end

local function wrap(text, first, indent, limit)
  local lines, line = {}, first
  for word in text:gmatch("%S+") do
    if #line + #word + 1 > limit and line:match("%S") and #line > #indent then
      lines[#lines + 1] = line
      line = indent .. word
    else
      line = line .. ((line == first and #first > 0) and "" or (line == "" or line:match("%s$")) and "" or " ") .. word
    end
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n")
end

--- Pairs { left, right } as an indented two-column list with the right side wrapped.
function format.definitions(pairs_list)
  local longest = 0
  for _, pair in ipairs(pairs_list) do
    longest = math.max(longest, math.min(#pair[1], 30))
  end
  local lines = {}
  for i, pair in ipairs(pairs_list) do
    local left = "  " .. pair[1] .. (" "):rep(math.max(1, longest - #pair[1] + 2))
    if #pair[1] > 30 then
      left = "  " .. pair[1] .. "\n" .. (" "):rep(longest + 4)
    end
    if left:find("\n") then
      local head, tail = left:match("^(.*\n)(.*)$")
      lines[i] = head .. wrap(pair[2] or "", tail, (" "):rep(longest + 4), 100)
    else
      lines[i] = wrap(pair[2] or "", left, (" "):rep(longest + 4), 100)
    end
  end
  return table.concat(lines, "\n") .. "\n"
end

return format

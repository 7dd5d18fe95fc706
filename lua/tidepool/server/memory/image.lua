--- CRIU's image files: the little that has to be changed in them, bytes in and bytes out.
--
-- A file is 8 bytes of magic, then entries: [u32 length, little endian] and a protobuf message. Of a
-- message only the fields of the top level are looked at, and what isn't changed keeps its bytes.
local image = {}

local MAGIC = 8

local function fail(what)
  return nil, "memory image: " .. what, "EBADMSG"
end

-- The number at `at` and where the next thing is, or nil when it is cut.
local function varint(bytes, at)
  local value, scale = 0, 1
  for i = at, at + 9 do
    local byte = bytes:byte(i)
    if not byte then
      return nil
    end
    value = value + byte % 128 * scale
    scale = scale * 128
    if byte < 128 then
      return value, i + 1
    end
  end
end

local function put_varint(value)
  local out = {}
  while value >= 128 do
    out[#out + 1] = string.char(value % 128 + 128)
    value = math.floor(value / 128)
  end
  out[#out + 1] = string.char(value)
  return table.concat(out)
end

local fixed = { [1] = 8, [5] = 4 } -- bytes of a value, by wire type

--- The fields of a message: a list of { number, value, bytes = as they stand } | nil, message, code.
function image.fields(bytes)
  local fields, at = {}, 1
  while at <= #bytes do
    local key, value = varint(bytes, at)
    if not key then
      return fail("a field is cut")
    end
    local kind, from, to = key % 8, value, nil
    if kind == 0 then
      value, to = varint(bytes, from)
    elseif kind == 2 then
      local length
      length, from = varint(bytes, from)
      to = length and from + length
      value = to and bytes:sub(from, to - 1)
    elseif fixed[kind] then
      to = from + fixed[kind]
      value = bytes:sub(from, to - 1)
    end
    if not to or to - 1 > #bytes then
      return fail("a field is cut or of an unknown kind")
    end
    fields[#fields + 1] = { math.floor(key / 8), value, bytes = bytes:sub(at, to - 1) }
    at = to
  end
  return fields
end

--- The bytes of fields; one with `bytes` keeps them, others are { number, integer or string }.
function image.encode(fields)
  local out = {}
  for i, field in ipairs(fields) do
    local number, value = field[1], field[2]
    if field.bytes then
      out[i] = field.bytes
    elseif type(value) == "number" then
      out[i] = put_varint(number * 8) .. put_varint(value)
    else
      out[i] = put_varint(number * 8 + 2) .. put_varint(#value) .. value
    end
  end
  return table.concat(out)
end

local function u32(value)
  return string.char(value % 256, math.floor(value / 256) % 256, math.floor(value / 65536) % 256,
    math.floor(value / 16777216))
end

--- Rewrites each entry of a file: fn(fields) changes them in place or returns others.
-- The file's new bytes | nil, message, code.
function image.map(bytes, fn)
  if #bytes < MAGIC then
    return fail("a file is cut")
  end
  local out, at = { bytes:sub(1, MAGIC) }, MAGIC + 1
  while at <= #bytes do
    local a, b, c, d = bytes:byte(at, at + 3)
    local length = d and a + b * 256 + c * 65536 + d * 16777216
    if not length or at + 3 + length > #bytes then
      return fail("an entry is cut")
    end
    local fields, message, code = image.fields(bytes:sub(at + 4, at + 3 + length))
    if not fields then
      return nil, message, code
    end
    local entry = image.encode(fn(fields) or fields)
    out[#out + 1] = u32(#entry) .. entry
    at = at + 4 + length
  end
  return table.concat(out)
end

--- userns-N.img with the ids 0 .. count - 1 mapped to `base` and those after it.
function image.map_ids(bytes, base, count)
  local extent = image.encode({ { 1, 0 }, { 2, base }, { 3, count } })
  return image.map(bytes, function()
    return { { 1, extent }, { 2, extent } } -- users, groups
  end)
end

local READ_ONLY = 1

--- mountpoints-N.img with the mount at `path` writable: a socket in it can't be bound else.
function image.writable(bytes, path)
  return image.map(bytes, function(fields)
    local here
    for _, field in ipairs(fields) do
      here = here or field[1] == 7 and (field[2] == path or field[2] == "." .. path)
    end
    for _, field in ipairs(here and fields or {}) do
      if field[1] == 5 and field[2] % 2 == READ_ONLY then
        field[2], field.bytes = field[2] - READ_ONLY, nil
      end
    end
  end)
end

--- utsns-N.img with another host name.
function image.rename_host(bytes, name)
  return image.map(bytes, function(fields)
    for _, field in ipairs(fields) do
      if field[1] == 1 then
        field[2], field.bytes = name, nil
      end
    end
  end)
end

local TIMERFD = 12 -- the field of a file's entry that holds one
local TICKS, SECONDS, NANOSECONDS, EVERY_SECONDS, EVERY_NANOSECONDS = 5, 7, 8, 9, 10

-- A timer's fields, armed again; nil where it needs none of that.
local function armed(bytes)
  local fields, value = image.fields(bytes) or {}, {}
  for _, field in ipairs(fields) do
    value[field[1]] = field[2]
  end
  local expired = (value[TICKS] or 0) > 0 and value[SECONDS] == 0 and value[NANOSECONDS] == 0
  if not expired or (value[EVERY_SECONDS] or 0) + (value[EVERY_NANOSECONDS] or 0) == 0 then
    return nil
  end
  for _, field in ipairs(fields) do
    if field[1] == NANOSECONDS then
      field[2], field.bytes = 1, nil
    end
  end
  return image.encode(fields)
end

--- files.img with the periodic timerfds that have expired due at once: they are told with no time left, which
-- CRIU gives back as a timer that is not armed.
function image.arm_timers(bytes)
  return image.map(bytes, function(fields)
    for _, field in ipairs(fields) do
      local timer = field[1] == TIMERFD and type(field[2]) == "string" and armed(field[2])
      if timer then
        field[2], field.bytes = timer, nil
      end
    end
  end)
end

return image

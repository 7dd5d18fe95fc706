--- msgpack from a peer that we don't trust: looked at before it is decoded.
--
-- lua-mpack sets memory aside for what a string claims to hold and never frees it when less came, so
-- that a few truncated bytes would cost gigabytes. What passes here is whole: its strings and
-- containers are as long as they say, and nothing follows.
local mpack = require("mpack")

local msgpack = {}

local DEPTH = 32 -- the decoder's own limit

-- By first byte: bytes of payload, bytes of a length field, elements for each that is counted.
local fixed, sized, counted = {}, {}, {}

for byte = 0x00, 0x7f do
  fixed[byte] = 0 -- positive integer
end
for byte = 0xe0, 0xff do
  fixed[byte] = 0 -- negative integer
end
for byte = 0xa0, 0xbf do
  fixed[byte] = byte - 0xa0 -- short string
end
for byte, payload in pairs({
  [0xc0] = 0, [0xc2] = 0, [0xc3] = 0, -- nil, false, true
  [0xca] = 4, [0xcb] = 8, -- floats
  [0xcc] = 1, [0xcd] = 2, [0xce] = 4, [0xcf] = 8, -- unsigned
  [0xd0] = 1, [0xd1] = 2, [0xd2] = 4, [0xd3] = 8, -- signed
}) do
  fixed[byte] = payload
end
for byte, field in pairs({ [0xd9] = 1, [0xda] = 2, [0xdb] = 4, [0xc4] = 1, [0xc5] = 2, [0xc6] = 4 }) do
  sized[byte] = field -- strings, binary
end
for byte, field in pairs({ [0xdc] = 2, [0xdd] = 4, [0xde] = 2, [0xdf] = 4 }) do
  counted[byte] = field -- arrays, maps
end

local function number(bytes, at, size)
  local a, b, c, d = bytes:byte(at, at + size - 1)
  if size == 1 then
    return a
  elseif size == 2 then
    return b and a * 0x100 + b
  end
  return d and a * 0x1000000 + b * 0x10000 + c * 0x100 + d
end

-- Elements of the container that begins at `at` and where they begin; nil when it is none.
local function container(bytes, byte, at)
  if byte >= 0x90 and byte <= 0x9f then
    return byte - 0x90, at + 1
  elseif byte >= 0x80 and byte <= 0x8f then
    return 2 * (byte - 0x80), at + 1
  end
  local field = counted[byte]
  local count = field and number(bytes, at + 1, field)
  return count and (byte >= 0xde and 2 * count or count), field and at + 1 + field
end

-- Where the scalar that begins at `at` ends; nil when it is none, or ends outside.
local function scalar(bytes, byte, at)
  local payload = fixed[byte]
  if payload then
    return at + 1 + payload
  end
  local field = sized[byte]
  local length = field and number(bytes, at + 1, field)
  return length and at + 1 + field + length
end

--- Is this exactly one msgpack value? Extension types, which we have no use for, are none.
function msgpack.whole(bytes)
  local size, at, depth = #bytes, 1, 1
  local left = { 1 } -- elements still to come, by depth
  while depth > 0 do
    if left[depth] == 0 then
      depth = depth - 1
    else
      left[depth] = left[depth] - 1
      local byte = bytes:byte(at)
      if not byte then
        return false
      end
      local count, first = container(bytes, byte, at)
      if count then
        -- Each element has a byte at least.
        if depth == DEPTH or count > size - first + 1 then
          return false
        end
        depth = depth + 1
        left[depth], at = count, first
      else
        at = scalar(bytes, byte, at)
        if not at or at > size + 1 then
          return false
        end
      end
    end
  end
  return at == size + 1
end

--- Decodes one whole value: true, value | false.
function msgpack.decode(bytes)
  if not msgpack.whole(bytes) then
    return false
  end
  return pcall(mpack.unpack, bytes)
end

return msgpack

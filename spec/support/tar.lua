--- Tars made by hand, so that specs can write what no archiver would: wrong sizes, hostile names.
local uv = require("luv")

local tar = {}

local Tar = {}
Tar.__index = Tar

function tar.new()
  return setmetatable({ parts = {} }, Tar)
end

local function octal(number, width)
  return string.format("%0" .. (width - 1) .. "o\0", number)
end

local function field(text, width)
  return text:sub(1, width) .. string.rep("\0", width - #text)
end

local function pad(bytes)
  return bytes .. string.rep("\0", -#bytes % 512)
end

local TYPES = {
  file = "0", hardlink = "1", symlink = "2", char = "3", block = "4", directory = "5", fifo = "6", pax = "x",
}

--- Adds an entry: `name`, `type` ("file" unless told), `content`, `target`, `mode`, `uid`, `gid`,
--- `mtime`, `size` (to lie about it), `pax` (a table of extended attributes).
function Tar:add(entry)
  if entry.pax then
    local records = {}
    for key, value in pairs(entry.pax) do
      local rest = " " .. key .. "=" .. value .. "\n"
      local length = #rest + 1
      while #(tostring(length) .. rest) ~= length do
        length = length + 1
      end
      records[#records + 1] = length .. rest
    end
    self:add({ name = "pax", type = "pax", content = table.concat(records) })
  end
  local content = entry.content or ""
  local kind = entry.type or "file"
  local directory = kind == "directory"
  local header = field(entry.name, 100)
    .. octal(entry.mode or (directory and tonumber("755", 8) or tonumber("644", 8)), 8)
    .. octal(entry.uid or 0, 8) .. octal(entry.gid or 0, 8)
    .. octal(entry.size or #content, 12) .. octal(entry.mtime or 1000000000, 12)
    .. "        " .. assert(TYPES[kind]) .. field(entry.target or "", 100)
    .. "ustar\00000" .. field("", 32) .. field("", 32) .. octal(8, 8) .. octal(1, 8) .. field("", 155)
  header = pad(header)
  local sum = 0
  for i = 1, #header do
    sum = sum + header:byte(i)
  end
  header = header:sub(1, 148) .. string.format("%06o\0 ", sum) .. header:sub(157)
  self.parts[#self.parts + 1] = header .. pad(content)
  return self
end

--- Several entries at once.
function Tar:all(entries)
  for _, entry in ipairs(entries) do
    self:add(entry)
  end
  return self
end

--- Its bytes, with the end marks.
function Tar:bytes()
  return table.concat(self.parts) .. string.rep("\0", 1024)
end

--- Writes bytes to a file and returns its path.
function tar.write(path, bytes)
  local fd = assert(uv.fs_open(path, "w", tonumber("644", 8)))
  local done = 0
  while done < #bytes do
    done = done + assert(uv.fs_write(fd, bytes:sub(done + 1, done + 1048576), done))
  end
  assert(uv.fs_close(fd))
  return path
end

return tar

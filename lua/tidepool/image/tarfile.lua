--- Writing a tar of documents and of what somebody else writes into it: an image layout in one file.
--
-- Runs in the server. Nothing but short names and regular files; a file's header is written after its
-- content, when its digest, which is its name, is known.
local uv = require("luv")

local tarfile = {}

local Tarfile = {}
Tarfile.__index = Tarfile

local BLOCK = 512
local OCTAL_LIMIT = 8 ^ 11

local function field(text, width)
  return text .. ("\0"):rep(width - #text)
end

-- Eleven octal digits, or beyond 8 GiB the bytes themselves, as GNU tar and POSIX readers know it.
local function size_field(size)
  if size < OCTAL_LIMIT then
    return ("%011o\0"):format(size)
  end
  local bytes = {}
  for i = 11, 1, -1 do
    bytes[i] = string.char(size % 256)
    size = math.floor(size / 256)
  end
  return "\128" .. table.concat(bytes)
end

local function header(name, size, mtime, directory)
  local head = field(name, 100) .. (directory and "0000755\0" or "0000644\0") .. "0000000\0" .. "0000000\0"
    .. size_field(size) .. ("%011o\0"):format(mtime) .. "        " .. (directory and "5" or "0") .. field("", 100)
    .. "ustar\00000" .. field("", 64) .. "0000000\0" .. "0000000\0"
  head = field(head, BLOCK)
  local sum = 0
  for i = 1, BLOCK do
    sum = sum + head:byte(i)
  end
  return head:sub(1, 148) .. ("%06o\0 "):format(sum) .. head:sub(157)
end

--- A new file at `path`, which must not be there: it | nil, message, code. `mtime` is that of all in it.
function tarfile.create(path, mtime)
  local fd, message, code = uv.fs_open(path, "wx", tonumber("644", 8))
  if not fd then
    return nil, message, code
  end
  return setmetatable({ fd = fd, path = path, at = 0, mtime = math.floor(mtime) }, Tarfile)
end

local function put(self, bytes, at)
  local done = 0
  while done < #bytes do
    local put_, message, code = uv.fs_write(self.fd, bytes:sub(done + 1), at + done)
    if not put_ then
      return nil, message, code
    end
    done = done + put_
  end
  return true
end

local function advance(self, size)
  self.at = self.at + BLOCK + math.ceil(size / BLOCK) * BLOCK
  return true
end

--- A whole file, or with content nil a directory. true | nil, message, code.
function Tarfile:add(name, content)
  local ok, message, code = put(self, header(name, content and #content or 0, self.mtime, not content), self.at)
  if ok and content then
    ok, message, code = put(self, content, self.at + BLOCK)
  end
  if not ok then
    return nil, message, code
  end
  return advance(self, content and #content or 0)
end

--- Where the content of the next file goes, for another process to write; then `added` tells its size.
function Tarfile:next()
  return self.at + BLOCK
end

function Tarfile:added(name, size)
  local ok, message, code = put(self, header(name, size, self.mtime), self.at)
  if not ok then
    return nil, message, code
  end
  return advance(self, size)
end

--- Ends the archive and closes it: its size | nil, message, code. It is on the disk then.
function Tarfile:finish()
  local size = self.at + 2 * BLOCK
  local ok, message, code = uv.fs_ftruncate(self.fd, size) -- also the padding of the last file
  if ok then
    ok, message, code = uv.fs_fsync(self.fd)
  end
  self:close()
  if not ok then
    return nil, message, code
  end
  return size
end

function Tarfile:close()
  if self.fd then
    uv.fs_close(self.fd)
    self.fd = nil
  end
end

return tarfile

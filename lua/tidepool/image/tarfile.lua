--- Writing a tar of documents and of what somebody else writes into it: an image layout in one file.
--
-- Runs in the server. Nothing but short names and regular files; a file's header is written after its
-- content, when its digest, which is its name, is known.
local uv = require("luv")
local core = require("tidepool.core")

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

local function is_at(fd, path)
  local ours, there = uv.fs_fstat(fd:number()), uv.fs_lstat(path)
  return ours and there and ours.ino == there.ino and ours.dev == there.dev
end

-- Removes what is at `path`, unless somebody writes it now: true | nil, message, "EBUSY".
local function remove_left(path)
  local old, message, code = core.fd.open(path, "rnb")
  if not old then
    return code == "ENOENT" or uv.fs_unlink(path), message, code -- a link, or not readable: ours all the same
  end
  local locked = core.fd.lock(old)
  local gone = locked and is_at(old, path) and uv.fs_unlink(path)
  old:close()
  if not locked then
    return nil, path .. " is being written right now", "EBUSY"
  end
  return gone or true
end

local TRIES = 20 -- who begins at the same time may come first

--- A new file at `path`, locked as long as it is open, in the place of what an ended writer has left: it |
--- nil, message, code ("EBUSY": another one writes it). `mtime` is that of all in it. Like a sandbox's files it is
--- for root to read.
function tarfile.create(path, mtime)
  local message, code
  for _ = 1, TRIES do
    local fd
    fd, message, code = core.fd.open(path, "wcxn", tonumber("600", 8))
    if fd and core.fd.lock(fd) and is_at(fd, path) then
      return setmetatable({ fd = fd, path = path, at = 0, mtime = math.floor(mtime) }, Tarfile)
    elseif fd then
      fd:close()
    elseif code ~= "EEXIST" then
      return nil, message, code
    end
    local removed
    removed, message, code = remove_left(path)
    if not removed then
      return nil, message, code
    end
  end
  return nil, message or path .. " comes and goes", code or "EBUSY"
end

local function put(self, bytes, at)
  local done = 0
  while done < #bytes do
    local put_, message, code = uv.fs_write(self.fd:number(), bytes:sub(done + 1), at + done)
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

--- Ends the archive: its size | nil, message, code. It is on the disk then, and still locked.
function Tarfile:finish()
  local size = self.at + 2 * BLOCK
  local ok, message, code = uv.fs_ftruncate(self.fd:number(), size) -- also the padding of the last file
  if ok then
    ok, message, code = uv.fs_fsync(self.fd:number())
  end
  if not ok then
    return nil, message, code
  end
  return size
end

function Tarfile:close()
  if self.fd then
    self.fd:close()
    self.fd = nil
  end
end

return tarfile

--- Files of a sandbox, through an agent: a process inside that acts as the user who asks.
--
-- Runs in the client. Contents don't pass the server: reads arrive as a read-only descriptor, writes
-- stream to the agent, which is charged, frozen and killed with its sandbox. What arrives from there is
-- not trusted: a descriptor is looked at before it is read, a name is only ever a name.
-- One operation at a time; others wait their turn. Failure is nil, message, code.
local uv = require("luv")
local core = require("tidepool.core")
local async = require("tidepool.async")

local files = {}

---@class tidepool.Files
local Files = {}
Files.__index = Files

local CHUNK = 256 * 1024 -- of a write; a frame holds 1 MiB
local READ = 8 * 1024 * 1024
local READ_MOST = 2 ^ 30 -- bytes in one string
local LIST_MOST = 1000000 -- entries of one listing: an agent that lies must not fill our memory
local UNSIZED = 64 * 1024 * 1024 -- most of a file that says 0, as those of /proc do

--- Seconds without a word from the agent, or without it taking ours, after which it is given up: its own
-- user may have stopped it. Removing a large tree is silent work, and `patience_removing` is for that.
files.patience, files.patience_removing = 60, 3600

--- Speaks with the agent at the other end, see Box:agent, and owns the descriptor from now on.
---@param fd tidepool.Fd a connected unix socket
---@return tidepool.Files?
---@return string? message
---@return string? code
function files.open(fd)
  local channel = core.channel.wrap(fd)
  local poller, message, code = async.poller(channel:number())
  if not poller then
    channel:close()
    return nil, message, code
  end
  local self = setmetatable({ channel = channel, poller = poller, serial = 0, sent = 0 }, Files)
  local lock = async.lock()
  self.lock = {
    with = function(_, operation, ...)
      return lock:with(function(...)
        self.sent = 0
        local result, extra, why = operation(...)
        if why == "EUNHEARD" then
          return nil, extra, "EPIPE", "unheard"
        end
        return result, extra, why
      end, ...)
    end,
  }
  return self
end

--- Ends the conversation; the agent ends with it.
---@param message? string why, for those who still wait
function Files:close(message)
  if not self.closed then
    self.closed = message or "closed"
    self.poller:close()
    self.channel:close()
  end
end

--- Whether the agent is still there, as far as can be told without asking it.
---@return boolean
function Files:alive()
  if self.closed then
    return false
  end
  local bytes, message, code = self.channel:receive()
  if bytes or code ~= "EAGAIN" then -- an end, or an answer that nobody asked for
    self:close(bytes and "answers out of order" or message)
    return false
  end
  return true
end

-- unheard: the agent has ended before it read all that was sent. Of an operation's only request so far that is
-- "EUNHEARD": it was not begun, and whoever knows another agent may ask that; to callers it is "EPIPE", "unheard".
local function lost(self, message, code, unheard)
  self:close(message)
  self.unheard = unheard
  return nil, "file agent: " .. tostring(message), unheard and self.sent <= 1 and "EUNHEARD" or code or "EPIPE"
end

-- Whole or not at all: what the socket doesn't take at once is waited for, so that memory stays at a
-- chunk however slow the other side is.
local function send(self, op, params)
  if self.closed then
    return nil, "file agent: " .. self.closed, self.sent == 0 and self.unheard and "EUNHEARD" or "EPIPE"
  end
  self.serial = self.serial % 0x7fffffff + 1
  self.sent = self.sent + 1
  local bytes, message, code = core.agent.encode(op, self.serial, params)
  if not bytes then
    return nil, message, code
  end
  local sent
  sent, message, code = self.channel:send(bytes)
  while sent == false do
    local ready, _, failed = self.poller:writable(files.patience)
    if self.closed then
      return nil, "file agent: " .. self.closed, "EPIPE"
    elseif not ready then
      return lost(self, "takes nothing any more", failed)
    end
    sent, message, code = self.channel:flush()
  end
  if sent == nil then
    return lost(self, message, code, code == "EPIPE" or code == "ECONNRESET")
  end
  return self.serial
end

local function receive(self, patience)
  while not self.closed do
    local bytes, fds, code = self.channel:receive()
    if bytes then
      local reply, message, bad = core.agent.decode(bytes)
      if not reply then
        return lost(self, message, bad)
      end
      return reply, fds
    elseif code == "EAGAIN" then
      local ready, _, failed = self.poller:readable(patience or files.patience)
      if not ready and not self.closed then
        return lost(self, "does not answer any more", failed)
      end
    else
      return lost(self, fds, code, tostring(fds):find("reset", 1, true) ~= nil)
    end
  end
  return nil, "file agent: " .. tostring(self.closed), "EPIPE"
end

-- The reply to a request: reply, fds | nil, message, code.
local function await(self, serial, patience)
  local reply, fds, code = receive(self, patience)
  if not reply then
    return nil, fds, code
  end
  if reply.serial ~= serial then
    return lost(self, "answers out of order", "EPROTO")
  end
  if reply.code then
    return nil, reply.message, reply.code
  end
  return reply, fds
end

local function request(self, op, params)
  local serial, message, code = send(self, op, params)
  if not serial then
    return nil, message, code
  end
  return await(self, serial, op == "remove" and files.patience_removing or nil)
end

-- A time as the agent takes it: from 1970 to 2261.
local function moment(seconds)
  return math.max(0, math.min(seconds, 9.2e9))
end

local function check_path(path)
  if type(path) ~= "string" or path == "" or path:find("%z") then
    return nil, "not a path: " .. tostring(path), "EINVAL"
  end
  return path
end

--- What a stat says: kind, mode (permission bits), uid, gid, links, size, mtime (seconds), inode,
-- allocated (bytes), and a link's target.
local function describe(stat, target)
  return {
    kind = stat.type,
    mode = stat.mode,
    uid = stat.uid,
    gid = stat.gid,
    links = stat.links,
    size = stat.size,
    mtime = stat.mtime,
    inode = stat.inode,
    allocated = stat.blocks * 512,
    target = target ~= "" and target or nil,
  }
end

-- A path inside is absolute or starts at /workspace. What the kernel says of one comes back as the code of
-- each function below: "ENOENT", "EACCES", "ENOTDIR", "EISDIR", "EROFS", "ENOSPC" ...; "EINVAL" for what is
-- no path, "EPIPE" when the agent has gone.

--- Opens a regular file for reading. The caller closes it.
---@param path string
---@return tidepool.Fd?
---@return tidepool.Stat|string stat_or_message
---@return string? code "EINVAL" too: not a regular file
function Files:open(path)
  local checked, message, code = check_path(path)
  if not checked then
    return nil, message, code
  end
  return self.lock:with(function()
    local reply, fds, failed = request(self, "open", { path = path })
    if not reply then
      return nil, fds, failed
    end
    local fd = fds and fds[1]
    if not fd then
      return lost(self, "no descriptor came", "EPROTO")
    end
    -- A FIFO, device or socket could block us or worse.
    if core.fd.kind(fd) ~= "file" then
      fd:close()
      return nil, path .. ": not a regular file", "EINVAL"
    end
    return fd, describe(reply.stat)
  end)
end

--- The file's bytes.
---@param path string
---@param options? { offset: integer, limit: integer, user: string } bytes
---@return string?
---@return string? message
---@return string? code "EFBIG" too: more than 1 GiB at a time
function Files:read(path, options)
  local fd, message, code, unheard = self:open(path)
  if not fd then
    return nil, message, code, unheard
  end
  -- What it held when it was opened: one that grows as fast as we read has no end.
  local stat, offset = message, options and options.offset or 0
  local left = math.min(options and options.limit or math.huge, stat.size > 0 and stat.size - offset or UNSIZED)
  if left > READ_MOST then
    fd:close()
    return nil, ("%s: %d bytes are too many for one string; read a part or download it"):format(path, left), "EFBIG"
  end
  local parts = {}
  while left > 0 do
    local bytes
    bytes, message, code = core.copy.read(fd, offset, math.min(left, READ))
    if not bytes then
      fd:close()
      return nil, path .. ": " .. message, code
    end
    if bytes == "" then
      break
    end
    parts[#parts + 1] = bytes
    offset, left = offset + #bytes, left - #bytes
  end
  fd:close()
  return table.concat(parts)
end

-- Each writer sends WRITEs and returns the size that the file shall have (nil: as written).
local writers = {}

writers["string"] = function(self, bytes, offset)
  offset = offset or 0
  for at = 1, #bytes, CHUNK do
    local part = (#bytes <= CHUNK) and bytes or bytes:sub(at, at + CHUNK - 1)
    local sent, message, code = send(self, "write", { offset = offset + at - 1, data = part })
    if not sent then
      return nil, message, code
    end
  end
  return offset + #bytes
end

-- An iterator: called until it returns nil or "" for bytes.
writers["function"] = function(self, next_bytes)
  local offset = 0
  while true do
    local bytes, message, code = next_bytes()
    if bytes == nil and message ~= nil then
      return nil, message, code or "EIO"
    elseif bytes == nil or bytes == "" then
      return offset
    end
    offset, message, code = writers["string"](self, bytes, offset)
    if not offset then
      return nil, message, code
    end
  end
end

-- A regular file of the host: only its data, so that holes stay holes.
local function write_file(self, fd, progress)
  local size = assert(uv.fs_fstat(fd)).size
  local from = 0
  while from < size do
    local start, stop, code = core.copy.extent(fd, from)
    if start == nil then
      return nil, stop, code
    elseif start == false then
      break
    end
    while start < math.min(stop, size) do
      local bytes, message, failed = core.copy.read(fd, start, math.min(CHUNK, stop - start))
      if not bytes then
        return nil, message, failed
      elseif bytes == "" then -- it shrank
        return start
      end
      local sent
      sent, message, failed = send(self, "write", { offset = start, data = bytes })
      if not sent then
        return nil, message, failed
      end
      start = start + #bytes
      if progress then
        progress(#bytes)
      end
    end
    from = start
  end
  return size
end

-- A pipe, terminal or socket of the host.
local function fd_reader(fd)
  local poller = async.poller(fd)
  return function()
    while true do
      if poller then
        poller:readable()
      end
      local bytes, message, code = uv.fs_read(fd, CHUNK, -1)
      if bytes and bytes ~= "" then
        return bytes
      elseif code ~= "EAGAIN" then
        if poller then
          poller:close()
        end
        if not bytes then
          return nil, message, code
        end
        return nil
      end
    end
  end
end

local function write_source(self, source, options)
  if type(source) == "string" or type(source) == "function" then
    return writers[type(source)](self, source)
  end
  local fd = type(source) == "number" and source or source:number()
  if core.fd.kind(fd) == "file" and not options.append then
    return write_file(self, fd, options.on_progress)
  end
  return writers["function"](self, fd_reader(fd))
end

--- Writes a file. Atomic: whoever reads sees the old content or the new, never a part.
---@param path string
---@param source string|(fun(): string?)|tidepool.Fd|integer bytes, a function that returns pieces and then nil, or a descriptor that is read to its end
--- options: mode, the file's own by default, or 0644; exclusive: "EEXIST" when it is there; mtime, a moment.
---@param options? { mode: integer, exclusive: boolean, mtime: number, append: boolean, on_progress: fun(bytes: integer), user: string }
---@return tidepool.Stat? of the file then
---@return string? message
---@return string? code
function Files:write(path, source, options)
  options = options or {}
  local checked, message, code = check_path(path)
  if not checked then
    return nil, message, code
  end
  return self.lock:with(function()
    local begun, failure, failed = send(self, "begin", {
      path = path,
      mode = options.mode,
      append = options.append,
      exclusive = options.exclusive,
    })
    if not begun then
      return nil, failure, failed
    end
    -- Small contents go along at once: one trip instead of two. When BEGIN fails, so does COMMIT.
    local small = type(source) == "string" and #source <= CHUNK
    local reply
    if not small then
      reply, failure, failed = await(self, begun)
      if not reply then
        return nil, failure, failed
      end
    end
    local whole, size, complaint, why = xpcall(write_source, debug.traceback, self, source, options)
    if not whole then -- the caller's function raised: what was begun must not be committed by the next write
      if not self.closed then
        request(self, "abort", {})
      end
      error(size, 0)
    end
    if not size then
      if not self.closed and not small then
        request(self, "abort", {})
      end
      return nil, complaint, why
    end
    local commit = { size = not options.append and size or nil, mtime = options.mtime and moment(options.mtime) }
    local committed
    committed, failure, failed = send(self, "commit", commit)
    if not committed then
      return nil, failure, failed
    end
    local begin_failure
    if small then
      reply, failure, failed = await(self, begun)
      if not reply and self.closed then
        return nil, failure, failed
      end
      begin_failure = not reply and { failure, failed }
    end
    reply, failure, failed = await(self, committed)
    if begin_failure then
      return nil, begin_failure[1], begin_failure[2]
    elseif not reply then
      return nil, failure, failed
    end
    return describe(reply.stat)
  end)
end

--- Adds to the end of a file, which is made when absent. Not atomic.
---@param path string
---@param source any as of write
---@param options? { mode: integer, user: string }
---@return tidepool.Stat?
---@return string? message
---@return string? code
function Files:append(path, source, options)
  local copy = { append = true, mode = options and options.mode }
  return self:write(path, source, copy)
end

--- The entries of a directory, by path. recursive: goes into directories, never through links.
---@param path string
---@param options? { recursive: boolean, user: string }
---@return tidepool.Stat[]?
---@return string? message
---@return string? code "E2BIG" too: more than a million
function Files:list(path, options)
  local checked, message, code = check_path(path)
  if not checked then
    return nil, message, code
  end
  return self.lock:with(function()
    local serial, failure, failed = send(self, "list", { path = path, recursive = options and options.recursive })
    if not serial then
      return nil, failure, failed
    end
    local entries = {}
    while true do
      local reply
      reply, failure, failed = await(self, serial)
      if not reply then
        return nil, failure, failed
      elseif reply.op == "done" then
        break
      end
      if #entries == LIST_MOST then
        return lost(self, path .. ": too many entries", "E2BIG")
      end
      local entry = describe(reply.stat, reply.target)
      entry.path = reply.path
      entries[#entries + 1] = entry
    end
    table.sort(entries, function(a, b)
      return a.path < b.path
    end)
    return entries
  end)
end

--- What a path is. follow = false: a link at its end is what is meant.
---@param path string
---@param options? { follow: boolean, user: string }
---@return tidepool.Stat?
---@return string? message
---@return string? code
function Files:stat(path, options)
  local checked, message, code = check_path(path)
  if not checked then
    return nil, message, code
  end
  return self.lock:with(function()
    local follow = not (options and options.follow == false)
    local reply, failure, failed = request(self, "stat", { path = path, follow = follow })
    if not reply then
      return nil, failure, failed
    end
    return describe(reply.stat, reply.target)
  end)
end

local function simple(op, params)
  return function(self)
    local reply, message, code = request(self, op, params)
    if not reply then
      return nil, message, code
    end
    return true
  end
end

local function run(self, op, params)
  for _, field in ipairs({ "path", "to", "target" }) do
    if params[field] ~= nil then
      local checked, message, code = check_path(params[field])
      if not checked then
        return nil, message, code
      end
    end
  end
  return self.lock:with(simple(op, params), self)
end

--- Makes a directory. parents: those above it too, and none that is there is an error.
---@param path string
---@param options? { mode: integer, parents: boolean, user: string } mode: 0755 by default
---@return true?
---@return string? message
---@return string? code
function Files:mkdir(path, options)
  options = options or {}
  return run(self, "mkdir", { path = path, mode = options.mode, parents = options.parents })
end

--- Removes a file, link or empty directory. recursive: all that is below, never through links.
---@param path string
---@param options? { recursive: boolean, user: string }
---@return true?
---@return string? message
---@return string? code "ENOTEMPTY" too
function Files:remove(path, options)
  return run(self, "remove", { path = path, recursive = options and options.recursive })
end

---@param from string
---@param to string what is there is replaced
---@return true?
---@return string? message
---@return string? code
function Files:rename(from, to)
  return run(self, "rename", { path = from, to = to })
end

---@param path string
---@param mode integer permission bits
---@return true?
---@return string? message
---@return string? code
function Files:chmod(path, mode)
  return run(self, "chmod", { path = path, mode = mode })
end

--- Makes a symbolic link at `path` that points to `target`.
---@param target string
---@param path string
---@return true?
---@return string? message
---@return string? code
function Files:symlink(target, path)
  return run(self, "symlink", { path = path, target = target })
end

--- Sets a modification time.
---@param path string
---@param mtime number moment
---@return true?
---@return string? message
---@return string? code
function Files:touch(path, mtime)
  return run(self, "times", { path = path, mtime = moment(mtime) })
end

return files

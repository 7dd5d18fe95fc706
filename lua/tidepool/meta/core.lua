---@meta tidepool.core
-- The C module, for editors and for the reference: shapes, units, errors. Nothing here runs.
-- A failure is `nil, message, code`, code being the errno's name; a wrong argument type raises.

---@class tidepool.core
local core = {}

---@class tidepool.Fd A descriptor that closes itself when collected.
local Fd = {}

--- The descriptor's number. Raises when closed.
---@return integer
function Fd:number() end

--- Closes it; twice is harmless.
function Fd:close() end

--- Hands the number over: the caller closes it from then on.
---@return integer
function Fd:take() end

core.fd = {}

--- Takes a plain descriptor number over.
---@param number integer
---@return tidepool.Fd
function core.fd.own(number) end

--- Two connected unix stream sockets, non-blocking, close-on-exec.
---@return tidepool.Fd? one
---@return tidepool.Fd|string two_or_message
---@return string? code "EMFILE", "ENFILE"
function core.fd.pair() end

--- Opens a file, close-on-exec.
---@param path string
---@param flags? string letters: r read, w write, c create, x exclusive, t truncate, a append, d directory only, p O_PATH, n no-follow, b non-blocking
---@param mode? integer of a new file, 0600 by default
---@return tidepool.Fd? fd
---@return string? message
---@return string? code
function core.fd.open(path, flags, mode) end

--- What the descriptor is: "file", "directory", "socket", "fifo", "char", "block", "link" or "other".
---@param fd tidepool.Fd|integer
---@return string? kind
---@return string? message
---@return string? code
function core.fd.kind(fd) end

--- A descriptor that is readable once the process has ended.
---@param pid integer
---@return tidepool.Fd? fd
---@return string? message
---@return string? code "ESRCH"
function core.fd.pidfd(pid) end

---@param fd tidepool.Fd|integer
---@return tidepool.Fd? fd
---@return string? message
---@return string? code "EMFILE", "EBADF"
function core.fd.duplicate(fd) end

--- Closes every descriptor from this number on. For the start of a daemon, before anything opens one.
---@param first integer
function core.fd.close_from(first) end

--- An exclusive flock, held until the descriptor is closed everywhere.
---@param fd tidepool.Fd|integer
---@return true? locked
---@return string? message
---@return string? code "EAGAIN": somebody else holds it
function core.fd.lock(fd) end

--- Reads once.
---@param fd tidepool.Fd|integer
---@param size integer bytes, at most 64 MiB
---@return string? bytes "" at the end
---@return string? message
---@return string? code "EAGAIN"
function core.fd.read(fd, size) end

--- Writes once, from `offset` bytes on.
---@param fd tidepool.Fd|integer
---@param bytes string
---@param offset? integer 0 by default
---@return integer? taken bytes
---@return string? message
---@return string? code "EAGAIN", "EPIPE"
function core.fd.write(fd, bytes, offset) end

---@class tidepool.Channel A unix stream socket of frames that may carry descriptors.
local Channel = {}

--- Queues one message of at most 4 MiB and writes what the socket takes; descriptors are duplicated.
---@param bytes string
---@param fds? (tidepool.Fd|integer)[] at most 8
---@return boolean? written true: all of it, false: some waits for flush
---@return string? message
---@return string? code "EMSGSIZE", "ENOBUFS" (16 MiB wait), "EPIPE"
function Channel:send(bytes, fds) end

--- Writes more of what waits.
---@return boolean? empty
---@return string? message
---@return string? code
function Channel:flush() end

--- The next message.
---@return string? bytes
---@return tidepool.Fd[]|string|nil fds_or_message
---@return string? code "EAGAIN": none yet, "EPIPE": the peer closed, "EBADMSG", "EMSGSIZE": not our framing
function Channel:receive() end

---@return integer? number nil when closed
function Channel:number() end

function Channel:close() end

core.channel = {}

--- Takes the socket over.
---@param fd tidepool.Fd|integer
---@return tidepool.Channel
function core.channel.wrap(fd) end

---@param path string
---@return tidepool.Channel? channel
---@return string? message
---@return string? code "ENOENT", "ECONNREFUSED", "EACCES"
function core.channel.connect(path) end

--- A listening socket whose file has mode 0600.
---@param path string
---@return tidepool.Fd? fd
---@return string? message
---@return string? code "EADDRINUSE"
function core.channel.listen(path) end

---@param fd tidepool.Fd|integer
---@return tidepool.Channel? channel
---@return { pid: integer, uid: integer, gid: integer }|string peer_or_message by SO_PEERCRED
---@return string? code "EAGAIN": nobody waits
function core.channel.accept(fd) end

return core

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

--- What another process has open under that number, held by us too.
---@param pidfd tidepool.Fd of the process
---@param number integer
---@return tidepool.Fd? fd
---@return string? message
---@return string? code "EBADF", "ESRCH", "EPERM"
function core.fd.borrow(pidfd, number) end

--- How many bytes a socket or pipe has for us; 0 at its end, too.
---@param fd tidepool.Fd|integer
---@return integer? bytes
---@return string? message
---@return string? code "EINVAL" of a socket that listens
function core.fd.waiting(fd) end

--- Closes every descriptor from this number on. For the start of a daemon, before anything opens one.
---@param first integer
function core.fd.close_from(first) end

--- An exclusive flock, held until the descriptor is closed everywhere.
---@param fd tidepool.Fd|integer
---@return true? locked
---@return string? message
---@return string? code "EAGAIN": somebody else holds it
function core.fd.lock(fd) end

--- Raises this process's limit of open descriptors: the soft one to the hard one, and both to `most` where
-- the kernel lets us. What it starts inherits it.
---@param most integer
---@return integer? limit
---@return string? message
---@return string? code
function core.fd.raise_limit(most) end

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

---@class tidepool.Poll A descriptor's readiness behind an epoll of its own, for the loop to wait on.
local Poll = {}

--- Readable whenever the watched descriptor is ready, at its end or broken.
---@return integer
function Poll:number() end

---@param events string "r", "w" or "rw"
---@return true? set
---@return string? message
---@return string? code
function Poll:set(events) end

function Poll:close() end

core.poll = {}

--- The descriptor stays the caller's and must outlive the poll.
---@param fd tidepool.Fd|integer
---@param events string "r", "w" or "rw"
---@return tidepool.Poll? poll
---@return string? message
---@return string? code "EPERM": a plain file, which is always ready; "EBADF", "EMFILE"
function core.poll.open(fd, events) end

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

-- Copies between host and sandbox, the host's side. An entry is one name below an open directory:
-- "", ".", "..", a "/" or NUL in it are "EINVAL", and no call follows a link. Sizes and offsets: bytes.
core.copy = {}

--- Copies between regular files, in the kernel where it can. Less than `length` only at the end of `input`.
---@param input tidepool.Fd|integer
---@param input_offset number
---@param output tidepool.Fd|integer
---@param output_offset number
---@param length number
---@return number? count
---@return string? message
---@return string? code "ENOSPC", "EIO" ...
function core.copy.range(input, input_offset, output, output_offset, length) end

--- The next stretch of data of a sparse file at or after `from`; false when only a hole is left.
---@param fd tidepool.Fd|integer
---@param from number
---@return number|false|nil start
---@return number|string|nil stop_or_message the first byte behind it
---@return string? code
function core.copy.extent(fd, from) end

--- Reads at an offset.
---@param fd tidepool.Fd|integer
---@param offset number
---@param length number at most 64 MiB
---@return string? bytes "" at the end
---@return string? message
---@return string? code
function core.copy.read(fd, offset, length) end

--- Opens an entry; never waits for a FIFO.
---@param directory tidepool.Fd|integer
---@param name string
---@param letters? string r read, w write, x make it (exclusive), t truncate, d directory only
---@param mode? integer of a new file, 0600 by default
---@return tidepool.Fd? fd
---@return string? message
---@return string? code "ELOOP" (a link), "EEXIST", "ENOENT", "ENOTDIR"
function core.copy.open(directory, name, letters, mode) end

---@param directory tidepool.Fd|integer
---@param name string
---@param mode? integer 0700 by default
---@return true? made
---@return string? message
---@return string? code
function core.copy.mkdir(directory, name, mode) end

---@param directory tidepool.Fd|integer
---@param name string
---@param target string any text: nothing looks at it here
---@return true? made
---@return string? message
---@return string? code
function core.copy.symlink(directory, name, target) end

--- Removes a file or link.
---@param directory tidepool.Fd|integer
---@param name string
---@return true? removed
---@return string? message
---@return string? code
function core.copy.unlink(directory, name) end

--- Renames within the directory and replaces what is there.
---@param directory tidepool.Fd|integer
---@param from string
---@param to string
---@return true? renamed
---@return string? message
---@return string? code
function core.copy.rename(directory, from, to) end

--- Of the entry itself, also when it is a link: `kind` (file, directory, link, other), `mode`, `size`.
---@param directory tidepool.Fd|integer
---@param name string
---@return { kind: string, mode: integer, size: number }? stat
---@return string? message
---@return string? code
function core.copy.stat(directory, name) end

--- What an entry gets last, when nothing writes to it any more.
---@param fd tidepool.Fd|integer
---@param mode integer
---@param mtime? number seconds since the epoch
---@param size? number
---@return true? done
---@return string? message
---@return string? code
function core.copy.finish(fd, mode, mtime, size) end

-- Plans: flat lists of steps `{ "operation", arguments... }`, see core/plan.h for the table. "?" after an
-- operation's name: its failure is ignored.
core.plan = {}

--- A plan as the bytes that a spawner takes.
---@param steps table[] at most 256
---@return string? bytes
---@return string? message names the step that is wrong
---@return string? code "EINVAL", "E2BIG"
function core.plan.encode(steps) end

--- Whether a spawner would take these bytes as a plan.
---@param bytes string
---@return integer? steps
---@return string? message
---@return string? code "EBADMSG"
function core.plan.check(bytes) end

--- The name of an errno value.
---@param errno integer
---@return string code "ENOENT" and the like, "EUNKNOWN"
function core.plan.code(errno) end

core.namespace = {}

--- A mount namespace for the calling thread and all that it starts from now on, which still receives the
--- host's mounts. Once a process: later calls do nothing.
---@return true? done
---@return string? message
---@return string? code "EPERM"
function core.namespace.unshare_mount() end

core.seccomp = {}

--- The system call filter of a sandbox's processes: struct sock_filter[].
---@return string? bytes
---@return string? message
---@return string? code
function core.seccomp.filter() end

-- Control groups (v2) by an open directory; what does not block.
core.cgroup = {}

--- Makes a group for one process below `directory`, unless it is there, its cgroup.procs owned by `uid`.
---@param directory tidepool.Fd|integer
---@param name string
---@param uid integer
---@return tidepool.Fd? group its directory
---@return string? message
---@return string? code "ENOENT", "EAGAIN"
function core.cgroup.leaf(directory, name, uid) end

--- SIGKILL to all in the group and below, at once.
---@param directory tidepool.Fd|integer
---@return true? done
---@return string? message
---@return string? code
function core.cgroup.kill(directory) end

--- Sends a signal to each process in the group, never to one that has left it.
---@param directory tidepool.Fd|integer
---@param signal integer
---@return true? done
---@return string? message
---@return string? code "ENOENT"
function core.cgroup.signal(directory, signal) end

--- Whether a process is in the group or below.
---@param directory tidepool.Fd|integer
---@return boolean? populated
---@return string? message
---@return string? code
function core.cgroup.populated(directory) end

-- What leads a sandbox's connections to an egress process, see core/steer.h. The sockets and the map come
-- from the plan step `steer`; without IPv6 there are two sockets less.
core.steer = {}

---@class tidepool.SteerSockets
---@field tcp4? tidepool.Fd|integer
---@field tcp6? tidepool.Fd|integer
---@field udp4? tidepool.Fd|integer
---@field udp6? tidepool.Fd|integer

--- Whether the kernel lets us steer by bpf.
---@return true? possible
---@return string? message
---@return string? code "EPERM", "EINVAL", "ENOSYS"
function core.steer.probe() end

--- From now on connections reach the sockets. Twice is harmless.
---@param map tidepool.Fd|integer|nil of mode "bpf"
---@param sockets tidepool.SteerSockets
---@param mode? "bpf"|"tproxy" "bpf" when left out
---@return true? done
---@return string? message
---@return string? code "EBADF", "EINVAL", "EPERM"
function core.steer.open(map, sockets, mode) end

--- From now on connections are refused, and those that nobody has accepted are reset.
---@param map tidepool.Fd|integer|nil of mode "bpf"
---@param sockets tidepool.SteerSockets
---@param mode? "bpf"|"tproxy"
---@return true? done
---@return string? message
---@return string? code
function core.steer.shut(map, sockets, mode) end

core.init = {}

---@type integer the protocol's version, core/init/protocol.h
core.init.VERSION = 1

---@class tidepool.InitStart
---@field argv string[]
---@field env? table<string|integer, string> "K=V" strings, or names with values
---@field user? string a name or an id; root when left out
---@field cwd? string the user's home when left out
---@field key? string identifies the request over a lost connection
---@field name? string
---@field ring? integer bytes of output kept, 4 KiB to 64 MiB, 256 KiB when left out
---@field tty? boolean
---@field stdin? boolean keep stdin open for writers, else /dev/null
---@field cols? integer
---@field rows? integer
---@field attach? boolean a second descriptor, a socket, is attached from offset 0
---@field input? boolean that client may write
---@field lossless? boolean the process waits for that client
---@field follow? boolean that client stays until the process ends

--- A request to a sandbox's init, to be sent over its channel. Descriptors that go with it: `start` the
-- process's cgroup and then, with `attach`, a socket; `attach` a socket; `agent` a cgroup and a socket.
-- attach: id, offset, input, lossless, follow. signal: id, signal. forget: id. agent: user. connect: family
-- (4 or 6), port. shutdown: grace (milliseconds).
---@param kind "hello"|"start"|"attach"|"signal"|"list"|"forget"|"agent"|"connect"|"shutdown"
---@param serial integer comes back with the answer; not 0
---@param fields? tidepool.InitStart|table
---@return string? bytes
---@return string? message
---@return string? code "E2BIG": longer than a frame
function core.init.encode(kind, serial, fields) end

--- What init says: `type` is "welcome" (version, nonce, processes), "ok", "connected", "failed" (step, one of
-- "request", "user", "cwd", "exec", "spawn"; code; message), "started" (id, pid), "process" (id, pid, tty, stdin,
-- running or kind and code, started in seconds since 1970, wall seconds, start_offset, end_offset, dropped bytes,
-- key, name, user, cwd, argv) or "exit" (id, kind "code" or "signal", code, wall, end_offset, dropped,
-- cpu_seconds, memory in bytes); `serial` is the request's, 0 for an exit.
---@param bytes string one frame
---@return table? message
---@return string? complaint
---@return string? code "EBADMSG"
function core.init.decode(bytes) end

--- A channel to the init whose pid this is outside.
---@param pid integer
---@return tidepool.Channel? channel
---@return string? message
---@return string? code "ENOENT", "ECONNREFUSED", "EAGAIN"
function core.init.connect(pid) end

core.agent = {}

--- A request to a file agent. Relative paths are in /workspace; a mode left out is 0644, 0755 or what is there.
-- All but write, commit and abort have a path. begin: mode, append, exclusive. write: offset, data. commit:
-- size, mtime (seconds). list: recursive. stat: follow. mkdir: mode, parents. remove: recursive. rename: to.
-- chmod: mode. symlink: target. times: mtime.
---@param op "open"|"begin"|"write"|"commit"|"abort"|"list"|"stat"|"mkdir"|"remove"|"rename"|"chmod"|"symlink"|"times"
---@param serial integer
---@param fields? table
---@return string? bytes
---@return string? message
---@return string? code "EMSGSIZE"
function core.agent.encode(op, serial, fields) end

--- An agent's answer: `op` (list is answered by "entry" for each and "done"), `serial`, and `code` and `message`
-- of a failure, else what there is of `stat` (type, mode, uid, gid, links, size, mtime, inode, blocks), `path` and
-- `target`. `open` comes with a descriptor.
---@param bytes string one frame
---@return table? answer
---@return string? complaint
---@return string? code "EBADMSG"
function core.agent.decode(bytes) end

core.stream = {}

---@class tidepool.Stream A client's end of an attachment to a process.
local Stream = {}

--- The next frame, as several values: "data", stream (1 stdout, 2 stderr), offset, bytes | "lost", offset, count |
-- "exit", "code" or "signal", code, wall seconds, end offset | "end", offset | "stdin_closed". "exit" and "end" are last.
---@return string? type
---@return any first_or_message
---@return any second_or_code "EAGAIN": wait for number() to be readable; "EPIPE": cut off; "EBADMSG"
---@return any third
---@return any fourth
function Stream:read() end

--- Gives bytes to the process's input. How many were taken; they are on their way once flush() says true.
---@param bytes string
---@return integer? taken
---@return string? message
---@return string? code "EAGAIN": wait for number() to be writable; "EPIPE"
function Stream:write(bytes) end

--- Ends the input; a terminal gets its end-of-file character.
---@return true? done
---@return string? message
---@return string? code "EAGAIN": try again
function Stream:eof() end

--- Sets the size of the process's terminal.
---@param cols integer
---@param rows integer
---@return true? done
---@return string? message
---@return string? code "EAGAIN": try again
function Stream:resize(cols, rows) end

--- Sends first what the socket of `other`, which broke, has not taken of its last frame.
---@param other tidepool.Stream
---@return true? done
---@return string? message
---@return string? code "ENOMEM"
function Stream:resume(other) end

--- True when all that was taken is with the socket.
---@return boolean? empty
---@return string? message
---@return string? code
function Stream:flush() end

--- The descriptor to wait for; nothing when closed.
---@return integer?
function Stream:number() end

--- Detaches. Twice is harmless.
function Stream:close() end

---@class tidepool.StreamDecoder The same frames, out of bytes that are fed.
local StreamDecoder = {}

---@param bytes string
---@return true? fed
---@return string? message
---@return string? code "ENOMEM"
function StreamDecoder:feed(bytes) end

--- As Stream:read; "EAGAIN" asks for more bytes.
function StreamDecoder:next() end

--- Takes the socket over.
---@param fd tidepool.Fd|integer
---@return tidepool.Stream
function core.stream.open(fd) end

---@return tidepool.StreamDecoder
function core.stream.decoder() end

return core

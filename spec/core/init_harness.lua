--- Runs tidepool-init as pid 1 of a scratch root, without the spawner, and talks to it.
--
-- For init's own specs: a pid and a mount namespace of util-linux's `unshare`, a tmpfs as root with
-- the host's /usr, a terminal file system, two users. Everything blocks, with time limits.
local uv = require("luv")
local ffi = require("ffi")
local core = require("tidepool.core")

ffi.cdef([[
  struct harness_pollfd { int fd; short events, revents; };
  int poll(struct harness_pollfd *fds, unsigned long count, int timeout);
  long read(int fd, void *bytes, unsigned long length);
]])

local harness = {}
local Init = {}
Init.__index = Init

local SCRIPT = [[
set -e
root=$1 program=$2 filter=$3
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr proc dev/pts etc tmp root workspace .tidepool run small
chmod 1777 tmp
mount -t tmpfs -o size=1m,mode=1777 tmpfs small
for name in bin sbin lib lib32 lib64 libx32; do
  if [ -L "/$name" ]; then ln -s "usr/$name" "$name"; fi
done
mount --bind /usr usr
mount -t proc proc proc
for name in null zero full random urandom tty; do
  : > "dev/$name"
  mount --bind "/dev/$name" "dev/$name"
done
mount -t devpts -o newinstance,ptmxmode=666,gid=5,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/1 dev/stdout
printf 'root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::/workspace:/bin/bash\nnolinefeed:x:7:7:::' > etc/passwd
printf 'root:x:0:\nagent:x:1000:\nstaff:x:50:other,agent\nadm:x:4:agent\n' > etc/group
chown 1000:1000 workspace
cp "$program" .tidepool/init
printf 0123456789abcdef > .tidepool/nonce
[ -z "$filter" ] || cp "$filter" .tidepool/filter
exec chroot . /.tidepool/init < /dev/null > /dev/null 2>&1
]]

function harness.available()
  return uv.getuid() == 0 and uv.fs_stat(harness.program()) ~= nil
end

function harness.program()
  return (os.getenv("TIDEPOOL_BUILD") or ".build") .. "/tidepool-init"
end

--- Waits for a descriptor; true or false when `timeout` (seconds, 60 unless given) has passed.
function harness.poll(fd, writable, timeout)
  local entry = ffi.new("struct harness_pollfd[1]", { { fd, writable and 4 or 1, 0 } })
  return ffi.C.poll(entry, 1, math.floor((timeout or 60) * 1000)) > 0
end

function harness.start(options)
  options = options or {}
  local root = assert(uv.fs_mkdtemp("/tmp/tidepool-init-XXXXXX"))
  local path = root .. ".sock"
  local listener = assert(core.channel.listen(path))
  local exited = {}
  -- Whatever becomes of the spec, init must not outlive it.
  local args = { "--pdeathsig", "KILL", "unshare", "-m", "-p", "-f", "--kill-child", "--propagation", "private", "sh", "-c", SCRIPT, "sh" }
  args[#args + 1] = root
  args[#args + 1] = assert(uv.fs_realpath(harness.program()))
  args[#args + 1] = options.filter or ""
  local log = assert(core.fd.open(root .. ".log", "wct"))
  local handle, pid = uv.spawn("setpriv", {
    args = args,
    stdio = { nil, log:number(), log:number(), listener:number() },
  }, function(code, signal)
    exited.code, exited.signal = code, signal
  end)
  assert(handle, pid)
  listener:close()
  log:close()
  local self = setmetatable({ handle = handle, exited = exited, root = root, path = path }, Init)
  self.serial = 0
  self.events = {}
  self:connect()
  assert(self:request("hello").type == "welcome")
  return self
end

--- The channel to init; a new one replaces the old.
function Init:connect()
  self.channel = assert(core.channel.connect(self.path))
  return self.channel
end

function Init:send(kind, fields, fds)
  self.serial = self.serial + 1
  assert(self.channel:send(core.init.encode(kind, self.serial, fields or {}), fds) ~= nil, "init is gone")
  return self.serial
end

--- The next message, whichever it is; nil when `timeout` has passed or init has hung up.
function Init:receive(timeout)
  while true do
    local bytes, fds, code = self.channel:receive()
    if bytes then
      local message = assert(core.init.decode(bytes))
      message.fds = fds
      return message
    elseif code ~= "EAGAIN" then
      return nil, fds, code
    end
    if not harness.poll(self.channel:number(), false, timeout) then
      return nil, "timeout", "ETIMEDOUT"
    end
  end
end

--- Sends and waits for the answer; events that come first are kept. LIST gives its processes.
function Init:request(kind, fields, fds, timeout)
  local serial = self:send(kind, fields, fds)
  local processes = {}
  while true do
    local message = assert(self:receive(timeout))
    if message.serial == 0 then
      self.events[#self.events + 1] = message
    elseif message.type == "process" then
      processes[#processes + 1] = message
    else
      assert(message.serial == serial, "answer to another request")
      message.processes_listed = processes
      return message
    end
  end
end

--- The EXIT event of a process.
function Init:exit_of(id, timeout)
  while true do
    for index, event in ipairs(self.events) do
      if event.id == id then
        return table.remove(self.events, index)
      end
    end
    local message, err, code = self:receive(timeout)
    if not message then
      return nil, err, code
    end
    self.events[#self.events + 1] = message
  end
end

local function default(fields)
  fields.user = fields.user or "agent"
  if fields.lossless == nil then
    fields.lossless = true
  end
  if fields.follow == nil then
    fields.follow = true
  end
  return fields
end

--- Starts a process with an attached stream: answer, stream.
function Init:start(fields, fds)
  fields = default(fields)
  fields.attach = true
  local ours, theirs = assert(core.fd.pair())
  fds = fds or {}
  fds[#fds + 1] = theirs
  local answer = self:request("start", fields, fds)
  theirs:close()
  return answer, core.stream.open(ours)
end

--- Starts a process that nobody is attached to.
function Init:start_detached(fields)
  return self:request("start", default(fields), {})
end

function Init:attach(id, fields)
  local ours, theirs = assert(core.fd.pair())
  fields.id = id
  local answer = self:request("attach", fields, { theirs })
  theirs:close()
  return answer, core.stream.open(ours)
end

--- One frame as a table, after waiting for it; nil, message, code.
function harness.frame(stream, timeout)
  while true do
    local kind, a, b, c, d = stream:read()
    if kind == "data" then
      return { type = "data", stream = a, offset = b, bytes = c }
    elseif kind == "lost" then
      return { type = "lost", offset = a, count = b }
    elseif kind == "exit" then
      return { type = "exit", kind = a, code = b, wall = c, offset = d }
    elseif kind then
      return { type = kind, offset = a }
    elseif b ~= "EAGAIN" then
      return nil, a, b
    end
    if not harness.poll(stream:number(), false, timeout) then
      return nil, "timeout", "ETIMEDOUT"
    end
  end
end

--- Reads to the last frame: { stdout, stderr, lost, exit, closed }.
function harness.collect(stream, timeout)
  local parts, lost, closed = { {}, {} }, 0, false
  while true do
    local frame, message, code = harness.frame(stream, timeout)
    if not frame then
      return { stdout = table.concat(parts[1]), stderr = table.concat(parts[2]), lost = lost, error = message, code = code }
    elseif frame.type == "data" then
      table.insert(parts[frame.stream], frame.bytes)
    elseif frame.type == "lost" then
      lost = lost + frame.count
    elseif frame.type == "stdin_closed" then
      closed = true
    else
      return {
        stdout = table.concat(parts[1]),
        stderr = table.concat(parts[2]),
        lost = lost,
        closed = closed,
        exit = frame.type == "exit" and frame or nil,
        ended = frame.type == "end" or nil,
      }
    end
  end
end

--- Reads until the output so far matches a pattern; the output.
function harness.expect(stream, pattern, timeout)
  local text, deadline = "", uv.hrtime() + (timeout or 60) * 1e9
  while not text:find(pattern) do
    local frame, message = harness.frame(stream, (deadline - uv.hrtime()) / 1e9)
    if not frame then
      return nil, (message or "") .. ": " .. text
    end
    text = text .. (frame.bytes or "")
  end
  return text
end

-- True once nothing waits any more, false when `timeout` passes.
local function flushed(stream, timeout)
  while true do
    local empty, message = stream:flush()
    if empty == nil then
      error(message)
    elseif empty or not harness.poll(stream:number(), true, timeout) then
      return empty
    end
  end
end

--- Writes all of it, waiting for room; false when `timeout` passes without any.
function harness.write(stream, bytes, timeout)
  local at = 1
  while at <= #bytes do
    local count, message, code = stream:write(bytes:sub(at, at + 65535))
    if count then
      at = at + count
    elseif code ~= "EAGAIN" then
      return nil, message, code
    elseif not harness.poll(stream:number(), true, timeout) then
      return false
    end
  end
  return flushed(stream, timeout)
end

function harness.eof(stream)
  while not stream:eof() do
    assert(harness.poll(stream:number(), true))
  end
end

--- Runs a shell line to its end: the collected result.
function Init:sh(line, fields)
  fields = fields or {}
  fields.argv = { "sh", "-c", line }
  local answer, stream = self:start(fields)
  if answer.type ~= "started" then
    stream:close()
    return answer
  end
  local result = harness.collect(stream)
  stream:close()
  result.id = answer.id
  return result
end

--- An agent's channel, and a function that sends one request and returns its answer.
function Init:agent(user)
  local ours, theirs = assert(core.fd.pair())
  local answer = self:request("agent", { user = user or "agent" }, { theirs })
  theirs:close()
  if answer.type ~= "started" then
    return nil, answer
  end
  local channel, serial = core.channel.wrap(ours), 0
  local agent = { channel = channel, pid = answer.pid }
  function agent.send(op, fields)
    serial = serial + 1
    assert(channel:send(core.agent.encode(op, serial, fields or {})) ~= nil, "the agent is gone")
    assert(flushed(channel))
    return serial
  end
  function agent.receive(timeout)
    while true do
      local bytes, fds, code = channel:receive()
      if bytes then
        local message = assert(core.agent.decode(bytes))
        message.fds = fds
        return message
      elseif code ~= "EAGAIN" then
        return nil, fds, code
      end
      if not harness.poll(channel:number(), false, timeout) then
        return nil, "timeout", "ETIMEDOUT"
      end
    end
  end
  function agent.call(op, fields)
    local sent = agent.send(op, fields)
    local message = assert(agent.receive())
    assert(message.serial == sent)
    return message
  end
  return agent
end

--- init's pid as the host sees it.
function Init:pid()
  local unshare = self.handle:get_pid()
  local file = assert(io.open(("/proc/%d/task/%d/children"):format(unshare, unshare)))
  local pid = tonumber(file:read("*a"):match("%d+"))
  file:close()
  return pid
end

--- How many descriptors init has, once the number stands still.
function Init:fd_count()
  local last, same = -1, 0
  while same < 3 do
    local now = self:fd_count_now()
    same = now == last and same + 1 or 0
    last = now
    uv.sleep(20)
  end
  return last
end

function Init:fd_count_now()
  local count = 0
  local scan = assert(uv.fs_scandir(("/proc/%d/fd"):format(self:pid())))
  while uv.fs_scandir_next(scan) do
    count = count + 1
  end
  return count
end

function harness.read_fd(fd, size)
  local bytes = ffi.new("char[?]", size)
  local got = tonumber(ffi.C.read(fd:number(), bytes, size))
  return got >= 0 and ffi.string(bytes, got) or nil
end

function Init:stop()
  self.handle:kill("sigkill")
  for _ = 1, 6000 do
    if self.exited.code then
      break
    end
    uv.run("nowait")
    uv.sleep(10)
  end
  self.channel:close()
  self.handle:close()
  uv.run("nowait")
  os.remove(self.path)
  os.remove(self.root .. ".log")
  uv.fs_rmdir(self.root)
end

--- Whether fn comes true within a minute.
function harness.eventually(fn)
  for _ = 1, 6000 do
    if fn() then
      return true
    end
    uv.sleep(10)
  end
  return false
end

return harness

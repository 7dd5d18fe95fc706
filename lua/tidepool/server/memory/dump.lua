--- Writing a sandbox's processes to files: what must hold before, the dump, and what is noted beside it.
--
-- Runs in the server, with the sandbox's lock held. The order: nothing is touched until all can be
-- captured; then init lets go of the outside, all stands still, CRIU reads it and leaves it as it was.
-- A dump directory is whole when its memory.json is there, which is written last.
local uv = require("luv")
local async = require("tidepool.async")
local names = require("tidepool.file").names
local capturable = require("tidepool.server.memory.capturable")
local cgroup = require("tidepool.server.cgroup")
local cjson = require("cjson")
local core = require("tidepool.core")
local criu = require("tidepool.server.memory.criu")
local hook = require("tidepool.server.memory.hook")
local host = require("tidepool.server.host")
local read_file = require("tidepool.file").read

local dump = {}

local FREEZE = 10000 -- milliseconds until all must stand still
local STARTING = 3 -- seconds in which what is being started must be
local AGENTS = 1 -- seconds that a file operation gets to its end
local MiB = 1048576
local SPARE = 64 * MiB -- that a dump leaves free
local LEAST, RATE = 20, 20 * 1048576 -- a dump may take so many seconds, and one more for so many bytes

local function now()
  local seconds, micros = uv.gettimeofday()
  return seconds + micros / 1e6
end

--- The processes of a sandbox: a list of { pid, leaf = the name of its group, "" for the sandbox's own }.
function dump.processes(sandbox)
  local list, cgroups, key = {}, sandbox.server.cgroups, sandbox:key()
  local function add(group, leaf)
    for pid in (read_file(cgroup.directory(cgroups, group) .. "/cgroup.procs") or ""):gmatch("%d+") do
      list[#list + 1] = { pid = tonumber(pid), leaf = leaf }
    end
  end
  add(key, "")
  for _, leaf in ipairs(cgroup.leaves(cgroups, key)) do
    add(key .. "/" .. leaf, leaf)
  end
  return list
end

--- Its number inside, or nil when it has ended.
function dump.inner(pid)
  local numbers = (read_file(("/proc/%d/status"):format(pid)) or ""):match("NSpid:([%s%d]+)")
  return numbers and tonumber(numbers:match("(%d+)%s*$"))
end

local function pids_of(sandbox)
  local list = dump.processes(sandbox)
  for i, process in ipairs(list) do
    list[i] = process.pid
  end
  return list
end

-- Hexadecimal as in /proc/net/tcp: words of four bytes in the host's order. 10.200.0.2 and its like of v6.
local own = { ["0200C80A"] = true, ["646974FD000000650000000002000000"] = true }

--- How many TCP connections lead to the outside: they don't survive, as over a laptop's sleep.
function dump.connections(pid)
  local count = 0
  for _, name in ipairs({ "tcp", "tcp6" }) do
    for line in (read_file(("/proc/%d/net/%s"):format(pid, name)) or ""):gmatch("[^\n]+") do
      local here, there, state = line:match("^%s*%d+: (%x+):%x+ (%x+):%x+ (%x%x) ")
      here = here and here:gsub("^0000000000000000FFFF0000", "")
      there = there and there:gsub("^0000000000000000FFFF0000", "")
      if state == "01" and own[here] and not own[there] then
        count = count + 1
      end
    end
  end
  return count
end

-- Mounts of the host's devices and of the control groups: CRIU is told of them by name, and where they
-- are at the restore. { key =, point =, source = } each; no source: the control groups.
local function outside_mounts(pid)
  local list = {}
  for line in (read_file(("/proc/%d/mountinfo"):format(pid)) or ""):gmatch("[^\n]+") do
    local root, point, kind = line:match("^%d+ %d+ %S+ (%S+) (%S+) .- %- (%S+) ")
    if kind == "devtmpfs" then
      list[#list + 1] = { key = "device" .. point, point = point, source = "/dev" .. root }
    elseif kind == "cgroup2" then
      list[#list + 1] = { key = "cgroup", point = point }
    end
  end
  return list
end

-- Without CAP_SYS_RESOURCE (some hosts withhold it) only the namespace's owner may read limits inside.
-- One that was restored is root's own.
local function owner(sandbox)
  local set = (read_file("/proc/self/status") or ""):match("CapEff:%s*%x*(%x)%x%x%x%x%x%x\n")
  if sandbox.run.restored or not set or tonumber(set, 16) % 2 == 1 then
    return nil
  end
  return sandbox.run.base
end

local function command(sandbox, found, directory, outside)
  local argv = { sandbox.server.tools .. "/tidepool-criu" }
  local function add(...)
    for _, word in ipairs({ ... }) do
      argv[#argv + 1] = word
    end
  end
  add("--of", tostring(sandbox.run.pid))
  local user, notes = owner(sandbox), criu.notes(sandbox.server.directory)
  if user then
    add("--owner", tostring(user))
  elseif notes then
    add("--run", notes)
  end
  add("--")
  add(unpack(found.command))
  add("dump", "--tree", tostring(sandbox.run.pid), "--images-dir", directory, "--log-file", "dump.log", "-v1")
  add("--leave-running", "--freeze-cgroup", cgroup.directory(sandbox.server.cgroups, sandbox:key()))
  add("--manage-cgroups=ignore", "--empty-ns", "net", "--network-lock", "skip", "--tcp-established")
  add("--file-locks", "--skip-in-flight", "--link-remap", "--ghost-limit", "1G")
  add("--action-script", argv[1])
  if user then
    add("--unprivileged")
  end
  for _, mount in ipairs(outside) do
    add("--external", ("mnt[%s]:%s"):format(mount.point, mount.key))
  end
  argv.env = hook.environment(directory .. "/hook")
  return argv
end

--- What CRIU complained of first, from its log.
function dump.complaint(directory, name)
  local text = read_file(directory .. "/" .. name) or ""
  for line in text:gmatch("Error %b(): ([^\n]+)") do
    if not line:find("RLIMIT_NOFILE", 1, true) then -- without the capability it lives with what it has
      return line
    end
  end
  return "no reason given"
end

--- Runs CRIU within `limit` seconds: true | nil, message, code; on_start, if given, is told its pid. Its children
-- may outlive it after a failure; a restore's are in the sandbox's groups.
function dump.run(argv, directory, log, limit, on_start)
  local cancel, late
  local said, message, code = core.fd.open(directory .. "/said", "wct") -- no pipe: they would hold it open
  if not said then
    return nil, message, code
  end
  argv.stderr = said:number()
  argv.on_start = function(pid)
    if on_start then
      on_start(pid)
    end
    cancel = async.after(limit, function()
      cancel, late = nil, true
      uv.kill(pid, "sigkill")
    end)
  end
  local result
  result, message, code = async.command(argv)
  said:close()
  if cancel then
    cancel()
  end
  if not result then
    return nil, message, code
  elseif late then
    return nil, ("not done within %d s"):format(limit), "ETIMEDOUT"
  elseif result.code == 0 and result.signal == 0 then
    uv.fs_unlink(directory .. "/said")
    return true
  end
  if result.signal ~= 0 then
    return nil, ("CRIU was killed by signal %d: %s"):format(result.signal, dump.complaint(directory, log)), "EIO"
  end
  local name, complaint = (read_file(directory .. "/said") or ""):match("^(E%u+): ([^\n]*)")
  complaint = complaint or dump.complaint(directory, log)
  return nil, complaint, name or complaint:find("No space left", 1, true) and "ENOSPC" or "EIO"
end

--- Bytes of all files of a directory.
function dump.size(directory)
  local bytes = 0
  for _, name in ipairs(names(directory)) do
    local stat = uv.fs_lstat(directory .. "/" .. name)
    bytes = bytes + (stat and stat.size or 0)
  end
  return bytes
end

function dump.write(directory, manifest)
  local file, message = io.open(directory .. "/memory.json.new", "w")
  local ok = file and file:write(cjson.encode(manifest))
  if file then
    file:close()
  end
  if not ok then
    return nil, message or "memory.json can't be written", "EIO"
  end
  return uv.fs_rename(directory .. "/memory.json.new", directory .. "/memory.json")
end

--- What is noted of a dump, or nil when there is none that is whole.
function dump.read(directory)
  local text = read_file(directory .. "/memory.json")
  local ok, manifest = pcall(cjson.decode, text or "")
  return ok and manifest or nil
end

function dump.remove(directory)
  for _, name in ipairs(names(directory)) do
    uv.fs_unlink(directory .. "/" .. name)
  end
  return uv.fs_rmdir(directory)
end

-- Ends the file agents, each after what it does, within AGENTS seconds. Their group goes with them: Linux 6.18 kills
-- whatever is cloned into a group that was once killed.
local function end_agents(sandbox, till)
  local cgroups, group = sandbox.server.cgroups, sandbox:leaf_group("files")
  local patience = uv.hrtime() + AGENTS * 1e9
  cgroup.signal(cgroups, group, 15)
  while not cgroup.remove_leaf(cgroups, group) and uv.hrtime() < till do
    if uv.hrtime() > patience then
      cgroup.kill(cgroups, group)
    end
    async.sleep(0.001)
  end
end

-- Clients' ends are let go of: by init, and by the file agents, which end.
local function quiesce(sandbox)
  local till = uv.hrtime() + STARTING * 1e9
  local link = sandbox.link
  local ok, message, code
  link.let_go = true -- whoever it does not hear asks again
  repeat
    ok, message, code = link:request("quiesce", {}, nil, 15)
    if code == "EBUSY" then
      async.sleep(0.005)
    end
  until code ~= "EBUSY" or uv.hrtime() > till
  if not ok and not link:is_closed() then -- closed, it has let go; a request that came too late hid the answer
    link.let_go = nil
    return nil, message, code
  end
  sandbox.link = nil -- so that its end is nobody's alarm
  -- The last that init closes; before that some client's end may still be open.
  while not link:is_closed() and uv.hrtime() < till do
    async.sleep(0.001)
  end
  link:close()
  end_agents(sandbox, uv.hrtime() + STARTING * 1e9)
  return true
end

-- Freezes it at a moment in which CRIU can stop all of it: a process that starts a program can't be stopped
-- until that runs, which takes a moment, or for ever. The moment (of uv.hrtime) | nil, message, code
local function stand_still(sandbox)
  local group = cgroup.directory(sandbox.server.cgroups, sandbox:key())
  local till, pause = uv.hrtime() + STARTING * 1e9, 0.001
  while true do
    local froze = uv.hrtime()
    local ok, message, code = sandbox.server.spawners:execute({ { "freeze", group, FREEZE } })
    if not ok then
      return nil, message, code
    end
    ok, message, code = capturable.still(pids_of(sandbox))
    if ok then
      return froze
    elseif uv.hrtime() > till then
      return nil, message, code
    end
    cgroup.thaw(sandbox.server.cgroups, sandbox:key())
    async.sleep(pause)
    pause = math.min(pause * 1.5, 0.1)
  end
end

-- Which process belongs to which group: by its number inside, which it keeps.
local function leaves_of(sandbox)
  local leaves = {}
  for _, process in ipairs(dump.processes(sandbox)) do
    local inner = process.leaf ~= "" and process.leaf ~= "files" and dump.inner(process.pid)
    if inner then
      leaves[process.leaf] = leaves[process.leaf] or {}
      table.insert(leaves[process.leaf], inner)
    end
  end
  return leaves
end

-- Whether the disk takes it. Nobody may find out by filling it up: the pool is on it too, and when that gets write
-- errors, all sandboxes stop.
local function room(sandbox, directory)
  local stat = uv.fs_statfs(directory:match("^(.*)/"))
  local free, need = stat and stat.bavail * stat.bsize or 0, cgroup.resident(sandbox.server.cgroups, sandbox:key())
  if free < need + SPARE then
    return nil, ("its memory of %d MiB does not fit on the disk of %s, which has %d MiB free"):format(
      need / MiB, sandbox.server.directory, free / MiB), "ENOSPC"
  end
  return true
end

-- Has CRIU write all that stands still to the directory. At the end, while what it needs in the files (names
-- of deleted ones) is still there, `captured` is called; see dump.dump.
local function write_memory(sandbox, found, directory, captured)
  local began, pid = uv.hrtime(), nil
  local usage = cgroup.usage(sandbox.server.cgroups, sandbox:key()).memory or 0
  local connections, outside, leaves = dump.connections(sandbox.run.pid), outside_mounts(sandbox.run.pid), leaves_of(sandbox)
  local took, ended, at_work
  local function at_end()
    -- CRIU holds all by ptrace, and thawed it for that: who lets go of it, or is killed, lets it run else.
    cgroup.freeze(sandbox.server.cgroups, sandbox:key())
    took = { seconds = (uv.hrtime() - began) / 1e9, bytes = dump.size(directory), connections_reset = connections }
    local ok, message, code = dump.write(directory, {
      version = 1, criu = found.version, boot_id = host.boot_id(), created = now(), bytes = took.bytes, seconds = took.seconds, host = host.machine(),
      connections = connections, outside = outside, leaves = leaves, nonce = sandbox.run.nonce,
      deadlines = sandbox.run.deadlines, steering = sandbox.run.steering,
    })
    if ok then
      ok, message, code = captured(took, function()
        ended = true
        uv.kill(pid, "sigkill")
      end)
    end
    return ok and true, message, code
  end
  local stop, message, code = hook.listen(directory .. "/hook", function(stage)
    if stage ~= "post-dump" then
      return true
    end
    at_work = async.event()
    local agreed, why, why_code = at_end()
    at_work:set(true)
    return agreed, why, why_code
  end)
  if not stop then
    return nil, message, code
  end
  local ok
  ok, message, code = dump.run(command(sandbox, found, directory, outside), directory, "dump.log", LEAST + usage / RATE, function(number)
    pid = number
  end)
  if at_work then
    at_work:wait() -- CRIU may have been killed meanwhile
  end
  local refused, refused_code = stop()
  if ok and not took then
    return nil, "CRIU has not asked", "EPROTO"
  elseif ok or ended then
    return took
  elseif refused then
    return nil, refused, refused_code
  end
  local explained, name = capturable.explain(read_file(directory .. "/dump.log") or "")
  return nil, explained or message, explained and name or code
end

--- Writes the memory of a running sandbox to `directory`, a new one. When all is written, and everything still
-- stands still, captured(took, abandon) is called: it takes the files, and returns true | nil, message, code, which
-- makes it a failure. abandon() kills CRIU, for one who ends the sandbox there: CRIU would delete names that the
-- files need. Afterwards its link is closed and it stands still; the caller lets it go on, also after a failure.
-- took: { seconds, bytes, connections_reset }, which is returned with froze, when it began to stand still (uv.hrtime) | nil, message, code
function dump.dump(sandbox, directory, captured)
  local found, message, code = criu.find(sandbox.server.directory)
  if not found then
    return nil, message, code
  end
  local ok
  ok, message, code = capturable.check(sandbox.run.pid, pids_of(sandbox))
  if ok then
    ok, message, code = room(sandbox, directory)
  end
  if not ok then
    return nil, message, code
  end
  ok, message, code = quiesce(sandbox)
  if not ok then
    return nil, "quiesce: " .. message, code
  end
  local froze
  froze, message, code = stand_still(sandbox)
  if not froze then
    return nil, message, code
  end
  uv.fs_mkdir(directory, 448)
  local took
  took, message, code = write_memory(sandbox, found, directory, captured)
  if not took then
    dump.remove(directory)
    return nil, code == "ENOTSUP" and message or "dump: " .. message, code
  end
  took.froze = froze
  return took
end

return dump

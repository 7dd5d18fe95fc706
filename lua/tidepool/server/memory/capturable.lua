--- What of a sandbox's processes can't be put into files, and would fail a dump late, slowly or unnoticed.
--
-- Runs in the server. `check` comes before anything is touched, `still` when all stands still: CRIU waits
-- long for a process that it can't stop. What both miss CRIU refuses, and `explain` says whose it is.
local uv = require("luv")
local async = require("tidepool.async")
local names = require("tidepool.file").names
local read_file = require("tidepool.file").read

local capturable = {}

-- Held open by a process, these can't be put into a file, or not be brought back.
local descriptors = {
  ["anon_inode:[io_uring]"] = "uses io_uring",
  ["anon_inode:[userfaultfd]"] = "uses a userfaultfd",
  ["anon_inode:[perf_event]"] = "uses a performance counter",
  ["anon_inode:bpf-map"] = "uses a bpf map",
  ["anon_inode:bpf-prog"] = "uses a bpf program",
  ["anon_inode:[landlock-ruleset]"] = "holds Landlock rules",
  ["/secretmem"] = "uses secret memory",
  ["/secretmem (deleted)"] = "uses secret memory",
}

-- A sandbox can have millions of them: after so many processes or descriptors others get their turn.
local PROCESSES, DESCRIPTORS = 64, 2000

-- A directory of the process table: CRIU restores what is in it, but not itself.
local PROCESS = "^/proc/%d+/?$"

local function status_of(pid, thread)
  return read_file(thread and ("/proc/%d/task/%s/status"):format(pid, thread) or ("/proc/%d/status"):format(pid))
end

local function field(status, name)
  return status:match("\n" .. name .. ":%s+([^\n]*)")
end

-- The number that a process, or a tracer, has inside.
local function inner(status)
  return tonumber((field(status, "NSpid") or ""):match("(%d+)%s*$")) or 0
end

local function refuse(status, what)
  return nil, ("process %d (%s) %s, which can't be captured"):format(inner(status), status:match("^Name:%s+([^\n]*)") or "?", what),
    "ENOTSUP"
end

-- What its status tells: true | nil, message, code.
local function check_status(status)
  local tracer = tonumber(field(status, "TracerPid") or 0)
  if tracer ~= 0 then
    return refuse(status, ("is traced by process %d"):format(inner(status_of(tracer) or "")))
  elseif field(status, "State"):sub(1, 1) == "Z" and tonumber(field(status, "Threads") or 0) > 1 then
    return refuse(status, "goes on in other threads than its first, which has ended")
  end
  return true
end

local function check_files(pid, status)
  if (uv.fs_readlink(("/proc/%d/cwd"):format(pid)) or ""):find(PROCESS) then
    return refuse(status, "works in a directory of /proc")
  end
  for i, number in ipairs(names(("/proc/%d/fd"):format(pid))) do
    if i % DESCRIPTORS == 0 then
      async.sleep(0.001) -- of 0 comes in the same turn of the loop
    end
    local target = uv.fs_readlink(("/proc/%d/fd/%s"):format(pid, number)) or ""
    if descriptors[target] then
      return refuse(status, descriptors[target])
    elseif target:find(PROCESS) then
      return refuse(status, "holds a directory of /proc open")
    end
  end
  return true
end

--- Whether everything can be captured, of these processes of the sandbox whose init is `init`: true | nil,
--- message with the pid inside and the reason, "ENOTSUP".
function capturable.check(init, pids)
  local user = uv.fs_readlink(("/proc/%d/ns/user"):format(init))
  for i, pid in ipairs(pids) do
    if i % PROCESSES == 0 then
      async.sleep(0.001) -- of 0 comes in the same turn of the loop
    end
    local status = status_of(pid) -- nil: it has ended meanwhile
    local theirs = uv.fs_readlink(("/proc/%d/ns/user"):format(pid))
    local ok, message, code = true, nil, nil
    if status and theirs and theirs ~= user then
      return refuse(status, "uses a user namespace of its own")
    elseif status then
      ok, message, code = check_status(status)
    end
    if ok and status then
      ok, message, code = check_files(pid, status)
    end
    if not ok then
      return nil, message, code
    end
  end
  return true
end

local PLACES = 200 -- milliseconds that a thread may take to its place, where it stands still

-- Its status once it stands: of a group that was frozen right after a thaw, threads are still on their way there.
local function settled(pid, thread)
  for _ = 1, PLACES do
    local status = status_of(pid, thread)
    if not status or field(status, "State"):sub(1, 1) ~= "R" then
      return status
    end
    async.sleep(0.001)
  end
  return status_of(pid, thread)
end

--- Whether all of these processes, which are frozen, can be stopped by CRIU: true | nil, message, "ENOTSUP". One
--- that can't now may in a moment: whoever starts a program waits for it in a way that nothing interrupts.
function capturable.still(pids)
  for _, pid in ipairs(pids) do
    for _, thread in ipairs(names(("/proc/%d/task"):format(pid))) do
      local status = settled(pid, thread)
      local ok, message, code = true, nil, nil
      if status and field(status, "State"):sub(1, 1) == "D" then
        ok, message, code = refuse(status, "waits for a program that it starts, or for a device (state D)")
      elseif status then
        ok, message, code = check_status(status)
      end
      if not ok then
        return nil, message, code
      end
    end
  end
  return true
end

-- What CRIU means.
local meanings = {
  { "netlink: The socket has data to read", "has not read an answer from its netlink socket yet" },
  { "in%-flight socket", "has a unix connection that is not accepted yet" },
  { "Can't resolve name for socket", "has a unix socket whose name was deleted" },
  { "OOM storing pipe", "has one of more than 1,024 pipes" }, -- a limit that is built into CRIU
  { "/secretmem", "uses secret memory" },
}

--- Of CRIU's log: the reason in our words, or its own, with the process inside: message, code. Nil: it names none.
function capturable.explain(log)
  local pid = tonumber(log:match("Error %b(): [^\n]*%(pid: (%d+)%) failed"))
  local status = pid and status_of(pid)
  if not status then
    return nil
  end
  for _, meaning in ipairs(meanings) do
    if log:find(meaning[1]) then
      return select(2, refuse(status, meaning[2]))
    end
  end
  local reason = log:match("Error %b(): ([^\n]+)")
  return select(2, refuse(status, ("has what CRIU does not take (%s)"):format(reason)))
end

return capturable

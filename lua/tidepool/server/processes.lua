--- Processes of a sandbox, as the server sees them: init owns them, here is who waits for what.
--
-- A process is a command that init supervises. Its whole tree lives in a leaf cgroup named by its
-- key, so that a kill, its CPU seconds and its end are exact. Output never passes the server: the
-- client's attach socket goes straight to init.
local async = require("tidepool.async")
local cgroup = require("tidepool.server.cgroup")
local container = require("tidepool.server.container")
local log = require("tidepool.server.log")
local random = require("tidepool.random")
local uv = require("luv")

local processes = {}

local KEPT = 256 -- ended processes remembered, of those with a name and without; init may forget more
local SWEEP = 1 -- seconds between looks at leaves that outlived their process

--- starting and naming: keys and names of requests that init has not answered yet.
function processes.new_table()
  return {
    by_id = {},
    by_name = {},
    by_key = {},
    ended = { named = {}, unnamed = {} },
    starting = {},
    naming = {},
    lingering = {},
  }
end

local function now()
  local seconds, micros = uv.gettimeofday()
  return seconds + micros / 1e6
end

--- Forgets the processes of an earlier run; those that somebody still waits for were told already.
function processes.reset(sandbox)
  sandbox.processes = processes.new_table()
end

local function register(sandbox, fields)
  local all = sandbox.processes
  local process = all.by_id[fields.id]
  if process then
    return process
  end
  process = fields
  process.sandbox = sandbox
  process.exited = async.event()
  process.started = process.started or now()
  all.by_id[process.id] = process
  all.by_key[process.key] = process
  if process.name ~= "" then
    all.by_name[process.name] = process
  end
  return process
end

local function drop(sandbox, process)
  local all = sandbox.processes
  all.by_id[process.id] = nil
  all.by_key[process.key] = nil
  if all.by_name[process.name] == process then
    all.by_name[process.name] = nil
  end
end

-- Leaves whose process has ended but whose descendants have not, looked at until they are empty.
local function sweep(sandbox)
  local all = sandbox.processes
  if all.sweeping or next(all.lingering) == nil then
    return
  end
  all.sweeping = async.after(SWEEP, function()
    all.sweeping = nil
    if sandbox.processes ~= all then
      return
    end
    for leaf in pairs(all.lingering) do
      if cgroup.remove_leaf(sandbox.server.cgroups, sandbox:leaf_group(leaf)) then
        all.lingering[leaf] = nil
      end
    end
    sweep(sandbox)
  end)
end

-- Reads what the leaf has to tell and removes it, now or when its last process is gone.
local function close_leaf(sandbox, leaf)
  local cgroups, path = sandbox.server.cgroups, sandbox:leaf_group(leaf)
  local cpu = cgroup.cpu_seconds(cgroups, path)
  if not cgroup.remove_leaf(cgroups, path) then
    sandbox.processes.lingering[leaf] = true
    sweep(sandbox)
  end
  return cpu
end

-- A long-lived sandbox runs any number of processes: the oldest ends are forgotten.
local function remember(sandbox, process)
  local ended = sandbox.processes.ended[process.name == "" and "unnamed" or "named"]
  ended[#ended + 1] = process
  if #ended > KEPT then
    drop(sandbox, table.remove(ended, 1))
  end
end

local function record_exit(process, event)
  process.kind, process.code = event.kind, event.code
  process.wall, process.dropped = event.wall, event.dropped
  process.output = event.end_offset
end

--- init told that a process has ended; a list that is read again after a broken link tells it twice.
function processes.on_exit(sandbox, event)
  local process = sandbox.processes.by_id[event.id]
  if not process or process.kind then
    return
  end
  record_exit(process, event)
  process.cpu_seconds = close_leaf(sandbox, process.key)
  remember(sandbox, process)
  sandbox:keep_deadline(process.key, nil)
  if process.cancel_deadline then
    process.cancel_deadline()
  end
  process.exited:set(true)
end

--- The run has ended under its processes: whoever waits is told why.
function processes.lost(sandbox, reason)
  local all = sandbox.processes
  if all.sweeping then
    all.sweeping()
    all.sweeping = nil
  end
  for _, process in pairs(all.by_id) do
    if process.cancel_deadline then
      process.cancel_deadline()
    end
    process.lost = reason
    process.exited:set(true)
  end
end

function processes.count_running(sandbox)
  local count = 0
  for _, process in pairs(sandbox.processes.by_id) do
    if not process.kind then
      count = count + 1
    end
  end
  return sandbox.run and count or 0
end

--- The process a client means by a name or number | nil, message, "ENOPROCESS".
function processes.find(sandbox, which)
  local all = sandbox.processes
  local process = all.by_name[which] or all.by_id[tonumber(which) or -1]
  if not process then
    return nil, ("no such process in %s: %s"):format(sandbox.name, which), "ENOPROCESS"
  end
  return process
end

--- The process that a request of this key started | nil, message, "ENOPROCESS".
function processes.of_key(sandbox, key)
  local process = sandbox.processes.by_key[key]
  if not process then
    return nil, "no process of that key in " .. sandbox.name, "ENOPROCESS"
  end
  return process
end

--- What a client is told about a process.
function processes.describe(process)
  local status = process.lost and "lost"
    or not process.kind and "running"
    or process.timed_out and "timed out"
    or process.kind == "signal" and "killed"
    or "exited"
  return {
    id = process.id,
    pid = process.pid,
    name = process.name ~= "" and process.name or nil,
    argv = process.argv,
    user = process.user,
    cwd = process.cwd,
    tty = process.tty,
    started = math.floor(process.started),
    status = status,
    exit_code = process.kind == "code" and process.code or nil,
    signal = process.kind == "signal" and process.code or nil,
    timed_out = process.timed_out,
    wall_seconds = process.wall,
    cpu_seconds = process.cpu_seconds
      or not process.kind and cgroup.cpu_seconds(process.sandbox.server.cgroups, process.sandbox:leaf_group(process.key))
      or nil,
    output = process.output,
    dropped = process.dropped,
    key = process.key,
  }
end

-- How init's failures read to a client: the step makes the code.
local function start_failure(params, message, code, step)
  if step == "user" then
    return nil, ("user %s: %s"):format(params.user, message), (code == "ENOENT" or code == "EINVAL") and "EBADUSER" or code
  elseif step == "cwd" then
    return nil, ("working directory %s: %s"):format(params.cwd, message), "EBADCWD"
  elseif step == "exec" then
    return nil, ("%s: %s"):format(params.argv and params.argv[1] or "/bin/sh", message), code
  end
  return nil, message, code
end

local function environment(sandbox, params)
  local merged, list = {}, {}
  local image = sandbox.server.images[sandbox.image]
  for _, pair in ipairs(image and image.meta.env or {}) do
    local name, value = pair:match("^([^=]+)=(.*)$")
    if name then
      merged[name] = value
    end
  end
  local trust = sandbox.egress.ca and container.trust_environment and container.trust_environment() or {}
  for _, source in ipairs({ trust, sandbox.spec.env or {}, params.env or {} }) do
    for name, value in pairs(source) do
      merged[name] = value
    end
  end
  if params.tty and not merged.TERM then
    merged.TERM = "xterm-256color"
  end
  for name, value in pairs(merged) do
    list[#list + 1] = name .. "=" .. value
  end
  return list
end

--- Ends the whole tree at once.
local function kill_tree(process)
  local sandbox = process.sandbox
  return cgroup.kill(sandbox.server.cgroups, sandbox:leaf_group(process.key))
end

local function set_deadline(process, seconds)
  if process.cancel_deadline or process.kind then
    return
  end
  process.deadline = now() + seconds
  process.cancel_deadline = async.after(seconds, function()
    process.cancel_deadline = nil
    process.timed_out = true
    kill_tree(process)
  end)
end

-- init went while it had our request: the sandbox was stopped, destroyed or its init killed.
local function stopped_under(sandbox, message, code)
  local reason = sandbox.gone:wait(code == "ECANCELED" and 10 or 1) -- init said that it shuts down, in its grace
  if not reason then
    return nil, message, code -- it runs, the link alone broke
  end
  return nil, "sandbox stopped: " .. reason, "ESTOPPED"
end

-- The name ("" for none) and key of what is to be started | nil, message, code.
local function identify(params)
  if (params.argv == nil) == (params.line == nil) then
    return nil, "give either argv or a shell line", "EINVAL"
  end
  local name = params.process or ""
  if name:match("^%d+$") then
    return nil, "a process's name can't be a number: " .. name, "EINVAL"
  end
  local key = params.key or random.hex(8)
  if not key:match("^[%w-]+$") or #key > 64 then
    return nil, "key must be 1-64 letters, digits and dashes", "EINVAL"
  end
  return name, key
end

local UNHEARD = 10 -- times that a request is asked again

-- What ask(link) returns. Asked again of the sandbox when it is awake, if init had let go of us before it read
-- the request: its memory was being taken.
local function heard(sandbox, ask)
  for try = 1, UNHEARD do
    local link = sandbox.link
    local result, message, code = nil, "sandbox is not running: " .. sandbox.name, "ESTOPPED"
    local unheard = not link and sandbox:asleep()
    if link then
      result, message, code = ask(link)
      unheard = not result and link.let_go and link:is_closed()
    end
    if not unheard or try == UNHEARD then
      return result, message, code
    end
    local awake, why, why_code = sandbox:wake()
    if not awake then
      return nil, why, why_code
    end
  end
end

-- Has init start it in a leaf of its own.
local function request_start(sandbox, link, name, key, params, attach)
  local leaf, message, code = sandbox:leaf(key)
  if not leaf then
    return nil, message, code
  end
  sandbox.processes.lingering[key] = nil -- one that a killed server had made for this request
  local argv = params.argv or { "/bin/sh", "-c", params.line }
  local reply, step
  reply, message, code, step = link:request("start", {
    tty = params.tty,
    stdin = params.stdin,
    attach = attach ~= nil,
    input = params.stdin or params.tty,
    lossless = params.lossless,
    follow = true,
    ring = params.ring,
    cols = params.cols,
    rows = params.rows,
    key = key,
    name = name,
    user = params.user,
    cwd = params.cwd,
    argv = argv,
    env = environment(sandbox, params),
  }, attach and { leaf, attach } or { leaf })
  leaf:close()
  if not reply then
    if link.let_go and link:is_closed() then
      return nil, message, code
    elseif not sandbox.run or sandbox.link ~= link or link:is_closed() or code == "ECANCELED" then
      return stopped_under(sandbox, message, code)
    end
    close_leaf(sandbox, key)
    return start_failure(params, message, code, step)
  end
  if sandbox.link ~= link then
    return stopped_under(sandbox, "its run has ended", "ESTOPPED")
  end
  return register(sandbox, {
    id = reply.id,
    pid = reply.pid,
    key = key,
    name = name,
    argv = argv,
    user = params.user,
    cwd = params.cwd,
    tty = params.tty or false,
  })
end

--- Starts a command: the process | nil, message, code. `fds[1]`, when there, is the client's attach socket.
-- A request whose key is there already answers with that process and starts nothing.
function processes.start(sandbox, params, fds)
  local name, key, code = identify(params)
  if not name then
    return nil, key, code
  end
  local all = sandbox.processes
  while all.starting[key] do -- asked again over a new connection, before init has answered
    all.starting[key]:wait()
  end
  if all.by_key[key] then
    return all.by_key[key]
  end
  local taken = all.by_name[name]
  if all.naming[name] or taken and not taken.kind then
    return nil, ("a process named %s runs already in %s"):format(name, sandbox.name), "EEXIST"
  end

  local answered = async.event()
  all.starting[key], all.naming[name] = answered, name ~= "" or nil
  local process, message
  process, message, code = heard(sandbox, function(link)
    return request_start(sandbox, link, name, key, params, fds and fds[1])
  end)
  all.starting[key], all.naming[name] = nil, nil
  if process and taken then
    drop(sandbox, taken)
    async.spawn(function()
      sandbox.link:request("forget", { id = taken.id }, nil, 5)
    end)
  end
  if process and params.timeout then
    set_deadline(process, params.timeout)
  end
  answered:set(true)
  return process, message, code
end

--- Waits for the end: the process | nil, message, code ("ETIMEDOUT", "ESTOPPED"). `timeout`: seconds from
-- now; `deadline`: seconds from the process's start, of which an earlier server may have seen some.
function processes.wait(process, timeout, deadline)
  if deadline then
    set_deadline(process, math.max(0, deadline - math.max(0, now() - process.started - (process.paused or 0))))
  end
  local ok, _, code = process.exited:wait(timeout)
  if not ok and code == "ETIMEDOUT" then
    return nil, "still running after " .. timeout .. " s", "ETIMEDOUT"
  end
  if process.lost and not process.kind then
    return nil, "sandbox stopped: " .. process.lost, "ESTOPPED"
  end
  return process
end

local function tree_ended(process)
  local sandbox = process.sandbox
  return process.exited:is_set() and not cgroup.populated(sandbox.server.cgroups, sandbox:leaf_group(process.key))
end

--- Ends the whole tree: TERM to each of its processes, `grace` seconds, then KILL.
function processes.kill(process, grace)
  local sandbox = process.sandbox
  if grace > 0 and not tree_ended(process) then
    cgroup.signal(sandbox.server.cgroups, sandbox:leaf_group(process.key), 15)
    local left, pause = grace, 0.005
    while left > 0 and not tree_ended(process) do
      async.sleep(math.min(pause, left))
      left, pause = left - pause, math.min(pause * 2, 0.1)
    end
  end
  if not tree_ended(process) then
    kill_tree(process)
  end
  return processes.wait(process, 10)
end

--- Updates what changes while a process runs: how much output there was.
function processes.refresh(sandbox)
  if sandbox.state ~= "running" or not sandbox.link then
    return
  end
  local list = sandbox.link:request("list", {}, nil, 5)
  for _, entry in ipairs(list or {}) do
    local process = sandbox.processes.by_id[entry.id]
    if process then
      process.output, process.dropped = entry.end_offset, entry.dropped
    end
  end
end

--- Connects a client's attach socket. A negative offset counts back from the end of the output.
function processes.attach(process, params, fds)
  if not fds or not fds[1] then
    return nil, "attach needs a socket", "EINVAL"
  end
  local offset = params.offset or params.since or 0
  if offset < 0 then
    processes.refresh(process.sandbox)
    offset = math.max(0, (process.output or 0) + offset)
  end
  local reply, message, code = heard(process.sandbox, function(link)
    return link:request("attach", {
      id = process.id,
      offset = offset,
      input = params.input,
      lossless = params.lossless,
      follow = params.follow,
    }, { fds[1] })
  end)
  if not reply and code == "ESRCH" then
    return nil, "output of process is forgotten: " .. process.id, "ENOPROCESS"
  elseif not reply then
    return nil, message, code
  end
  return process
end

local function from_listing(entry)
  return {
    id = entry.id,
    pid = entry.pid,
    key = entry.key,
    name = entry.name,
    argv = entry.argv,
    user = entry.user,
    cwd = entry.cwd,
    tty = entry.tty,
    started = entry.started,
  }
end

--- The sandbox stands still: so does the time that its processes may run.
function processes.pause(sandbox)
  for _, process in pairs(sandbox.processes.by_id) do
    if process.cancel_deadline then
      process.cancel_deadline()
      process.cancel_deadline = nil
      process.time_left = math.max(0, process.deadline - now())
    end
  end
end

--- It goes on, after so many seconds.
function processes.resume(sandbox, seconds)
  for _, process in pairs(sandbox.processes.by_id) do
    process.paused = (process.paused or 0) + seconds
    if process.time_left then
      set_deadline(process, process.time_left)
      process.time_left = nil
    end
  end
  for key, moment in pairs(sandbox.run.deadlines or {}) do
    sandbox.run.deadlines[key] = moment + seconds
  end
end

--- Takes over the processes that init has: those that an earlier server left running, and after a broken
-- link the ends that it did not tell.
function processes.adopt(sandbox)
  local list, message, code = sandbox.link:request("list", {}, nil, 10)
  if not list then
    return nil, message, code
  end
  local listed = {}
  for _, entry in ipairs(list) do
    listed[entry.id] = true
    register(sandbox, from_listing(entry))
    if not entry.running then
      processes.on_exit(sandbox, entry)
    end
  end
  for id, process in pairs(sandbox.processes.by_id) do
    if not listed[id] and not process.kind then
      process.lost = "init has forgotten the process"
      process.exited:set(true)
    end
  end
  for key, moment in pairs(sandbox.run.deadlines or {}) do
    local process = sandbox.processes.by_key[key]
    if process then
      set_deadline(process, math.max(0, moment - now()))
    end
  end
  for _, leaf in ipairs(cgroup.leaves(sandbox.server.cgroups, sandbox:leaf_group(""))) do
    local process = sandbox.processes.by_key[leaf]
    if leaf ~= "files" and (not process or process.kind) then
      sandbox.processes.lingering[leaf] = true
    end
  end
  sweep(sandbox)
  log.debug("processes_adopted", { sandbox = sandbox.name, count = #list })
  return true
end

--- Drops the record and the output of an ended process.
function processes.forget(process)
  local sandbox = process.sandbox
  if not process.exited:is_set() then
    return nil, "process still runs: " .. (process.name ~= "" and process.name or process.id), "EBUSY"
  end
  drop(sandbox, process)
  if sandbox.link then
    sandbox.link:request("forget", { id = process.id }, nil, 5)
  end
  return true
end

--- Starts a file agent of that user on the client's socket. All agents share one leaf, "files".
function processes.agent(sandbox, user, socket)
  return heard(sandbox, function(link)
    local leaf, message, code = sandbox:leaf("files")
    if not leaf then
      return nil, message, code
    end
    local reply, step
    reply, message, code, step = link:request("agent", { user = user }, { leaf, socket }, 10)
    leaf:close()
    if not reply then
      return start_failure({ user = user }, message, code, step)
    end
    return true
  end)
end

--- Sends a signal to the process itself: true | nil, message, code ("ESRCH").
function processes.signal(process, number)
  local reply, message, code = heard(process.sandbox, function(link)
    return link:request("signal", { id = process.id, signal = number }, nil, 5)
  end)
  return reply and true, message, code
end

return processes

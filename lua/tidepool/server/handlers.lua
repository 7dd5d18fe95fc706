--- What each verb does in the server. A handler gets checked parameters and returns
-- result, message, code, fds; what it declares is in tidepool.verbs.
local async = require("tidepool.async")
local branches = require("tidepool.server.branches")
local criu = require("tidepool.server.memory.criu")
local egress_policies = require("tidepool.server.egress.policies")
local exports = require("tidepool.server.exports")
local images = require("tidepool.server.images")
local memory = require("tidepool.server.memory")
local imports = require("tidepool.server.imports")
local policies = require("tidepool.server.policies")
local processes = require("tidepool.server.processes")
local log = require("tidepool.server.log")
local sandboxes = require("tidepool.server.sandboxes")
local spill = require("tidepool.server.spill")
local transport = require("tidepool.transport")

local handlers = {}

local function sandbox_of(server, params)
  local sandbox = server.sandboxes[params.name]
  if not sandbox then
    return nil, "no such sandbox: " .. params.name, "ENOSANDBOX"
  end
  return sandbox
end

-- The sandbox, started when it isn't running.
local function running(server, params)
  local sandbox, message, code = sandbox_of(server, params)
  if not sandbox then
    return nil, message, code
  end
  local awake
  awake, message, code = sandbox:wake()
  return awake and sandbox, message, code
end

-- The sandbox; one that sleeps is awake then, one that was stopped is left so. `idle`: somebody else wakes it.
local function awake(server, params)
  local sandbox, message, code = sandbox_of(server, params)
  if not sandbox or not sandbox:asleep() then
    return sandbox, message, code
  elseif params.idle then
    sandbox:await_awake()
    return sandbox_of(server, { name = sandbox.name }) -- it may have got another name
  end
  return running(server, params)
end

local function process_of(server, params)
  local sandbox, message, code = awake(server, params)
  if not sandbox then
    return nil, message, code
  elseif params.key then
    return processes.of_key(sandbox, params.key)
  end
  return processes.find(sandbox, params.process)
end

-- A handler of what `find(server, params)` gives: fn(found, params, fds).
local function with(find, fn)
  return function(server, params, fds)
    local found, message, code = find(server, params)
    if not found then
      return nil, message, code
    end
    return fn(found, params, fds)
  end
end

-- What a client is told of a process, or why there is none.
local function described(process, message, code)
  if not process then
    return nil, message, code
  end
  return processes.describe(process)
end

handlers.create = with(sandboxes.create, function(sandbox)
  return sandbox:info(false)
end)

function handlers.open(server, params)
  local sandbox, created, code = sandboxes.open(server, params)
  if not sandbox then
    return nil, created, code
  end
  local info = sandbox:info(false)
  info.created_now = created
  return info
end

local function has_labels(sandbox, wanted)
  for label, value in pairs(wanted or {}) do
    if sandbox.spec.labels[label] ~= value then
      return false
    end
  end
  return true
end

function handlers.ls(server, params)
  local list = {}
  for _, sandbox in pairs(server.sandboxes) do
    if has_labels(sandbox, params.labels) then
      list[#list + 1] = sandbox:info(false)
    end
  end
  table.sort(list, function(a, b)
    return a.name < b.name
  end)
  return list
end

function handlers.info(server, params)
  if not params.name then
    return server:info()
  end
  local sandbox, message, code = sandbox_of(server, params)
  if not sandbox then
    return nil, message, code
  end
  return sandbox:info(true)
end

handlers.stop = with(sandbox_of, function(sandbox, params)
  local ok, message, code = sandbox:stop(params.grace)
  if not ok then
    return nil, message, code
  end
  return sandbox:info(false)
end)

handlers.destroy = with(sandbox_of, function(sandbox)
  return sandbox:destroy()
end)

handlers.exec = with(running, function(sandbox, params, fds)
  local process, message, code = processes.start(sandbox, params, fds)
  transport.close_all(fds) -- init has the socket: its end must be the only one
  if not process then
    return nil, message, code
  end
  return described(processes.wait(process))
end)

handlers.start = with(running, function(sandbox, params, fds)
  local process, message, code = processes.start(sandbox, params, fds)
  if process and params.timeout and not process.kind then
    -- Nobody need be there to say it again to the next server, as exec's client does.
    sandbox:keep_deadline(process.key, process.started + params.timeout)
  end
  return described(process, message, code)
end)

-- What the last stop wrote down. Whatever ran then does not any more.
local function saved(sandbox)
  local list = {}
  for _, entry in pairs(spill.index(sandbox)) do
    entry.status = entry.status == "running" and "lost" or entry.status
    list[#list + 1] = entry
  end
  return list
end

local function live(sandbox)
  processes.refresh(sandbox)
  local list = {}
  for _, process in pairs(sandbox.processes.by_id) do
    list[#list + 1] = processes.describe(process)
  end
  return list
end

handlers.ps = with(awake, function(sandbox)
  local list = sandbox.state == "running" and live(sandbox) or saved(sandbox)
  table.sort(list, function(a, b)
    return a.id < b.id
  end)
  return list
end)

handlers.attach = with(process_of, function(process, params, fds)
  return described(processes.attach(process, params, fds))
end)

handlers.logs = with(awake, function(sandbox, params, fds)
  local process = sandbox.state == "running" and processes.find(sandbox, params.process)
  if process then
    return described(processes.attach(process, params, fds))
  end
  local fd, entry, code = spill.open(sandbox, params.process)
  if not fd then
    return nil, entry, code
  end
  entry.saved = true
  return entry, nil, nil, { fd }
end)

local SIGNALS = {
  HUP = 1, INT = 2, QUIT = 3, ABRT = 6, KILL = 9, USR1 = 10, USR2 = 12, PIPE = 13, ALRM = 14, TERM = 15,
  CHLD = 17, CONT = 18, STOP = 19, TSTP = 20, TTIN = 21, TTOU = 22, WINCH = 28,
}

handlers.signal = with(process_of, function(process, params)
  local number = tonumber(params.signal) or SIGNALS[params.signal:upper():gsub("^SIG", "")]
  if not number or number < 1 or number > 64 or number ~= math.floor(number) then
    return nil, "unknown signal: " .. params.signal, "EINVAL"
  end
  if process.kind then
    return nil, "process has ended: " .. params.process, "ESRCH"
  end
  return processes.signal(process, number)
end)

handlers.kill = with(process_of, function(process, params)
  return described(processes.kill(process, params.grace))
end)

local function process_to_wait_for(server, params)
  local sandbox, message, code = sandbox_of(server, params)
  if not sandbox then
    return nil, message, code
  elseif not params.process and not params.key then
    return nil, "wait: process is missing", "EINVAL"
  elseif params.idle and params.key and not params.process and not memory.holds(sandbox, params.key) then
    return processes.of_key(sandbox, params.key) -- it may be asked for anew, so nobody else need wake it
  end
  return process_of(server, { name = params.name, idle = params.idle, process = params.process,
    key = not params.process and params.key or nil })
end

handlers.wait = with(process_to_wait_for, function(process, params)
  return described(processes.wait(process, params.timeout, params.deadline))
end)

-- Whether something accepts connections on the port, over IPv4 or IPv6.
local function is_open(link, port)
  for _, family in ipairs({ 4, 6 }) do
    local reply, fds = link:request("connect", { family = family, port = port }, nil, 5)
    if reply then
      transport.close_all(fds)
      return true
    end
  end
  return false
end

handlers.wait_port = with(awake, function(sandbox, params)
  if params.port < 1 or params.port > 65535 then
    return nil, "not a port: " .. params.port, "EINVAL"
  end
  local process, message, code
  if params.process then
    process, message, code = processes.find(sandbox, params.process)
    if not process then
      return nil, message, code
    end
  end
  local left, pause = params.timeout, 0.005
  while true do
    if not sandbox.link and not sandbox:asleep() then
      return nil, "sandbox is not running: " .. params.name, "ESTOPPED"
    elseif sandbox.link and is_open(sandbox.link, params.port) then
      return true
    elseif process and process.exited:is_set() then
      return nil, ("%s ended before port %d was open"):format(params.process, params.port), "ESRCH"
    elseif left <= 0 then
      return nil, ("port %d is not open after %g s"):format(params.port, params.timeout), "ETIMEDOUT"
    end
    async.sleep(math.min(pause, left))
    left, pause = left - pause, math.min(pause * 1.5, 0.25)
  end
end)

handlers.forget = with(process_of, processes.forget)

function handlers.agent(server, params, fds)
  if not fds or not fds[1] then
    return nil, "agent needs a socket", "EINVAL"
  end
  local sandbox, message, code = running(server, params)
  if not sandbox then
    return nil, message, code
  end
  return processes.agent(sandbox, params.user, fds[1])
end

-- What a client is told of the sandbox that something was done to, or why it was not.
local function told(sandbox, message, code)
  if not sandbox then
    return nil, message, code
  end
  return sandbox:info(false)
end

function handlers.snapshot_create(server, params)
  local record, message, code = server.snapshots:made_before(params.key), nil, nil
  if not record then
    local sandbox
    sandbox, message, code = sandbox_of(server, params)
    if sandbox then
      record, message, code = server.snapshots:take(sandbox, params)
    end
  end
  if not record then
    return nil, message, code
  end
  return server.snapshots:describe(record)
end

function handlers.snapshot_ls(server, params)
  return server.snapshots:list(params.name)
end

function handlers.snapshot_rm(server, params)
  return server.snapshots:remove(params.snapshot, params.key)
end

function handlers.snapshot_diff(server, params)
  local fd, message, code = server.snapshots:diff(params.from, params.to)
  if not fd then
    return nil, message, code
  end
  return true, nil, nil, { fd }
end

function handlers.snapshot_keep(server, params)
  if (params.last or 0) + (params.daily or 0) == 0 and not next(params.labels or {}) then
    return nil, "snapshot keep: a rule that keeps nothing; give --last, --daily or --label", "EINVAL"
  end
  return server.snapshots:keep(params.name, params, params.key)
end

-- The same of what goes on with the processes of a snapshot: connections_reset counts theirs to the outside.
local function told_restored(sandbox, message, code)
  local info
  info, message, code = told(sandbox, message, code)
  if info then
    info.connections_reset = sandbox.connections_reset
  end
  return info, message, code
end

function handlers.restore(server, params)
  return told_restored(branches.restore(server, params))
end

handlers.rollback = with(sandbox_of, function(sandbox, params)
  sandbox.connections_reset = nil
  return told_restored(branches.rollback(sandbox, params.snapshot, params.cold, params.key))
end)

handlers.fork = branches.fork

function handlers.promote(server, params)
  local promoted, message, code = branches.promoted_before(server, params.key), nil, nil
  if not promoted then
    promoted, message, code = sandbox_of(server, params)
    if promoted then
      promoted, message, code = branches.promote(promoted, params.key)
    end
  end
  return told(promoted, message, code)
end

handlers.freeze = with(sandbox_of, function(sandbox)
  local ok, message, code = sandbox:freeze()
  return told(ok and sandbox, message, code)
end)

handlers.hibernate = with(sandbox_of, function(sandbox)
  return sandbox:hibernate()
end)

handlers.wake = with(running, told)

-- A long job, whose lines of progress go to the connection that asked for it.
local function job(run)
  return function(server, params, _, connection, id)
    return run(server, params, function(line)
      connection:notify("progress", { id, line })
    end)
  end
end

handlers.snapshot_export = job(exports.export)
handlers.snapshot_import = job(imports.import)

handlers.image_build = job(images.build)
handlers.memory_install = job(function(server, params, progress)
  local found, message, code = criu.find(server.directory)
  if not found or params.replace then
    found, message, code = criu.obtain(server.directory, progress)
  end
  return found and { version = found.version }, message, code
end)
handlers.image_import = job(images.import)
handlers.image_pull = job(images.pull)

function handlers.image_ls(server)
  return images.list(server)
end

function handlers.image_rm(server, params)
  return images.remove(server, params)
end

handlers.egress_set = with(sandbox_of, function(sandbox, params)
  return egress_policies.set(sandbox, params.policies)
end)

handlers.egress_add = with(sandbox_of, function(sandbox, params)
  return egress_policies.add(sandbox, params.policies)
end)

handlers.egress_rm = with(sandbox_of, function(sandbox, params)
  return egress_policies.remove(sandbox, params.policy)
end)

handlers.egress_show = with(sandbox_of, egress_policies.show)

-- Also of a sandbox that is gone: that is when one asks what it did.
function handlers.egress_log(server, params)
  local sandbox = server.sandboxes[params.name]
  if not sandbox and not server.audit:knows(params.name) then
    return sandbox_of(server, params)
  end
  return server.audit:read({
    id = sandbox and sandbox.id,
    name = not sandbox and params.name or nil,
    after = params.after,
    limit = params.limit,
    action = params.action,
  }, params.wait)
end

function handlers.policy_ls(server)
  return policies.list(server)
end

function handlers.policy_show(server, params)
  return policies.show(server, params.policy)
end

function handlers.secret_set(server, params)
  return server.secrets:set({
    name = params.secret, value = params.value, hosts = params.hosts, placeholder = params.placeholder,
  })
end

function handlers.secret_ls(server)
  return server.secrets:list()
end

function handlers.secret_rm(server, params)
  return server.secrets:remove(params.secret)
end

function handlers.secret_placeholder(server, params)
  return server.secrets:placeholder(params.secret)
end

function handlers.storage_grow(server, params)
  local grown, message, code = server.storage:grow(params.size)
  if grown then
    log.info("pool_grown", grown)
  end
  return grown, message, code
end

function handlers.storage_check(server)
  return server.storage:check()
end

function handlers.shutdown(server)
  async.after(0.01, function()
    server:shutdown("asked to")
  end)
  return true
end

return handlers

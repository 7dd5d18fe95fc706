--- What each verb does in the server. A handler gets checked parameters and returns
-- result, message, code, fds; what it declares is in tidepool.verbs.
local async = require("tidepool.async")
local images = require("tidepool.server.images")
local processes = require("tidepool.server.processes")
local sandboxes = require("tidepool.server.sandboxes")
local spill = require("tidepool.server.spill")
local transport = require("tidepool.transport")

local handlers = {}

local function find(server, params)
  local sandbox = server.sandboxes[params.name]
  if not sandbox then
    return nil, "no such sandbox: " .. params.name, "ENOSANDBOX"
  end
  return sandbox
end

--- The sandbox of params.name, running.
local function running(server, params)
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  local awake
  awake, message, code = sandbox:wake()
  if not awake then
    return nil, message, code
  end
  return sandbox
end

local function process_of(server, params)
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  return processes.find(sandbox, params.process)
end

function handlers.create(server, params)
  local sandbox, message, code = sandboxes.create(server, params)
  if not sandbox then
    return nil, message, code
  end
  return sandbox:info(false)
end

function handlers.open(server, params)
  local sandbox, created, code = sandboxes.open(server, params)
  if not sandbox then
    return nil, created, code
  end
  local info = sandbox:info(false)
  info.created_now = created
  return info
end

function handlers.ls(server, params)
  local list = {}
  for _, sandbox in pairs(server.sandboxes) do
    local wanted = true
    for label, value in pairs(params.labels or {}) do
      wanted = wanted and (sandbox.spec.labels or {})[label] == value
    end
    if wanted then
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
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  return sandbox:info(true)
end

function handlers.stop(server, params)
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  local ok
  ok, message, code = sandbox:stop(params.grace)
  if not ok then
    return nil, message, code
  end
  return sandbox:info(false)
end

function handlers.destroy(server, params)
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  return sandbox:destroy()
end

function handlers.exec(server, params, fds)
  local sandbox, message, code = running(server, params)
  if not sandbox then
    return nil, message, code
  end
  local process
  process, message, code = processes.start(sandbox, params, fds)
  transport.close_all(fds) -- init has the socket: its end must be the only one
  if not process then
    return nil, message, code
  end
  process, message, code = processes.wait(process)
  if not process then
    return nil, message, code
  end
  return processes.describe(process)
end

function handlers.start(server, params, fds)
  local sandbox, message, code = running(server, params)
  if not sandbox then
    return nil, message, code
  end
  local process
  process, message, code = processes.start(sandbox, params, fds)
  if not process then
    return nil, message, code
  end
  return processes.describe(process)
end

function handlers.ps(server, params)
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  processes.refresh(sandbox)
  local list = {}
  for _, process in pairs(sandbox.processes.by_id) do
    if not process.lost then
      list[#list + 1] = processes.describe(process)
    end
  end
  if sandbox.state ~= "running" then
    list = {}
    for _, entry in pairs(spill.index(sandbox)) do
      entry.status = entry.status == "running" and "lost" or entry.status
      list[#list + 1] = entry
    end
  end
  table.sort(list, function(a, b)
    return a.id < b.id
  end)
  return list
end

local function attach(server, params, fds)
  local process, message, code = process_of(server, params)
  if not process then
    return nil, message, code
  end
  process, message, code = processes.attach(process, params, fds)
  if not process then
    return nil, message, code
  end
  return processes.describe(process)
end

function handlers.attach(server, params, fds)
  return attach(server, params, fds)
end

function handlers.logs(server, params, fds)
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  if sandbox.state == "running" and processes.find(sandbox, params.process) then
    return attach(server, params, fds)
  end
  -- It is stopped, or was since: what the last stop wrote down.
  local fd, entry, why = spill.open(sandbox, params.process)
  if not fd then
    return nil, entry, why
  end
  entry.saved = true
  return entry, nil, nil, { fd }
end

local SIGNALS = {
  HUP = 1, INT = 2, QUIT = 3, ABRT = 6, KILL = 9, USR1 = 10, USR2 = 12, PIPE = 13, ALRM = 14, TERM = 15,
  CHLD = 17, CONT = 18, STOP = 19, TSTP = 20, TTIN = 21, TTOU = 22, WINCH = 28,
}

function handlers.signal(server, params)
  local number = tonumber(params.signal) or SIGNALS[params.signal:upper():gsub("^SIG", "")]
  if not number or number < 1 or number > 64 or number ~= math.floor(number) then
    return nil, "unknown signal: " .. params.signal, "EINVAL"
  end
  local process, message, code = process_of(server, params)
  if not process then
    return nil, message, code
  end
  if process.kind or not process.sandbox.link then
    return nil, "process has ended: " .. params.process, "ESRCH"
  end
  local ok
  ok, message, code = process.sandbox.link:request("signal", { id = process.id, signal = number }, nil, 5)
  if not ok then
    return nil, message, code
  end
  return true
end

function handlers.kill(server, params)
  local process, message, code = process_of(server, params)
  if not process then
    return nil, message, code
  end
  process, message, code = processes.kill(process, params.grace)
  if not process then
    return nil, message, code
  end
  return processes.describe(process)
end

function handlers.wait(server, params)
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  local process
  if params.key then
    process = sandbox.processes.by_key[params.key]
    if not process then
      return nil, "no process of that key in " .. sandbox.name, "ENOPROCESS"
    end
  elseif params.process then
    process, message, code = processes.find(sandbox, params.process)
    if not process then
      return nil, message, code
    end
  else
    return nil, "wait: process is missing", "EINVAL"
  end
  process, message, code = processes.wait(process, params.timeout, params.deadline)
  if not process then
    return nil, message, code
  end
  return processes.describe(process)
end

function handlers.wait_port(server, params)
  local sandbox, message, code = find(server, params)
  if not sandbox then
    return nil, message, code
  end
  if params.port < 1 or params.port > 65535 then
    return nil, "not a port: " .. params.port, "EINVAL"
  end
  local process
  if params.process then
    process, message, code = processes.find(sandbox, params.process)
    if not process then
      return nil, message, code
    end
  end
  local left, pause = params.timeout, 0.005
  while true do
    for _, family in ipairs({ 4, 6 }) do
      if not sandbox.link then
        return nil, "sandbox is not running: " .. params.name, "ESTOPPED"
      end
      local reply, fds = sandbox.link:request("connect", { family = family, port = params.port }, nil, 5)
      if reply then
        transport.close_all(fds)
        return true
      end
    end
    if process and process.exited:is_set() then
      return nil, ("%s ended before port %d was open"):format(params.process, params.port), "ESRCH"
    end
    if left <= 0 then
      return nil, ("port %d is not open after %g s"):format(params.port, params.timeout), "ETIMEDOUT"
    end
    async.sleep(math.min(pause, left))
    left, pause = left - pause, math.min(pause * 1.5, 0.25)
  end
end

function handlers.forget(server, params)
  local process, message, code = process_of(server, params)
  if not process then
    return nil, message, code
  end
  return processes.forget(process)
end

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

local function reporter(connection, id)
  return function(line)
    connection:notify("progress", { id, line })
  end
end

function handlers.image_build(server, params, _, connection, id)
  return images.build(server, params, reporter(connection, id))
end

function handlers.image_import(server, params, _, connection, id)
  return images.import(server, params, reporter(connection, id))
end

function handlers.image_pull(server, params, _, connection, id)
  return images.pull(server, params, reporter(connection, id))
end

function handlers.image_ls(server)
  return images.list(server)
end

function handlers.image_rm(server, params)
  return images.remove(server, params)
end

function handlers.shutdown(server)
  async.after(0.01, function()
    server:shutdown("asked to")
  end)
  return true
end

return handlers

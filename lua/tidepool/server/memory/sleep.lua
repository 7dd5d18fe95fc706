--- Hibernating and waking: a sandbox's life between its processes and their files on disk.
--
-- Runs in the server, always with the sandbox's lock held. The database says what holds when the
-- server is killed at any instant: "running" until the dump is whole, "hibernated" from then on, also
-- while its processes are being killed, "waking" until the restored ones are known.
local uv = require("luv")
local async = require("tidepool.async")
local cgroup = require("tidepool.server.cgroup")
local container = require("tidepool.server.container")
local egress = require("tidepool.server.egress")
local host = require("tidepool.server.host")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local processes = require("tidepool.server.processes")
local step = require("tidepool.server.step")

local sleep = {}

local function now()
  local seconds, micros = uv.gettimeofday()
  return seconds + micros / 1e6
end

--- Lets it go on after a dump, with a link again.
function sleep.go_on(sandbox)
  cgroup.thaw(sandbox.server.cgroups, sandbox:key())
  if sandbox.link then
    return
  end
  local ok, message = sandbox:connect()
  if ok then
    ok, message = processes.adopt(sandbox)
  end
  if not ok then
    sandbox:end_run(0, "init does not answer: " .. message)
  end
end

--- Puts the memory of a running sandbox on disk and ends its processes, which don't notice.
-- { seconds, bytes, connections_reset } | nil, message, code; a failure leaves it running.
function sleep.hibernate(sandbox)
  memory.forget(sandbox)
  local took, message, code = memory.dump(sandbox, memory.directory(sandbox), function(_, abandon)
    step("dumped")
    local recorded, why, why_code = sandbox:record("hibernated", nil, sandbox.run)
    if not recorded then
      return nil, why, why_code
    end
    step("hibernated")
    abandon()
    return true
  end)
  if not took then
    memory.forget(sandbox)
    sleep.go_on(sandbox)
    return nil, ("hibernate %s: %s"):format(sandbox.name, message), code
  end
  processes.pause(sandbox)
  local ok
  ok, message, code = sandbox:end_run(0, "hibernated")
  if not ok then
    return nil, message, code
  end
  log.info("memory_dumped", { sandbox = sandbox.name, bytes = took.bytes, seconds = took.seconds })
  return took
end

--- What the dump that it sleeps with has taken: { seconds, bytes, connections_reset }; empty when that is damaged.
function sleep.figures(sandbox)
  local manifest = memory.read(memory.directory(sandbox)) or {}
  return { seconds = manifest.seconds, bytes = manifest.bytes, connections_reset = manifest.connections }
end

-- Whose processes go on as another than they were captured: a fork, or what was restored from a snapshot.
local function renamed(sandbox, manifest, options)
  if not manifest.of then
    return options
  end
  options.hostname = sandbox.name
  options.inside = container.rename({
    hostname = sandbox.name,
    machine_id = sandbox.spec.machine_id,
    card = { name = sandbox.name, id = sandbox.id, of = manifest.of, since = math.floor(now()) },
  })
  return options
end

--- Brings it back from disk: true | nil, message, code; a failure leaves it hibernated, with its image. A new
-- sandbox, in state creating, whose memory is there already begins in the same way, and stays so meanwhile.
function sleep.wake(sandbox)
  local server, directory, new = sandbox.server, memory.directory(sandbox), sandbox.state == "creating"
  local function failed(message, code)
    if new then
      return nil, message, code
    end
    return nil, ("wake %s: %s (open --cold starts it from its files)"):format(sandbox.name, message), code
  end
  local manifest = memory.read(directory)
  if not manifest then
    return failed("its memory image is not whole", "ENOENT")
  end
  local base, message, code = server.ids:allocate()
  if not base then
    return failed(message, code)
  end
  local key = sandbox:key()
  local recorded
  recorded, message, code = sandbox:record(new and "creating" or "waking", nil, {
    base = base, nonce = manifest.nonce, boot_id = host.boot_id(), key = key, restored = true,
    deadlines = manifest.deadlines,
  })
  if not recorded then
    server.ids:release(base)
    return failed(message, code)
  end
  step("waking")
  sandbox.gone, sandbox.stopping = async.event(), nil
  egress.trust(sandbox)
  local made, view
  view, message, code = server.storage:view(server.storage:sandbox_place(sandbox.root), base)
  if view then
    made, message, code = memory.restore(sandbox, directory, renamed(sandbox, manifest, {
      base = base, key = key, root = view.path, limits = sandbox:limits(),
    }))
    view.close()
  end
  if not made then
    sandbox:release(base)
    sandbox:record_fact(new and "creating" or "hibernated", "wake failed: " .. message, nil)
    return failed(message, code)
  end
  step("restored")
  local ok
  ok, message, code = sandbox:begin(made)
  if not ok then
    return failed(message, code)
  end
  memory.forget(sandbox)
  sandbox.connections_reset = manifest.connections
  processes.resume(sandbox, math.max(0, now() - manifest.created))
  ok, message, code = processes.adopt(sandbox)
  if not ok then
    return failed(message, code)
  end
  log.info("sandbox_woken", { sandbox = sandbox.name })
  return true
end

return sleep

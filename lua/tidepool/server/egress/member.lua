--- One place among the egress processes: the process that fills it, its start, its loss, and its next start.
--
-- Runs in the server. A member is { number, key, sandboxes = by id, former, ready = an event, process,
-- problem, inventory }; it outlives its processes as long as a sandbox belongs to it. `pool` is that of
-- pool.lua, whose owner attaches and refuses sandboxes.
local async = require("tidepool.async")
local log = require("tidepool.server.log")
local outside = require("tidepool.server.egress.outside")
local process = require("tidepool.server.egress.process")

local member = {}

local READY = 15 -- seconds that a start of a process may take
local RETRY, LONGEST_RETRY = 1, 30 -- seconds between starts in a row
local LIMITS = { connections = 1024, memory = 2 ^ 31 } -- of a sandbox; bytes of a process

local function save(pool, one)
  local row = one.process:row()
  return pool.server.state.db:execute(
    "INSERT OR REPLACE INTO egress_processes (number, pid, start_time, boot_id, base, key) VALUES (?, ?, ?, ?, ?, ?)",
    row.number, row.pid, row.start_time, row.boot_id, row.base, one.key)
end

--- A process is gone: so are its row and its user id.
function member.forget(pool, number, base)
  pool.server.state.db:execute("DELETE FROM egress_processes WHERE number = ?", number)
  pool.server.ids:release(base)
end

--- What its process is started or adopted with.
function member.options(pool, one)
  return {
    server = pool.server,
    number = one.number,
    main = pool.main,
    on_request = function(_, method, params)
      return pool.owner.request(one, method, params)
    end,
    on_lost = function(lost, message)
      member.lost(pool, one, lost, message)
    end,
    on_explained = function(lost, message, text)
      log.error("egress_lost", { number = one.number, egress_pid = lost.pid, message = message, running = text })
      if text and not pool.closed then
        pool.owner.overdue(one, text)
      end
    end,
  }
end

--- What a process is told of the host. `uid`: the user it becomes, once.
function member.configuration(uid)
  local world = outside.world()
  world.uid, world.gid, world.limits = uid, uid, LIMITS
  return world
end

local function start_process(pool, one)
  local base, message, code = pool.server.ids:allocate()
  if not base then
    return nil, message, code
  end
  local options = member.options(pool, one)
  options.base = base
  local started
  started, message, code = process.start(options)
  if not started then
    pool.server.ids:release(base)
    return nil, message, code
  end
  one.process, one.starting = started, true
  local ok
  ok, message, code = save(pool, one) -- else the next server would not find it
  if ok then
    ok, message, code = started:call("configure", member.configuration(base))
  end
  one.starting = nil
  if not ok then
    started:finish()
    one.process = nil
    member.forget(pool, one.number, base)
    return nil, ("egress process: %s (the server's log has the reason)"):format(started.ended or message), code
  end
  log.info("egress_started", { number = one.number, egress_pid = started.pid, key = one.key })
  return true
end

-- It has begun to serve: whoever belongs to it is attached.
local function ready(pool, one)
  one.problem, one.retry = nil, nil
  one.ready:set(true)
  for _, sandbox in pairs(one.sandboxes) do
    async.spawn(pool.owner.attach, sandbox)
  end
  pool.reserve:fill()
end

local run

-- Starts it again after a pause that grows with each failure in a row.
local function restart(pool, one)
  local pause = one.retry or 0
  one.retry = math.min(LONGEST_RETRY, math.max(RETRY, pause * 2))
  async.after(pause, function()
    if not pool.closed and pool.members[one.number] == one then
      async.spawn(run, pool, one)
    end
  end)
end

function run(pool, one)
  local ok, message, code = start_process(pool, one)
  if pool.closed then
    return
  elseif ok then
    return ready(pool, one)
  end
  log.error("egress_not_started", { number = one.number, message = message, code = code })
  one.problem = message
  one.ready:set(nil, message, code)
  one.ready = async.event()
  if next(one.sandboxes) == nil then
    pool.members[one.number] = nil
    return
  end
  restart(pool, one)
end

--- A member without a process yet, for one to be adopted.
function member.add(pool, number, key)
  local one = { number = number, key = key, sandboxes = {}, former = {}, ready = async.event() }
  pool.members[number] = one
  return one
end

--- A new member, whose process is being started.
function member.new(pool, key)
  local number = 1
  while pool.members[number] do
    number = number + 1
  end
  local one = member.add(pool, number, key)
  async.after(0, function() -- a start may fail at once: not before it is known whom it is for
    async.spawn(run, pool, one)
  end)
  return one
end

--- Its process has ended, or was killed since it hung.
function member.lost(pool, one, lost, message)
  if one.process ~= lost or one.starting then
    return -- whoever starts it sees the start fail
  end
  one.process, one.inventory = nil, nil
  one.ready:set(nil, message, "ECONNRESET")
  one.ready = async.event()
  for _, sandbox in pairs(one.sandboxes) do
    pool.owner.refuse(sandbox, "its egress process ended")
  end
  member.forget(pool, lost.number, lost.base)
  if pool.closed then
    return
  elseif next(one.sandboxes) == nil then
    pool.members[one.number] = nil
    return
  end
  restart(pool, one)
end

--- Waits until it can be called: its process | nil, message, code.
function member.wait(one)
  if one.problem then
    return nil, one.problem, "EAGAIN" -- it is tried again and again in the background
  elseif not (one.process and one.ready:is_set()) then
    local ok, message, code = one.ready:wait(READY)
    if not ok then
      return nil, one.problem or message, code
    end
  end
  return one.process
end

return member

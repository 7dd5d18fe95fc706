--- The spawners: small root processes that execute plans, so that the server's loop never blocks.
--
-- Runs in the server. A pool holds a few of them and gives a plan to the one with the least to do. One
-- that dies is started again; what it was executing fails with "ECONNRESET", and what it may have left
-- half-made is found by reconciling. The children that they made outlive them and the server.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local paths = require("tidepool.paths")
local transport = require("tidepool.transport")

local spawner = {}

local Pool = {}
Pool.__index = Pool

local function u32(bytes, at)
  local a, b, c, d = bytes:byte(at, at + 3)
  return a + b * 0x100 + c * 0x10000 + d * 0x1000000
end

local function put_u32(number)
  return string.char(
    number % 0x100,
    math.floor(number / 0x100) % 0x100,
    math.floor(number / 0x10000) % 0x100,
    math.floor(number / 0x1000000)
  )
end

local function decode_answer(bytes, fds)
  local code, length = u32(bytes, 5), u32(bytes, 13)
  local message = bytes:sub(17, 16 + length)
  if code ~= 0 then
    return nil, message, core.plan.code(code)
  end
  local at = 17 + length
  local answer = { pid = u32(bytes, at), values = {}, fds = fds or {} }
  for i = 1, u32(bytes, at + 4) do
    answer.values[i] = u32(bytes, at + 8 * i) + u32(bytes, at + 8 * i + 4) * 0x100000000
  end
  if answer.pid == 0 then
    answer.pid = nil
  else
    answer.pidfd = table.remove(answer.fds, 1)
  end
  return answer
end

local function handle_frame(one, bytes, fds)
  local serial = u32(bytes, 1)
  if serial == 0 then
    one.pool:exited(u32(bytes, 5), u32(bytes, 9))
    return
  end
  local waiter = one.waiting[serial]
  if waiter then
    one.waiting[serial] = nil
    waiter(decode_answer(bytes, fds))
  end
end

local replace

local RETRY = 1 -- seconds between starts, at most one in that time is at once
local NUDGE = 3 -- seconds after which a spawner that works on a plan is told to go on, should it be stopped
local GIVE_UP = 120 -- seconds after which it is killed: it hangs

-- Sees to it that plans end. A spawner in the middle of a long flush answers in its own time; one that
-- was stopped by somebody goes on; one that hangs makes place for another.
local function guard(one)
  if one.guarding then
    return
  end
  one.guarding = async.after(NUDGE, function()
    one.guarding = nil
    local oldest = math.huge
    for _, since in pairs(one.since) do
      oldest = math.min(oldest, since)
    end
    local age = uv.hrtime() / 1e9 - oldest
    if one.pool.members[one.index] ~= one or age < 0 then
      return
    elseif age >= GIVE_UP then
      async.on_error(("spawner: %d does not answer, killed"):format(one.pid))
      uv.kill(one.pid, "sigkill") -- its end is noticed as any other's
    elseif age >= NUDGE then
      uv.kill(one.pid, "sigcont")
    end
    guard(one)
  end)
end

local function start_one(pool, index)
  local ours, theirs = core.fd.pair()
  if not ours then
    return nil, theirs, "EMFILE"
  end
  local one = { pool = pool, index = index, waiting = {}, since = {}, load = 0, serial = 0 }
  local handle, pid, code = uv.spawn(pool.program, {
    args = {},
    stdio = { nil, nil, 2, theirs:number() },
    detached = true, -- a Ctrl-C at the server's terminal is not for it
  }, async.guarded(function()
    one.handle:close()
    pool:lost(one)
  end))
  theirs:close()
  if not handle then
    ours:close()
    return nil, pool.program .. ": " .. tostring(pid), code
  end
  one.handle, one.pid = handle, pid
  one.transport = transport.open(core.channel.wrap(ours), {
    on_message = function(bytes, fds)
      handle_frame(one, bytes, fds)
      return true
    end,
    on_close = function()
      pool:lost(one)
    end,
  })
  pool.members[index] = one
  return one
end

--- Starts `count` spawners (2 unless given), inside the mount namespace that the pool of subvolumes is
-- mounted in. `options.tools`: the directory of the program, else the build's.
-- Returns a pool | nil, message, code.
function spawner.start(count, options)
  local ok, message, code = core.namespace.unshare_mount()
  if not ok then
    return nil, message, code
  end
  local pool = setmetatable({
    members = {},
    listeners = {},
    ready = async.event(),
    program = (options and options.tools or paths.build()) .. "/tidepool-spawner",
    count = count or 2,
  }, Pool)
  for i = 1, pool.count do
    local one
    one, message, code = start_one(pool, i)
    if not one then
      pool:close()
      return nil, message, code
    end
  end
  return pool
end

--- Calls fn(pid, status) when a child of a spawner has ended: { code = } or { signal = }.
function Pool:on_exit(fn)
  self.listeners[#self.listeners + 1] = fn
end

function Pool:exited(pid, status)
  local signal = bit.band(status, 0x7f)
  local decoded = signal == 0 and { code = bit.rshift(status, 8) % 0x100 } or { signal = signal }
  for _, fn in ipairs(self.listeners) do
    async.guarded(fn)(pid, decoded)
  end
end

-- Starts another in its place. Not at once for ever: a program that can't start would spin.
function replace(self, index)
  local now = uv.hrtime() / 1e9
  local soon = now - (self.replaced or -RETRY) >= RETRY
  self.replaced = now
  async.after(soon and 0 or RETRY, function()
    if self.closed or self.members[index] then
      return
    end
    local one, message = start_one(self, index)
    if one then
      self.ready:set(true)
      self.ready = async.event()
    else
      async.on_error("spawner: " .. message)
      replace(self, index)
    end
  end)
end

--- One spawner is gone: its plans fail, and another takes its place.
function Pool:lost(one)
  if self.members[one.index] ~= one then
    return
  end
  if one.guarding then
    one.guarding()
    one.guarding = nil
  end
  self.members[one.index] = nil
  one.transport:close()
  if not one.handle:is_closing() then
    uv.kill(one.pid, "sigcont") -- it ends with its channel, unless somebody has stopped it
  end
  local waiting = one.waiting
  one.waiting = {}
  for _, waiter in pairs(waiting) do
    waiter(nil, "the spawner ended while it executed the plan", "ECONNRESET")
  end
  replace(self, one.index)
end

-- How many plans in the foreground one in the background weighs: it waits for a file system.
local BACKGROUND = 4

-- What may take long goes to the last spawner alone, so that a create finds another one free.
local function least_busy(pool, background)
  if background and pool.members[pool.count] then
    return pool.members[pool.count]
  end
  local best
  for i = 1, pool.count do
    local one = pool.members[i]
    if one and (not best or one.load < best.load) then
      best = one
    end
  end
  return best
end

--- Executes a plan: a list of steps, or their encoding. `fds` fill its first slots and stay the caller's.
-- `background`: nobody waits for it, it may queue behind others of its kind.
-- Returns { pid =, pidfd =, values =, fds = what steps gave } | nil, message, code; a failed plan has left nothing behind.
function Pool:execute(plan, fds, background)
  local message, code
  if type(plan) == "table" then
    plan, message, code = core.plan.encode(plan)
    if not plan then
      return nil, message, code
    end
  end
  local one, serial
  repeat
    one = least_busy(self, background)
    if not one and not self.closed then
      self.ready:wait(2 * RETRY) -- all ended at once; others are starting
      one = least_busy(self, background)
    end
    if not one then
      return nil, "no spawner is running", self.closed and "ECANCELED" or "EAGAIN"
    end
    serial = one.serial % 0xffffffff + 1
    one.serial = serial
    local sent
    sent, message, code = one.transport:send(put_u32(serial) .. plan, fds)
    if not sent and self.members[one.index] == one then
      return nil, message, code -- the plan is at fault, not the spawner
    end
  until sent -- by one that was gone already nothing was executed
  local weight = background and BACKGROUND or 1
  one.load = one.load + weight
  return async.wait(function(wake)
    one.since[serial] = uv.hrtime() / 1e9
    guard(one)
    one.waiting[serial] = function(...)
      one.since[serial] = nil
      one.load = one.load - weight
      wake(...)
    end
  end)
end

--- Ends the spawners; what they have started lives on.
function Pool:close()
  self.closed = true
  for i = 1, self.count do
    local one = self.members[i]
    if one then
      self:lost(one)
    end
  end
end

return spawner

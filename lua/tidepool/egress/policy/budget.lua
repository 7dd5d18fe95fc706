--- Runs a policy's code within limits. In the egress process, and in the CLI for `policy test`.
--
-- Instructions are counted by a debug hook. LuaJIT has one hook for all coroutines, and compiled code
-- calls none; so policy code is never compiled (jit.off at load), and the hook is set only while policy
-- code runs: not while a service of the engine's runs for it, nor while `fetch` waits. Measured: 1 µs
-- for 1000 instructions with the hook, 0.1 µs to set and clear it; so a million take about 2 ms.
-- A C function (string.find with an evil pattern) fires no hook: the watchdog, where it is armed, ends
-- the process then, and the server starts another and records the deny. Memory is counted with the
-- instructions; what one call takes beyond that ends at the process's cap with Lua's own "not enough
-- memory", which no policy may catch either.
--
-- Methods of strings, ("x"):rep(n), go through the strings' one metatable. Policy code can't reach that
-- table, but the functions in it are Lua's own, unbounded; so it names our bounded ones for as long as
-- policy code runs.
local budget = {}

budget.INSTRUCTIONS = 1000000
budget.SECONDS = 0.1 -- of CPU time: a busy host is no fault of the policy's
budget.MEMORY = 256 -- MiB that a run may hold at once
budget.FETCHES = 8
budget.FETCH_SECONDS = 10

local STEP = 500
local MEMORY = "not enough memory"

local clock, sethook = os.clock, debug.sethook
local strings = getmetatable("")
local unbounded = strings.__index

local OVER = {} -- raised when a limit is exceeded; its text is in the run
local current -- the run whose code is on the stack, if any
local IDLE = { arm = function() end, disarm = function() end }
local watchdog -- the C one where the process has it (the egress process), else IDLE

--- The functions that methods of strings reach while policy code runs; set once by the environment.
budget.bounded = unbounded

--- Takes a watchdog into use: { arm = function(text), disarm = function() }; nil is the one there is.
function budget.watch(with)
  local proxy = package.loaded["tidepool.proxy"]
  watchdog = with or proxy and proxy.watchdog or IDLE
end

local function exceed(run, what)
  run.exceeded = run.exceeded or what
  error(OVER, 0)
end

-- MiB more than when the run began, garbage too.
local function grown(run)
  return (collectgarbage("count") - run.began_with) / 1024
end

local function check(run)
  if run.exceeded then
    error(OVER, 0)
  elseif run.used > budget.INSTRUCTIONS then
    exceed(run, "instruction budget")
  elseif clock() - run.entered + run.seconds > budget.SECONDS then
    exceed(run, "time budget")
  elseif grown(run) > budget.MEMORY then
    collectgarbage()
    if grown(run) > budget.MEMORY then
      exceed(run, "memory")
    end
  end
end

local function on_count()
  local run = current
  if run then
    run.used = run.used + STEP
    check(run)
  end
end

local function enter(run)
  current = run
  run.entered = clock()
  strings.__index = budget.bounded
  watchdog.arm(run.who)
  sethook(on_count, "", STEP)
end

local function leave(run)
  sethook()
  watchdog.disarm()
  strings.__index = unbounded
  run.seconds = run.seconds + (clock() - run.entered)
  current = nil
end

--- Counts instructions that one call is worth.
function budget.spend(instructions)
  if current then
    current.used = current.used + instructions
    check(current)
  end
end

--- Says in the run that it is over for a reason of its own, and ends it.
function budget.exceed(what)
  exceed(current, what)
end

local function back(run, ok, ...)
  enter(run)
  if not ok then
    error((...), 0)
  end
  return ...
end

--- Calls a function of the engine's for the policy on the stack: unlimited, with Lua's own strings, and
-- it may wait. It costs the policy as much as STEP instructions, so that a loop of calls ends too.
function budget.outside(fn, ...)
  local run = current
  if not run then
    return fn(...)
  end
  run.used = run.used + STEP
  check(run) -- the hook counts anew after each call, so it might never do this
  leave(run)
  return back(run, pcall(fn, ...))
end

--- The run on the stack, for what it may count in it: fetches and the seconds they took.
function budget.current()
  return current
end

local function caught(run, ok, err, ...)
  if not ok and err == MEMORY then
    run.exceeded = run.exceeded or "memory"
  end
  if run.exceeded then
    error(OVER, 0)
  end
  return ok, err, ...
end

--- pcall for policies: it catches everything but the end of the budget.
function budget.pcall(fn, ...)
  return caught(current, pcall(fn, ...))
end

local function finish(run, ok, ...)
  leave(run)
  if run.exceeded and grown(run) > budget.MEMORY / 4 then
    collectgarbage()
  end
  if run.exceeded then
    return nil, "exceeded its " .. run.exceeded, "EDQUOT"
  elseif ok then
    return true, ...
  end
  local err = ...
  if err == MEMORY then
    return nil, "exceeded its memory", "EDQUOT"
  end
  return nil, type(err) == "string" and err or ("error of type " .. type(err)), "EFAULT"
end

--- Runs fn within the limits. `who` names it to the watchdog. Returns true and fn's results, or nil,
-- message, code: "EDQUOT" when a limit was exceeded, "EFAULT" when fn raised.
function budget.run(who, fn, ...)
  assert(not current, "policy code runs inside policy code")
  if not watchdog then
    budget.watch()
  end
  local run = { who = who, used = 0, seconds = 0, fetches = 0, waited = 0, began_with = collectgarbage("count") }
  enter(run)
  return finish(run, pcall(fn, ...))
end

return budget

--- Tasks: code that reads from top to bottom, though it waits in the middle.
--
-- One task is one coroutine over luv's default loop. Only this module yields, and each waiter is
-- resumed exactly once. Used by the server and by clients; it owns no descriptor but the poll
-- handles, which it closes when the wait ends.
local uv = require("luv")

local async = {}

local tasks = setmetatable({}, { __mode = "k" }) -- coroutine -> task
local Task = {}
Task.__index = Task

local function traceback(err)
  if type(err) == "string" then
    return debug.traceback(err, 2)
  end
  return err
end

--- Called with an error that no one joined; replace it to log elsewhere.
function async.on_error(err)
  io.stderr:write("tidepool: unhandled error in a task: ", tostring(err), "\n")
end

-- luv ends the process when an error escapes a callback.
local function guarded(fn)
  return function(...)
    local ok, err = xpcall(fn, traceback, ...)
    if not ok then
      async.on_error(err)
    end
  end
end
async.guarded = guarded

function async.running()
  local co = coroutine.running()
  return co ~= nil and tasks[co] ~= nil
end

local function resume(co, ...)
  local ok, err = coroutine.resume(co, ...)
  if not ok then
    async.on_error(debug.traceback(co, tostring(err)))
  end
end

--- Suspends the running task until `begin`'s argument is called; returns what it is called with.
-- `begin(wake)` may call wake at once.
function async.wait(begin)
  local co = coroutine.running()
  assert(co and tasks[co], "not inside a task")
  local done, waiting, results = false, false, nil
  begin(function(...)
    if done then
      return
    end
    done = true
    if waiting then
      resume(co, ...)
    else
      results = { n = select("#", ...), ... }
    end
  end)
  if done then
    return unpack(results, 1, results.n)
  end
  waiting = true
  return coroutine.yield()
end

local function finish(task, ok, ...)
  task.done = true
  task.ok = ok
  task.results = { n = select("#", ...), ... }
  local waiters = task.waiters
  task.waiters = {}
  for _, wake in ipairs(waiters) do
    wake()
  end
  if not ok and #waiters == 0 and not task.joined then
    -- Whoever started it may still come to join it in this turn of the loop.
    local err = ...
    async.after(0, function()
      if not task.joined then
        async.on_error(err)
      end
    end)
  end
end

local function start(task, fn, ...)
  local args = { n = select("#", ...), ... }
  local co = coroutine.create(function()
    finish(task, xpcall(function()
      return fn(unpack(args, 1, args.n))
    end, traceback))
  end)
  tasks[co] = task
  resume(co)
  return task
end

--- Starts a task at once; it runs until it first waits.
function async.spawn(fn, ...)
  return start(setmetatable({ waiters = {}, done = false }, Task), fn, ...)
end

--- Waits for the task: true and its results, or nil and its error.
function Task:join()
  self.joined = true
  if not self.done then
    async.wait(function(wake)
      self.waiters[#self.waiters + 1] = wake
    end)
  end
  if not self.ok then
    return nil, self.results[1]
  end
  return true, unpack(self.results, 1, self.results.n)
end

--- Runs fn as a task from outside of any and drives the loop until it returns. Raises its error.
function async.run(fn, ...)
  assert(not async.running(), "already inside a task: call the function itself")
  local task = start(setmetatable({ waiters = {}, done = false, joined = true }, Task), fn, ...)
  while not task.done do
    if uv.run("once") == 0 and not task.done then
      error("deadlock: the task waits for something that can't come")
    end
  end
  -- luv 1.44 crashes in lua_close when a handle's close callback is still due.
  uv.run("nowait")
  if not task.ok then
    error(task.results[1], 0)
  end
  return unpack(task.results, 1, task.results.n)
end

--- Runs fn inside a task: here if this is one, else in a new one.
function async.within(fn, ...)
  if async.running() then
    return fn(...)
  end
  return async.run(fn, ...)
end

-- A timer counts from the loop's own time, which is that of its last turn: a caller who has worked since
-- then would see it end early.
local function start_timer(seconds, fn)
  local timer = uv.new_timer()
  uv.update_time()
  timer:start(math.max(0, math.ceil(seconds * 1000)), 0, guarded(fn))
  return timer
end

function async.sleep(seconds)
  async.wait(function(wake)
    local timer
    timer = start_timer(seconds, function()
      timer:close()
      wake()
    end)
  end)
end

--- Calls fn once after `seconds`, outside of any task; returns a function that cancels it.
function async.after(seconds, fn)
  local timer
  local function cancel()
    if not timer:is_closing() then
      timer:close()
    end
  end
  timer = start_timer(seconds, function()
    cancel()
    fn()
  end)
  return cancel
end

local Watch = {}
Watch.__index = Watch

--- Calls fn whenever the descriptor is ready for `events` ("r", "w", "rw") or broken, which the next
-- read or write tells, until stopped. It starts stopped. Close it before the descriptor.
-- "EPERM": a plain file, which is always ready.
function async.watch(fd, events, fn)
  -- Not at the top: the bootstrap runs tasks before the C module is built.
  local poll, message, code = require("tidepool.core").poll.open(fd, events)
  if not poll then
    return nil, message, code
  end
  local handle
  handle, message, code = uv.new_poll(poll:number())
  if not handle then
    poll:close()
    return nil, message, code
  end
  return setmetatable({ poll = poll, handle = handle, events = events, fn = guarded(fn) }, Watch)
end

function Watch:start(events)
  if events and events ~= self.events then
    self.poll:set(events)
    self.events = events
  end
  self.handle:start("r", self.fn)
end

function Watch:stop()
  if not self.handle:is_closing() then
    self.handle:stop()
  end
end

function Watch:is_closed()
  return self.handle:is_closing()
end

function Watch:close()
  if not self.handle:is_closing() then
    self.handle:close()
    self.poll:close()
  end
end

local Poller = {}
Poller.__index = Poller

--- For repeated waits on one descriptor. Close it before the descriptor.
function async.poller(fd)
  local self = setmetatable({}, Poller)
  local watch, message, code = async.watch(fd, "r", function()
    if self.wake then
      self.wake(true)
    end
  end)
  if not watch then
    return nil, message, code
  end
  self.watch = watch
  return self
end

local function poll_wait(self, events, timeout)
  if self.watch:is_closed() then
    return nil, "closed", "ECANCELED"
  end
  return async.wait(function(wake)
    local cancel
    self.wake = function(...)
      self.wake = nil
      if cancel then
        cancel()
      end
      self.watch:stop()
      wake(...)
    end
    if timeout then
      cancel = async.after(timeout, function()
        cancel = nil
        if self.wake then
          self.wake(nil, "timeout", "ETIMEDOUT")
        end
      end)
    end
    self.watch:start(events)
  end)
end

--- Waits until the descriptor is readable (or at its end); one waiter at a time.
-- `timeout` in seconds. Returns true, or nil, message, "ETIMEDOUT" or "ECANCELED" when closed.
function Poller:readable(timeout)
  return poll_wait(self, "r", timeout)
end

function Poller:writable(timeout)
  return poll_wait(self, "w", timeout)
end

function Poller:close()
  self.watch:close()
  if self.wake then
    self.wake(nil, "closed", "ECANCELED")
  end
end

local function once(method)
  return function(fd, timeout)
    local poller, message, code = async.poller(fd)
    if not poller then
      return nil, message, code
    end
    local ok
    ok, message, code = poller[method](poller, timeout)
    poller:close()
    return ok, message, code
  end
end

--- One wait on a descriptor that nothing else polls.
async.readable = once("readable")
async.writable = once("writable")

local Event = {}
Event.__index = Event

--- A value that arrives once; any number of tasks may wait for it.
function async.event()
  return setmetatable({ waiters = {} }, Event)
end

function Event:set(...)
  if self.values then
    return
  end
  self.values = { n = select("#", ...), ... }
  local waiters = self.waiters
  self.waiters = {}
  for _, wake in ipairs(waiters) do
    wake(...)
  end
end

function Event:is_set()
  return self.values ~= nil
end

--- The values, once there; or nil, "timeout", "ETIMEDOUT".
function Event:wait(timeout)
  if self.values then
    return unpack(self.values, 1, self.values.n)
  end
  return async.wait(function(wake)
    local cancel
    local function woken(...)
      if cancel then
        cancel()
      end
      wake(...)
    end
    self.waiters[#self.waiters + 1] = woken
    if timeout then
      cancel = async.after(timeout, function()
        cancel = nil
        for i, waiter in ipairs(self.waiters) do
          if waiter == woken then
            table.remove(self.waiters, i)
            break
          end
        end
        wake(nil, "timeout", "ETIMEDOUT")
      end)
    end
  end)
end

local Lock = {}
Lock.__index = Lock

--- A queue of tasks that take turns.
function async.lock()
  return setmetatable({ waiters = {} }, Lock)
end

--- Runs fn alone among the holders of this lock and returns its results.
function Lock:with(fn, ...)
  if self.held then
    async.wait(function(wake)
      self.waiters[#self.waiters + 1] = wake
    end)
  end
  self.held = true
  local results = { n = 0 }
  local function collect(...)
    results = { n = select("#", ...), ... }
  end
  collect(xpcall(fn, traceback, ...))
  local following = table.remove(self.waiters, 1)
  if following then
    following() -- runs until it waits; `held` stays true
  else
    self.held = false
  end
  if not results[1] then
    error(results[2], 0)
  end
  return unpack(results, 2, results.n)
end

--- Runs the functions as concurrent tasks and waits for all.
-- Returns a list of `{ n, results... }` in their order; raises the first error after all have ended.
function async.all(functions)
  local started = {}
  for i, fn in ipairs(functions) do
    started[i] = async.spawn(fn)
    started[i].joined = true
  end
  local results, failure = {}, nil
  for i, task in ipairs(started) do
    local outcome = { task:join() }
    if not outcome[1] then
      failure = failure or outcome[2]
    end
    results[i] = { n = #outcome - 1, unpack(outcome, 2) }
  end
  if failure then
    error(failure, 0)
  end
  return results
end

-- Reads a pipe of a child to its end.
local function collect_pipe(pipe, on_line)
  local parts, partial, ended = {}, "", async.event()
  pipe:read_start(guarded(function(err, data)
    if err or not data then
      if on_line and partial ~= "" then
        on_line(partial)
      end
      pipe:close()
      ended:set(true)
      return
    end
    parts[#parts + 1] = data
    if on_line then
      partial = (partial .. data):gsub("([^\n\r]*)[\n\r]", function(line)
        if line ~= "" then
          on_line(line)
        end
        return ""
      end)
    end
  end))
  return function()
    ended:wait()
    return table.concat(parts)
  end
end

--- Runs a host program and waits for it. options[1..n] is the argv; `stdin`, `stdout`, `stderr` a
-- descriptor number or "pipe" (collected); `env` a list of "K=V"; `cwd`; `on_line(line)` for each line
-- of what is collected; `on_start(pid)`.
-- Returns { code, signal, stdout, stderr } | nil, message, code when it can't be started.
function async.command(options)
  local args = {}
  for i = 2, #options do
    args[i - 1] = options[i]
  end
  local stdio, readers = {}, {}
  for i, name in ipairs({ "stdin", "stdout", "stderr" }) do
    local want = options[name]
    if want == "pipe" then
      local pipe = uv.new_pipe(false)
      stdio[i] = pipe
      readers[name] = pipe
    else
      stdio[i] = want
    end
  end
  local exited = async.event()
  local handle, pid, code
  handle, pid, code = uv.spawn(options[1], {
    args = args,
    env = options.env,
    cwd = options.cwd,
    stdio = { stdio[1], stdio[2], stdio[3] },
    detached = options.detached,
  }, guarded(function(status, signal)
    handle:close()
    exited:set(status, signal)
  end))
  if not handle then
    for _, pipe in pairs(readers) do
      pipe:close()
    end
    return nil, options[1] .. ": " .. tostring(pid), code
  end
  if options.on_start then
    options.on_start(pid)
  end
  local finished = {}
  for name, pipe in pairs(readers) do
    finished[name] = collect_pipe(pipe, options.on_line)
  end
  local status, signal = exited:wait()
  return {
    code = status,
    signal = signal,
    stdout = finished.stdout and finished.stdout() or "",
    stderr = finished.stderr and finished.stderr() or "",
  }
end

return async

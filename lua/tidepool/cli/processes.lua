--- exec, start, ps, logs, kill, wait and their like.
local attached = require("tidepool.cli.attached")
local format = require("tidepool.cli.format")
local terminal = require("tidepool.terminal")

local LINE = { name = "line", type = "string", flag = "--command", short = "-c", about = "a shell line instead of ARGV" }
local KEYS = { name = "detach_keys", type = "string", flag = "--detach-keys", about = "keys that leave the terminal", default = "ctrl-p,ctrl-q" }
local ENV = {
  name = "env",
  type = "map",
  flag = "--env",
  short = "-e",
  repeated = true,
  inherit = true,
  about = "environment, K=V; K alone takes our value",
}

local function parameters(values, command)
  local params = require("tidepool.cli.commands").params(command, values)
  params.process = values.process
  if params.tty then
    attached.dress(params)
  end
  return params
end

local function check_command(values)
  if (values.argv == nil) == (values.line == nil) then
    return nil, "give the command after --, or a shell line with -c", "ENOARG"
  end
  return true
end

-- Signals to us, passed on: on_signal as terminal.pump wants it, and kill(grace) of the whole tree.
local function interrupter(client, name, id)
  local function kill(grace)
    return client:call("kill", { name = name, process = tostring(id), grace = grace })
  end
  local interrupts = 0
  return function(number)
    if number == 2 then
      interrupts = interrupts + 1
      if interrupts == 1 then -- as Ctrl-C does where the command is ours
        client:call("signal", { name = name, process = tostring(id), signal = "INT" })
        return true
      end
    end
    kill(number == 2 and 0 or 2)
  end, kill
end

-- What exec says at the end. `output`: what was gathered for JSON.
local function report(context, values, outcome, dropped, output)
  if output then
    local result = {}
    for _, name in ipairs({ "exit_code", "signal", "wall_seconds", "cpu_seconds", "id" }) do
      result[name] = outcome[name]
    end
    result.timed_out = outcome.timed_out or false
    result.dropped = output.dropped + dropped
    context:result(format.bytes(result, { stdout = output.stdout, stderr = output.stderr }))
    return
  end
  if dropped > 0 then
    context:note(("tidepool: %d bytes of output were dropped"):format(dropped))
  end
  if outcome.timed_out then
    context:note(("tidepool: timed out after %g s; the process tree was killed (ETIMEDOUT)"):format(values.timeout))
  end
end

-- What init has of the output after a connection that has ended before it: the sandbox hibernated.
-- Returns how many bytes are lost.
local function pass_rest(client, name, described, offset, sink)
  local stream = attached.connect(client, name, described, { offset = offset })
  if not stream then
    return 0
  end
  return terminal.pump(stream, {
    on_output = sink and function(which, bytes)
      sink(which == "stderr" and 2 or 1, bytes)
    end,
  }).dropped
end

local function exec(context, values, command)
  local ok, message, code = check_command(values)
  local keys
  if ok then
    keys, message, code = attached.keys(values.detach_keys)
  end
  if not keys then
    return context:fail("exec: " .. message, code)
  end

  local client, params = context:connect(), parameters(values, command)
  params.lossless = true
  local sink, _, gathered
  if context.json then
    sink, _, gathered = require("tidepool.client.collect").new({})
  end
  local stream, described
  stream, described, code = attached.start(client, params)
  if not stream then
    return context:fail(described, code, attached.refusal(code))
  end
  local finish = attached.watch(client, values.name, described, values.timeout)
  local on_signal, kill = interrupter(client, values.name, described.id)
  local seen = terminal.pump(stream, {
    input = values.stdin and 0 or nil,
    raw = values.tty and values.stdin,
    detach_keys = keys,
    on_signal = on_signal,
    on_output = sink and function(name, bytes)
      sink(name == "stderr" and 2 or 1, bytes)
    end,
  })
  if seen.detached then
    attached.say_detached(context, values.name, described)
    return 0
  elseif seen.interrupted then
    return 128 + seen.interrupted
  elseif seen.output_failed then
    kill(0) -- nobody reads its output: what SIGPIPE does where the command is ours
    return 141
  end

  local outcome
  outcome, message, code = finish()
  if not outcome then
    return context:fail(message, code)
  end
  if seen.broken then
    seen.dropped = seen.dropped + pass_rest(client, values.name, described, seen.offset or 0, sink)
  end
  report(context, values, outcome, seen.dropped, gathered and gathered())
  return attached.status(outcome)
end

local function start(context, values, command)
  local ok, message, code = check_command(values)
  if not ok then
    return context:fail("start: " .. message, code)
  end
  local params = parameters(values, command)
  local described
  params.key = require("tidepool.random").hex(12)
  described, message, code = context:connect():call_keyed("start", params, function() end)
  if not described then
    return context:fail(message, code, attached.refusal(code))
  end
  return context:result(described, function()
    return (described.name or described.id) .. "\n"
  end)
end

local function status_text(row)
  if row.status == "exited" then
    return "exited " .. (row.exit_code or "?")
  elseif row.status == "killed" then
    return "killed by signal " .. (row.signal or "?")
  end
  return row.status
end

local function show_processes(list)
  return format.table({
    { "ID", "id" },
    { "NAME", "name" },
    { "STATUS", status_text },
    { "STARTED", function(row) return format.ago(row.started) end },
    { "CPU", function(row) return row.cpu_seconds and ("%.2f s"):format(row.cpu_seconds) end },
    { "OUTPUT", function(row) return row.output and format.size(row.output) end },
    { "USER", "user" },
    { "COMMAND", function(row)
      local text = format.argv(row.argv)
      -- At a character's end: half of one would make the rest look like bytes.
      return #text > 60 and text:sub(1, 57):gsub("[\192-\247]?[\128-\191]*$", "") .. "..." or text
    end },
  }, list)
end

local function ps(context, values, command)
  local list, message, code = context:call(command, values)
  if not list then
    return context:fail(message, code)
  end
  return context:result(format.array(list), show_processes)
end

local function process_of(context, values)
  return require("tidepool.client.box").new(context:connect(), values.name):process(values.process)
end

-- The last `count` lines of a text that comes in pieces.
local function tail_of(count)
  local parts = {}
  return function(name, bytes)
    parts[#parts + 1] = { name, bytes }
  end, function(show)
    local newlines, first = 0, 1
    for i = #parts, 1, -1 do
      local bytes = parts[i][2]
      for at = #bytes, 1, -1 do
        if bytes:byte(at) == 10 and not (i == #parts and at == #bytes) then
          newlines = newlines + 1
          if newlines == count then
            first = i
            parts[i][2] = bytes:sub(at + 1)
            newlines = math.huge
            break
          end
        end
      end
      if newlines == math.huge then
        break
      end
    end
    for i = first, #parts do
      show(parts[i][1], parts[i][2])
    end
  end
end

local function logs(context, values)
  local process = process_of(context, values)
  local function show(name, bytes)
    return terminal.write_all(name == "stderr" and 2 or 1, bytes)
  end
  local options = { since = values.since, follow = values.follow }
  local streams = { stdout = {}, stderr = {} }
  local sink, finish = show, nil
  if context.json then
    sink = function(name, bytes)
      table.insert(streams[name], bytes)
    end
  elseif values.tail then
    sink, finish = tail_of(values.tail)
    if values.follow then
      return context:fail("logs: --tail shows what is there; it does not go with --follow", "EINVAL")
    end
  end
  local result, message, code = process:logs(options, sink)
  if not result then
    return context:fail(message, code)
  end
  if finish then
    finish(show)
  end
  if context.json then
    return context:result(format.bytes({ dropped = result.lost }, {
      stdout = table.concat(streams.stdout),
      stderr = table.concat(streams.stderr),
    }))
  end
  if result.lost > 0 then
    context:note(("tidepool: %d bytes of older output were dropped"):format(result.lost))
  end
  return 0
end

local function show_outcome(outcome)
  return status_text(outcome) .. "\n"
end

local function wait(context, values, command)
  local outcome, message, code = context:call(command, values)
  if not outcome then
    return context:fail(message, code, code == "ETIMEDOUT" and 124 or nil)
  end
  context:result(outcome, show_outcome)
  return attached.status(outcome)
end

local function wait_log(context, values)
  local line, message, code = process_of(context, values):wait_log(values.pattern, {
    timeout = values.timeout,
    since = values.since,
    plain = not values.lua_pattern,
  })
  if not line then
    return context:fail(message, code, code == "ETIMEDOUT" and 124 or nil)
  end
  return context:result({ line = line }, function()
    return line .. "\n"
  end)
end

local function wait_port(context, values, command)
  local ok, message, code = context:call(command, values)
  if not ok then
    return context:fail(message, code, code == "ETIMEDOUT" and 124 or nil)
  end
  return context.json and context:result({ port = values.port, listening = true }) or 0
end

local function session(context, values)
  local box = require("tidepool.client.box").new(context:connect(), values.name)
  local opened, message, code = box:session({ name = values.session, user = values.user, cwd = values.cwd, env = values.env })
  if not opened then
    return context:fail(message, code)
  end
  if values.close then
    local ended
    ended, message, code = opened:close()
    return ended and 0 or context:fail(message, code)
  end
  if not values.argv and not values.line then
    return context:fail("session: give the command after --, or a shell line with -c", "ENOARG")
  end
  local options = { timeout = values.timeout }
  if not context.json then
    options.on_output = function(name, bytes)
      terminal.write_all(name == "stderr" and 2 or 1, bytes)
    end
  end
  local result
  result, message, code = opened:exec(values.line or format.argv(values.argv), options)
  if not result then
    return context:fail(message, code, code == "ETIMEDOUT" and 124 or nil)
  end
  if context.json then
    local shown = { exit_code = result.exit_code, dropped = result.dropped }
    context:result(format.bytes(shown, { stdout = result.stdout, stderr = result.stderr }))
  end
  return result.exit_code
end

local NAME = { name = "name", type = "name", positional = 1, required = true, about = "the sandbox" }
local PROCESS = { name = "process", type = "string", positional = 2, required = true, about = "a process: its name or number" }

local function ok_only(context, values, command)
  local ok, message, code = context:call(command, values)
  if not ok then
    return context:fail(message, code)
  end
  return context.json and context:result({ ok = true }) or 0
end

return {
  {
    name = "exec",
    params = { LINE, KEYS, ENV },
    run = exec,
    result = "exit_code or signal, stdout, stderr, encoding, dropped, timed_out, wall_seconds, cpu_seconds",
    details = [[
Its exit status is the command's: 128 + N after signal N, 124 after a timeout, 127 and 126 when the
command is not there or can't be run, 125 for other errors of ours. Ctrl-C is passed on; a second one
ends the command and all that it started. With -t, ctrl-p ctrl-q leaves it running.]],
  },
  { name = "start", params = { LINE, ENV }, run = start },
  { name = "ps", run = ps },
  {
    name = "logs",
    params = { { name = "tail", type = "integer", flag = "--tail", short = "-n", about = "only the last N lines" } },
    run = logs,
    result = "stdout, stderr, encoding (utf-8 or base64), dropped",
  },
  { name = "kill", show = show_outcome },
  { name = "signal", run = ok_only },
  { name = "forget", run = ok_only },
  { name = "wait", run = wait, details = "Its exit status is the process's, as of exec; 124 when the time is up." },
  { name = "wait-port", run = wait_port, result = "port, listening" },
  {
    name = "wait-log",
    group = "process",
    about = "Wait until a line of a process's output holds a text.",
    params = {
      NAME,
      PROCESS,
      { name = "pattern", type = "string", positional = 3, required = true, about = "the text" },
      { name = "lua_pattern", type = "boolean", flag = "--pattern", about = "the text is a Lua pattern" },
      { name = "since", type = "offset", flag = "--since", about = "skip this many bytes of output" },
      { name = "timeout", type = "seconds", flag = "--timeout", about = "give up after so long", default = 30 },
    },
    errors = { "ENOSANDBOX", "ENOPROCESS", "ETIMEDOUT", "ESRCH" },
    result = "line",
    run = wait_log,
    example = "wait-log agent-42 web \"Serving HTTP\"",
  },
  {
    name = "session",
    group = "process",
    about = "Run a command in a shell whose directory, variables and functions persist.",
    params = {
      NAME,
      { name = "session", type = "name", positional = 2, required = true, about = "the session's name; made when absent" },
      { name = "argv", type = "argv", rest = true, about = "the command" },
      LINE,
      { name = "user", type = "string", flag = "--user", short = "-u", about = "user name or id", default = "agent" },
      { name = "cwd", type = "string", flag = "--workdir", short = "-w", about = "where a new session starts", default = "/workspace" },
      ENV,
      { name = "timeout", type = "seconds", flag = "--timeout", about = "end the session when the command takes longer" },
      { name = "close", type = "boolean", flag = "--close", about = "end the session" },
    },
    errors = { "ENOSANDBOX", "ESHUTDOWN", "ETIMEDOUT" },
    result = "exit_code, stdout, stderr, encoding, dropped",
    run = session,
    example = "session agent-42 work -c 'cd /tmp && export A=1'",
  },
}

--- shell and attach: a person inside a sandbox.
local attached = require("tidepool.cli.attached")
local terminal = require("tidepool.terminal")

local KEYS = { name = "detach_keys", type = "string", flag = "--detach-keys", about = "keys that leave the terminal", default = "ctrl-p,ctrl-q" }

-- How the pump's end reads as an exit status.
local function conclude(context, values, described, seen, finish)
  if seen.detached then
    attached.say_detached(context, values.name, described)
    return 0
  elseif seen.interrupted then
    return 128 + seen.interrupted
  elseif seen.output_failed then
    return 141
  end
  local outcome, message, code = finish()
  if not outcome then
    return context:fail(message, code)
  end
  return attached.status(outcome)
end

-- "shell", "shell-2" ...: the first name that no process of the sandbox has.
local function free_name(client, name)
  local list, message, code = client:call("ps", { name = name })
  if not list then
    return nil, message, code
  end
  local taken = {}
  for _, process in ipairs(list) do
    if process.name and process.status == "running" then
      taken[process.name] = true
    end
  end
  local number = 1
  while taken[number == 1 and "shell" or "shell-" .. number] do
    number = number + 1
  end
  return number == 1 and "shell" or "shell-" .. number
end

local LOGIN = { "/bin/sh", "-c", "exec \"${SHELL:-/bin/sh}\" -l" }

local function shell(context, values)
  local keys, message, code = attached.keys(values.detach_keys)
  if not keys then
    return context:fail("shell: " .. message, code)
  end
  if not attached.is_terminal() then
    return context:fail("shell needs a terminal as its input; exec runs commands without one", "ENOTTY")
  end
  local client = context:connect()
  local stream, described
  for _ = 1, 3 do -- another shell may take the name between the look and the start
    local name
    name, message, code = free_name(client, values.name)
    if not name then
      return context:fail(message, code)
    end
    stream, described, code = attached.start(client, attached.dress({
      name = values.name,
      argv = values.argv or LOGIN,
      process = name,
      user = values.user,
      cwd = values.cwd,
      env = values.env,
      lossless = true, -- a screen with holes in it is no use
    }))
    if stream or code ~= "EEXIST" then
      break
    end
  end
  if not stream then
    return context:fail(described, code, attached.refusal(code))
  end
  local finish = attached.watch(client, values.name, described)
  local seen = terminal.pump(stream, { input = 0, raw = true, detach_keys = keys })
  return conclude(context, values, described, seen, finish)
end

local function attach(context, values)
  local keys, message, code = attached.keys(values.detach_keys)
  if not keys then
    return context:fail("attach: " .. message, code)
  end
  local client = context:connect()
  local box = require("tidepool.client.box").new(client, values.name)
  local described
  described, message, code = box:process(values.process):info()
  if not described then
    return context:fail(message, code)
  end
  local live = described.output or 0
  local from = math.max(0, live - attached.RECENT)
  local stream
  stream, message, code = attached.connect(client, values.name, described, {
    offset = from,
    input = not values.no_stdin,
    lossless = described.tty,
  })
  if not stream then
    return context:fail(message, code)
  end
  local finish = attached.watch(client, values.name, described)
  local seen = terminal.pump(stream, {
    input = not values.no_stdin and 0 or nil,
    raw = described.tty,
    redraw = true,
    keep_input = true,
    detach_keys = keys,
    filter = described.tty and attached.replay(live, from) or nil,
  })
  return conclude(context, values, described, seen, finish)
end

return {
  {
    name = "shell",
    group = "process",
    about = "Open a login shell in a terminal of its own.",
    details = [[
ctrl-p ctrl-q leaves it running; `attach` comes back to it with its recent output. The exit status
is the shell's.]],
    wakes = true,
    params = {
      { name = "name", type = "name", positional = 1, required = true, about = "the sandbox" },
      { name = "argv", type = "argv", rest = true, about = "another command than the login shell" },
      { name = "user", type = "string", flag = "--user", short = "-u", about = "user name or id", default = "agent" },
      { name = "cwd", type = "string", flag = "--workdir", short = "-w", about = "working directory", default = "/workspace" },
      { name = "env", type = "map", flag = "--env", short = "-e", repeated = true, inherit = true, about = "environment, K=V" },
      KEYS,
    },
    errors = { "ENOSANDBOX", "ENOTTY", "EBADUSER", "EBADCWD" },
    run = shell,
    example = "shell agent-42",
  },
  {
    name = "attach",
    details = [[
Shows recent output, then what comes, and passes our input on. Several may be attached at once; the
end of our input does not end the process's. ctrl-p ctrl-q leaves a terminal; Ctrl-C leaves others.]],
    params = {
      { name = "no_stdin", type = "boolean", flag = "--no-stdin", about = "only look" },
      KEYS,
    },
    run = attach,
  },
}

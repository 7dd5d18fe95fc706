--- A process that this command line's own input and output belong to: what exec -it, attach and
-- shell have in common.
local uv = require("luv")
local async = require("tidepool.async")
local terminal = require("tidepool.terminal")

local attached = {}

local RECENT = 64 * 1024 -- bytes of earlier output that an attach shows

-- Terminal types that the images know; another one would leave programs without a description.
local TERMS = {
  ["xterm-256color"] = true, ["screen-256color"] = true, ["tmux-256color"] = true, xterm = true, screen = true,
  tmux = true, linux = true, vt100 = true, ansi = true, dumb = true, rxvt = true,
}

--- Gives a terminal's parameters the size and kind of ours.
function attached.dress(params)
  params.tty = true
  params.cols, params.rows = terminal.size()
  params.env = params.env or {}
  local term = os.getenv("TERM")
  if not params.env.TERM and term and TERMS[term] then
    params.env.TERM = term
  end
  return params
end

--- Starts a process with a stream of it from its first byte: stream, description | nil, message, code.
function attached.start(client, params)
  -- All that is loaded is loaded here: a Ctrl-C that comes once the command runs must find us waiting for it.
  local make = require("tidepool.client.stream").pair
  local box = require("tidepool.client.box").new(client, params.name)
  local renewal = require("tidepool.client.process").renewal
  params.key = params.key or require("tidepool.random").hex(12)
  local tries, stream, theirs, code = 0, nil, nil, nil
  local function renew()
    tries = tries + 1
    if stream then
      stream:close()
      theirs:close()
    end
    stream, theirs, code = make()
    if not stream then
      local why = theirs
      theirs = nil
      return nil, why, code
    end
    return { theirs }
  end
  local described, message
  described, message, code = client:call_keyed("start", params, renew)
  if theirs then
    theirs:close()
  end
  if not described then
    if stream then
      stream:close()
    end
    return nil, message, code
  end
  if tries > 1 then
    -- An earlier try may have started it with a socket that is gone: attach again, from the start.
    stream:close()
    return attached.connect(client, params.name, described, { input = params.stdin or params.tty, lossless = params.lossless })
  end
  stream:survive(renewal(box, params.key, {
    input = params.stdin or params.tty, lossless = params.lossless,
  }, 0))
  return stream, described
end

--- Attaches to a process that is there: stream, description | nil, message, code.
function attached.connect(client, name, described, options)
  local box = require("tidepool.client.box").new(client, name)
  return box:process(described.name or tostring(described.id)):connect({
    offset = options.offset,
    input = options.input,
    lossless = options.lossless,
    follow = true,
  })
end

--- Waits for the end in a task of its own; a server that was killed meanwhile is started again and
-- told the deadline anew. Returns a function that waits for outcome | nil, message, code.
function attached.watch(client, name, described, deadline)
  local task = async.spawn(function()
    return client:call("wait", { name = name, process = tostring(described.id), deadline = deadline })
  end)
  return function()
    local ok, outcome, message, code = task:join()
    if not ok then
      error(outcome, 0)
    end
    return outcome, message, code
  end
end

--- The exit status that a shell would give for an outcome.
function attached.status(outcome)
  if outcome.timed_out then
    return 124
  elseif outcome.signal then
    return 128 + outcome.signal
  end
  return outcome.exit_code or 125
end

--- The exit status for a command that could not be started.
function attached.refusal(code)
  if code == "ENOENT" then
    return 127
  elseif code == "EACCES" or code == "ENOEXEC" then
    return 126
  end
  return 125
end

-- What a replayed program once asked its terminal must not be asked again: the answer would be typed.
local QUERIES = {
  "\27%[[?>=]?%d*n", "\27%[[>=]?%d*c", "\27%[%?%d*%$p", "\27%[>%d*q",
  "\27%]%d+;%?\7", "\27%]%d+;%?\27\\", "\27P[%+%$]q[^\27]*\27\\",
}

--- Makes earlier output fit to be shown again: whole lines, no questions. `live` is the offset where
-- output is new.
function attached.replay(live, first_offset)
  local cut = first_offset > 0
  return function(bytes, offset)
    if offset >= live then
      return bytes
    end
    if cut then -- it begins in the middle of something
      cut = false
      bytes = bytes:gsub("^[^\n]*\n", "", 1)
    end
    for _, pattern in ipairs(QUERIES) do
      bytes = bytes:gsub(pattern, "")
    end
    return bytes
  end
end

--- Whether our input is a terminal.
function attached.is_terminal()
  return uv.guess_handle(0) == "tty"
end

attached.RECENT = RECENT

--- Detach keys from an option's text: bytes | nil, message, code.
function attached.keys(text)
  return terminal.parse_keys(text or "ctrl-p,ctrl-q")
end

--- Says how to come back.
function attached.say_detached(context, name, described)
  context:note(("detached; it goes on. Come back with: ./sandbox.lua attach %s %s"):format(name, described.name or described.id))
end

return attached

--- Between a person's terminal (or pipes) and a process of a sandbox: bytes both ways, at the pace of
-- the slower side, and the terminal given back as it was, whatever happens.
--
-- Runs in the client, in a task. Takes a tidepool.client.stream; knows nothing of servers and names.
local uv = require("luv")
local async = require("tidepool.async")

local terminal = {}

local CHUNK = 64 * 1024

--- Key sequences as docker writes them ("ctrl-p,ctrl-q", "ctrl-]", "a") in bytes.
-- nil, message, "EINVAL" for what isn't one; "" never detaches.
function terminal.parse_keys(text)
  local bytes = {}
  for key in (text .. ","):gmatch("([^,]*),") do
    local letter = key:lower():match("^ctrl%-(.)$")
    if letter and letter:match("[a-z@%[\\%]^_]") then
      bytes[#bytes + 1] = string.char(letter:upper():byte() % 32)
    elseif #key == 1 then
      bytes[#bytes + 1] = key
    elseif text ~= "" then
      return nil, ("not a key: %q (write ctrl-p,ctrl-q)"):format(key), "EINVAL"
    end
  end
  return table.concat(bytes)
end

--- Finds the detach sequence in what is typed, also when it comes in pieces. A function: bytes in,
-- bytes to pass on out and whether the sequence is complete. What may be its start is held back
-- until the next key tells.
function terminal.key_filter(sequence)
  local matched = 0
  return function(bytes)
    if sequence == "" then
      return bytes, false
    end
    local out = {}
    for i = 1, #bytes do
      local byte = bytes:sub(i, i)
      if byte ~= sequence:sub(matched + 1, matched + 1) and matched > 0 then
        out[#out + 1] = sequence:sub(1, matched)
        matched = 0
      end
      if byte == sequence:sub(matched + 1, matched + 1) then
        matched = matched + 1
        if matched == #sequence then
          return table.concat(out), true
        end
      else
        out[#out + 1] = byte
      end
    end
    return table.concat(out), false
  end
end

-- Modes that a full-screen program sets and that must not stay when we leave in its middle.
local SCREEN_MODES = { 1000, 1002, 1003, 1006, 1015, 2004, 47, 1047, 1049 }

--- Watches output for such modes. watch(bytes) as it passes; undo() -> the bytes that reset them.
function terminal.mode_watch()
  local on, tail = {}, ""
  local self = {}
  function self.watch(bytes)
    local text = tail .. bytes
    for modes, letter in text:gmatch("\27%[%?([%d;]+)([hl])") do
      for mode in modes:gmatch("%d+") do
        on[tonumber(mode)] = letter == "h"
      end
    end
    tail = text:match("(\27[%[%?%d;]*)$") or ""
    tail = tail:sub(1, 32)
  end
  function self.undo()
    local out = {}
    for _, mode in ipairs(SCREEN_MODES) do
      if on[mode] then
        out[#out + 1] = ("\27[?%dl"):format(mode)
      end
    end
    if on[25] == false then
      out[#out + 1] = "\27[?25h"
    end
    return table.concat(out) .. "\27[0m"
  end
  return self
end

--- The size of the terminal behind standard input: columns, rows | 80, 24 when there is none.
function terminal.size()
  if uv.guess_handle(0) ~= "tty" then
    return 80, 24
  end
  local handle = uv.new_tty(0, true)
  local cols, rows = handle:get_winsize()
  handle:close()
  if type(cols) ~= "number" or type(rows) ~= "number" or cols == 0 or rows == 0 then
    return 80, 24
  end
  return cols, rows
end

-- Writes all of it to one of our own descriptors. Blocks when that is a slow pipe or terminal, and
-- so the sandbox's process waits too.
local function write_all(fd, bytes)
  while #bytes > 0 do
    local count, message, code = uv.fs_write(fd, bytes, -1)
    if count then
      bytes = count == #bytes and "" or bytes:sub(count + 1)
    elseif code == "EAGAIN" then
      async.writable(fd)
    elseif code ~= "EINTR" then
      return nil, message, code
    end
  end
  return true
end
terminal.write_all = write_all

local function leave(state, field, value)
  if not state.done then
    state.outcome[field] = value
    state.done = true
    state.stream:close() -- wakes whoever waits on it
  end
end

-- Standard input to the process, in a task of its own, until its end or the process's.
local function pass_input(state, options)
  local fd = options.input
  local filter = options.raw and terminal.key_filter(options.detach_keys or "\16\17")
  local poller = async.poller(fd) -- none for a plain file: always ready
  state.input_poller = poller
  while not state.done do
    if poller and not poller:readable() then
      break
    end
    local bytes, _, code = uv.fs_read(fd, CHUNK, -1)
    if bytes and bytes ~= "" then
      local detach = false
      if filter then
        bytes, detach = filter(bytes)
      end
      if bytes ~= "" and not state.stream:write(bytes) then
        break
      end
      if detach then
        leave(state, "detached", true)
      end
    elseif code ~= "EAGAIN" then
      if not options.keep_input then
        state.stream:eof() -- the end, or a terminal that is gone
      end
      break
    end
  end
  if poller then
    poller:close()
  end
end

-- The person's terminal: raw, its size passed on, given back by the function that is returned.
local function take_terminal(state, redraw)
  local handles = {}
  local tty = uv.new_tty(0, true)
  if not tty then
    return function() end
  end
  handles[1] = tty
  local function enter()
    tty:set_mode(2) -- UV_TTY_MODE_IO: cfmakeraw; "raw" would leave output processing on
    local cols, rows = tty:get_winsize()
    if type(cols) == "number" and cols > 0 then
      async.spawn(function()
        if redraw and rows > 1 then -- a program draws anew only when the size changes
          redraw = false
          state.stream:resize(cols, rows - 1)
        end
        state.stream:resize(cols, rows)
      end)
    end
  end
  local function on(name, fn)
    local handle = uv.new_signal()
    handle:start(name, async.guarded(fn))
    handles[#handles + 1] = handle
  end
  on("sigwinch", enter)
  on("sigcont", enter)
  enter()
  return function()
    tty:set_mode(0)
    uv.tty_reset_mode()
    for _, handle in ipairs(handles) do
      handle:close()
    end
  end
end

local NUMBERS = { sigint = 2, sigterm = 15, sighup = 1, sigquit = 3 }

-- Signals to us: the caller's `on_signal(number)` may deal with one; else they end the pump.
local function take_signals(state, options)
  local handles = {}
  for name, number in pairs(NUMBERS) do
    local handle = uv.new_signal()
    handle:start(name, async.guarded(function()
      async.spawn(function()
        if not (options.on_signal and options.on_signal(number)) then
          leave(state, "interrupted", number)
        end
      end)
    end))
    handles[#handles + 1] = handle
  end
  -- A reader of ours that goes away is told by the write, so that there is time to end the command.
  handles[#handles + 1] = uv.new_signal()
  handles[#handles]:start("sigpipe", function() end)
  return function()
    for _, handle in ipairs(handles) do
      handle:close()
    end
  end
end

local NAMES = { "stdout", "stderr" }

local function pass_output(state, options)
  local outcome = state.outcome
  while not state.done do
    local frame, message, code = state.stream:read()
    if not frame then
      if not state.done then
        outcome.broken = { message, code }
      end
      return
    elseif frame.type == "data" then
      local bytes = frame.bytes
      outcome.offset = frame.offset + #bytes
      if options.filter then
        bytes = options.filter(bytes, frame.offset)
      end
      if state.modes then
        state.modes.watch(bytes)
      end
      local ok, failure, why = options.on_output(NAMES[frame.stream], bytes)
      if ok == nil and why then
        outcome.output_failed = { failure, why }
        return
      end
    elseif frame.type == "lost" then
      outcome.dropped = outcome.dropped + frame.count
    elseif frame.type == "exit" then
      outcome.kind, outcome.code = frame.kind, frame.code
      return
    elseif frame.type == "end" then
      outcome.ended = true
      return
    elseif frame.type == "stdin_closed" and state.input_poller then
      state.input_poller:close()
    end
  end
end

--- Joins a stream with our own input and output until the process ends or someone leaves.
-- options: `input` (descriptor number; nil: none), `on_output(stream name, bytes)` (default: to our 1
-- and 2), `filter(bytes, offset)` (what to show instead), `raw` (input is a terminal that becomes the
-- process's), `redraw` (make a full-screen program draw anew), `detach_keys` (bytes), `keep_input` (the
-- end of our input is not passed on), `on_signal(number)` (true: dealt with; else a signal makes us leave).
-- Returns { kind = "code" or "signal", code } when the process ended, else one of `detached`, `ended`
-- (all that was there is shown), `interrupted` (a signal's number), `broken` and `output_failed`
-- ({ message, code }); always `dropped`, bytes. Closes the stream.
function terminal.pump(stream, options)
  local state = { stream = stream, outcome = { dropped = 0 }, done = false }
  local raw = options.raw and options.input == 0 and uv.guess_handle(0) == "tty"
  state.modes = raw and terminal.mode_watch() or nil

  local drop_signals = take_signals(state, options)
  local give_back = raw and take_terminal(state, options.redraw) or function() end
  if options.input then
    async.spawn(pass_input, state, {
      input = options.input,
      raw = raw,
      detach_keys = options.detach_keys,
      keep_input = options.keep_input,
    })
  end

  local ok, err = xpcall(pass_output, debug.traceback, state, {
    filter = options.filter,
    on_output = options.on_output or function(name, bytes)
      return write_all(name == "stderr" and 2 or 1, bytes)
    end,
  })
  state.done = true
  if state.input_poller then
    state.input_poller:close()
  end
  stream:close()
  if state.modes and not state.outcome.kind then
    write_all(1, state.modes.undo())
  end
  give_back()
  drop_signals()
  if not ok then
    error(err, 0)
  end
  return state.outcome
end

return terminal

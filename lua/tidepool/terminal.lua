--- Between a person's terminal (or pipes) and a process of a sandbox: bytes both ways, at the pace of
-- the slower side, and the terminal given back as it was, whatever happens.
--
-- Runs in the client, in a task. Takes a stream of core.stream; knows nothing of servers and names.
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

-- One poll handle for both directions, since libuv allows one a descriptor.
local function duplex(fd)
  local self = { reader = nil, writer = nil }
  local handle = assert(uv.new_poll(fd))
  local function arm()
    local events = (self.reader and "r" or "") .. (self.writer and "w" or "")
    if handle:is_closing() then
      return
    elseif events == "" then
      handle:stop()
    else
      handle:start(events, self.ready)
    end
  end
  self.ready = async.guarded(function(err, events)
    local reader, writer = self.reader, self.writer
    local failed = err or not events
    if reader and (failed or events:find("[rd]")) then
      self.reader = nil
    else
      reader = nil
    end
    if writer and (failed or events:find("[wd]")) then
      self.writer = nil
    else
      writer = nil
    end
    arm()
    if reader then
      reader()
    end
    if writer then
      writer()
    end
  end)
  function self.wait(side)
    async.wait(function(wake)
      self[side] = wake
      arm()
    end)
  end
  function self.interrupt()
    local reader, writer = self.reader, self.writer
    self.reader, self.writer = nil, nil
    arm()
    if reader then
      reader()
    end
    if writer then
      writer()
    end
  end
  function self.close()
    if not handle:is_closing() then
      handle:close()
    end
    self.interrupt()
  end
  return self
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

-- Sends bytes as the process's input, waiting while it doesn't take them.
local function send(state, bytes)
  while #bytes > 0 and not state.done do
    local count, message, code = state.stream:write(bytes)
    if count and count > 0 then
      bytes = bytes:sub(count + 1)
    elseif count == 0 or code == "EAGAIN" or message == "EAGAIN" then
      state.link.wait("writer")
    else
      return nil
    end
  end
  return not state.done
end

-- What waits in the stream's own buffer goes out when the socket takes it.
local function flush(state)
  while not state.done do
    local empty, message, code = state.stream:flush()
    if empty then
      return true
    elseif empty == nil and code ~= "EAGAIN" and message ~= "EAGAIN" then
      return nil
    end
    state.link.wait("writer")
  end
end

local function leave(state, field, value)
  state.outcome[field] = value
  state.done = true
  state.link.interrupt()
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
    if not bytes and code == "EAGAIN" then
      bytes = nil
    elseif not bytes or bytes == "" then
      -- The end, or a terminal that is gone.
      state.stream:eof()
      flush(state)
      break
    else
      local detach = false
      if filter then
        bytes, detach = filter(bytes)
      end
      if not send(state, bytes) or not flush(state) then
        break
      end
      if detach then
        leave(state, "detached", true)
      end
    end
  end
  if poller then
    poller:close()
  end
end

-- The person's terminal: raw, its size passed on, given back by the function that is returned.
local function take_terminal(state)
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
      state.stream:resize(cols, rows)
      async.spawn(flush, state)
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
  return function()
    for _, handle in ipairs(handles) do
      handle:close()
    end
  end
end

local function pass_output(state, options)
  local outcome, stream = state.outcome, state.stream
  while not state.done do
    local kind, a, b, bytes = stream:read()
    if kind == "data" then
      outcome.offset = b + #bytes
      if state.modes then
        state.modes.watch(bytes)
      end
      local ok, message, code = options.on_output(a, bytes)
      if ok == nil and code then
        outcome.output_failed = { message, code }
        return
      end
    elseif kind == "lost" then
      outcome.dropped = outcome.dropped + b
      if options.on_lost then
        options.on_lost(b)
      end
    elseif kind == "exit" then
      outcome.kind, outcome.code = a, b
      return
    elseif kind == "end" then
      outcome.ended = true
      return
    elseif kind == "stdin_closed" then
      if state.input_poller then
        state.input_poller:close()
      end
    elseif kind == nil and b == "EAGAIN" then
      state.link.wait("reader")
    else
      outcome.broken = { a or "the stream ended", b or "EPIPE" }
      return
    end
  end
end

--- Joins a stream with our own input and output until the process ends or someone leaves.
-- options: `input` (descriptor number; nil: none), `on_output(stream, bytes)` (default: to 1 and 2),
-- `raw` (input is a terminal that becomes the process's), `detach_keys` (bytes), `on_signal(number)`,
-- `on_lost(count)`.
-- Returns { kind = "code" or "signal", code } when the process ended, else one of `detached`, `ended`
-- (all that was there is shown), `interrupted` (a signal's number), `broken` and `output_failed`
-- ({ message, code }); always `dropped`, bytes. The stream stays the caller's to close.
function terminal.pump(stream, options)
  options.on_output = options.on_output or function(number, bytes)
    return write_all(number == 2 and 2 or 1, bytes)
  end
  local state = { stream = stream, link = duplex(stream:number()), outcome = { dropped = 0 }, done = false }
  local raw = options.raw and options.input == 0 and uv.guess_handle(0) == "tty"
  state.modes = raw and terminal.mode_watch() or nil

  local drop_signals = take_signals(state, options)
  local give_back = raw and take_terminal(state) or function() end
  local input
  if options.input then
    input = async.spawn(pass_input, state, { input = options.input, raw = raw, detach_keys = options.detach_keys })
  end

  local ok, err = xpcall(pass_output, debug.traceback, state, options)
  state.done = true
  if state.input_poller then
    state.input_poller:close()
  end
  state.link.close()
  if input then
    input:join()
  end
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

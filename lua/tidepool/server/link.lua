--- The server's connection to a sandbox's init: requests with replies, and the exits it tells of.
--
-- init's messages have a fixed layout and are decoded in C (core.init.decode); what doesn't decode
-- ends the link.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local transport = require("tidepool.transport")

local link = {}

local CROWDED = 3 -- seconds

local Link = {}
Link.__index = Link

local function on_message(self, bytes, fds)
  local message, complaint = core.init.decode(bytes)
  if not message then
    transport.close_all(fds)
    return false, complaint
  end
  if message.type == "exit" then
    transport.close_all(fds)
    self.on_exit(message)
    return true
  end
  local waiter = self.pending[message.serial]
  if not waiter then
    transport.close_all(fds)
    return false, "reply without a request: " .. tostring(message.type)
  end
  if message.type == "process" then
    transport.close_all(fds)
    waiter.list[#waiter.list + 1] = message
    return true
  end
  self.pending[message.serial] = nil
  if message.type == "failed" then
    transport.close_all(fds)
    waiter.wake(nil, message.message, message.code, message.step)
  else
    waiter.wake(waiter.kind == "list" and waiter.list or message, fds)
  end
  return true
end

--- Connects to the init with this host pid and checks that it knows the nonce.
-- `on_exit(message)` is told each exit, `on_close(message, code)` the end of the link.
function link.open(pid, nonce, options)
  local channel, message, code = core.init.connect(pid)
  -- Root inside may crowd init's socket with connections of its own; init closes them as they come.
  local give_up = uv.hrtime() + CROWDED * 1e9
  while code == "EAGAIN" and uv.hrtime() < give_up do
    async.sleep(0.002)
    channel, message, code = core.init.connect(pid)
  end
  if not channel then
    return nil, message, code
  end
  local self = setmetatable({ pending = {}, serial = 0, on_exit = options.on_exit }, Link)
  self.transport = transport.open(channel, {
    on_message = function(bytes, fds)
      return on_message(self, bytes, fds)
    end,
    on_close = function(why, why_code)
      local pending = self.pending
      self.pending = {}
      for _, waiter in pairs(pending) do
        waiter.wake(nil, "init: " .. why, "ESTOPPED")
      end
      if options.on_close then
        options.on_close(why, why_code)
      end
    end,
  })
  local welcome
  welcome, message, code = self:request("hello", {}, nil, 10)
  if not welcome then
    self:close()
    return nil, message, code
  end
  if welcome.nonce ~= nonce then
    self:close()
    return nil, "process " .. pid .. " is not this sandbox's init", "ESTALE"
  end
  return self
end

--- Sends a request: its reply, fds | nil, message, code, failed step. LIST replies with a list.
-- `timeout` in seconds, none by default. "ESTOPPED": the link is or was closed meanwhile; never the
-- socket's own code, which would read as if the client had lost its server.
function Link:request(kind, body, fds, timeout)
  if self:is_closed() then
    return nil, "init: " .. self.transport.message, "ESTOPPED"
  end
  local serial = self.serial % 0x7fffffff + 1
  self.serial = serial
  local bytes, refused, why = core.init.encode(kind, serial, body)
  if not bytes then
    return nil, refused, why
  end
  return async.wait(function(wake)
    local cancel
    self.pending[serial] = {
      kind = kind,
      list = {},
      wake = function(...)
        if cancel then
          cancel()
        end
        wake(...)
      end,
    }
    if timeout then
      cancel = async.after(timeout, function()
        cancel = nil
        if self.pending[serial] then
          -- The reply may still come: keep a waiter that takes it.
          self.pending[serial].wake = function(_, late)
            transport.close_all(type(late) == "table" and late or nil)
          end
          wake(nil, "init did not answer " .. kind .. " in time", "ETIMEDOUT")
        end
      end)
    end
    local ok, message, code = self.transport:send(bytes, fds)
    if not ok and self.pending[serial] then
      local waiter = self.pending[serial]
      self.pending[serial] = nil
      waiter.wake(nil, message, code)
    end
  end)
end

function Link:is_closed()
  return self.transport.closed
end

function Link:close()
  self.transport:close()
end

return link

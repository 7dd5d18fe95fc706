--- A channel on the loop: whole messages in, queued messages out, one end for everything that breaks.
--
-- Shared by rpc (server and clients) and the server's links to init and the spawners.
local async = require("tidepool.async")

local transport = {}

local Transport = {}
Transport.__index = Transport

-- Messages taken in one turn of the loop: a peer that sends without a pause must not starve the others.
local TURN = 64

local read_all
function read_all(self)
  self.continuing = false
  for _ = 1, TURN do
    if self.closed then
      return
    end
    local bytes, fds, code = self.channel:receive()
    if bytes then
      local ok, complaint = self.on_message(bytes, fds or {})
      if not ok then
        return self:close(complaint, "EBADMSG")
      end
    elseif code == "EAGAIN" then
      return
    else
      return self:close(fds, code)
    end
  end
  -- What the channel has buffered would not wake us again.
  if not self.continuing then
    self.continuing = true
    async.after(0, function()
      read_all(self)
    end)
  end
end

local function write_more(self)
  local empty, message, code = self.channel:flush()
  if empty == nil then
    return self:close(message, code)
  end
  if empty then
    self.watch:start("r")
  end
end

--- Takes the channel over. `on_message(bytes, fds)` owns the descriptors and returns true, or false
-- and a complaint that ends the transport. `on_close(message, code)` is called once.
function transport.open(channel, options)
  local self = setmetatable({
    channel = channel,
    on_message = options.on_message,
    on_close = options.on_close,
  }, Transport)
  self.watch = assert(async.watch(channel:number(), "r", function()
    if not self.closed and self.watch.events == "rw" then
      write_more(self)
    end
    if not self.closed and not self.continuing then
      read_all(self)
    end
  end))
  self.watch:start()
  return self
end

--- Sends or queues one message; the descriptors stay the caller's.
-- true | nil, message, code: "EMSGSIZE" (the transport lives on), or what ended it.
function Transport:send(bytes, fds)
  if self.closed then
    return nil, self.message, self.code
  end
  local sent, message, code = self.channel:send(bytes, fds)
  if sent == nil then
    if code ~= "EMSGSIZE" then
      self:close(message, code)
    end
    return nil, message, code
  end
  if not sent then
    self.watch:start("rw")
  end
  return true
end

function Transport:close(message, code)
  if self.closed then
    return
  end
  self.closed, self.message, self.code = true, message or "connection closed", code or "EPIPE"
  self.watch:close()
  self.channel:close()
  if self.on_close then
    self.on_close(self.message, self.code)
  end
end

function transport.close_all(fds)
  for _, fd in ipairs(fds or {}) do
    fd:close()
  end
end

return transport

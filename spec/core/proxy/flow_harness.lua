--- Connections for the specs of the flow: pairs over loopback TCP, and waits for what was begun.
local uv = require("luv")
local proxy = require("tidepool.proxy")

local harness = {}

local Bench = {}
Bench.__index = Bench

--- A flow with a listener: bench:pair(), bench:wait(...), bench:close().
function harness.open()
  local listener = uv.new_tcp()
  assert(listener:bind("127.0.0.1", 0))
  assert(listener:listen(64, function() end))
  local self = setmetatable({ flow = assert(proxy.flow.new()), listener = listener, ended = {} }, Bench)
  self.port = listener:getsockname().port
  return self
end

function Bench:run()
  for _, ended in ipairs(self.flow:run()) do
    self.ended[ended[1]] = ended
  end
end

--- Runs the flow until `done` says so, at most a minute.
function Bench:till(done)
  local limit = uv.hrtime() + 60e9
  while not done() do
    assert(uv.hrtime() < limit, "nothing came in a minute")
    self:run()
  end
end

--- The results of an operation, as its start function returned it.
function Bench:wait(token, ...)
  if token == 0 then
    return ...
  end
  self:till(function()
    return self.ended[token]
  end)
  local ended = self.ended[token]
  self.ended[token] = nil
  return unpack(ended, 2, ended.n)
end

--- Two ends of a TCP connection: the one that connected, the one that was accepted.
function Bench:pair()
  local near, token, ok = self.flow:connect("127.0.0.1", self.port, 5)
  local fd
  self:till(function()
    fd = fd or proxy.socket.accept(self.listener:fileno())
    return fd
  end)
  assert(ok or self:wait(token))
  return near, assert(self.flow:adopt(fd))
end

--- A pair whose second end has the head of a response with this body, and maybe a part of it.
function Bench:response(header, bytes)
  local server, client = self:pair()
  assert(self:wait(server:write("HTTP/1.1 200 OK\r\n" .. header .. "\r\n\r\n" .. (bytes or ""))))
  assert(self:wait(client:read_head("response", 5, "GET")))
  return server, client
end

--- Everything that comes until the end.
function Bench:drain(conn)
  local parts = {}
  while true do
    local bytes, _, code = self:wait(conn:read(5))
    if not bytes then
      return table.concat(parts), code
    end
    parts[#parts + 1] = bytes
  end
end

function Bench:close()
  self.flow:close()
  self.listener:close()
  uv.run("nowait")
end

function harness.descriptors()
  local count, scan = 0, assert(uv.fs_scandir("/proc/self/fd"))
  while uv.fs_scandir_next(scan) do
    count = count + 1
  end
  return count
end

--- Resident memory of this process, in bytes.
function harness.memory()
  collectgarbage()
  collectgarbage()
  return uv.resident_set_memory()
end

--- fn with a collection at every opportunity.
function harness.torture(fn)
  collectgarbage("setpause", 1)
  collectgarbage("setstepmul", 10000)
  local ok, err = pcall(fn)
  collectgarbage("setpause", 200)
  collectgarbage("setstepmul", 200)
  assert(ok, err)
end

return harness

--- A stand-in for the egress process, for specs of the steering below it: serves a sandbox's four
-- sockets and tells each client where it meant to go. Also compiles the client that tries.
local ffi = require("ffi")
local async = require("tidepool.async")
local support = require("spec.support")

local M = {}

ffi.cdef([[
struct tp_spec_iovec { void *base; size_t length; };
struct tp_spec_msghdr {
  void *name; uint32_t name_length; struct tp_spec_iovec *parts; size_t part_count;
  void *control; size_t control_length; int flags;
};
int accept4(int, void *, uint32_t *, int);
int getsockname(int, void *, uint32_t *);
ssize_t recvmsg(int, struct tp_spec_msghdr *, int);
ssize_t sendmsg(int, const struct tp_spec_msghdr *, int);
ssize_t send(int, const void *, size_t, int);
const char *inet_ntop(int, const void *, char *, uint32_t);
int close(int);
]])

local AF_INET, AF_INET6 = 2, 10

local function text_of(family, bytes)
  local text = ffi.new("char[64]")
  ffi.C.inet_ntop(family, bytes, text, 64)
  return ffi.string(text)
end

local function name_of(fd)
  local name, length = ffi.new("uint8_t[28]"), ffi.new("uint32_t[1]", 28)
  assert(ffi.C.getsockname(fd, name, length) == 0)
  local family = name[0]
  return text_of(family, name + (family == AF_INET and 4 or 8)), name[2] * 256 + name[3]
end

local function serve_stream(listener)
  local fd = ffi.C.accept4(listener:number(), nil, nil, 0x80000)
  if fd >= 0 then
    local host, port = name_of(fd)
    local text = host .. " " .. port
    ffi.C.send(fd, text, #text, 0x4000)
    ffi.C.close(fd)
  end
  return fd >= 0
end

-- Answers from where the question went, which is what its control message holds.
local function serve_datagram(socket, family)
  local peer, control, bytes = ffi.new("uint8_t[28]"), ffi.new("uint8_t[256]"), ffi.new("uint8_t[512]")
  local part = ffi.new("struct tp_spec_iovec", bytes, 512)
  local message = ffi.new("struct tp_spec_msghdr", peer, 28, part, 1, control, 256, 0)
  if ffi.C.recvmsg(socket:number(), message, 0x40) < 0 then
    return false
  end
  local text = "answer from " .. text_of(family, control + (family == AF_INET and 24 or 16))
  ffi.copy(bytes, text)
  part.length = #text
  message.flags = 0
  assert(ffi.C.sendmsg(socket:number(), message, 0) == #text, "answer: errno " .. ffi.errno())
  return true
end

--- Serves until the returned function is called.
function M.serve(steering)
  local stopped = false
  local ways = {
    { steering.tcp4, serve_stream }, { steering.tcp6, serve_stream },
    { steering.udp4, serve_datagram, AF_INET }, { steering.udp6, serve_datagram, AF_INET6 },
  }
  async.spawn(function()
    while not stopped do
      for _, way in ipairs(ways) do
        while not stopped and way[2](way[1], way[3]) do
          async.sleep(0)
        end
      end
      async.sleep(0.002)
    end
  end)
  return function()
    stopped = true
  end
end

--- Puts the client into a root directory as /bin/steer.
function M.client(root)
  return support.run({ "cc", "-static", "-O1", "-o", root .. "/bin/steer", "spec/support/steer_client.c" })
end

return M

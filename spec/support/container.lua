--- A bare container for specs of the layers below the server: a spawner pool, a root made of a few
-- host programs, the real init, and commands run in it by init's own protocol.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local paths = require("tidepool.paths")
local support = require("spec.support")
local cgroup = require("tidepool.server.cgroup")
local container = require("tidepool.server.container")
local link = require("tidepool.server.link")
local spawner = require("tidepool.server.spawner")
local steering = require("tidepool.server.steering")

local M = {}

local programs = { "sh", "cat", "cp", "ls", "id", "mount", "umount", "sleep", "head", "dd", "ip", "stat", "hostname", "ps",
  "true", "mkdir", "rm", "touch", "chmod", "unshare", "nsenter", "mknod", "ln", "grep", "readlink", "test", "wc", "yes", "env", "df" }

--- A root directory with busybox and a user `agent`; pending when busybox is missing.
function M.root(directory)
  local busybox
  for _, path in ipairs({ "/bin/busybox", "/usr/bin/busybox" }) do
    busybox = busybox or uv.fs_stat(path) and path
  end
  if not busybox then
    return nil, "needs busybox-static"
  end
  local root = directory or (support.scratch() .. "/root")
  for _, path in ipairs({ "", "/bin", "/etc", "/workspace", "/home" }) do
    uv.fs_mkdir(root .. path, 493)
  end
  assert(uv.fs_copyfile(busybox, root .. "/bin/busybox"))
  for _, name in ipairs(programs) do
    uv.fs_symlink("busybox", root .. "/bin/" .. name)
  end
  local function write(name, text)
    local file = assert(io.open(root .. name, "w"))
    file:write(text)
    file:close()
  end
  write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/workspace:/bin/sh\n")
  write("/etc/group", "root:x:0:\ntty:x:5:\nagent:x:1000:\n")
  uv.fs_chown(root .. "/workspace", 1000, 1000)
  return root
end

local Box = {}
Box.__index = Box

--- The spawners, groups and filter that containers of one spec file share, made once. They go with the
-- file. Call inside a task.
function M.host()
  if M.shared then
    return M.shared
  end
  local instance = "spec" .. support.unique()
  local host = {
    instance = instance,
    pool = assert(spawner.start(2)),
    cgroups = assert(cgroup.open(instance)),
    filter = assert(core.seccomp.filter()),
    exits = {},
    next = 0,
  }
  host.pool:on_exit(function(pid, status)
    host.exits[pid] = status
  end)
  M.shared = host
  support.defer(function()
    async.within(function()
      host.pool:close()
      for _, key in ipairs(cgroup.names(host.cgroups)) do
        cgroup.kill(host.cgroups, key)
        support.eventually(function()
          return cgroup.remove(host.cgroups, key)
        end)
      end
      cgroup.close(host.cgroups)
      async.sleep(0.02)
    end)
    M.shared = nil
  end)
  return host
end

--- What container.start wants, with `changes` over it.
function M.spec(host, changes)
  host.next = host.next + 1
  local spec = {
    name = "box",
    hostname = "box",
    range = { base = 0x70000000 + host.next * 65536, count = 65536 },
    cgroups = host.cgroups,
    cgroup = "box-" .. host.next,
    limits = { cpu = 1, memory = 128 * 1048576, pids = 64 },
    init = paths.tool("tidepool-init"),
    filter = host.filter,
    nonce = uv.random(16),
  }
  for name, value in pairs(changes or {}) do
    spec[name] = value
  end
  return spec
end

--- Starts one and connects to its init.
function M.start(changes)
  local host = M.host()
  local spec = M.spec(host, changes)
  if not spec.root then
    spec.root = assert(M.root())
  end
  local made, message, code = container.start(host.pool, spec)
  if not made then
    return nil, message, code
  end
  local box = setmetatable({ host = host, spec = spec, pid = made.pid, pidfd = made.pidfd, steering = made.steering,
    count = 0 }, Box)
  box.link = assert(link.open(made.pid, spec.nonce, { on_exit = function() end }))
  return box
end

local function collect(stream, outcome)
  while true do
    local kind, a, b, c = stream:read()
    if kind == "data" then
      local name = a == 1 and "stdout" or "stderr"
      outcome[name] = outcome[name] .. c
    elseif kind == "exit" then
      outcome[a] = b
      return outcome
    elseif kind == nil and b == "EAGAIN" then
      assert(async.readable(stream:number(), 60))
    elseif kind == nil then
      return nil, a, b
    end
  end
end

--- Runs a command: { code | signal, stdout, stderr } | nil, message, code. options: user.
function Box:run(argv, options)
  if type(argv) == "string" then
    argv = { "/bin/sh", "-c", argv }
  end
  self.count = self.count + 1
  local name = "p" .. self.count
  local leaf = assert(cgroup.leaf(self.host.cgroups, self.spec.cgroup, name, self.spec.range.base))
  local ours, theirs = assert(core.fd.pair())
  local reply, message, code = self.link:request("start", {
    attach = true, lossless = true, follow = true, ring = 65536, key = name, name = "",
    user = options and options.user or "root", cwd = "/", argv = argv, env = {}, cols = 0, rows = 0,
  }, { leaf, theirs }, 60)
  leaf:close()
  theirs:close()
  if not reply then
    ours:close()
    return nil, message, code
  end
  local stream = core.stream.open(ours)
  local outcome
  outcome, message, code = collect(stream, { stdout = "", stderr = "" })
  stream:close()
  return outcome, message, code
end

--- Kills all of it and removes its groups.
function Box:stop()
  self.link:close()
  steering.close(self.steering)
  assert(cgroup.kill(self.host.cgroups, self.spec.cgroup))
  assert(async.readable(self.pidfd:number(), 60))
  self.pidfd:close()
  assert(cgroup.remove(self.host.cgroups, self.spec.cgroup))
end

return M

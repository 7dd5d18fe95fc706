-- The other tools, doing the same work on the same root file system, by their command lines.
--
-- crun and runc run a bundle made from their own `spec`; podman runs the directory itself, with its
-- storage in our scratch directory so that the machine's own stays untouched.
local peers = {}

local Peers = {}
Peers.__index = Peers

-- A long sleep, for what is to be idle. busybox and coreutils agree on this spelling.
local SLEEP = { "sleep", "100000" }

local function append(list, ...)
  local out = { unpack(list) }
  for _, more in ipairs({ ... }) do
    for _, word in ipairs(more) do
      out[#out + 1] = word
    end
  end
  return out
end

function peers.new(context)
  local self = setmetatable({
    context = context,
    program = context.bench.program,
    found = context.found,
    containers = {}, -- what must be deleted at the end: { peer, id }
    number = 0,
  }, Peers)
  self:fit_crun()
  return self
end

-- crun refuses a hybrid machine whose v2 tree has a controller. Where it does, it runs in a mount
-- namespace without that tree; nsenter, which execs it, adds about a millisecond.
function Peers:fit_crun()
  self.prefix = {}
  if not self.found.crun then
    return
  end
  local took, message = self.program(self:run_argv("crun", { "true" }))
  if took or not message:find("hybrid mode not supported", 1, true) then
    return
  end
  local uv = require("luv")
  local handle, pid
  handle, pid = uv.spawn("unshare", {
    args = { "-m", "sh", "-c", "umount /sys/fs/cgroup/unified && exec sleep 100000" },
  }, function()
    handle:close()
  end)
  assert(handle, pid)
  self.keeper = pid
  require("tidepool.async").sleep(0.2)
  self.prefix = { "nsenter", "-t", tostring(pid), "-m", "--" }
  io.stderr:write("crun and podman run without the cgroup v2 tree, which crun refuses on this hybrid machine\n")
end

function Peers:id()
  self.number = self.number + 1
  return ("tpbench-%d-%d"):format(require("luv").os_getpid(), self.number)
end

-- The command without its verb. driver: podman's for storage; its images have another than its containers
-- of a directory.
function Peers:command(name, driver)
  local path, directory = self.found[name], self.context.directory
  if name == "podman" then
    return append(self.prefix, { path, "--root", directory .. "/podman/root", "--runroot", directory .. "/podman/run",
      "--storage-driver", driver or "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none" })
  elseif name == "bwrap" then
    return { path }
  end
  local command = { path, "--root", directory .. "/" .. name }
  return name == "crun" and append(self.prefix, command) or command
end

local function quoted(argv)
  local out = {}
  for i, word in ipairs(argv) do
    out[i] = ("%q"):format(word)
  end
  return "[" .. table.concat(out, ",") .. "]"
end

-- A bundle of crun or runc that runs argv: their own default configuration, but for the command and
-- the root. Kept by its command.
function Peers:bundle(name, argv)
  local uv = require("luv")
  local key = table.concat(argv, "_"):gsub("[^%w]", "-")
  local directory = ("%s/bundle-%s-%s"):format(self.context.directory, name, key)
  if not uv.fs_stat(directory) then
    assert(uv.fs_mkdir(directory, 448))
    assert(self.program({ self.found[name], "spec" }, { cwd = directory }))
    local file = assert(io.open(directory .. "/config.json"))
    local text = file:read("*a")
    file:close()
    text = text:gsub('"terminal":%s*true', '"terminal": false')
      :gsub('"args":%s*%b[]', function()
        return '"args": ' .. quoted(argv)
      end)
      :gsub('"path":%s*"rootfs"', function()
        return '"path": ' .. ("%q"):format(self.context.rootfs)
      end)
      :gsub('"readonly":%s*true', '"readonly": false')
    file = assert(io.open(directory .. "/config.json", "w"))
    file:write(text)
    file:close()
  end
  return directory
end

--- The argv that makes a sandbox, runs argv in it and removes it.
function Peers:run_argv(name, argv)
  if name == "bwrap" then
    return append(self:command(name), { "--unshare-all", "--die-with-parent", "--bind", self.context.rootfs, "/",
      "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp" }, argv)
  elseif name == "podman" then
    return append(self:command(name), { "run", "--rm", "-i", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "none", "--log-driver", "none",
      "--rootfs", self.context.rootfs }, argv)
  end
  return append(self:command(name), { "run", "--bundle", self:bundle(name, argv), self:id() })
end

-- bwrap has no daemon: its own process stays. It runs once its command has said so.
function Peers:start_bwrap()
  local uv = require("luv")
  local async = require("tidepool.async")
  local argv = self:run_argv("bwrap", { "sh", "-c", "echo ready; exec sleep 100000 >/dev/null" })
  local pipe, ready = uv.new_pipe(false), async.event()
  local handle, pid
  handle, pid = uv.spawn(argv[1], { args = { unpack(argv, 2) }, stdio = { nil, pipe } }, function()
    handle:close()
  end)
  if handle then
    pipe:read_start(async.guarded(function(_, bytes)
      ready:set(bytes ~= nil)
    end))
  end
  local running = handle and ready:wait(10)
  pipe:close()
  if not running then
    error("bwrap did not start: " .. tostring(pid), 0)
  end
  return pid
end

--- Starts an idle sandbox; returns what `exec_argv` and `remove` take.
function Peers:start(name)
  local id = self:id()
  if name == "bwrap" then
    self.containers[id] = { name = name, pid = self:start_bwrap() }
    return id
  end
  self.containers[id] = { name = name }
  if name == "podman" then
    assert(self.program(append(self:command(name), { "run", "-d", "--name", id, "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "none",
      "--log-driver", "none", "--rootfs", self.context.rootfs }, SLEEP)))
  else
    -- Detached, its output is whatever it inherits: not our pipe, whose end we wait for.
    local argv = append(self:command(name), { "run", "--detach", "--bundle", self:bundle(name, SLEEP), id })
    assert(self.program(append({ "sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh" }, argv)))
  end
  return id
end

--- The argv that runs argv in a sandbox that `start` made. bwrap has no such thing.
function Peers:exec_argv(name, id, argv)
  if name == "podman" then
    return append(self:command(name), { "exec", "-i", id }, argv)
  end
  return append(self:command(name), { "exec", id }, argv)
end

function Peers:remove(id)
  local container = self.containers[id]
  self.containers[id] = nil
  if container.name == "bwrap" then
    require("luv").kill(container.pid, "sigkill")
  elseif container.name == "podman" then
    self.program(append(self:command("podman"), { "rm", "-f", "-t", "0", id }))
  else
    self.program(append(self:command(container.name), { "delete", "--force", id }))
  end
end

--- A function that takes one sample of `argv(id)` in a running sandbox of that peer, made at the
-- first sample and removed with the others at the end.
function Peers:in_running(name, argv, options)
  local id
  return function()
    id = id or self:start(name)
    return (assert(self.program(self:exec_argv(name, id, argv), options)))
  end
end

function Peers:close()
  for id in pairs(self.containers) do
    self:remove(id)
  end
  if self.keeper then
    require("luv").kill(self.keeper, "sigkill")
  end
end

return peers

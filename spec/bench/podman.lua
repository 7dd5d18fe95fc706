-- podman's way to keep a container's files and to begin with them again: `commit`, and `run` of the image
-- that it made. Storage of its own, by overlay (its best), in our scratch directory; no registry.
local PLAIN = { "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "none", "--log-driver", "none" }
local LIMIT = 900 -- seconds: a commit of 5 GB writes them all

local podman = {}

local Podman = {}
Podman.__index = Podman

local function join(...)
  local out = {}
  for _, list in ipairs({ ... }) do
    for _, word in ipairs(list) do
      out[#out + 1] = word
    end
  end
  return out
end

-- Milliseconds that `podman WORDS` takes; raises its failure.
function Podman:run(...)
  return (assert(self.bench.program(join(self.command, ...), { limit = LIMIT })))
end

--- A container of the peers' root file system, running: { keep, back, fill, close } | nil, message.
function podman.start(context)
  if not context.found.podman then
    return nil, "podman isn't installed"
  end
  -- A path of its own, since a store is of one driver; a short one: podman takes 50 characters.
  local directory = context.directory .. "/kept"
  local peers = setmetatable({ context = { directory = directory }, prefix = context.peers.prefix, found = context.found },
    getmetatable(context.peers))
  local self = setmetatable({ bench = context.bench, command = peers:command("podman", "overlay"), directory = directory }, Podman)
  local ok, message = pcall(function()
    local import = join({ "sh", "-c", 'tar -C "$1" -cf - . | { shift; exec "$@"; }', "sh", context.rootfs }, self.command)
    assert(self.bench.program(join(import, { "import", "-q", "-", "localhost/bench:base" }), { limit = LIMIT }))
    self:run({ "run", "-d", "--name", "disk" }, PLAIN, { "localhost/bench:base", "sleep", "100000" })
  end)
  if not ok then
    self:close()
    return nil, message
  end
  return self
end

--- Runs a line of shell in the container.
function Podman:fill(script)
  self:run({ "exec", "-i", "disk", "sh", "-ec", script })
end

--- Keeps the container's files as an image: milliseconds.
function Podman:keep()
  return self:run({ "commit", "-q", "disk", "localhost/bench:kept" })
end

--- From the image that was kept to the exit of a first command: milliseconds.
function Podman:back()
  return self:run({ "run", "--rm", "-i" }, PLAIN, { "localhost/bench:kept", "true" })
end

--- Forgets what was kept.
function Podman:forget()
  self:run({ "rmi", "localhost/bench:kept" })
end

--- Ends all of it, and its mounts.
function Podman:close()
  self.bench.program(join(self.command, { "rm", "-f", "-a", "-t", "0" }))
  -- It mounts its own directory on itself, and leaves that.
  self.bench.program({ "sh", "-c", 'umount -l "$1/podman/root/overlay" 2>/dev/null; rm -rf --one-file-system "$1"', "sh", self.directory },
    { limit = 120 })
end

return podman

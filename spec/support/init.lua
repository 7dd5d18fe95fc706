--- What specs share: servers of their own, sandboxes, and looking at the real machine.
--
-- Everything made here goes when the spec file ends, in reverse order, and nothing ever touches the
-- machine's own state: without the runner's directories, a spec file gets a temporary one. Specs
-- must run as root; what the machine lacks makes them pending, with the reason.
local uv = require("luv")
local busted = require("busted")
local async = require("tidepool.async")
local paths = require("tidepool.paths")

-- The functions that look at the machine are ours too: support.processes_in, support.eventually ...
local support = setmetatable({}, { __index = require("spec.support.machine") })

-- Endings --------------------------------------------------------------------------------------------

local endings = {}

--- Calls fn when the spec file has ended; the last one deferred comes first.
function support.defer(fn)
  endings[#endings + 1] = fn
end

busted.subscribe({ "file", "end" }, function()
  local failures = {}
  while #endings > 0 do
    local ok, message = xpcall(table.remove(endings), debug.traceback)
    if not ok then
      failures[#failures + 1] = tostring(message)
    end
  end
  if #failures > 0 then
    error(table.concat(failures, "\n"), 0) -- busted makes it an error of the file
  end
  return nil, true
end)

--- A random piece of a name.
function support.unique()
  return (uv.random(4):gsub(".", function(char)
    return ("%02x"):format(char:byte())
  end))
end

--- Runs a host program to its end: { code, signal, stdout, stderr }. Options as of async.command.
function support.run(options)
  options.stdout = options.stdout or "pipe"
  options.stderr = options.stderr or "pipe"
  return async.within(function()
    return assert(async.command(options))
  end)
end

--- Runs ./sandbox.lua with these words, in this spec's directories; `options` as of support.run.
function support.cli(words, options)
  options = options or {}
  options[1] = paths.launcher()
  for i, word in ipairs(words) do
    options[i + 1] = word
  end
  return support.run(options)
end

-- Directories ------------------------------------------------------------------------------------

local function make_root()
  local root = assert(uv.fs_mkdtemp("/var/tmp/tidepool-test-XXXXXX"))
  uv.os_setenv("TIDEPOOL_TEST_ROOT", root)
  support.defer(function()
    support.run({ "rm", "-rf", "--one-file-system", root })
    uv.os_unsetenv("TIDEPOOL_TEST_ROOT")
  end)
  return root
end

--- The directory of this test run: short, since it holds unix sockets, and on a disk, since it
-- holds pools.
local root = os.getenv("TIDEPOOL_TEST_ROOT") or make_root()

--- A new directory of this spec file.
function support.scratch()
  return assert(uv.fs_mkdtemp(root .. "/scratch-XXXXXX"))
end

-- Servers ----------------------------------------------------------------------------------------

local Server = {}
Server.__index = Server

--- The pid of the server process, started when need be.
function Server:pid()
  return assert(self.client:call("info", {})).pid
end

--- Kills the server process at once, as a crash would, and waits until it is gone.
function Server:kill()
  local pid = self:pid()
  assert(uv.kill(pid, "sigkill"))
  assert(support.eventually(function()
    return not support.alive(pid)
  end), "the server survived SIGKILL")
  return pid
end

local function ensure_image(client, name)
  for _, image in ipairs(assert(client:call("image_ls", {}))) do
    if image.name == name then
      return
    end
  end
  local _, message, code = client:call("image_build", { image = name }, nil, function(line)
    if os.getenv("TIDEPOOL_TEST_VERBOSE") then
      io.stderr:write("  ", name, ": ", line, "\n")
    end
  end)
  -- Two spec runs may race to build it.
  if code and code ~= "EEXIST" then
    error(("image %s: %s (%s)"):format(name, message, code), 2)
  end
end

--- A new sandbox on this server, destroyed when the file ends. options: as of sandbox.create, with
-- `image` "minimal" unless told otherwise, and `name`.
function Server:sandbox(options)
  local params = {}
  for key, value in pairs(options or {}) do
    params[key] = value
  end
  params.name = params.name or ("spec-" .. support.unique())
  params.image = params.image or "minimal"
  ensure_image(self.client, params.image)
  assert(self.client:call("create", params))
  local box = require("tidepool.client.box").new(self.client, params.name)
  support.defer(function()
    box:destroy()
  end)
  return box
end

--- Ends the server and all its sandboxes, and says what it left behind: a list of sentences.
function Server:close()
  return support.close(self.client)
end

--- A server of this spec's own, in new directories; it starts when first called and ends with the
-- file. Fields: client, state, run. prepare(), if given, returns another state directory, and what undoes it.
function support.server(prepare)
  local directory = assert(uv.fs_mkdtemp(root .. "/server-XXXXXX"))
  local self = setmetatable({ state = directory .. "/state", run = directory .. "/run" }, Server)
  local undo
  if prepare then
    self.state, undo = prepare()
  end
  self.client = require("tidepool.client").new({ state = self.state, run = self.run })
  support.defer(function()
    local left = self:close()
    if undo then
      undo()
    end
    support.run({ "rm", "-rf", "--one-file-system", directory })
    assert(#left == 0, "a server left " .. table.concat(left, "; "))
  end)
  return self
end

local shared

--- The server that spec files share, so that images are built once a run. It is also the one that
-- `require "sandbox"` and ./sandbox.lua reach from here.
function support.shared()
  if not shared then
    local sandbox = require("sandbox")
    shared = setmetatable({ client = sandbox.client(), state = paths.state(), run = paths.run() }, Server)
  end
  return shared
end

if not os.getenv("TIDEPOOL_STATE") or not os.getenv("TIDEPOOL_RUN") then
  uv.os_setenv("TIDEPOOL_STATE", root .. "/state")
  uv.os_setenv("TIDEPOOL_RUN", root .. "/run")
  support.defer(function()
    local left = uv.fs_stat(root .. "/run/server.sock") and support.shared():close() or {}
    uv.os_unsetenv("TIDEPOOL_STATE")
    uv.os_unsetenv("TIDEPOOL_RUN")
    assert(#left == 0, "the server left " .. table.concat(left, "; "))
  end)
end

--- A new sandbox on the shared server, destroyed when the file ends.
function support.sandbox(options)
  return support.shared():sandbox(options)
end

--- Sees to it that the shared server has an image, "minimal" or "debian".
function support.image(name)
  ensure_image(support.shared().client, name)
  return name
end

-- What may be missing ----------------------------------------------------------------------------

-- busted's own `pending` declares a test. The one that ends a test, as pending, is in the environment of the
-- test's function alone, which has called us, however indirectly.
local function skip(reason)
  local level = 2
  local frame = debug.getinfo(level, "f")
  while frame do
    local ending = getfenv(frame.func).pending
    if ending and ending ~= busted.pending then
      ending(reason)
    end
    level = level + 1
    frame = debug.getinfo(level, "f")
  end
  error(reason, 0)
end

--- Makes the running test pending where no CRIU can be had: it comes from a mirror, into the shared server.
function support.needs_criu()
  local server = support.shared()
  if server.missing == nil then
    local got, message = server.client:call("memory_install", {})
    server.missing = not got and message or false
  end
  if server.missing then
    skip("needs CRIU: " .. server.missing)
  end
end

--- `it`, for sentences that all need something: `check` is called in each of them first, since what runs before
-- a test can't make it pending.
function support.needing(it, check)
  return function(sentence, fn)
    local function checked(...)
      check()
      return fn(...)
    end
    return it(sentence, setfenv(checked, getfenv(fn))) -- where `skip` looks for what ends a test
  end
end

--- Makes the running test pending unless this is root.
function support.needs_root()
  if uv.getuid() ~= 0 then
    skip("needs root")
  end
end

local facts

--- Makes the running test pending unless `doctor` finds this well, for instance
-- needs("disk limits"), needs("bpf").
function support.needs(row)
  if not facts then
    facts = {}
    for _, result in ipairs(require("tidepool.doctor").check()) do
      facts[result.name] = result
    end
  end
  local result = assert(facts[row], "doctor has no such row: " .. row)
  if result.status ~= "ok" then
    skip(("needs %s: %s"):format(row, result.found))
  end
end

return support

--- What `require "sandbox"` returns.
--
--   local sandbox = require "sandbox"
--   local box = sandbox.open("agent-42", { image = "debian", type = "basic" })
--   print(box:exec({ "uname", "-a" }).stdout)
--
-- Failure is nil, message, code, so that assert works. Functions may be called anywhere: outside of
-- a task they run the loop until they are done, inside they wait without blocking other tasks.
local async = require("tidepool.async")
local box = require("tidepool.client.box")
local box_branches = require("tidepool.client.box_branches")
local client = require("tidepool.client")
local diff = require("tidepool.client.diff")
local paths = require("tidepool.paths")
local policy = require("tidepool.client.policy")

local sandbox = {}

local default

local function get_client()
  default = default or client.new()
  return default
end

--- The process's own client: one connection to the server, made when first needed.
---@return tidepool.Client
sandbox.client = get_client

local OPTIONS = { "image", "type", "memory", "cpu", "pids", "disk", "env", "labels", "egress" }

local function params_of(name, options)
  local params = { name = name }
  for _, key in ipairs(OPTIONS) do
    params[key] = (options or {})[key]
  end
  for key in pairs(options or {}) do
    if params[key] == nil then
      return nil, "unknown option: " .. tostring(key), "EINVAL"
    end
  end
  if params.egress then
    local message, code
    params.egress, message, code = policy.list(params.egress)
    if not params.egress then
      return nil, message, code
    end
  end
  return params
end

local function make(verb)
  return function(name, options)
    return async.within(function()
      local params, message, code = params_of(name, options)
      if not params then
        return nil, message, code
      end
      local info
      info, message, code = get_client():call(verb, params)
      if not info then
        return nil, message, code
      end
      local made = box.new(get_client(), name)
      made.created = info.created_now
      return made
    end)
  end
end

--- The sandbox of that name, running: made when absent, resumed when there. The options count when it
--- is made; a sandbox that is there keeps its own. `box.created`: whether it was made now.
---@type fun(name: string, options?: tidepool.CreateOptions): tidepool.Box?, string?, string?
--- code: "ENOIMAGE", "EINVAL", "ENOSPC"
sandbox.open = make("open")

--- A new sandbox, running.
---@type fun(name: string, options?: tidepool.CreateOptions): tidepool.Box?, string?, string?
--- code: "EEXIST" (the name is taken), "ENOIMAGE", "EINVAL", "ENOSPC"
sandbox.create = make("create")

--- The sandbox of that name without starting or making it; its methods say when it isn't there.
---@param name string
---@return tidepool.Box
function sandbox.get(name)
  return box.new(get_client(), name)
end

--- The sandboxes, by name.
---@param options? { labels: table<string, string> } only those with these labels
---@return tidepool.SandboxInfo[]?
---@return string? message
---@return string? code
function sandbox.ls(options)
  return get_client():call("ls", options or {})
end

--- A new sandbox of a snapshot, running.
---@param snapshot string NAME@LABEL
---@param name string the new one's name
---@param options? { cold: boolean? } cold: the files only of a snapshot with memory, whose processes go on else
---@return tidepool.Box?
---@return string? message
---@return string? code "ENOSNAPSHOT", "EEXIST" (the name is taken), "ENOSPC", "ENOTSUP" (memory that this machine can't take)
function sandbox.restore(snapshot, name, options)
  return async.within(function()
    local info, message, code = get_client():call("restore", { snapshot = snapshot, name = name, cold = options and options.cold })
    if not info then
      return nil, message, code
    end
    return box.new(get_client(), name)
  end)
end

--- Branches of a sandbox or of a snapshot, as `box:fork` makes them.
---@param source string NAME or NAME@LABEL
---@param count integer
---@param options? { memory: boolean? }
---@param fn? fun(branch: tidepool.Box, i: integer): any
---@return tidepool.BranchOutcome[]|tidepool.Box[]|nil
---@return string? message
---@return string? code "ENOSANDBOX", "ENOSNAPSHOT", "ENOSPC", "ETIMEDOUT"
function sandbox.fork(source, count, options, fn)
  return box_branches.fork(get_client(), function(name)
    return box.new(get_client(), name)
  end, source, count, options, fn)
end

sandbox.memory = {}

--- Gets CRIU, which `box:hibernate` needs, into the state directory, unless it is there. Takes about 10 s.
---@param progress? fun(line: string)
---@return { version: string }?
---@return string? message
---@return string? code "ENOPKG" (no mmdebstrap, or no mirror has it), "EBUILD", "ENOSPC"
function sandbox.memory.install(progress)
  return get_client():call("memory_install", {}, nil, progress)
end

sandbox.storage = {}

--- Makes the pool larger while it is in use.
---@param size? integer bytes that it is to have; else what its disk can hold
---@return { size: integer, before: integer }? bytes
---@return string? message
---@return string? code "EINVAL" (that is smaller), "ENOSPC" (the disk can't hold it), "ENOTSUP" (it is no pool)
function sandbox.storage.grow(size)
  return get_client():call("storage_grow", { size = size })
end

--- Compares all of the pool with its checksums, which reads all of it, and repairs nothing.
---@return { bytes: integer, errors: integer, damage: table<string, integer> }? found by kind, such as "csum"
---@return string? message
---@return string? code "ENOTSUP" (it is no pool), "EIO"
function sandbox.storage.check()
  return get_client():call("storage_check", {})
end

sandbox.snapshot = {}

--- All snapshots, or those of a sandbox's name, the oldest first.
---@param name? string
---@return tidepool.SnapshotInfo[]?
---@return string? message
---@return string? code
function sandbox.snapshot.ls(name)
  return get_client():call("snapshot_ls", { name = name })
end

--- What differs between two snapshots. Takes as long as there are changes, however large they are.
---@param from string NAME@LABEL
---@param to string NAME@LABEL
---@return tidepool.Diff?
---@return string? message
---@return string? code "ENOSNAPSHOT"
function sandbox.snapshot.diff(from, to)
  return async.within(diff.between, get_client(), from, to)
end

--- Deletes a snapshot. Those that continue it stay, and sandboxes made of it.
---@param snapshot string NAME@LABEL
---@return true?
---@return string? message
---@return string? code "ENOSNAPSHOT"
function sandbox.snapshot.rm(snapshot)
  return get_client():call("snapshot_rm", { snapshot = snapshot })
end

--- Writes a snapshot to a file, as an OCI image: all of it, or the changes since another.
---@param snapshot string NAME@LABEL
---@param file string path on this host; what is there is replaced
---@param options? { parent: string, compression: "zstd"|"gzip"|"none" } parent: NAME@LABEL
---@param progress? tidepool.Progress
---@return tidepool.ArchiveInfo?
---@return string? message
---@return string? code "ENOSNAPSHOT", "ENOENT", "ENOSPC"
function sandbox.snapshot.export(snapshot, file, options, progress)
  options = options or {}
  return get_client():call("snapshot_export", {
    snapshot = snapshot,
    file = paths.absolute(file), -- the server stands elsewhere
    parent = options.parent,
    compression = options.compression,
  }, nil, progress)
end

--- Makes a snapshot of an exported one, or of any OCI image or docker-archive. Begun again after an end of
-- the server, it continues.
---@param file string path on this host
---@param snapshot string NAME@LABEL of the new one
---@param progress? tidepool.Progress
---@return tidepool.SnapshotInfo?
---@return string? message
---@return string? code "EEXIST", "EBADMSG" (damaged or hostile), "ENOPARENT" (it holds changes to one that isn't here)
function sandbox.snapshot.import(file, snapshot, progress)
  return get_client():call("snapshot_import", { file = paths.absolute(file), snapshot = snapshot }, nil, progress)
end

--- The server, started when none runs.
---@return tidepool.ServerInfo?
---@return string? message
---@return string? code "ENOSERVER", "EPERM"
function sandbox.info()
  return get_client():call("info", {})
end

---@alias tidepool.Progress fun(line: string) is told what happens

sandbox.image = {}

--- Builds an image of the host's own distribution.
---@param name "debian"|"minimal"
---@param options? { replace: boolean } build it again when it is there
---@param progress? tidepool.Progress
---@return tidepool.ImageInfo?
---@return string? message
---@return string? code "EEXIST", "EBUSY" (it is being made), "EBUILD", "ENOSPC"
function sandbox.image.build(name, options, progress)
  options = options or {}
  return get_client():call("image_build", { image = name, replace = options.replace }, nil, progress)
end

--- Imports an OCI layout (a directory or tar) or a docker-archive.
---@param file string path on this host
---@param options? { name: string, replace: boolean } name: from the file's by default
---@param progress? tidepool.Progress
---@return tidepool.ImageInfo?
---@return string? message
---@return string? code "EEXIST", "ENOENT", "EBADMSG" (no image, or a hostile one), "ENOSPC"
function sandbox.image.import(file, options, progress)
  options = options or {}
  return get_client():call("image_import", {
    file = paths.absolute(file), -- the server stands elsewhere
    image = options.name,
    replace = options.replace,
  }, nil, progress)
end

--- Pulls an image from a registry.
---@param reference string "host/name:tag"
---@param options? { name: string, replace: boolean, insecure: boolean } insecure: TLS unverified, or none
---@param progress? tidepool.Progress
---@return tidepool.ImageInfo?
---@return string? message
---@return string? code "EEXIST", "ENOENT", "EPULL", "ENOSPC"
function sandbox.image.pull(reference, options, progress)
  options = options or {}
  return get_client():call("image_pull", {
    reference = reference,
    image = options.name,
    replace = options.replace,
    insecure = options.insecure,
  }, nil, progress)
end

--- The images, by name.
---@return tidepool.ImageInfo[]?
---@return string? message
---@return string? code
function sandbox.image.ls()
  return get_client():call("image_ls", {})
end

--- Removes an image; sandboxes that were made from it keep their files.
---@param name string
---@return true?
---@return string? message
---@return string? code "ENOIMAGE"
function sandbox.image.rm(name)
  return get_client():call("image_rm", { image = name })
end

sandbox.secret = {}

--- Sets a secret that egress policies use and no sandbox sees, or gives it another value. hosts: where its
--- placeholder is swapped for it, names or * globs; what is not given stays as it was.
---@param name string
---@param value string 8 to 4096 bytes
---@param options? { hosts: string[], placeholder: string }
---@return tidepool.SecretInfo?
---@return string? message
---@return string? code "EINVAL" (too short to be masked, too long), "EEXIST", "EPERM", "ENOKEY"
function sandbox.secret.set(name, value, options)
  options = options or {}
  return get_client():call("secret_set", { secret = name, value = value, hosts = options.hosts, placeholder = options.placeholder })
end

--- The secrets, by name, never their values.
---@return tidepool.SecretInfo[]?
---@return string? message
---@return string? code
function sandbox.secret.ls()
  return get_client():call("secret_ls", {})
end

--- Removes a secret.
---@param name string
---@return true?
---@return string? message
---@return string? code "ENOSECRET"
function sandbox.secret.rm(name)
  return get_client():call("secret_rm", { secret = name })
end

--- What stands for a secret inside: a token of its shape, for an environment variable that a tool insists on.
---@param name string
---@return string?
---@return string? message
---@return string? code "ENOSECRET"
function sandbox.secret.placeholder(name)
  return get_client():call("secret_placeholder", { secret = name })
end

sandbox.policy = {}

--- The egress policies that have names.
---@return { name: string, about: string?, path: string }[]?
---@return string? message
---@return string? code
function sandbox.policy.ls()
  return get_client():call("policy_ls", {})
end

--- Runs the functions as concurrent tasks and waits for all; then raises the first error, if any.
---@param functions (fun(): any)[]
---@return any[] results the first result of each, in order
function sandbox.all(functions)
  return async.within(function()
    local results = async.all(functions)
    for i, result in ipairs(results) do
      results[i] = result[1]
    end
    return results
  end)
end

--- Starts a task. `task:join()` waits for it: true and its results, or nil and its error.
---@type fun(fn: function, ...): tidepool.Task
sandbox.spawn = async.spawn

--- Runs fn as a task and the loop until it returns; gives its results, raises its error.
---@type fun(fn: function, ...): ...
sandbox.run = async.within

--- Waits without blocking other tasks.
---@param seconds number
function sandbox.sleep(seconds)
  return async.within(async.sleep, seconds)
end

return sandbox

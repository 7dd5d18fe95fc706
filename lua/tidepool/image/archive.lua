--- Reading what images are handed on in: an OCI layout or a docker-archive, as a directory or a tar.
--
-- A tar that isn't compressed is read in place: an unprivileged process tells where its files are. Any
-- other is unpacked by the confined worker into a temporary directory of files without modes or links
-- that lead out. The image's JSON is read elsewhere too (image/manifest.lua). Runs in the server.
local uv = require("luv")
local async = require("tidepool.async")
local manifest = require("tidepool.image.manifest")
local worker = require("tidepool.image.worker")

local archive = {}

local INDEX_DEPTH = 4

local function bad(message)
  return nil, message, "EBADMSG"
end

-- A store tells whether it `has` a path, and by which arguments tidepool-unpack reads it: those of
-- `arguments(path)` after --layer or --print, and `common` once.
local function directory_store(directory)
  return {
    has = function(path)
      return uv.fs_lstat(directory .. "/" .. path) ~= nil
    end,
    arguments = function(path)
      return { path }
    end,
    common = { "--blobs", directory },
  }
end

local function tar_store(file, index)
  return {
    has = function(path)
      return index[path] ~= nil
    end,
    arguments = function(path)
      local place = index[path]
      if not place then
        return nil
      end
      return { file, "--at", place.at, "--length", place.length }
    end,
    common = {},
  }
end

local function is_tar(path)
  local fd = uv.fs_open(path, "r", 0)
  local head = fd and uv.fs_read(fd, 512, 0)
  if fd then
    uv.fs_close(fd)
  end
  return head and head:sub(258, 262) == "ustar"
end

-- path -> { at, length } of a tar's files, as decimal digits; nil when it must be unpacked instead.
local function index_of(path, options)
  local fd = is_tar(path) and uv.fs_open(path, "r", 0)
  if not fd then
    return nil
  end
  local result = async.command({
    "unshare", "--net", "--ipc", "setpriv", "--reuid", tostring(options.range.base), "--regid", tostring(options.range.base),
    "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--pdeathsig", "KILL",
    "prlimit", "--as=536870912", "--cpu=60", "--core=0", "--fsize=0", "--",
    options.tools .. "/tidepool-unpack", "--index",
    stdin = fd, stdout = "pipe", stderr = "pipe",
  })
  uv.fs_close(fd)
  if not result or result.code ~= 0 then
    return nil -- the unpacker, which knows more formats, will say what is wrong
  end
  local index = {}
  for at, length, name in result.stdout:gmatch("(%d+) (%d+) ([%w%._/-]+)\n") do
    if length ~= "0" then
      index[name] = { at = at, length = length }
    end
  end
  return index["index.json"] and index
end

--- Calls fn(store) for the archive at `path`; what was unpacked for it is gone afterwards.
-- Returns what fn does | nil, message, code.
function archive.with(path, options, fn)
  local stat, message, code = uv.fs_stat(path)
  if not stat then
    return nil, message, code
  elseif stat.type == "directory" then
    return fn(directory_store(path))
  elseif stat.type ~= "file" then
    return nil, path .. " is neither a file nor a directory", "EINVAL"
  end
  options.progress("reading " .. path:match("[^/]*$"))
  local index = index_of(path, options)
  if index then
    return fn(tar_store(path, index))
  end
  return worker.with_directory(options, function(work)
    local outer = work .. "/archive"
    assert(uv.fs_mkdir(outer, tonumber("700", 8)))
    local ok, why, name = worker.unpack(options, { "--plain", "--layer", path }, outer)
    if not ok then
      return nil, why, name
    end
    return fn(directory_store(outer))
  end)
end

-- OCI: follows index.json to a manifest for this machine. Returns it and its digest.
local function find_manifest(options, store)
  local index, message, code = manifest.read(options, store, "index", "index.json")
  local digest = index and index.manifest
  for _ = 1, INDEX_DEPTH do
    if not index then
      return nil, message, code
    end
    local path = manifest.blob(digest)
    if not path then
      return bad("index.json names no manifest")
    end
    local found
    found, message, code = manifest.read(options, store, "manifest", path, digest)
    if not found then
      return nil, message, code
    elseif not found.manifest then
      return found, digest
    end
    digest = found.manifest -- it was an index itself
  end
  return bad("indexes are nested too deeply")
end

-- A layer as arguments of the unpacker.
local function layer(store, path, kind, digest)
  local arguments = store.arguments(path)
  if not arguments then
    return nil
  end
  table.insert(arguments, 1, "--layer")
  arguments[#arguments + 1] = kind
  arguments[#arguments + 1] = digest
  return arguments
end

local function read_oci(options, store)
  local found, digest, code = find_manifest(options, store)
  if not found then
    return nil, digest, code
  end
  local path = manifest.blob(found.config)
  if not path then
    return bad("the manifest names no configuration")
  end
  local config, message, why = manifest.read(options, store, "config", path, found.config)
  if not config then
    return nil, message, why
  end
  local layers = {}
  for i, blob in ipairs(found.layer) do
    local place = manifest.blob(blob)
    if not place then
      return bad("the manifest names a layer by no digest")
    end
    layers[i] = layer(store, place, "--digest", blob)
    if not layers[i] then
      return bad("the archive lacks the layer " .. blob)
    end
    if config.diff_id[i] then
      table.insert(layers[i], "--diff-id")
      table.insert(layers[i], config.diff_id[i])
    end
  end
  return { config = config, layers = layers, digest = digest, snapshot = found.snapshot, parent = found.parent,
    image = found.image, type = found.type }
end

local function read_docker(options, store)
  local found, message, code = manifest.read(options, store, "docker", "manifest.json")
  if not found then
    return nil, message, code
  end
  local config
  config, message, code = manifest.read(options, store, "config", found.config or "")
  if not config then
    return nil, message, code
  end
  if #config.diff_id ~= #found.layer then
    return bad(string.format("manifest.json names %d layers, the configuration %d", #found.layer, #config.diff_id))
  end
  local layers = {}
  for i, path in ipairs(found.layer) do
    if not manifest.blob(config.diff_id[i]) then
      return bad("the configuration names a layer by no digest")
    end
    layers[i] = layer(store, path, "--diff-id", config.diff_id[i])
  end
  return { config = config, layers = layers }
end

--- What is in a store: { config = { env, cmd, cwd, user }, layers = a list of lists of arguments for
-- the unpacker, digest = of an OCI manifest; of an exported snapshot also snapshot, parent, image,
-- type } | nil, message, code.
function archive.read(store, options)
  local read
  if store.has("index.json") then
    read = read_oci
  elseif store.has("manifest.json") then
    read = read_docker
  else
    return bad("neither an OCI layout (index.json) nor a docker-archive (manifest.json)")
  end
  local found, message, code = read(options, store)
  if not found then
    return nil, message, code
  elseif #found.layers == 0 then
    return bad("the image has no layers")
  end
  return found
end

--- Applies layers first..last to options.target, by default all. `finish`: give it what every image has.
-- options.max_bytes: of content; 32 GiB unless told. options.max_file: of each file with its holes, max_bytes
-- unless told.
-- Returns { bytes, entries, skipped } | nil, message, code.
function archive.apply(store, found, options, finish, first, last)
  local arguments = {}
  local function add(list)
    for _, argument in ipairs(list) do
      arguments[#arguments + 1] = argument
    end
  end
  for i = first or 1, last or #found.layers do
    add(found.layers[i])
  end
  add(store.common)
  add(finish and { "--finish" } or {})
  add(options.max_bytes and { "--max-bytes", ("%d"):format(options.max_bytes) } or {})
  add(options.max_file and { "--max-file", ("%d"):format(options.max_file) } or {})
  return worker.unpack(options, arguments)
end

return archive

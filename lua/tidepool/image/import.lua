--- Importing images: an OCI layout or a docker-archive, as a directory or a (compressed) tar.
--
-- A tar is unpacked by the confined worker into a temporary directory of files without modes or
-- links that lead out; the image's JSON is read elsewhere (image/manifest.lua); then the worker
-- applies the layers to the target in order, checking each digest.
local uv = require("luv")
local manifest = require("tidepool.image.manifest")
local worker = require("tidepool.image.worker")

local INDEX_DEPTH = 4

local function exists(path)
  return uv.fs_lstat(path) ~= nil
end

local function bad(message)
  return nil, message, "EBADMSG"
end

-- OCI: follows index.json to a manifest for this machine.
local function find_manifest(options, directory)
  local index, message, code = manifest.read(options, directory, "index", "index.json")
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
    found, message, code = manifest.read(options, directory, "manifest", path, digest)
    if not found or not found.manifest then
      return found, message, code
    end
    digest = found.manifest -- it was an index itself
  end
  return bad("indexes are nested too deeply")
end

-- Layers as arguments of the unpacker, and the image's configuration.
local function read_oci(options, directory)
  local found, message, code = find_manifest(options, directory)
  if not found then
    return nil, message, code
  end
  local path = manifest.blob(found.config)
  if not path then
    return bad("the manifest names no configuration")
  end
  local config
  config, message, code = manifest.read(options, directory, "config", path, found.config)
  if not config then
    return nil, message, code
  end
  local arguments = {}
  for _, digest in ipairs(found.layer) do
    local blob = manifest.blob(digest)
    if not blob then
      return bad("the manifest names a layer by no digest")
    end
    for _, argument in ipairs({ "--layer", blob, "--digest", digest }) do
      arguments[#arguments + 1] = argument
    end
  end
  return config, arguments
end

local function read_docker(options, directory)
  local found, message, code = manifest.read(options, directory, "docker", "manifest.json")
  if not found then
    return nil, message, code
  end
  local config
  config, message, code = manifest.read(options, directory, "config", found.config or "")
  if not config then
    return nil, message, code
  end
  if #config.diff_id ~= #found.layer then
    return bad(string.format("manifest.json names %d layers, the configuration %d", #found.layer, #config.diff_id))
  end
  local arguments = {}
  for i, path in ipairs(found.layer) do
    if not manifest.blob(config.diff_id[i]) then
      return bad("the configuration names a layer by no digest")
    end
    for _, argument in ipairs({ "--layer", path, "--diff-id", config.diff_id[i] }) do
      arguments[#arguments + 1] = argument
    end
  end
  return config, arguments
end

-- The image in `directory` into options.target.
local function import_directory(directory, options)
  local read
  if exists(directory .. "/index.json") then
    read = read_oci
  elseif exists(directory .. "/manifest.json") then
    read = read_docker
  else
    return bad("neither an OCI layout (index.json) nor a docker-archive (manifest.json)")
  end
  local config, arguments, code = read(options, directory)
  if not config then
    return nil, arguments, code
  end
  if #arguments == 0 then
    return bad("the image has no layers")
  end
  options.progress(string.format("unpacking %d layers", #arguments / 4))
  for _, argument in ipairs({ "--blobs", directory, "--finish" }) do
    arguments[#arguments + 1] = argument
  end
  local unpacked, message, why = worker.unpack(options, arguments)
  if not unpacked then
    return nil, message, why
  end
  return {
    env = config.env,
    cmd = #config.cmd > 0 and config.cmd or nil,
    cwd = config.cwd,
    user = config.user,
    bytes = unpacked.bytes,
    entries = unpacked.entries,
    skipped = unpacked.skipped,
    created = os.time(),
  }
end

--- Imports the image at `path`. See image/init.lua for options and result.
local function import(path, options)
  local stat, message, code = uv.fs_stat(path)
  if not stat then
    return nil, message, code
  end
  local meta
  if stat.type == "directory" then
    meta, message, code = import_directory(path, options)
  elseif stat.type == "file" then
    meta, message, code = worker.with_directory(options, function(work)
      local outer = work .. "/archive"
      assert(uv.fs_mkdir(outer, tonumber("700", 8)))
      options.progress("reading " .. path:match("[^/]*$"))
      local ok, why, name = worker.unpack(options, { "--plain", "--layer", path }, outer)
      if not ok then
        return nil, why, name
      end
      return import_directory(outer, options)
    end)
  else
    return nil, path .. " is neither a file nor a directory", "EINVAL"
  end
  if not meta then
    return nil, message, code
  end
  meta.source = meta.source or path
  return meta
end

return import

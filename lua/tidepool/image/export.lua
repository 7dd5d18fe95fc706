--- Exporting trees as an OCI image layout: one tar, its layers written in place by a confined worker.
--
-- Runs in the server, which writes headers and JSON only. What is there under the file's name is
-- replaced at the end, by a rename.
local cjson = require("cjson")
local uv = require("luv")
local async = require("tidepool.async")
local manifest = require("tidepool.image.manifest")
local progress = require("tidepool.image.progress")
local step = require("tidepool.server.step")
local tarfile = require("tidepool.image.tarfile")
local worker = require("tidepool.image.worker")

local TYPES = {
  zstd = "application/vnd.oci.image.layer.v1.tar+zstd",
  gzip = "application/vnd.oci.image.layer.v1.tar+gzip",
  none = "application/vnd.oci.image.layer.v1.tar",
}

local function digest_of(bytes)
  local digest = require("tidepool.proxy").digest
  return "sha256:" .. digest.hex(digest.sha256(bytes))
end

-- Packs one layer where the archive goes on: { digest, diff_id, size, bytes, entries, skipped }.
local function pack(archive, layer, options)
  local command = {
    options.tools .. "/tidepool-pack",
    "--tree", layer.tree,
    "--uid-base", tostring(options.range.base),
    "--output", archive.path,
    "--offset", ("%d"):format(archive:next()),
    "--compression", options.compression,
    stdout = "pipe", stderr = "pipe",
    on_line = progress.reader("packing " .. layer.name, options.progress),
  }
  for _, argument in ipairs(layer.parent and { "--parent", layer.parent, "--taken", layer.taken or "0" } or {}) do
    command[#command + 1] = argument
  end
  local result, message, code = async.command(command)
  if not result then
    return nil, message, code
  end
  local bytes, entries, skipped, size, digest, diff_id =
    result.stdout:match("done (%d+) (%d+) (%d+) (%d+) (sha256:%x+) (sha256:%x+)\n")
  if result.code ~= 0 or result.signal ~= 0 or not bytes then
    return nil, worker.failure(result, "tidepool-pack")
  end
  local ok
  ok, message, code = archive:added(manifest.blob(digest), tonumber(size))
  if not ok then
    return nil, message, code
  end
  return { digest = digest, diff_id = diff_id, size = tonumber(size), bytes = tonumber(bytes),
    entries = tonumber(entries), skipped = tonumber(skipped), name = layer.name }
end

local function pack_all(archive, options)
  local packed = {}
  for i, layer in ipairs(options.layers) do
    local one, message, code = pack(archive, layer, options)
    if not one then
      return nil, message, code
    end
    packed[i] = one
  end
  return packed
end

-- Adds a document by its digest: its descriptor | nil, message, code.
local function add_document(archive, kind, document)
  local bytes = cjson.encode(document)
  local digest = digest_of(bytes)
  local ok, message, code = archive:add(manifest.blob(digest), bytes)
  if not ok then
    return nil, message, code
  end
  return { mediaType = "application/vnd.oci.image." .. kind .. ".v1+json", digest = digest, size = #bytes }
end

-- A Lua table that is empty would become an object.
local function filled(list)
  return list and #list > 0 and list or nil
end

local function config_of(packed, options)
  local created = os.date("!%Y-%m-%dT%H:%M:%SZ", math.floor(options.created))
  local diff_ids, history = {}, {}
  for i, layer in ipairs(packed) do
    diff_ids[i] = layer.diff_id
    history[i] = { created = created, created_by = "tidepool: " .. layer.name }
  end
  local config = options.config
  return {
    created = created,
    architecture = manifest.architecture(),
    os = "linux",
    config = { Env = filled(config.env), Cmd = filled(config.cmd), WorkingDir = config.cwd, User = config.user },
    rootfs = { type = "layers", diff_ids = diff_ids },
    history = history,
  }
end

local function add_documents(archive, packed, options)
  local config, message, code = add_document(archive, "config", config_of(packed, options))
  if not config then
    return nil, message, code
  end
  local layers = {}
  for i, layer in ipairs(packed) do
    layers[i] = { mediaType = TYPES[options.compression], digest = layer.digest, size = layer.size }
  end
  local descriptor
  descriptor, message, code = add_document(archive, "manifest", {
    schemaVersion = 2, mediaType = "application/vnd.oci.image.manifest.v1+json",
    config = config, layers = layers, annotations = options.annotations,
  })
  if not descriptor then
    return nil, message, code
  end
  descriptor.platform = { architecture = manifest.architecture(), os = "linux" }
  descriptor.annotations = { ["org.opencontainers.image.ref.name"] = options.name }
  local ok
  ok, message, code = archive:add("index.json", cjson.encode({
    schemaVersion = 2, mediaType = "application/vnd.oci.image.index.v1+json", manifests = { descriptor },
  }))
  if not ok then
    return nil, message, code
  end
  return descriptor.digest
end

local function write(archive, options)
  for _, name in ipairs({ "blobs/", "blobs/sha256/" }) do
    local ok, message, code = archive:add(name)
    if not ok then
      return nil, message, code
    end
  end
  local ok, message, code = archive:add("oci-layout", '{"imageLayoutVersion":"1.0.0"}')
  local packed, digest, size
  if ok then
    packed, message, code = pack_all(archive, options)
  end
  if packed then
    step("export_packed")
    digest, message, code = add_documents(archive, packed, options)
  end
  if digest then
    size, message, code = archive:finish()
  end
  if not size then
    return nil, message, code
  end
  local result = { size = size, digest = digest, layers = #packed, bytes = 0, entries = 0, skipped = 0 }
  for _, layer in ipairs(packed) do
    for _, name in ipairs({ "bytes", "entries", "skipped" }) do
      result[name] = result[name] + layer[name]
    end
  end
  return result
end

local export = {}

--- { uuid, taken } of a subvolume: `taken` in nanoseconds, "0" when it is no snapshot | nil, message, code.
function export.identify(path, options)
  local result, message, code = async.command({ options.tools .. "/tidepool-pack", "--identify", path,
    stdout = "pipe", stderr = "pipe" })
  if not result then
    return nil, message, code
  end
  local uuid, taken = result.stdout:match("^(%x+) (%d+)\n$")
  if not uuid then
    return nil, worker.failure(result, "tidepool-pack")
  end
  return { uuid = uuid, taken = taken }
end

--- Writes an image layout to `path`. options: `tools`, `range`, `progress` as of image/init.lua;
-- `layers`, a list of { tree = a read-only subvolume, parent = the one that it is the changes to, taken =
-- when that was snapshotted, name };
-- `config` { env, cmd, cwd, user }; `annotations`; `name` of the image in the layout; `created`, seconds
-- since the epoch; `compression` "zstd" (unless told), "gzip" (for tools that know no other) or "none".
-- Until it is whole it is `path`.partial, and what a killed server has left of that is begun anew.
-- Returns { size = of the file, digest = of the manifest, layers, bytes = of content, entries, skipped =
-- what a layer can't hold: devices, sockets, names of whiteouts } | nil, message, code ("EBUSY": another
-- one writes it).
function export.write(path, options)
  options.compression = options.compression or "zstd"
  local partial = path .. ".partial"
  local archive, message, code = tarfile.create(partial, options.created)
  if not archive then
    return nil, message, code
  end
  local result
  result, message, code = write(archive, options)
  if result then
    local ok
    ok, message, code = uv.fs_rename(partial, path)
    result = ok and result
  end
  if not result then
    os.remove(partial)
  end
  archive:close() -- not before: then another one may begin
  return result, message, code
end

return export

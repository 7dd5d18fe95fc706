--- Snapshots as archives: exported as OCI images. Importing is in server/imports.lua.
--
-- Runs in the server; what reads a tree and writes the layers is a confined worker.
local uv = require("luv")
local image = require("tidepool.image")
local log = require("tidepool.server.log")
local random = require("tidepool.random")

local exports = {}

--- Calls fn(options) with a range of ids for the workers, and a place for temporary files.
function exports.with_worker(server, progress, fn)
  local base, message, code = server.ids:allocate()
  if not base then
    return nil, message, code
  end
  local results = { xpcall(fn, debug.traceback, {
    range = { base = base, count = 65536 },
    tools = server.tools,
    work = server.directory .. "/work-" .. random.hex(8),
    progress = progress,
  }) }
  server.ids:release(base)
  if not results[1] then
    error(results[2], 0)
  end
  return unpack(results, 2, 4)
end

--- Whether a client's path means the same here: true | nil, message, code.
function exports.absolute(verb, path)
  if path:sub(1, 1) ~= "/" then
    return nil, ("%s needs an absolute path, not %s"):format(verb, path), "EINVAL"
  end
  return true
end

-- Files that stay while they are read, whoever deletes or replaces what they are of: their path.
local function pin(server, place, options, pinned)
  local one, message, code = server.storage:pin(place, options.range.base)
  if not one then
    return nil, message, code
  end
  pinned[#pinned + 1] = one
  return one.path
end

--- What a snapshot is known by on any host: its own UUID, or of an imported one the original's.
function exports.identity(server, record, options)
  local found, message, code = server.storage:identity(record.place, options)
  if not found then
    return nil, message, code
  end
  -- Whoever takes a snapshot may call a label the same; an import belongs to no sandbox.
  local imported = (record.sandbox_id or 0) == 0
  return { uuid = imported and record.labels.origin or found.uuid, taken = found.taken }
end

-- The layers of an archive: the changes to `parent`, or the image's and the changes to that, or, when
-- the image is gone, one of all.
local function layers_of(server, record, parent, options, pinned)
  local tree, message, code = pin(server, record.place, options, pinned)
  if not tree then
    return nil, message, code
  end
  local base, name, taken
  if parent then
    local found
    found, message, code = server.storage:identity(parent.place, options)
    if not found then
      return nil, message, code
    end
    base, name, taken = parent.place, ("%s@%s"):format(parent.sandbox, parent.label), found.taken
  elseif server.images[record.image] then
    base, name, taken = server.storage:image_place(record.image), "image " .. record.image, "0"
  else
    return { { tree = tree, name = "files" } }
  end
  base, message, code = pin(server, base, options, pinned)
  if not base then
    return nil, message, code
  end
  local layers = { { tree = tree, parent = base, taken = taken, name = "changes to " .. name } }
  if not parent then
    table.insert(layers, 1, { tree = base, name = name })
  end
  return layers
end

-- The environment that its processes begin with, and the image's command.
local function config_of(server, record)
  local meta = server.images[record.image] and server.images[record.image].meta or {}
  local env, names = {}, {}
  for _, pair in ipairs(meta.env or {}) do
    env[pair:match("^[^=]*")] = pair
  end
  for name, value in pairs(record.spec.env or {}) do
    env[name] = name .. "=" .. value
  end
  for name in pairs(env) do
    names[#names + 1] = name
  end
  table.sort(names)
  for i, name in ipairs(names) do
    names[i] = env[name]
  end
  return { env = names, cmd = meta.cmd, cwd = meta.cwd, user = meta.user }
end

-- Whether an archive may take the file's place: nobody means /dev/null, which a rename would replace as well.
local function replaceable(file)
  local stat = uv.fs_lstat(file)
  if stat and stat.type ~= "file" then
    return nil, ("%s is there and is no file (%s): name another"):format(file, stat.type), "EINVAL"
  end
  return true
end

local function export(server, record, parent, params, options, pinned)
  local own, message, code = exports.identity(server, record, options)
  local above
  if own and parent then
    above, message, code = exports.identity(server, parent, options)
  end
  if not own or (parent and not above) then
    return nil, message, code
  end
  options.layers, message, code = layers_of(server, record, parent, options, pinned)
  if not options.layers then
    return nil, message, code
  end
  options.config = config_of(server, record)
  options.name, options.created, options.compression = record.label, record.created, params.compression
  options.annotations = {
    ["dev.tidepool.snapshot"] = own.uuid,
    ["dev.tidepool.parent"] = above and above.uuid,
    ["dev.tidepool.image"] = record.image:match("^[a-z0-9][a-z0-9._-]*$"),
    ["dev.tidepool.type"] = record.spec.type,
  }
  return image.export.write(params.file, options)
end

--- Writes a snapshot to a file, all of it or the changes to `parent`: { file, size, bytes, entries,
-- skipped, layers, digest } | nil, message, code. params: snapshot, file, parent, compression.
function exports.export(server, params, progress)
  local ok, message, code = exports.absolute("snapshot export", params.file)
  if ok then
    ok, message, code = replaceable(params.file)
  end
  local record, parent
  if ok then
    record, message, code = server.snapshots:get(params.snapshot)
  end
  if record and params.parent then
    parent, message, code = server.snapshots:get(params.parent)
  end
  if not record or (params.parent and not parent) then
    return nil, message, code
  end
  if record.memory then
    progress("its files: the memory of a snapshot stays here")
  end
  local pinned = {}
  local result
  result, message, code = exports.with_worker(server, progress, function(options)
    return export(server, record, parent, params, options, pinned)
  end)
  for _, one in ipairs(pinned) do
    one.close()
  end
  if not result then
    return nil, ("export %s: %s"):format(params.snapshot, message), code
  end
  result.file = params.file
  log.info("snapshot_exported", { snapshot = params.snapshot, size = result.size, layers = result.layers })
  return result
end

return exports

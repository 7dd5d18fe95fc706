--- Snapshots made of archives: of exported ones, or of any image. Exporting is in server/exports.lua.
--
-- Runs in the server; what reads an archive are confined workers. An import grows in storage
-- (storage/growing.lua) under the archive's digest, so that the same one continues after the last whole layer.
local uv = require("luv")
local exports = require("tidepool.server.exports")
local image = require("tidepool.image")
local log = require("tidepool.server.log")
local random = require("tidepool.random")
local step = require("tidepool.server.step")
local verbs = require("tidepool.verbs")

local imports = {}

local LEAST = 32 * 2 ^ 30 -- bytes that an import may have, whatever the pool
local MOST_FILE = 2 ^ 60 -- bytes of a file with its holes, which cost nothing; an export has no more of them in all
local FORGOTTEN = 24 * 3600 -- seconds after which what an import left is not waited for

--- Deletes what imports of earlier servers left and nobody has continued for a day, and what they had
--- committed but not yet removed. At the start.
function imports.sweep(server)
  server.storage:sweep_growing(FORGOTTEN)
end

local function apply_all(store, found, growing, parent, options)
  local count = #found.layers
  local done = growing:applied(count)
  if done > 0 then
    options.progress(("continuing after layer %d of %d"):format(done, count))
  end
  if done == count then
    return true
  end
  local message, code
  options.target, message, code = growing:begin(done, parent and parent.place, options.range.base)
  if not options.target then
    return nil, message, code
  end
  -- What the pool could hold: one that was exported from another must come in, a bomb must end.
  options.max_bytes, options.max_file = math.max(LEAST, growing.storage:capacity()), MOST_FILE
  for i = done + 1, count do
    local ok
    ok, message, code = image.archive.apply(store, found, options, i == count and not found.snapshot, i, i)
    step("import_applied")
    if ok then
      ok, message, code = growing:keep(i, i == count)
    end
    if not ok then
      return nil, message, code
    end
  end
  return true
end

-- The snapshot here that the archive holds the changes to.
local function parent_of(server, found, options)
  if not found.parent then
    return true
  end
  for _, id in ipairs(server.snapshots:ids()) do
    local address = server.snapshots:address(id) -- nil: it was deleted while we looked at others
    local record = address and server.snapshots:get(address)
    local known = record and exports.identity(server, record, options)
    if known and known.uuid == found.parent then
      return record
    end
  end
  return nil, "the archive holds the changes to a snapshot that is not here: import that one first", "ENOPARENT"
end

local function spec_of(found)
  local env = {}
  for _, pair in ipairs(found.config.env) do
    local name, value = pair:match("^([%a_][%w_]*)=(.*)$")
    if name then
      env[name] = value
    end
  end
  return { type = verbs.types[found.type] and found.type or "basic", env = env }
end

-- Makes the snapshot of what has grown.
local function commit(server, params, found, growing, parent, began)
  local sandbox, label = params.snapshot:match("^([^@]+)@(.+)$")
  local record, message, code = server.snapshots:add({
    sandbox = sandbox, label = label, image = found.image or "imported", spec = spec_of(found),
    labels = found.snapshot and { origin = found.snapshot } or {},
    parent = parent and server.snapshots:address(parent.id) and parent.id or nil, -- it may be gone by now
  })
  if not record then
    return nil, message, code
  end
  step("import_recorded")
  local ok
  ok, message, code = growing:become(#found.layers, record.id)
  step("import_renamed")
  if ok then
    ok, message, code = server.snapshots:commit(record, 0, (uv.hrtime() - began) / 1e9, nil, params.key)
  end
  if not ok then
    server.snapshots:abort(record)
    return nil, message, code
  end
  step("import_committed")
  return record
end

local function import(server, store, params, options)
  local began = uv.hrtime()
  local found, message, code = image.archive.read(store, options)
  local parent
  if found then
    parent, message, code = parent_of(server, found, options)
  end
  if not parent then
    return nil, message, code
  end
  parent = parent ~= true and parent or nil
  local key = found.digest and found.digest:match("%x+$") or random.hex(32)
  if server.importing[key] then
    return nil, "this archive is being imported right now", "EBUSY"
  end
  server.importing[key] = true
  local growing
  local results = { xpcall(function()
    local ok, why, name
    growing, why, name = server.storage:growing(key)
    if growing then
      ok, why, name = apply_all(store, found, growing, parent, options)
    end
    if not ok then
      return nil, why, name
    end
    return commit(server, params, found, growing, parent, began)
  end, debug.traceback) }
  if growing then
    growing:discard()
  end
  server.importing[key] = nil
  if not results[1] then
    error(results[2], 0)
  end
  return unpack(results, 2, 4)
end

--- Makes a snapshot of an archive: one that was exported, or any OCI image or docker-archive. Returns what
-- a client is told of it | nil, message, code ("EBADMSG": damaged or hostile, "ENOPARENT"). params: file,
-- snapshot, its address; key.
function imports.import(server, params, progress)
  local before = server.snapshots:made_before(params.key)
  if before then
    return server.snapshots:describe(before, true)
  end
  local ok, message, code = exports.absolute("snapshot import", params.file)
  if ok and not uv.fs_stat(params.file) then
    ok, message, code = nil, "no such file: " .. params.file, "ENOENT"
  elseif ok and server.snapshots:get(params.snapshot) then
    ok, message, code = nil, "snapshot exists: " .. params.snapshot, "EEXIST"
  end
  if ok then
    ok, message, code = server.storage:room()
  end
  if not ok then
    return nil, message, code
  end
  server.importing = server.importing or {}
  local record
  record, message, code = exports.with_worker(server, progress, function(options)
    return image.archive.with(params.file, options, function(store)
      return import(server, store, params, options)
    end)
  end)
  if not record then
    return nil, ("import %s: %s"):format(params.file, message), code
  end
  log.info("snapshot_imported", { snapshot = params.snapshot })
  return server.snapshots:describe(record, true)
end

return imports

--- Images: built, imported or pulled into a staged subvolume, usable only once committed.
--
-- The work is done by programs outside the server; a failure or a killed server leaves a staged
-- subvolume, which is swept, never an image.
local uv = require("luv")
local async = require("tidepool.async")
local image = require("tidepool.image")
local log = require("tidepool.server.log")

local images = {}

local function valid(name)
  return #name <= 128 and name:match("^[a-z0-9][a-z0-9._-]*$") ~= nil
end

--- Reads the images that are there: rows of the database whose subvolume exists.
function images.load(server)
  server.images = {}
  local stored = {}
  for _, name in ipairs(server.storage:images()) do
    stored[name] = true
  end
  local rows, message, code = server.state:images()
  if not rows then
    return nil, message, code
  end
  for _, row in ipairs(rows) do
    if stored[row.name] then
      server.images[row.name] = row
      stored[row.name] = nil
    else
      log.warn("image_missing", { image = row.name })
      server.state:remove_image(row.name)
    end
  end
  for name in pairs(stored) do
    log.warn("image_unknown", { image = name }) -- committed, not written down: the server was killed between
    server.storage:remove_image(name)
  end
  return true
end

--- Deletes the temporary files of jobs that ended with an earlier server. In the background.
function images.sweep(server)
  local command = { "rm", "-rf", "--one-file-system" }
  local scan = uv.fs_scandir(server.directory)
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then
      break
    end
    if name:find("^work%-") then
      command[#command + 1] = server.directory .. "/" .. name
    end
  end
  if #command > 3 then
    async.spawn(async.command, command)
  end
end

function images.describe(row)
  return {
    name = row.name,
    created = row.created,
    bytes = row.meta.bytes,
    source = row.meta.source,
    env = row.meta.env,
    cmd = row.meta.cmd,
  }
end

function images.list(server)
  local list = {}
  for _, row in pairs(server.images) do
    local item = images.describe(row)
    item.sandboxes = 0
    for _, sandbox in pairs(server.sandboxes) do
      if sandbox.image == row.name then
        item.sandboxes = item.sandboxes + 1
      end
    end
    list[#list + 1] = item
  end
  table.sort(list, function(a, b)
    return a.name < b.name
  end)
  return list
end

-- Has `fill(options)` fill a staged root: what it tells of the image | nil, message, code.
local function fill_stage(server, name, stage, progress, fill)
  local base, message, code = server.ids:allocate()
  if not base then
    return nil, message, code
  end
  local ok, meta
  ok, meta, message, code = xpcall(fill, debug.traceback, {
    target = stage.path,
    range = { base = base, count = 65536 },
    tools = server.tools,
    work = server.directory .. "/work-" .. stage.id:gsub("[^%w]", "-"),
    progress = progress,
  })
  server.ids:release(base)
  if not ok then
    log.error("image_crashed", { image = name, message = meta })
    return nil, "internal error; the server's log has it", "EINTERNAL"
  end
  return meta, message, code
end

-- Gives what is staged its name, and writes it down: the row | nil, message, code.
local function commit(server, name, stage, replace, meta)
  local committed, message, code = server.storage:commit_image(stage, name, replace)
  if not committed then
    return nil, message, code
  end
  local created = meta.created or os.time()
  committed, message, code = server.state:add_image(name, created, meta)
  if not committed then
    server.storage:remove_image(name)
    server.images[name] = nil -- with `replace`: the old one is gone as well
    return nil, message, code
  end
  server.images[name] = { name = name, created = created, meta = meta }
  server.storage:refill(name)
  return server.images[name]
end

local function stage_and_commit(server, name, replace, progress, fill)
  local stage, message, code = server.storage:stage_image(name)
  if not stage then
    return nil, message, code
  end
  local meta, row
  meta, message, code = fill_stage(server, name, stage, progress, fill)
  if meta then
    row, message, code = commit(server, name, stage, replace, meta)
  end
  if row then
    log.info("image_made", { image = name, bytes = meta.bytes })
    return images.describe(row)
  end
  server.storage:abort_image(stage)
  log.error("image_failed", { image = name, message = message, code = code })
  return nil, message, code
end

-- Makes the image of that name, one at a time.
local function make(server, name, replace, progress, fill)
  if not valid(name) then
    return nil, "not an image name: " .. name .. " (1-128 of [a-z0-9._-])", "EINVAL"
  end
  if server.images[name] and not replace then
    return nil, "image exists: " .. name .. " (--replace makes it again)", "EEXIST"
  end
  if server.making_images[name] then
    return nil, "image " .. name .. " is being made right now", "EBUSY"
  end
  local room, why, why_code = server.storage:room()
  if not room then
    return nil, why, why_code
  end
  server.making_images[name] = true
  local ok, info, message, code = xpcall(stage_and_commit, debug.traceback, server, name, replace, progress, fill)
  server.making_images[name] = nil
  if not ok then
    error(info, 0)
  end
  return info, message, code
end

function images.build(server, params, progress)
  return make(server, params.image, params.replace, progress, function(options)
    return image.build(params.image, options)
  end)
end

-- What is left of a path or reference when it names an image: its last part without tag and ending.
local function short_name(text)
  local name = text:gsub("/+$", ""):match("([^/]+)$") or text
  name = name:gsub("@.*$", ""):gsub(":[^:]*$", "")
  for _, ending in ipairs({ "%.tar%.gz$", "%.tgz$", "%.tar%.zst$", "%.tar%.xz$", "%.tar$" }) do
    name = name:gsub(ending, "")
  end
  return name:lower():gsub("[^a-z0-9._-]", "-")
end

function images.import(server, params, progress)
  if params.file:sub(1, 1) ~= "/" then
    return nil, "image import needs an absolute path, not " .. params.file, "EINVAL"
  end
  if not uv.fs_stat(params.file) then
    return nil, "no such file: " .. params.file, "ENOENT"
  end
  return make(server, params.image or short_name(params.file), params.replace, progress, function(options)
    return image.import(params.file, options)
  end)
end

function images.pull(server, params, progress)
  return make(server, params.image or short_name(params.reference), params.replace, progress, function(options)
    options.insecure = params.insecure
    return image.pull(params.reference, options)
  end)
end

--- Removes an image. Sandboxes made from it keep their files.
function images.remove(server, params)
  if not server.images[params.image] then
    return nil, "no such image: " .. params.image, "ENOIMAGE"
  end
  local removed, message, code = server.state:remove_image(params.image)
  if not removed then
    return nil, message, code
  end
  server.images[params.image] = nil
  removed, message, code = server.storage:remove_image(params.image)
  if not removed then
    return nil, message, code
  end
  log.info("image_removed", { image = params.image })
  return true
end

return images

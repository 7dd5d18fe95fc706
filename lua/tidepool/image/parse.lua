-- Reads one JSON document of an image on standard input and prints what we need of it, a record a
-- line: a word, then percent-encoded fields. Run as text by image/manifest.lua in a process without
-- privileges, network or files, since the document may be hostile; `KIND` and `ARCH` are set before.
local KIND, ARCH = KIND, ARCH -- luacheck: globals KIND ARCH
local cjson = require("cjson").new()
cjson.decode_max_depth(32)

local LIMITS = { text = 131072, list = 1024, layers = 256 }

local function emit(word, ...)
  local fields = { word }
  for i = 1, select("#", ...) do
    fields[i + 1] = (tostring((select(i, ...))):gsub("[^%w/:._=+-]", function(c)
      return string.format("%%%02X", c:byte())
    end))
  end
  io.write(table.concat(fields, " "), "\n")
end

local function fail(...)
  emit("error", string.format(...))
  os.exit(0)
end

local function object(value, what)
  if type(value) ~= "table" then
    fail("%s is not an object or list", what)
  end
  return value
end

local function text(value, what)
  if type(value) ~= "string" or #value > LIMITS.text or value:find("%z") then
    fail("%s is not a text", what)
  end
  return value
end

-- Absent, null and "" are the same to us.
local function optional_text(value, what)
  if value == nil or value == cjson.null or value == "" then
    return nil
  end
  return text(value, what)
end

local function list(value, what, most)
  if value == nil or value == cjson.null then
    return {}
  end
  object(value, what)
  if #value > (most or LIMITS.list) then
    fail("%s has more than %d items", what, most or LIMITS.list)
  end
  return value
end

local function digest(value, what)
  text(value, what)
  if not value:match("^sha256:%x+$") or #value ~= 71 or value:match("%u") then
    fail("%s is not a sha256 digest: %s", what, value:sub(1, 80))
  end
  return value
end

local readers = {}

-- docker-archive: manifest.json
function readers.docker(document)
  local image = object(list(document, "manifest.json")[1], "manifest.json's image")
  emit("config", text(image.Config, "Config"))
  for _, layer in ipairs(list(image.Layers, "Layers", LIMITS.layers)) do
    emit("layer", text(layer, "layer"))
  end
end

local function platform_of(item)
  local platform = item.platform
  if type(platform) ~= "table" or not optional_text(platform.architecture, "architecture") then
    return nil
  end
  return text(platform.os or "linux", "os") .. "/" .. platform.architecture
end

-- OCI: index.json, and indexes below it. The first manifest for this machine counts.
function readers.index(document)
  local others = {}
  for _, item in ipairs(list(object(document, "index").manifests, "manifests")) do
    object(item, "manifest")
    local platform = platform_of(item)
    if not platform or platform == "linux/" .. ARCH then
      return emit("manifest", digest(item.digest, "manifest's digest"))
    end
    others[#others + 1] = platform
  end
  fail("no image for linux/%s (there are: %s)", ARCH, #others > 0 and table.concat(others, ", ") or "none")
end

-- Of a snapshot that tidepool exported.
local ANNOTATIONS = {
  ["dev.tidepool.snapshot"] = { "snapshot", "^%x+$" },
  ["dev.tidepool.parent"] = { "parent", "^%x+$" },
  ["dev.tidepool.image"] = { "image", "^[a-z0-9][a-z0-9._-]*$" },
  ["dev.tidepool.type"] = { "type", "^[%l%d-]+$" },
}

local function emit_annotations(annotations)
  for name, rule in pairs(type(annotations) == "table" and ANNOTATIONS or {}) do
    local value = annotations[name]
    if value ~= nil then
      if not text(value, name):match(rule[2]) or #value > 128 then
        fail("%s is not what it should be", name)
      end
      emit(rule[1], value)
    end
  end
end

function readers.manifest(document)
  object(document, "manifest")
  if type(document.manifests) == "table" then
    emit("index")
    return readers.index(document)
  end
  emit("config", digest(object(document.config, "config").digest, "config's digest"))
  emit_annotations(document.annotations)
  for _, layer in ipairs(list(document.layers, "layers", LIMITS.layers)) do
    object(layer, "layer")
    local kind = optional_text(layer.mediaType, "layer's type") or "tar"
    if not kind:match("tar") or kind:match("encrypted") then
      fail("a layer is of type %s, which is no tar that we can read", kind)
    end
    emit("layer", digest(layer.digest, "layer's digest"))
  end
end

function readers.config(document)
  object(document, "config")
  local os_name = optional_text(document.os, "os") or "linux"
  local arch = optional_text(document.architecture, "architecture") or ARCH
  if os_name ~= "linux" or arch ~= ARCH then
    fail("the image is for %s/%s, this machine is linux/%s", os_name, arch, ARCH)
  end
  local rootfs = document.rootfs
  for _, id in ipairs(list(type(rootfs) == "table" and rootfs.diff_ids or nil, "diff_ids", LIMITS.layers)) do
    emit("diff_id", digest(id, "diff_id"))
  end
  local config = document.config
  if config == nil or config == cjson.null then
    return
  end
  object(config, "config.config")
  for _, item in ipairs(list(config.Env, "Env")) do
    if text(item, "Env"):match("^[^=]+=") then
      emit("env", item)
    end
  end
  for _, name in ipairs({ "Entrypoint", "Cmd" }) do
    for _, item in ipairs(list(config[name], name)) do
      emit("cmd", text(item, name))
    end
  end
  for word, value in pairs({ cwd = config.WorkingDir, user = config.User }) do
    local found = optional_text(value, word)
    if found then
      emit(word, found)
    end
  end
end

local ok, document = pcall(cjson.decode, io.read("*a"))
if not ok then
  fail("not JSON: %s", tostring(document):sub(1, 200))
end
readers[KIND](document)
emit("end")

--- The JSON of an image, read by a process without privileges (image/parse.lua).
--
-- The document's digest is checked by tidepool-unpack, which looks paths up beneath the image's
-- directory; the parser is fed by it through a pipe and answers in flat records, which are checked
-- once more here: the server parses no JSON that came from outside.
local uv = require("luv")
local worker = require("tidepool.image.worker")

local manifest = {}

local OUTPUT_LIMIT = 8 * 1024 * 1024
local MEMORY_LIMIT = 512 * 1024 * 1024

local ARCHITECTURES = { -- uname's word -> OCI's
  x86_64 = "amd64", aarch64 = "arm64", armv7l = "arm", i686 = "386",
  riscv64 = "riscv64", ppc64le = "ppc64le", s390x = "s390x", loongarch64 = "loong64",
}

local source -- of parse.lua; handed over as text, since its process may not see our files

local function parser_source()
  if not source then
    local path = debug.getinfo(1, "S").source:gsub("^@", ""):gsub("manifest%.lua$", "parse.lua")
    local file = assert(io.open(path))
    source = file:read("*a")
    file:close()
  end
  return source
end

function manifest.architecture()
  local machine = uv.os_uname().machine
  return ARCHITECTURES[machine] or machine
end

-- `head` bounds what the parser can make the server read.
local function parser_command(kind, id)
  local text = string.format("KIND, ARCH = %q, %q\n%s", kind, manifest.architecture(), parser_source())
  return {
    "unshare", "--net", "--ipc", "setpriv", "--reuid", tostring(id), "--regid", tostring(id),
    "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all",
    "prlimit", "--as=" .. MEMORY_LIMIT, "--cpu=10", "--core=0", "--fsize=0", "--",
    "sh", "-c", "luajit -e \"$1\" | head -c " .. OUTPUT_LIMIT, "parser", text,
    env = worker.environment({ LUA_PATH = false, LUA_CPATH = false, LUA_INIT = false }),
    cwd = "/",
    stdout = "pipe",
    stderr = "pipe",
  }
end

--- Records as a table: the last field of single words, lists for the words in `lists`.
function manifest.records(text, lists)
  local records, ended = {}, false
  for name in pairs(lists) do
    records[name] = {}
  end
  for line in text:gmatch("[^\n]+") do
    local word, field = line:match("^([%l_]+) ?(%S*)$")
    if not word then
      return nil, "the parser's answer is damaged", "EBADMSG"
    end
    field = field:gsub("%%(%x%x)", function(hex)
      return string.char(tonumber(hex, 16))
    end)
    if word == "error" then
      return nil, field, "EBADMSG"
    elseif word == "end" then
      ended = true
    elseif lists[word] then
      table.insert(records[word], field)
    else
      records[word] = field
    end
  end
  if not ended then
    return nil, "the parser ended early", "EBADMSG"
  end
  return records
end

--- Reads a document of `kind` ("docker", "index", "manifest", "config") at `path` in a store (see
-- image/archive.lua), as the first id of options.range. Returns its records, or nil, message, code.
function manifest.read(options, store, kind, path, digest)
  local place = store.arguments(path)
  if not place then
    return nil, "the archive lacks " .. path, "EBADMSG"
  end
  local printer = { options.tools .. "/tidepool-unpack", "--print", stderr = "pipe" }
  for _, list in ipairs({ place, digest and { "--digest", digest } or {}, store.common }) do
    for _, argument in ipairs(list) do
      printer[#printer + 1] = argument
    end
  end
  local printed, parsed, code = worker.pipeline(printer, parser_command(kind, options.range.base))
  if not printed then
    return nil, parsed, code
  end
  if printed.code ~= 0 or printed.signal ~= 0 then
    return nil, worker.failure(printed)
  end
  local records, message, why = manifest.records(parsed.stdout, { layer = true, diff_id = true, env = true, cmd = true })
  if not records then
    if parsed.stderr ~= "" then
      message = message .. " (" .. parsed.stderr:sub(1, 200):gsub("%c+", " ") .. ")"
    end
    return nil, path .. ": " .. message, why
  end
  return records
end

--- "sha256:HEX" -> its path in an OCI layout, or nil.
function manifest.blob(digest)
  local hex = type(digest) == "string" and #digest == 71 and digest:match("^sha256:([0-9a-f]+)$")
  return hex and ("blobs/sha256/" .. hex) or nil
end

return manifest

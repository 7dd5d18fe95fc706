--- Structured logs: one JSON object a line, with time, level, event and fields.
--
-- The server writes them to <state>/server.log, or to stderr in the foreground. Never a secret,
-- never a sandbox's output.
local uv = require("luv")
local cjson = require("cjson")

local log = {}

local output = io.stderr

--- Appends to the file from now on; keeps one older file when it has grown past `limit` bytes.
function log.to_file(path, limit)
  local stat = uv.fs_stat(path)
  if stat and stat.size > (limit or 16 * 2 ^ 20) then
    os.rename(path, path .. ".1")
  end
  local file, message = io.open(path, "a")
  if not file then
    return nil, message, "EIO"
  end
  file:setvbuf("line")
  output = file
  return true
end

local function write(level, event, fields)
  local seconds, micros = uv.gettimeofday()
  local record = {
    time = os.date("!%Y-%m-%dT%H:%M:%S", seconds) .. (".%06dZ"):format(micros),
    level = level,
    event = event,
    pid = uv.os_getpid(),
  }
  for key, value in pairs(fields or {}) do
    record[key] = type(value) == "table" and value or type(value) == "number" and value or tostring(value)
  end
  local ok, text = pcall(cjson.encode, record)
  output:write(ok and text or cjson.encode({ level = level, event = event, unencodable = true }), "\n")
end

for _, level in ipairs({ "debug", "info", "warn", "error" }) do
  log[level] = function(event, fields)
    if level ~= "debug" or os.getenv("TIDEPOOL_DEBUG") then
      write(level, event, fields)
    end
  end
end

return log

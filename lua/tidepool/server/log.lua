--- Structured logs: one JSON object a line, with time, level, event and fields.
--
-- The server writes them to <state>/server.log, or to stderr in the foreground. Never a secret,
-- never a sandbox's output.
local uv = require("luv")
local cjson = require("cjson")

local log = {}

local LIMIT = 16 * 2 ^ 20 -- bytes of a file, of which there are two at most

local output, path, limit, size = io.stderr, nil, nil, 0

-- Opens the file, and moves one aside that has grown past the limit.
local function open()
  local stat = uv.fs_stat(path)
  if stat and stat.size > limit then
    os.rename(path, path .. ".1")
    stat = nil
  end
  local file, message = io.open(path, "ae") -- "e": closed in whatever we start
  if not file then
    return nil, message, "EIO"
  end
  file:setvbuf("line")
  if output ~= io.stderr then
    output:close()
  end
  output, size = file, stat and stat.size or 0
  return true
end

--- Appends to the file from now on; one older file, PATH.1, is kept when it grows past `most` bytes.
-- Returns true | nil, message, code.
function log.to_file(file, most)
  path, limit = file, most or LIMIT
  return open()
end

--- Writes to standard error again, as at the start.
function log.to_stderr()
  if output ~= io.stderr then
    output:close()
  end
  output, path = io.stderr, nil
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
  text = ok and text or cjson.encode({ level = level, event = event, unencodable = true })
  output:write(text, "\n")
  size = size + #text + 1
  if path and size > limit then
    open() -- if that fails, the old one goes on
  end
end

for _, level in ipairs({ "debug", "info", "warn", "error" }) do
  log[level] = function(event, fields)
    if level ~= "debug" or os.getenv("TIDEPOOL_DEBUG") then
      write(level, event, fields)
    end
  end
end

return log

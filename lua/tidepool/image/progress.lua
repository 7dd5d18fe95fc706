--- Progress of a long job as a sentence: how far, how fast, how much longer. Runs in the server.
local uv = require("luv")

local progress = {}

local EVERY = 1000 -- milliseconds between two sentences
local WINDOW = 8 -- measurements over which the rate is taken: a slow disk comes and goes

local function size(bytes)
  if bytes >= 1e9 then
    return ("%.1f GB"):format(bytes / 1e9)
  end
  return ("%.0f MB"):format(bytes / 1e6)
end

local function duration(seconds)
  if seconds >= 90 then
    return ("%.0f min"):format(seconds / 60)
  end
  return ("%.0f s"):format(math.ceil(seconds))
end

--- "packing: 120 of 480 MB, 1200 files, 95 MB/s, 4 s left". `total` 0 or nil: not known; `rate` in
-- bytes a second, nil at first.
function progress.sentence(what, done, total, entries, rate)
  local known = total and total > 0
  local parts = { known and ("%s of %s"):format(size(math.min(done, total)), size(total)) or size(done) }
  if entries then
    parts[#parts + 1] = ("%d files"):format(entries)
  end
  if rate and rate > 0 then
    parts[#parts + 1] = ("%.0f MB/s"):format(rate / 1e6)
    if known then
      parts[#parts + 1] = duration(math.max(0, total - done) / rate) .. " left"
    end
  end
  return what .. ": " .. table.concat(parts, ", ")
end

--- Reads the lines of tidepool-pack and tidepool-unpack ("progress BYTES ENTRIES DONE TOTAL") and
-- reports at most once a second. The first second is not worth a sentence.
function progress.reader(what, report)
  local shown = uv.now()
  local marks = { { at = shown, done = 0 } }
  return function(line)
    local bytes, entries, done, total = line:match("^progress (%d+) (%d+) (%d+) (%d+)$")
    local now = uv.now()
    if not bytes or now - shown < EVERY then
      return
    end
    shown = now
    total = tonumber(total)
    done = total > 0 and tonumber(done) or tonumber(bytes)
    marks[#marks + 1] = { at = now, done = done }
    if #marks > WINDOW then
      table.remove(marks, 1)
    end
    local rate = (done - marks[1].done) * 1000 / (now - marks[1].at)
    report(progress.sentence(what, done, total, tonumber(entries), rate))
  end
end

return progress

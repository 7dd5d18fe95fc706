--- What differs between two snapshots: the records of tidepool-diff, read from its descriptor.
local async = require("tidepool.async")
local core = require("tidepool.core")

local diff = {}

local LISTS = { A = "added", C = "changed", D = "deleted" }
local KINDS = { f = "file", d = "directory", l = "link", c = "char", b = "block", p = "fifo", s = "socket" }
local HEAD = 20

local function number(bytes, at, size)
  local value = 0
  for i = size - 1, 0, -1 do
    value = value * 256 + bytes:byte(at + i)
  end
  return value
end

-- The record at `at`: it and where the next begins, or nil when it isn't whole.
local function record(bytes, at)
  if #bytes - at + 1 < HEAD then
    return nil
  end
  local length = number(bytes, at + 2, 2)
  if #bytes - at + 1 < HEAD + length then
    return nil
  end
  return {
    what = bytes:sub(at, at),
    kind = KINDS[bytes:sub(at + 1, at + 1)],
    old_size = number(bytes, at + 4, 8),
    size = number(bytes, at + 12, 8),
    path = bytes:sub(at + HEAD, at + HEAD + length - 1),
  }, at + HEAD + length
end

-- Hands records over until the last one, which is returned.
local function take(bytes, on_record)
  local at = 1
  while true do
    local one, after = record(bytes, at)
    if not one then
      return nil, bytes:sub(at)
    elseif one.what == "E" then
      return one
    end
    on_record(one)
    at = after
  end
end

--- Reads all records: { added, changed, deleted } | nil, message, code. The descriptor stays the caller's.
function diff.read(fd)
  local result = { added = {}, changed = {}, deleted = {} }
  local function keep(one)
    local list = result[LISTS[one.what]]
    if list then
      list[#list + 1] = {
        path = one.path,
        kind = one.kind,
        old_size = one.what ~= "A" and one.old_size or nil,
        size = one.what ~= "D" and one.size or nil,
      }
    end
  end
  local poller = assert(async.poller(fd:number()))
  local rest, last, message, code = "", nil, nil, nil
  repeat
    local bytes
    bytes, message, code = core.fd.read(fd, 65536)
    if code == "EAGAIN" then
      poller:readable()
    elseif not bytes or bytes == "" then
      message, code = message or "the comparison was cut off", code or "EIO"
      break
    else
      last, rest = take(rest .. bytes, keep)
    end
  until last
  poller:close()
  if last and last.old_size == 0 then
    return result
  elseif last then
    return nil, last.path, core.plan.code(last.old_size)
  end
  return nil, message, code
end

--- Asks a server for it.
function diff.between(client, from, to)
  local ok, fds, code = client:call("snapshot_diff", { from = from, to = to })
  if not ok then
    return nil, fds, code
  end
  local result, message
  result, message, code = diff.read(fds[1])
  fds[1]:close()
  return result, message, code
end

return diff

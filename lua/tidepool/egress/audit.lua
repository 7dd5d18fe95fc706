--- What was decided, on its way to the server: bounded, acknowledged, and never a secret in it.
--
-- An entry stays here until the server has stored it; a server that is gone finds them all when the next
-- one connects. When the queue is full nothing more is allowed, since it could not be accounted for.
local uv = require("luv")
local async = require("tidepool.async")

local audit = {}

local Audit = {}
Audit.__index = Audit

local MOST = 8192 -- entries that wait for the server
local BATCH = 512 -- entries in one message
local DELAY = 0.05 -- seconds that entries are gathered for
local RETRY = 0.5 -- seconds after the server did not answer

--- `send(entries)` is true once they are stored. `redact(text)` takes secrets out.
function audit.new(send, redact)
  return setmetatable({ queue = {}, pending = {}, send = send, redact = redact, dropped = 0 }, Audit)
end

--- Whether nothing more can be written down.
function Audit:is_full()
  return #self.queue >= MOST
end

local function deliver(self)
  while #self.queue > 0 do
    local batch = {}
    for i = 1, math.min(BATCH, #self.queue) do
      batch[i] = self.queue[i]
      self.pending[batch[i].key or ""] = nil -- what is on its way is not counted up any more
    end
    local list = {}
    for i, entry in ipairs(batch) do
      list[i] = entry.fields
    end
    if not self.send(list) then
      async.sleep(RETRY)
    else
      local rest = {}
      for i = #batch + 1, #self.queue do
        rest[#rest + 1] = self.queue[i]
      end
      self.queue = rest
    end
  end
  self.delivering = false
end

-- The same refusal again and again is one entry with a count.
local function key_of(fields)
  if fields.action == "allow" then
    return nil
  end
  return table.concat({
    fields.id, fields.action, fields.hook, fields.host or "", fields.address or "", fields.port or "",
    fields.method or "", fields.path or "", fields.reason or "",
  }, "\0")
end

local function now()
  local seconds, micros = uv.gettimeofday()
  return seconds + micros / 1e6
end

local TEXTS = { "host", "reason", "method", "path", "policy", "sni", "text" }
local LONGEST = 1024

--- Records a decision. Fields: id, sandbox, action, hook, policy, reason, protocol, host, address, port,
-- method, path, status, bytes_sent, bytes_received, seconds.
function Audit:add(fields)
  for _, name in ipairs(TEXTS) do
    local text = fields[name]
    if text then
      -- Cut last: half a secret would not be known for one.
      fields[name] = (self.redact(tostring(text)):sub(1, LONGEST):gsub("%c", "?"))
    end
  end
  fields.path = fields.path and (fields.path:gsub("%?.*", "?...")) -- a query may be a credential
  local key = key_of(fields)
  local same = key and self.pending[key]
  if same then
    same.fields.count = same.fields.count + 1
    return
  end
  if self:is_full() then
    self.dropped = self.dropped + 1
    return
  end
  fields.time, fields.count = now(), 1
  local entry = { fields = fields, key = key }
  self.queue[#self.queue + 1] = entry
  if key then
    self.pending[key] = entry
  end
  if not self.delivering then
    self.delivering = true
    async.after(DELAY, function()
      async.spawn(deliver, self)
    end)
  end
end

return audit

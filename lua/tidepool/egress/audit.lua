--- What was decided, on its way to the server: bounded, acknowledged, and never a secret in it.
--
-- An entry stays here until the server has stored it; a server that is gone finds them all when the next
-- one connects. When the queue is full nothing more is allowed, since it could not be accounted for; and one
-- sandbox fills a quarter of it at most, so that its flood does not stop the others.
local uv = require("luv")
local async = require("tidepool.async")

local audit = {}

local Audit = {}
Audit.__index = Audit

local MOST, SHARE = 8192, 2048 -- entries that wait for the server, in all and of one sandbox
local BATCH = 512 -- entries in one message
local DELAY = 0.05 -- seconds that entries are gathered for
local RETRY = 0.5 -- seconds after the server did not answer

--- `send(entries)` is true once they are stored. `redact(text)` takes secrets out.
function audit.new(send, redact)
  return setmetatable({ queue = {}, pending = {}, waiting = {}, send = send, redact = redact, dropped = 0 }, Audit)
end

--- Whether nothing more can be written down of the sandbox with this id.
function Audit:is_full(id)
  return #self.queue >= MOST or (self.waiting[id] or 0) >= SHARE
end

-- How many of a sandbox's entries wait.
local function count(self, entry, by)
  local id = entry.fields.id
  local waiting = (self.waiting[id] or 0) + by
  self.waiting[id] = waiting > 0 and waiting or nil
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
      for _, entry in ipairs(batch) do
        count(self, entry, -1)
      end
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

local function append(self, fields, key)
  fields.time, fields.count = now(), 1
  local entry = { fields = fields, key = key }
  self.queue[#self.queue + 1] = entry
  count(self, entry, 1)
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

-- What there is no room for is one entry that counts them.
local function drop(self, fields)
  self.dropped = self.dropped + 1
  local key = "dropped\0" .. tostring(fields.id)
  local same = self.pending[key]
  if same then
    same.fields.count = same.fields.count + 1
    return
  end
  append(self, {
    id = fields.id, sandbox = fields.sandbox, action = "deny", hook = fields.hook,
    reason = "refusals that were too many to be listed",
  }, key)
end

--- Records a decision. What was allowed is always written down: there is not more of it than connections.
-- Fields: id, sandbox, action, hook, policy, reason, protocol, host, address, port,
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
  if key and self:is_full(fields.id) then
    return drop(self, fields)
  end
  append(self, fields, key)
end

return audit

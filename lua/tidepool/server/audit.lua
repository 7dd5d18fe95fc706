--- What egress decided: a file of its own beside the state, read by `egress log` and counted.
--
-- Runs in the server, which alone writes it. Entries come in batches from egress processes, which keep
-- each until we have stored it, so that nothing decided is lost when either side ends. Old ones go in
-- small steps in the background.
local cjson = require("cjson")
local async = require("tidepool.async")
local database = require("tidepool.server.database")
local log = require("tidepool.server.log")

local audit = {}

local Audit = {}
Audit.__index = Audit

local MIGRATIONS = {
  {
    [[CREATE TABLE entries (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        sandbox INTEGER NOT NULL,
        name TEXT NOT NULL,
        action TEXT NOT NULL,
        entry TEXT NOT NULL           -- JSON: the other fields
      )]],
    [[CREATE INDEX entries_of ON entries (sandbox, id)]],
    [[CREATE INDEX entries_named ON entries (name, id)]],
    [[CREATE TABLE counters (
        sandbox INTEGER PRIMARY KEY,
        allowed INTEGER NOT NULL, denied INTEGER NOT NULL, sent INTEGER NOT NULL, received INTEGER NOT NULL,
        last REAL NOT NULL
      )]],
  },
}

local DAYS, ROWS = 30, 1000000 -- kept at most, unless told otherwise
local PRUNE_EVERY, PRUNE_STEP, PRUNE_PAUSE = 600, 2000, 0.05 -- seconds, entries, seconds
local FULL_READ = 2000 -- entries in one answer, at most

-- The fields of an entry that a client may see, and their types: whatever else comes is left out.
local FIELDS = {
  hook = "string", policy = "string", reason = "string", protocol = "string", host = "string", address = "string",
  port = "number", method = "string", path = "string", status = "number", bytes_sent = "number",
  bytes_received = "number", seconds = "number", count = "number", sni = "string", text = "string",
  mismatch = "string", secrets = "table",
}
local LONGEST = 2048

local function names_only(list)
  local names = {}
  for i, name in ipairs(list) do
    names[i] = tostring(name):sub(1, 64)
  end
  return names
end

local function clean(entry)
  local kept = {}
  for name, kind in pairs(FIELDS) do
    local value = entry[name]
    if type(value) == kind and value == value and value ~= math.huge and value ~= -math.huge then
      kept[name] = kind == "string" and value:sub(1, LONGEST) or value
    end
  end
  kept.secrets = kept.secrets and names_only(kept.secrets)
  return kept
end

local function number(value)
  return type(value) == "number" and value == value and math.abs(value) < 2 ^ 53 and value or 0
end

--- Opens the file. options: path, days, rows, on_secret_used(name, time).
function audit.open(options)
  local db, message, code = database.open(options.path, "audit", MIGRATIONS)
  if not db then
    return nil, message, code
  end
  local self = setmetatable({
    db = db,
    days = options.days or DAYS,
    most = options.rows or ROWS,
    on_secret_used = options.on_secret_used or function() end,
    waiters = {},
  }, Audit)
  self:prune_later(1)
  return self
end

local function add_one(self, entry)
  return self.db:execute("INSERT INTO entries (time, sandbox, name, action, entry) VALUES (?, ?, ?, ?, ?)",
    number(entry.time), number(entry.id), tostring(entry.sandbox), tostring(entry.action), cjson.encode(clean(entry)))
end

-- What a batch adds to the counters, by sandbox.
local function sums(entries)
  local by_id = {}
  for _, entry in ipairs(entries) do
    local id = number(entry.id)
    local sum = by_id[id] or { allowed = 0, denied = 0, sent = 0, received = 0 }
    local which = entry.action == "deny" and "denied" or entry.action ~= "note" and "allowed"
    if which then
      sum[which] = sum[which] + math.max(1, number(entry.count))
    end
    sum.sent, sum.received = sum.sent + number(entry.bytes_sent), sum.received + number(entry.bytes_received)
    sum.last = number(entry.time)
    by_id[id] = sum
  end
  return by_id
end

local function count(self, id, sum)
  return self.db:execute([[INSERT INTO counters (sandbox, allowed, denied, sent, received, last) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (sandbox) DO UPDATE SET allowed = allowed + excluded.allowed, denied = denied + excluded.denied,
    sent = sent + excluded.sent, received = received + excluded.received, last = excluded.last]],
    id, sum.allowed, sum.denied, sum.sent, sum.received, sum.last)
end

-- In one transaction: true | nil, message, code.
local function store(self, entries)
  for _, entry in ipairs(entries) do
    local ok, message, code = add_one(self, entry)
    if not ok then
      return nil, message, code
    end
  end
  for id, sum in pairs(sums(entries)) do
    local ok, message, code = count(self, id, sum)
    if not ok then
      return nil, message, code
    end
  end
  return true
end

-- How many entries each sandbox has, counted when first needed.
local function kept(self)
  if not self.kept then
    local rows = assert(self.db:rows("SELECT sandbox, COUNT(*) AS many FROM entries GROUP BY sandbox"))
    self.kept, self.total = {}, 0
    for _, row in ipairs(rows) do
      self.kept[row.sandbox], self.total = row.many, self.total + row.many
    end
  end
  return self.kept
end

local function note(self, id, many)
  if self.kept then
    local left = (self.kept[id] or 0) + many
    self.kept[id] = left > 0 and left or nil
    self.total = self.total + many
  end
end

--- Stores entries, all or none: true | nil, message, code. An entry has time, id and sandbox (number and
--- name of the sandbox), action, and what of FIELDS applies.
function Audit:add(entries)
  local ok, message, code = self.db:transaction(function()
    return store(self, entries)
  end)
  if not ok then
    return nil, message, code
  end
  for _, entry in ipairs(entries) do
    note(self, number(entry.id), 1)
  end
  if self.kept and not self.pruning and self.total > self.most * 1.1 then
    self.pruning = true
    self.cancel()
    self:prune_later(PRUNE_PAUSE)
  end
  for _, entry in ipairs(entries) do
    for _, name in ipairs(type(entry.secrets) == "table" and entry.secrets or {}) do
      self.on_secret_used(tostring(name), number(entry.time))
    end
  end
  local waiters = self.waiters
  self.waiters = {}
  for _, event in ipairs(waiters) do
    event:set(true)
  end
  return true
end

local function decode(row)
  local entry = database.decode(row.entry) or {}
  entry.seq, entry.time, entry.id, entry.sandbox, entry.action = row.id, row.time, row.sandbox, row.name, row.action
  return entry
end

-- query: id or name of the sandbox, or neither for all; after, the seq that was seen last; limit; action.
local function read(self, query)
  local conditions, values = { "id > ?" }, { query.after or 0 }
  for _, pair in ipairs({ { "sandbox", query.id }, { "name", query.name }, { "action", query.action } }) do
    if pair[2] then
      conditions[#conditions + 1] = pair[1] .. " = ?"
      values[#values + 1] = pair[2]
    end
  end
  -- Without a place to begin at: the latest ones.
  local order = query.after and "id" or "id DESC"
  values[#values + 1] = math.min(query.limit or 100, FULL_READ)
  local rows, message, code = self.db:rows(
    ("SELECT id, time, sandbox, name, action, entry FROM entries WHERE %s ORDER BY %s LIMIT ?"):format(
      table.concat(conditions, " AND "), order), unpack(values))
  if not rows then
    return nil, message, code
  end
  local list = {}
  for i, row in ipairs(rows) do
    list[query.after and i or #rows + 1 - i] = decode(row)
  end
  return list
end

--- Entries, oldest first; with `wait` seconds it waits for one when there is none after `after`.
function Audit:read(query, wait)
  local left = wait or 0
  while true do
    local list, message, code = read(self, query)
    if not list or #list > 0 or left <= 0 then
      return list, message, code
    end
    local event = async.event()
    self.waiters[#self.waiters + 1] = event
    local before = os.time()
    if not event:wait(left) then
      left = 0
    end
    left = math.max(0, left - (os.time() - before))
  end
end

--- Whether anything is known of a sandbox that had this name.
function Audit:knows(name)
  local rows = self.db:rows("SELECT id FROM entries WHERE name = ? LIMIT 1", name)
  return rows ~= nil and rows[1] ~= nil
end

--- How much was decided for a sandbox: allowed, denied, bytes sent and received, when last.
function Audit:counters(id)
  local rows = self.db:rows("SELECT allowed, denied, sent, received, last FROM counters WHERE sandbox = ?", id)
  local row = rows and rows[1] or {}
  return {
    allowed = row.allowed or 0,
    denied = row.denied or 0,
    bytes_sent = row.sent or 0,
    bytes_received = row.received or 0,
    last = row.last,
  }
end

-- Too many: the oldest of the sandbox that has the most go, so that no sandbox can drown what is known of another.
local function prune_most(self)
  local most, id = 0, nil
  for sandbox, many in pairs(self.kept) do
    if many > most then
      most, id = many, sandbox
    end
  end
  local step = math.min(self.total - self.most, PRUNE_STEP, most)
  assert(self.db:execute("DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE sandbox = ? ORDER BY id LIMIT ?)", id, step))
  note(self, id, -step)
end

-- Too old, of the oldest: how many.
local function prune_old(self)
  local old = os.time() - self.days * 86400
  local rows = assert(self.db:rows([[SELECT max(id) AS last, sandbox, COUNT(*) AS many
    FROM (SELECT id, sandbox, time FROM entries ORDER BY id LIMIT ?) WHERE time < ? GROUP BY sandbox]], PRUNE_STEP, old))
  local last = 0
  for _, row in ipairs(rows) do
    last = math.max(last, row.last)
    note(self, row.sandbox, -row.many)
  end
  if #rows > 0 then
    assert(self.db:execute("DELETE FROM entries WHERE id <= ? AND time < ?", last, old))
  end
  return #rows
end

-- One step; whether there is more to do.
local function prune_step(self)
  kept(self)
  if self.total > self.most then
    prune_most(self)
    return true
  end
  return prune_old(self) > 0
end

--- Removes what is too old or too much, a step at a time, and does so again every ten minutes, or when there is
-- much too much.
function Audit:prune_later(seconds)
  self.cancel = async.after(seconds or PRUNE_EVERY, function()
    local ok, more = pcall(prune_step, self)
    if not ok then
      self.kept = nil
      log.error("audit_not_pruned", { message = more })
    end
    self.pruning = ok and more
    self:prune_later(self.pruning and PRUNE_PAUSE or PRUNE_EVERY)
  end)
end

function Audit:close()
  self.cancel()
  self.db:close()
end

return audit

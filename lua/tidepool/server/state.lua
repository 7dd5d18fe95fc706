--- What must survive the server: sandboxes and images, in SQLite (WAL).
--
-- The server is the only writer and writes before it acknowledges. synchronous=NORMAL: a commit is
-- safe when the server is killed at any instant; a power cut may lose the last ones, never the
-- file's integrity, and what storage then has too much is swept at the next start.
local uv = require("luv")
local DBI = require("DBI")
local cjson = require("cjson")

local state = {}

local State = {}
State.__index = State

local SCHEMA_VERSION = 1
local SCHEMA = {
  [[CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)]],
  [[CREATE TABLE sandboxes (
      id INTEGER PRIMARY KEY AUTOINCREMENT,
      name TEXT NOT NULL UNIQUE,
      state TEXT NOT NULL,          -- creating, starting, running, stopped, destroying
      reason TEXT,                  -- why it is stopped
      image TEXT NOT NULL,
      spec TEXT NOT NULL,           -- JSON: type, limits, env, labels
      created REAL NOT NULL,        -- seconds since the epoch
      run TEXT                      -- JSON while running: pid, start_time, boot_id, nonce, base, deadlines
    )]],
  [[CREATE TABLE images (
      name TEXT PRIMARY KEY,
      created REAL NOT NULL,
      meta TEXT NOT NULL            -- JSON: env, cmd, cwd, user, bytes, source
    )]],
}

-- What SQLite says, as a code that a client can act on.
local codes = {
  { "disk is full", "ENOSPC" },
  { "readonly database", "EROFS" },
  { "database is locked", "EBUSY" },
  { "not a database", "EBADMSG" },
  { "malformed", "EBADMSG" },
}

local function failed(message)
  message = tostring(message):gsub("^Error preparing statement handle: ", ""):gsub("^Error executing statement: ", "")
  for _, pair in ipairs(codes) do
    if message:find(pair[1], 1, true) then
      return nil, "state: " .. message, pair[2]
    end
  end
  return nil, "state: " .. message, "EIO"
end

-- The executed statement | nil, message, code: the disk may be full at any write.
local function execute(self, sql, ...)
  local statement = self.statements[sql]
  if not statement then
    local message
    statement, message = self.db:prepare(sql)
    if not statement then
      return failed(message)
    end
    self.statements[sql] = statement
  end
  local ok, message = statement:execute(...)
  if not ok then
    self.statements[sql] = nil
    return failed(message)
  end
  return statement
end

local function done(statement, message, code)
  if not statement then
    return nil, message, code
  end
  return true
end

local function rows(self, sql, ...)
  local statement, message, code = execute(self, sql, ...)
  if not statement then
    return nil, message, code
  end
  local list = {}
  local ok, why = pcall(function()
    for row in statement:rows(true) do
      list[#list + 1] = row
    end
  end)
  if not ok then
    self.statements[sql] = nil
    return failed(why)
  end
  return list
end

local function make_schema(self)
  local steps = { "BEGIN", unpack(SCHEMA) }
  steps[#steps + 1] = "PRAGMA user_version = " .. SCHEMA_VERSION
  steps[#steps + 1] = "COMMIT"
  for _, sql in ipairs(steps) do
    local ok, message, code = execute(self, sql)
    if not ok then
      return nil, message, code
    end
  end
  self.statements = {}
  return true
end

--- Opens or makes the database.
-- Returns it | nil, message, code: "EBADMSG", not a database of ours; "ENOSPC", "EROFS"; "ENOTSUP", of a
-- newer version.
function state.open(path)
  -- Environments hold secrets, and the directory may be one that others can enter. SQLite gives its
  -- other files the mode of this one.
  local fd = uv.fs_open(path, "a", 384) -- 0600
  if fd then
    uv.fs_fchmod(fd, 384)
    uv.fs_close(fd)
  end
  local db, message, code = DBI.Connect("SQLite3", path)
  if not db then
    return failed(path .. ": " .. tostring(message))
  end
  db:autocommit(true)
  local self = setmetatable({ db = db, statements = {} }, State)
  for _, pragma in ipairs({ "journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000" }) do
    local set
    set, message, code = rows(self, "PRAGMA " .. pragma)
    if not set then
      return nil, message .. " (" .. path .. ")", code
    end
  end
  self.statements = {}
  local found
  found, message, code = rows(self, "PRAGMA user_version")
  if not found then
    return nil, message .. " (" .. path .. ")", code
  end
  local version = found[1].user_version
  if version > SCHEMA_VERSION then
    return nil, ("state: %s is of version %d, this server knows %d"):format(path, version, SCHEMA_VERSION), "ENOTSUP"
  end
  if version == 0 then
    local made
    made, message, code = make_schema(self)
    if not made then
      return nil, message .. " (" .. path .. ")", code
    end
  end
  return self
end

function State:close()
  self.statements = {}
  collectgarbage()
  self.db:close()
end

function State:setting(name)
  local found, message, code = rows(self, "SELECT value FROM settings WHERE name = ?", name)
  if not found then
    return nil, message, code
  end
  return found[1] and found[1].value
end

function State:set_setting(name, value)
  return done(execute(self, "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", name, value))
end

-- A damaged row must not keep the others from being adopted.
local function decode(text)
  local ok, value = pcall(cjson.decode, text)
  return ok and type(value) == "table" and value or nil
end

local function decode_sandbox(row)
  local spec = decode(row.spec)
  row.damaged = spec == nil or row.run ~= nil and decode(row.run) == nil
  row.spec = spec or {}
  row.run = row.run and decode(row.run)
  return row
end

--- Makes a sandbox's row in state "creating"; returns its id | nil, message, code.
function State:add_sandbox(name, image, spec, created)
  local ok, message, code = execute(self,
    "INSERT INTO sandboxes (name, state, image, spec, created) VALUES (?, 'creating', ?, ?, ?)",
    name, image, cjson.encode(spec), created)
  if not ok then
    return nil, message, code
  end
  local found
  found, message, code = rows(self, "SELECT id FROM sandboxes WHERE name = ?", name)
  if not found or not found[1] then
    return nil, message, code
  end
  return found[1].id
end

--- Records where a sandbox stands. `run` is kept only while it runs.
function State:set_sandbox(id, new_state, reason, run)
  return done(execute(self, "UPDATE sandboxes SET state = ?, reason = ?, run = ? WHERE id = ?",
    new_state, reason, run and cjson.encode(run) or nil, id))
end

function State:remove_sandbox(id)
  return done(execute(self, "DELETE FROM sandboxes WHERE id = ?", id))
end

function State:sandboxes()
  local list, message, code = rows(self,
    "SELECT id, name, state, reason, image, spec, created, run FROM sandboxes ORDER BY id")
  if not list then
    return nil, message, code
  end
  for _, row in ipairs(list) do
    decode_sandbox(row)
  end
  return list
end

function State:add_image(name, created, meta)
  return done(execute(self, "INSERT OR REPLACE INTO images (name, created, meta) VALUES (?, ?, ?)",
    name, created, cjson.encode(meta)))
end

function State:remove_image(name)
  return done(execute(self, "DELETE FROM images WHERE name = ?", name))
end

function State:images()
  local list, message, code = rows(self, "SELECT name, created, meta FROM images ORDER BY name")
  if not list then
    return nil, message, code
  end
  for _, row in ipairs(list) do
    row.meta = decode(row.meta) or {}
  end
  return list
end

return state

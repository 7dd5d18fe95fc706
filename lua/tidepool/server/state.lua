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
      run TEXT                      -- JSON while running: pid, start_time, boot_id, nonce, base
    )]],
  [[CREATE TABLE images (
      name TEXT PRIMARY KEY,
      created REAL NOT NULL,
      meta TEXT NOT NULL            -- JSON: env, cmd, cwd, user, bytes, source
    )]],
}

local function execute(self, sql, ...)
  local statement = self.statements[sql]
  if not statement then
    local message
    statement, message = self.db:prepare(sql)
    if not statement then
      error("state: " .. tostring(message) .. ": " .. sql)
    end
    self.statements[sql] = statement
  end
  local ok, message = statement:execute(...)
  if not ok then
    self.statements[sql] = nil
    error("state: " .. tostring(message) .. ": " .. sql)
  end
  return statement
end

local function rows(self, sql, ...)
  local list = {}
  for row in execute(self, sql, ...):rows(true) do
    list[#list + 1] = row
  end
  return list
end

--- Opens or makes the database. Raises when the file is of a newer version or can't be written.
function state.open(path)
  -- Environments hold secrets, and the directory may be one that others can enter. SQLite gives its
  -- other files the mode of this one.
  local fd = uv.fs_open(path, "a", 384) -- 0600
  if fd then
    uv.fs_fchmod(fd, 384)
    uv.fs_close(fd)
  end
  local db, message = DBI.Connect("SQLite3", path)
  if not db then
    error("state: open " .. path .. ": " .. tostring(message))
  end
  db:autocommit(true)
  local self = setmetatable({ db = db, statements = {} }, State)
  for _, pragma in ipairs({ "journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000" }) do
    execute(self, "PRAGMA " .. pragma):fetch()
  end
  self.statements = {}
  local version = rows(self, "PRAGMA user_version")[1].user_version
  if version > SCHEMA_VERSION then
    error(("state: %s is of version %d, this server knows %d"):format(path, version, SCHEMA_VERSION))
  end
  if version == 0 then
    execute(self, "BEGIN")
    for _, sql in ipairs(SCHEMA) do
      execute(self, sql)
    end
    execute(self, "PRAGMA user_version = " .. SCHEMA_VERSION)
    execute(self, "COMMIT")
    self.statements = {}
  end
  return self
end

function State:close()
  self.statements = {}
  collectgarbage()
  self.db:close()
end

function State:setting(name)
  local row = rows(self, "SELECT value FROM settings WHERE name = ?", name)[1]
  return row and row.value
end

function State:set_setting(name, value)
  execute(self, "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", name, value)
end

local function decode_sandbox(row)
  row.spec = cjson.decode(row.spec)
  row.run = row.run and cjson.decode(row.run) or nil
  return row
end

--- Makes a sandbox's row in state "creating"; returns its id.
function State:add_sandbox(name, image, spec, created)
  execute(self, "INSERT INTO sandboxes (name, state, image, spec, created) VALUES (?, 'creating', ?, ?, ?)",
    name, image, cjson.encode(spec), created)
  return rows(self, "SELECT id FROM sandboxes WHERE name = ?", name)[1].id
end

--- Records where a sandbox stands. `run` is kept only while it runs.
function State:set_sandbox(id, new_state, reason, run)
  execute(self, "UPDATE sandboxes SET state = ?, reason = ?, run = ? WHERE id = ?",
    new_state, reason, run and cjson.encode(run) or nil, id)
end

function State:remove_sandbox(id)
  execute(self, "DELETE FROM sandboxes WHERE id = ?", id)
end

function State:sandboxes()
  local list = rows(self, "SELECT id, name, state, reason, image, spec, created, run FROM sandboxes ORDER BY id")
  for _, row in ipairs(list) do
    decode_sandbox(row)
  end
  return list
end

function State:add_image(name, created, meta)
  execute(self, "INSERT OR REPLACE INTO images (name, created, meta) VALUES (?, ?, ?)", name, created, cjson.encode(meta))
end

function State:remove_image(name)
  execute(self, "DELETE FROM images WHERE name = ?", name)
end

function State:images()
  local list = rows(self, "SELECT name, created, meta FROM images ORDER BY name")
  for _, row in ipairs(list) do
    row.meta = cjson.decode(row.meta)
  end
  return list
end

return state

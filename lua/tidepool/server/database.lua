--- SQLite files of the server (WAL): opened, brought up to date, and failing as codes a client can act on.
--
-- The server is the only writer and writes before it acknowledges. synchronous=NORMAL: a commit is safe
-- when the server is killed at any instant; a power cut may lose the last ones, never the file's integrity.
local uv = require("luv")
local DBI = require("DBI")
local async = require("tidepool.async")
local cjson = require("cjson")

local database = {}

local Database = {}
Database.__index = Database

-- A checkpoint takes what was committed from the log into the file and waits for the disk, 10 ms and more,
-- in which the server does nothing else. SQLite makes one in the commit that fills 1000 pages of log, in the
-- middle of a burst; so we make it once the burst is over, and SQLite when it does not end.
local DUE = 500 -- statements that have written, 3 pages or so each
local QUIET = 0.25 -- seconds without any
local LONGEST = 4000 -- pages of log, 16 MiB

-- What SQLite says, as a code that a client can act on.
local codes = {
  { "disk is full", "ENOSPC" },
  { "readonly database", "EROFS" },
  { "database is locked", "EBUSY" },
  { "not a database", "EBADMSG" },
  { "malformed", "EBADMSG" },
}

local function failed(self, message)
  message = tostring(message):gsub("^Error preparing statement handle: ", ""):gsub("^Error executing statement: ", "")
  for _, pair in ipairs(codes) do
    if message:find(pair[1], 1, true) then
      return nil, self.what .. ": " .. message, pair[2]
    end
  end
  return nil, self.what .. ": " .. message, "EIO"
end

-- The executed statement | nil, message, code: the disk may be full at any write.
local function execute(self, sql, ...)
  local statement = self.statements[sql]
  if not statement then
    local message
    statement, message = self.db:prepare(sql)
    if not statement then
      return failed(self, message)
    end
    self.statements[sql] = statement
  end
  local ok, message = statement:execute(...)
  if not ok then
    self.statements[sql] = nil
    return failed(self, message)
  end
  return statement
end

-- Makes a checkpoint when nothing was written for a moment. What it fails of, the next commit tells.
local function settle(self)
  local age = uv.hrtime() / 1e9 - self.wrote
  if age >= QUIET then
    self.settling, self.written = nil, 0
    self:rows("PRAGMA wal_checkpoint(PASSIVE)")
    return
  end
  self.settling = async.after(QUIET - age, function()
    settle(self)
  end)
end

--- Executes a statement that gives no rows: true | nil, message, code.
function Database:execute(sql, ...)
  local statement, message, code = execute(self, sql, ...)
  if not statement then
    return nil, message, code
  end
  self.wrote, self.written = uv.hrtime() / 1e9, self.written + 1
  if self.written >= DUE and not self.settling then
    settle(self)
  end
  return true
end

--- The rows of a statement, as tables by column; NULL is absent.
function Database:rows(sql, ...)
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
    return failed(self, why)
  end
  return list
end

--- Runs fn in one transaction, which is undone when fn fails as functions here do. fn must not wait.
function Database:transaction(fn)
  local ok, message, code = self:execute("BEGIN IMMEDIATE")
  if not ok then
    return nil, message, code
  end
  local returned
  returned, ok, message, code = pcall(fn)
  if not returned then
    self:execute("ROLLBACK")
    error(ok, 0)
  elseif ok then
    ok, message, code = self:execute("COMMIT")
  end
  if not ok then
    self:execute("ROLLBACK")
    return nil, message, code
  end
  return true
end

--- Makes what was committed survive a power cut too, before something is deleted that an older state would name:
-- true | nil, message, code.
function Database:sync()
  local found, message, code = self:rows("PRAGMA wal_checkpoint(PASSIVE)") -- writes the log to the disk first
  return found and true, message, code
end

-- Takes the file from the version it has to the newest, one transaction a step.
local function migrate(self, path, migrations)
  local found, message, code = self:rows("PRAGMA user_version")
  if not found then
    return nil, message, code
  end
  local version = found[1].user_version
  if version > #migrations then
    return nil, ("%s: %s is of version %d, this server knows %d"):format(self.what, path, version, #migrations), "ENOTSUP"
  end
  for step = version + 1, #migrations do
    local ok
    ok, message, code = self:transaction(function()
      for _, sql in ipairs(migrations[step]) do
        local done, why, why_code = self:execute(sql)
        if not done then
          return nil, why, why_code
        end
      end
      return self:execute("PRAGMA user_version = " .. step)
    end)
    self.statements = {}
    if not ok then
      return nil, message, code
    end
  end
  return true
end

--- Opens or makes the file. `what` begins its messages; migrations[n] is a list of statements that lead
--- from version n - 1 to n.
-- Returns it | nil, message, code: "EBADMSG", not a database of ours; "ENOSPC", "EROFS"; "ENOTSUP", of a
-- newer version.
function database.open(path, what, migrations)
  -- What it holds is private, and the directory may be one that others can enter. SQLite gives its
  -- other files the mode of this one.
  local fd = uv.fs_open(path, "a", 384) -- 0600
  if fd then
    uv.fs_fchmod(fd, 384)
    uv.fs_close(fd)
  end
  local self = setmetatable({ what = what, statements = {}, written = 0 }, Database)
  local db, message, code = DBI.Connect("SQLite3", path)
  if not db then
    return failed(self, path .. ": " .. tostring(message))
  end
  db:autocommit(true)
  self.db = db
  for _, pragma in ipairs({ "journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000",
    "wal_autocheckpoint=" .. LONGEST }) do
    local set
    set, message, code = self:rows("PRAGMA " .. pragma)
    if not set then
      return nil, message .. " (" .. path .. ")", code
    end
  end
  self.statements = {}
  local ok
  ok, message, code = migrate(self, path, migrations)
  if not ok then
    return nil, code == "ENOTSUP" and message or message .. " (" .. path .. ")", code
  end
  return self
end

function Database:close()
  if self.settling then
    self.settling()
  end
  self.statements = {}
  collectgarbage()
  self.db:close()
end

--- A JSON column. A damaged row must not keep the others from being read: nil then.
function database.decode(text)
  local ok, value = pcall(cjson.decode, text)
  return ok and type(value) == "table" and value or nil
end

return database

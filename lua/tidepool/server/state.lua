--- What must survive the server: sandboxes, snapshots, images, their egress and the secrets, in SQLite.
--
-- What storage has too much after a power cut is swept at the next start. The tables of snapshots, of
-- secrets and of egress processes are read and written by their own modules, through `state.db`.
local cjson = require("cjson")
local database = require("tidepool.server.database")
local requests = require("tidepool.server.requests")

local state = {}

local State = {}
State.__index = State

local decode = database.decode

local MIGRATIONS = {
  {
    [[CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)]],
    [[CREATE TABLE sandboxes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,          -- creating, starting, running, frozen, stopped, destroying
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
  },
  {
    [[ALTER TABLE sandboxes ADD COLUMN egress TEXT]], -- JSON: policies, revision; NULL: deny_all
    [[ALTER TABLE sandboxes ADD COLUMN ca TEXT]], -- JSON: cert, and key, sealed, in hexadecimal digits
    [[CREATE TABLE egress_names (   -- which address of the pool stands for which name
        sandbox INTEGER NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL,
        PRIMARY KEY (sandbox, number)
      )]],
    [[CREATE TABLE policy_states (  -- what a policy keeps for a sandbox: JSON, sealed, in hexadecimal digits
        sandbox INTEGER NOT NULL, policy TEXT NOT NULL, state TEXT NOT NULL,
        PRIMARY KEY (sandbox, policy)
      )]],
    [[CREATE TABLE secrets (
        name TEXT PRIMARY KEY,
        sealed TEXT NOT NULL,         -- in hexadecimal digits
        placeholder TEXT NOT NULL,
        hosts TEXT NOT NULL,          -- JSON list of globs
        created REAL NOT NULL,
        used REAL
      )]],
    [[CREATE TABLE egress_processes (
        number INTEGER PRIMARY KEY,
        pid INTEGER NOT NULL, start_time INTEGER NOT NULL, boot_id TEXT NOT NULL,
        base INTEGER NOT NULL,        -- its user and group id
        key TEXT                      -- whom it serves, by the setting of how many there are
      )]],
  },
  {
    [[ALTER TABLE sandboxes ADD COLUMN root TEXT]], -- the directory of its files in the pool; NULL: its id
    [[ALTER TABLE sandboxes ADD COLUMN parent INTEGER]], -- the snapshot that its files continue
    [[ALTER TABLE sandboxes ADD COLUMN branch_of INTEGER]], -- the sandbox whose name it may take
    [[CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT, -- its directory in the pool, too
        sandbox TEXT NOT NULL,        -- the sandbox's name at that time
        sandbox_id INTEGER NOT NULL,
        label TEXT NOT NULL,
        parent INTEGER,               -- the snapshot before it
        state TEXT NOT NULL,          -- creating, ready
        image TEXT NOT NULL,
        spec TEXT NOT NULL,           -- JSON, of the sandbox
        egress TEXT,                  -- JSON, of the sandbox
        labels TEXT NOT NULL,         -- JSON
        memory INTEGER NOT NULL,      -- 1: with its processes
        created REAL NOT NULL,
        pause REAL, total REAL,       -- seconds that it took
        UNIQUE (sandbox, label)
      )]],
  },
  {
    [[CREATE TABLE requests (         -- see server/requests.lua
        key TEXT PRIMARY KEY,
        outcome TEXT NOT NULL,        -- JSON
        noted REAL NOT NULL           -- seconds since the epoch
      )]],
    [[CREATE INDEX requests_noted ON requests (noted)]],
  },
}

--- Opens or makes the database: see database.open.
function state.open(path)
  local db, message, code = database.open(path, "state", MIGRATIONS)
  if not db then
    return nil, message, code
  end
  return setmetatable({ db = db, requests = requests.open(db) }, State)
end

function State:close()
  self.db:close()
end

function State:setting(name)
  local found, message, code = self.db:rows("SELECT value FROM settings WHERE name = ?", name)
  if not found then
    return nil, message, code
  end
  return found[1] and found[1].value
end

function State:set_setting(name, value)
  return self.db:execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", name, value)
end

local function decode_sandbox(row)
  local spec = decode(row.spec)
  row.damaged = spec == nil or row.run ~= nil and decode(row.run) == nil or row.egress ~= nil and decode(row.egress) == nil
  row.spec = spec or {}
  row.run = row.run and decode(row.run)
  row.egress = row.egress and decode(row.egress)
  row.ca = row.ca and decode(row.ca)
  return row
end

--- Makes a sandbox's row in state "creating"; returns its id | nil, message, code. `origin`: of one that
-- begins with a snapshot's or another sandbox's files, { parent = snapshot id, branch_of = sandbox id }.
function State:add_sandbox(name, image, spec, created, egress, origin)
  origin = origin or {}
  local ok, message, code = self.db:execute(
    "INSERT INTO sandboxes (name, state, image, spec, created, egress, parent, branch_of) VALUES (?, 'creating', ?, ?, ?, ?, ?, ?)",
    name, image, cjson.encode(spec), created, egress and cjson.encode(egress) or nil, origin.parent, origin.branch_of)
  if not ok then
    return nil, message, code
  end
  local found
  found, message, code = self.db:rows("SELECT id FROM sandboxes WHERE name = ?", name)
  if not found or not found[1] then
    return nil, message, code
  end
  return found[1].id
end

--- Records where a sandbox stands. `run` is kept only while it runs.
function State:set_sandbox(id, new_state, reason, run)
  return self.db:execute("UPDATE sandboxes SET state = ?, reason = ?, run = ? WHERE id = ?",
    new_state, reason, run and cjson.encode(run) or nil, id)
end

--- Records that a sandbox's files are in another directory of the pool, and which snapshot they continue.
function State:set_root(id, root, parent)
  return self.db:execute("UPDATE sandboxes SET root = ?, parent = ? WHERE id = ?", root, parent, id)
end

--- The same, of the request `key`, which has `outcome` with it. hibernated: it is to wake from memory there.
function State:roll_back(id, root, parent, key, outcome, hibernated)
  return self.db:transaction(function()
    local ok, message, code = self:set_root(id, root, parent)
    if ok and hibernated then
      ok, message, code = self:set_sandbox(id, "hibernated", nil, nil)
    end
    if not ok then
      return nil, message, code
    end
    return self.requests:note(key, outcome)
  end)
end

--- Gives the name of one sandbox to another in one step; the first is then being destroyed, nameless.
-- `key`: of the request.
function State:replace_sandbox(old, new, name, key)
  return self.db:transaction(function()
    local ok, message, code = true, nil, nil
    if old then
      ok, message, code = self.db:execute(
        "UPDATE sandboxes SET name = '~' || id, state = 'destroying' WHERE id = ?", old)
    end
    if ok then
      ok, message, code = self.db:execute("UPDATE sandboxes SET name = ?, branch_of = NULL WHERE id = ?", name, new)
    end
    if ok then
      ok, message, code = self.requests:note(key, { promoted = new })
    end
    return ok and true, message, code
  end)
end

function State:set_egress(id, egress)
  return self.db:execute("UPDATE sandboxes SET egress = ? WHERE id = ?", cjson.encode(egress), id)
end

function State:set_ca(id, ca)
  return self.db:execute("UPDATE sandboxes SET ca = ? WHERE id = ?", cjson.encode(ca), id)
end

function State:remove_sandbox(id)
  return self.db:transaction(function()
    for _, sql in ipairs({
      "DELETE FROM egress_names WHERE sandbox = ?",
      "DELETE FROM policy_states WHERE sandbox = ?",
      "DELETE FROM sandboxes WHERE id = ?",
    }) do
      local ok, message, code = self.db:execute(sql, id)
      if not ok then
        return nil, message, code
      end
    end
    return true
  end)
end

function State:sandboxes()
  local list, message, code = self.db:rows(
    "SELECT id, name, state, reason, image, spec, created, run, egress, ca, root, parent, branch_of FROM sandboxes ORDER BY id")
  if not list then
    return nil, message, code
  end
  for _, row in ipairs(list) do
    decode_sandbox(row)
  end
  return list
end

--- Keeps what stands for what: a list of { number, name }.
function State:add_names(id, names)
  return self.db:transaction(function()
    for _, pair in ipairs(names) do
      local ok, message, code = self.db:execute(
        "INSERT OR REPLACE INTO egress_names (sandbox, number, name) VALUES (?, ?, ?)", id, pair[1], pair[2])
      if not ok then
        return nil, message, code
      end
    end
    return true
  end)
end

--- A list of { number, name }.
function State:names(id)
  local list, message, code = self.db:rows("SELECT number, name FROM egress_names WHERE sandbox = ? ORDER BY number", id)
  if not list then
    return nil, message, code
  end
  for i, row in ipairs(list) do
    list[i] = { row.number, row.name }
  end
  return list
end

--- Keeps policies' states of a sandbox: policy -> JSON text.
function State:set_policy_states(id, states)
  return self.db:transaction(function()
    for policy, text in pairs(states) do
      local ok, message, code = self.db:execute(
        "INSERT OR REPLACE INTO policy_states (sandbox, policy, state) VALUES (?, ?, ?)", id, policy, text)
      if not ok then
        return nil, message, code
      end
    end
    return true
  end)
end

--- policy -> JSON text.
function State:policy_states(id)
  local list, message, code = self.db:rows("SELECT policy, state FROM policy_states WHERE sandbox = ?", id)
  if not list then
    return nil, message, code
  end
  local states = {}
  for _, row in ipairs(list) do
    states[row.policy] = row.state
  end
  return states
end

function State:add_image(name, created, meta)
  return self.db:execute("INSERT OR REPLACE INTO images (name, created, meta) VALUES (?, ?, ?)",
    name, created, cjson.encode(meta))
end

function State:remove_image(name)
  return self.db:execute("DELETE FROM images WHERE name = ?", name)
end

function State:images()
  local list, message, code = self.db:rows("SELECT name, created, meta FROM images ORDER BY name")
  if not list then
    return nil, message, code
  end
  for _, row in ipairs(list) do
    row.meta = decode(row.meta) or {}
  end
  return list
end

return state

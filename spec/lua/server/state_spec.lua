local uv = require("luv")
local state = require("tidepool.server.state")
local support = require("spec.support")

describe("the state database", function()
  local path
  before_each(function()
    path = os.tmpname()
    os.remove(path)
  end)
  after_each(function()
    for _, ending in ipairs({ "", "-wal", "-shm" }) do
      os.remove(path .. ending)
    end
  end)

  it("is for its owner's eyes only, since environments hold secrets", function()
    local db = state.open(path)
    db:add_sandbox("box", "debian", { env = { TOKEN = "secret" } }, 1700000000)
    for _, ending in ipairs({ "", "-wal", "-shm" }) do
      assert.equal(tonumber("100600", 8), uv.fs_stat(path .. ending).mode, ending)
    end
    db:close()
  end)

  it("keeps sandboxes with their spec and run over a reopening", function()
    local db = state.open(path)
    local id = db:add_sandbox("box", "debian", { type = "lite", labels = { team = "a" } }, 1700000000)
    db:set_sandbox(id, "running", nil, { pid = 7, nonce = "ab" })
    db:close()
    db = state.open(path)
    local row = db:sandboxes()[1]
    assert.equal("box", row.name)
    assert.equal("running", row.state)
    assert.equal("a", row.spec.labels.team)
    assert.equal(7, row.run.pid)
    db:set_sandbox(id, "stopped", "asked to", nil)
    row = db:sandboxes()[1]
    assert.equal("asked to", row.reason)
    assert.is_nil(row.run)
    db:remove_sandbox(id)
    assert.same({}, db:sandboxes())
    db:close()
  end)

  it("is whole in its file a moment after a burst of changes, and not during one", function()
    require("tidepool.async").run(function()
      local db = state.open(path)
      local id = db:add_sandbox("box", "debian", {}, 1)
      local before = uv.fs_stat(path).size
      for i = 1, 600 do
        assert(db:set_sandbox(id, "running", "change " .. i, { pid = i, nonce = ("x"):rep(6000) }))
      end
      assert.equal(before, uv.fs_stat(path).size)
      assert.truthy(support.eventually(function()
        local file = assert(io.open(path, "rb"))
        local text = file:read("*a")
        file:close()
        return text:find("change 600", 1, true)
      end))
      assert.equal("change 600", db:sandboxes()[1].reason)
      db:close()
    end)
  end)

  it("never gives an id twice", function()
    local db = state.open(path)
    local first = db:add_sandbox("a", "debian", {}, 1)
    db:remove_sandbox(first)
    assert.is_true(db:add_sandbox("a", "debian", {}, 1) > first)
    db:close()
  end)

  it("has what was acknowledged after the writer was killed", function()
    local script = ([[
      local db = require("tidepool.server.state").open(%q)
      for i = 1, 50 do db:add_sandbox("box" .. i, "debian", {}, i) end
      io.write("done\n") io.flush()
      require("luv").kill(require("luv").os_getpid(), "sigkill")
    ]]):format(path)
    local pipe = io.popen(("luajit -e %q 2>/dev/null"):format(script))
    assert.equal("done", pipe:read("*l"))
    pipe:close()
    local db = state.open(path)
    assert.equal(50, #db:sandboxes())
    db:close()
  end)

  it("refuses a file of a newer version", function()
    local db = state.open(path)
    db.db:execute("PRAGMA user_version = 99")
    db:close()
    local opened, _, code = state.open(path)
    assert.is_nil(opened)
    assert.equal("ENOTSUP", code)
  end)

  it("takes a file of the first version over with all that is in it", function()
    local db = require("DBI").Connect("SQLite3", path)
    db:autocommit(true)
    for _, sql in ipairs({
      "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
      "CREATE TABLE sandboxes (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, "
        .. "reason TEXT, image TEXT NOT NULL, spec TEXT NOT NULL, created REAL NOT NULL, run TEXT)",
      "CREATE TABLE images (name TEXT PRIMARY KEY, created REAL NOT NULL, meta TEXT NOT NULL)",
      "INSERT INTO sandboxes (name, state, image, spec, created) VALUES ('old', 'stopped', 'debian', '{}', 1)",
      "PRAGMA user_version = 1",
    }) do
      assert(assert(db:prepare(sql)):execute())
    end
    collectgarbage()
    db:close()
    for try = 1, 2 do
      local opened = assert(state.open(path))
      local row = opened:sandboxes()[1]
      assert.equal("old", row.name)
      assert.equal(try == 1, row.egress == nil)
      assert(opened:set_egress(row.id, { policies = { { name = "deny_all" } }, revision = 2 }))
      assert.equal("deny_all", opened:sandboxes()[1].egress.policies[1].name)
      opened:close()
    end
  end)

  it("keeps names and policies' states with their sandbox, and drops them with it", function()
    local db = state.open(path)
    local id = db:add_sandbox("box", "debian", {}, 1)
    assert(db:add_names(id, { { 1, "a.test" }, { 2, "b.test" } }))
    assert(db:add_names(id, { { 2, "c.test" } }))
    assert(db:set_policy_states(id, { github = "{}" }))
    assert.same({ { 1, "a.test" }, { 2, "c.test" } }, db:names(id))
    assert.same({ github = "{}" }, db:policy_states(id))
    db:remove_sandbox(id)
    assert.same({}, db:names(id))
    assert.same({}, db:policy_states(id))
    db:close()
  end)

  it("says that a file is not a database, or a damaged one", function()
    local file = assert(io.open(path, "w"))
    file:write(("x"):rep(9000))
    file:close()
    local opened, message, code = state.open(path)
    assert.is_nil(opened)
    assert.matches("not a database", message)
    assert.equal("EBADMSG", code)
  end)

  it("reads the other rows when one is damaged", function()
    local db = state.open(path)
    db:add_sandbox("well", "debian", { type = "lite" }, 1)
    db:add_sandbox("ill", "debian", {}, 1)
    db.db:execute("UPDATE sandboxes SET spec = '{', run = '[' WHERE name = 'ill'")
    local rows = db:sandboxes()
    assert.equal("lite", rows[1].spec.type)
    assert.is_true(rows[2].damaged)
    assert.same({}, rows[2].spec)
    db:close()
  end)

  it("keeps images and settings", function()
    local db = state.open(path)
    db:add_image("debian", 5, { env = { "A=1" }, bytes = 9 })
    db:set_setting("instance", "x")
    assert.equal("A=1", db:images()[1].meta.env[1])
    assert.equal("x", db:setting("instance"))
    assert.is_nil(db:setting("nothing"))
    db:remove_image("debian")
    assert.same({}, db:images())
    db:close()
  end)
end)

-- Requests whose server is killed before it answers: the client asks the next one, and the outcome is that
-- of a request that was asked once.
local uv = require("luv")
local support = require("spec.support")

describe("a request whose server is killed on its way", function()
  local server, box

  setup(function()
    support.needs_root()
    server = support.server()
  end)

  before_each(function()
    box = server:sandbox()
    assert(box:write("/workspace/file", "one"))
  end)

  -- Kills the server and starts one that kills itself at the step; whoever starts the next one doesn't know of it.
  local function deadly(name)
    server:kill()
    uv.os_setenv("TIDEPOOL_STEP", name)
    local pid = server:pid()
    uv.os_unsetenv("TIDEPOOL_STEP")
    return function()
      assert.is_false(support.alive(pid), "the server did not get to " .. name)
    end
  end

  local function labels()
    local list = {}
    for i, info in ipairs(assert(box:snapshots())) do
      list[i] = info.label
    end
    return list
  end

  local function pool(kind)
    return support.names(("/proc/%d/root%s/pool/%s"):format(server:pid(), server.state, kind))
  end

  for _, name in ipairs({ "snapshot_recorded", "snapshot_made", "snapshot_committed" }) do
    it("takes one snapshot, when that is at " .. name, function()
      local reached = deadly(name)
      local info = assert(box:snapshot("once"))
      reached()
      assert.equal(box.name .. "@once", info.snapshot)
      assert.is_true(info.total > 0)
      assert.same({ "once" }, labels())
      assert.equal("EEXIST", (select(3, box:snapshot("once")))) -- another request
    end)
  end

  it("deletes a snapshot, and the next such request finds none", function()
    assert(box:snapshot("once"))
    local reached = deadly("snapshot_forgotten")
    assert.is_true(assert(server.client:call("snapshot_rm", { snapshot = box.name .. "@once" })))
    reached()
    assert.same({}, labels())
    assert.equal("ENOSNAPSHOT", (select(3, server.client:call("snapshot_rm", { snapshot = box.name .. "@once" }))))
  end)

  it("deletes the snapshots that a rule doesn't keep, and tells all of them", function()
    for _, label in ipairs({ "a", "b", "c", "d" }) do
      assert(box:snapshot(label))
    end
    local reached = deadly("snapshot_forgotten")
    local removed = assert(box:keep_snapshots({ last = 1 }))
    reached()
    assert.same({ box.name .. "@a", box.name .. "@b", box.name .. "@c" }, removed)
    assert.same({ "d" }, labels())
  end)

  for _, name in ipairs({ "rollback_made", "rollback_ended", "files_replaced" }) do
    it("rolls back, and what ran runs again, when that is at " .. name, function()
      assert(box:snapshot("base"))
      assert(box:write("/workspace/file", "two"))
      local reached = deadly(name)
      assert.equal("running", assert(box:rollback("base")).state)
      reached()
      assert.equal("one", box:read("/workspace/file"))
    end)
  end

  it("leaves a stopped sandbox stopped when it rolls back", function()
    assert(box:snapshot("base"))
    assert(box:stop())
    local reached = deadly("files_replaced")
    assert.equal("stopped", assert(box:rollback("base")).state)
    reached()
    assert.equal("stopped", assert(box:info()).state)
  end)

  it("promotes a branch", function()
    local branch = assert(box:fork(1))[1]
    assert(branch:write("/workspace/file", "new"))
    local former = branch.name
    local reached = deadly("name_taken")
    assert.equal(box.name, assert(branch:promote()).name)
    reached()
    assert.equal("new", box:read("/workspace/file"))
    assert.equal("ENOSANDBOX", (select(3, server.client:call("info", { name = former }))))
  end)

  it("freezes", function()
    local reached = deadly("frozen")
    assert.equal("frozen", assert(box:freeze()).state)
    reached()
    assert.equal("frozen", assert(box:info()).state)
  end)

  it("wakes", function()
    assert(box:freeze())
    local reached = deadly("thawed")
    assert.equal("running", assert(box:wake()).state)
    reached()
  end)

  it("writes an archive whole, and leaves nothing beside it", function()
    assert(box:snapshot("base"))
    local scratch = support.scratch()
    local reached = deadly("export_packed")
    local told = assert(server.client:call("snapshot_export", { snapshot = box.name .. "@base", file = scratch .. "/base.tar" }))
    reached()
    assert.same({ "base.tar" }, support.names(scratch))
    assert.equal(uv.fs_stat(scratch .. "/base.tar").size, told.size)
    assert(server.client:call("snapshot_import", { file = scratch .. "/base.tar", snapshot = box.name .. "@copy" }))
    assert.same({ "base", "copy" }, labels())
    assert.is_true(support.eventually(function()
      return #pool("staging") == 0
    end))
  end)

  it("imports an archive once", function()
    assert(box:snapshot("base"))
    local scratch = support.scratch()
    assert(server.client:call("snapshot_export", { snapshot = box.name .. "@base", file = scratch .. "/base.tar" }))
    for _, name in ipairs({ "import_kept", "import_committed" }) do
      local reached = deadly(name)
      local label = name:gsub("_", "-")
      local info = assert(server.client:call("snapshot_import", { file = scratch .. "/base.tar", snapshot = box.name .. "@" .. label }))
      reached()
      assert.equal(label, info.label)
    end
    assert.same({ "base", "import-kept", "import-committed" }, labels())
    assert.same({}, pool("imports"))
  end)

  describe("with its memory", function()
    local it = support.needing(it, function()
      support.needs_criu()
      uv.fs_symlink(support.shared().state .. "/criu", server.state .. "/criu")
    end)

    for _, name in ipairs({ "dumped", "hibernated", "waking", "restored" }) do
      it("hibernates or wakes, when that is at " .. name, function()
        local process = assert(box:start("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done", { name = "count" }))
        assert(process:wait_log("^2$"))
        local wakes = name == "waking" or name == "restored"
        if wakes then
          assert(box:hibernate())
        end
        local reached = deadly(name)
        if wakes then
          assert.equal("running", assert(box:wake()).state)
        else
          local took = assert(box:hibernate())
          assert.is_true(took.bytes > 4096 and took.seconds > 0)
          assert.equal(0, took.connections_reset)
          assert.equal("hibernated", assert(box:info()).state)
        end
        reached()
        assert(process:wait_log("^8$"))
      end)
    end
  end)
end)

describe("an archive that is being written", function()
  local function archive_of(name)
    support.needs_root()
    local server = support.server()
    local box = server:sandbox()
    assert(box:snapshot("one"))
    local scratch = support.scratch()
    local function export()
      return server.client:call("snapshot_export", { snapshot = box.name .. "@one", file = scratch .. "/one.tar" })
    end
    if name then
      server:kill()
      uv.os_setenv("TIDEPOOL_STEP", name)
      server:pid()
      uv.os_unsetenv("TIDEPOOL_STEP")
      local once = require("tidepool.client").new({ state = server.state, run = server.run, start = false })
      assert.is_nil(once:call("snapshot_export", { snapshot = box.name .. "@one", file = scratch .. "/one.tar" }))
    end
    return export, scratch
  end

  it("has another name until it is whole, and is begun anew by the next try when its server was killed", function()
    local export, scratch = archive_of("export_packed")
    assert.same({ "one.tar.partial" }, support.names(scratch))
    assert(export())
    assert.same({ "one.tar" }, support.names(scratch))
  end)

  it("is not written by two at once", function()
    local export, scratch = archive_of()
    local core = require("tidepool.core")
    local other = assert(core.fd.open(scratch .. "/one.tar.partial", "wcx", 420)) -- as another server has it open
    assert(core.fd.lock(other))
    local told, message, code = export()
    assert.same({ nil, "EBUSY" }, { told, code })
    assert.matches("being written right now", message)
    assert.same({ "one.tar.partial" }, support.names(scratch))
    other:close()
    assert(export())
    assert.same({ "one.tar" }, support.names(scratch))
  end)

  it("is not written through a link that somebody has put in its place", function()
    local export, scratch = archive_of()
    assert(uv.fs_symlink(scratch .. "/victim", scratch .. "/one.tar.partial"))
    assert(export())
    assert.same({ "one.tar" }, support.names(scratch))
  end)
end)

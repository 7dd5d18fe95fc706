-- What storage does for a sandbox, on each driver, through a server.
local async = require("tidepool.async")
local core = require("tidepool.core")
local diff = require("tidepool.client.diff")
local layers = require("tidepool.server.storage.layers")
local spawner = require("tidepool.server.spawner")
local storage = require("tidepool.server.storage")
local support = require("spec.support")
local uv = require("luv")

-- A state directory on a file system of btrfs, which this process and the servers that it starts see.
local function on_btrfs()
  async.within(function()
    assert(core.namespace.unshare_mount())
  end)
  local point = support.scratch()
  local script = 'truncate -s 3G "$1"; mkfs.btrfs -q -m single "$1"; mount -o loop,noatime "$1" "$2"'
  local result = support.run({ "sh", "-ec", script, "sh", support.scratch() .. "/btrfs", point })
  assert.equal(0, result.code, result.stderr)
  return point .. "/state", function()
    support.run({ "umount", point })
  end
end

local drivers = {
  { name = "pool", why = "TIDEPOOL_STORAGE says so" },
  { name = "btrfs", prepare = on_btrfs, setting = "auto", why = "the state directory is on btrfs" },
  { name = "overlay", why = "TIDEPOOL_STORAGE says so" },
}

-- Two files that agree whenever nothing runs: as many lines as the number says, or one more.
local WRITER = [[
i=0
while :; do
  i=$((i+1)); echo "line $i" >>/workspace/journal; echo $i >/workspace/last.new; mv /workspace/last.new /workspace/last
done
]]
local CHECK = [[
last=$(cat /workspace/last) && lines=$(wc -l </workspace/journal) && [ "$(tail -n 1 /workspace/journal)" = "line $lines" ] &&
{ [ $lines = $last ] || [ $lines = $((last+1)) ]; } && echo consistent || echo "$lines lines, last $last"
]]

-- What layers find hard: whiteouts, opaque and renamed directories, several names, owners, holes, attributes.
local CHANGES = [[
cd /workspace
rm /bin/vi; rm -rf /etc/init.d /usr/share/old; mkdir -p /etc/init.d; echo new >/etc/init.d/only
mv tree moved; mkdir tree; echo again >tree/file
echo one >name; ln name other; echo two >>name; ln -s nowhere link; mkfifo fifo
truncate -s 16M sparse; echo end >>sparse; chown 12:34 name; chmod 4751 name; touch -d '2001-02-03 04:05:06' old
]]
local LOOK = [[
cd /workspace
ls -1 /bin/vi /usr/share/old 2>/dev/null; ls -1A /etc/init.d tree moved moved/below
cat moved/below/file tree/file name other; readlink link; [ -p fifo ] && echo fifo
stat -c '%n %a %u:%g %h %s' name sparse; [ name -ef other ] && echo same; stat -c %Y old
[ $(stat -c %b sparse) -lt 100 ] && echo sparse
]]
local SEEN = [[
/etc/init.d:
only

moved:
below

moved/below:
file

tree:
file
below
again
one
two
one
two
nowhere
fifo
name 4751 12:34 2 8
sparse 644 0:0 1 16777220
same
981173106
sparse
]]

for _, driver in ipairs(drivers) do
  describe("storage by " .. driver.name, function()
    local server, client, box

    local function other(name)
      local made = require("tidepool.client.box").new(client, name)
      support.defer(function()
        made:destroy()
      end)
      return made
    end

    local function restored(snapshot, name)
      assert(client:call("restore", { snapshot = snapshot, name = name }))
      return other(name)
    end

    local function root(of, script)
      local result = assert(of:exec({ "sh", "-c", script }, { user = "root" }))
      assert.equal("", result.stderr)
      return result.stdout
    end

    local function between(old, new)
      return async.within(diff.between, client, box.name .. "@" .. old, box.name .. "@" .. new)
    end

    local function stored(kind)
      return support.names(("/proc/%d/root%s/pool/%s"):format(server:pid(), server.state, kind))
    end

    setup(function()
      support.needs_root()
      uv.os_setenv("TIDEPOOL_STORAGE", driver.setting or driver.name)
      support.defer(function()
        uv.os_unsetenv("TIDEPOOL_STORAGE")
      end)
      server = support.server(driver.prepare)
      client = server.client
      local began, message = client:call("info", {})
      uv.os_unsetenv("TIDEPOOL_STORAGE")
      assert(began, message)
      box = server:sandbox({ cpu = 2 })
    end)

    it("says which it is and why, and what it does not enforce", function()
      local info = client:call("info", {})
      assert.equal(driver.name, info.storage.driver)
      assert.equal(driver.why, info.storage.why)
      assert.is_true(info.storage.used > 0 and info.storage.used < info.storage.size)
      if driver.name ~= "pool" then
        assert.equal("ENOTSUP", select(3, client:call("storage_grow", {})))
        assert.equal("ENOTSUP", select(3, client:call("storage_check", {})))
      end
      local told = table.concat(box:info().unenforced, "; ")
      assert.equal(box:info().usage.disk == nil, told:find("disk limit", 1, true) ~= nil, told)
    end)

    it("keeps what was written, over a stop and a killed server", function()
      assert(box:write("/workspace/kept", "written"))
      assert(client:call("stop", { name = box.name }))
      assert.equal("written", box:read("/workspace/kept"))
      server:kill()
      assert.equal("written", box:read("/workspace/kept"))
      assert.equal(driver.name, client:call("info", {}).storage.driver)
    end)

    it("takes snapshots of one that runs, stands still, or is stopped, each of one instant", function()
      local process = assert(box:start({ "sh", "-c", WRITER }, { name = "writer" }))
      assert.truthy(support.eventually(function()
        return box:read("/workspace/last") ~= nil
      end))
      for i = 1, 3 do
        local taken = assert(box:snapshot("running" .. i))
        assert.is_true(taken.pause > 0 and taken.pause <= taken.total)
        async.within(async.sleep, 0.05)
      end
      assert(box:freeze())
      assert.equal(0, assert(box:snapshot("frozen")).pause)
      assert.equal("frozen", box:info().state)
      assert(process:kill())
      assert(client:call("stop", { name = box.name }))
      assert.equal(0, assert(box:snapshot("stopped")).pause)
      for _, label in ipairs({ "running1", "running2", "running3", "frozen", "stopped" }) do
        local copy = restored(box.name .. "@" .. label, "at-" .. label)
        assert.equal("consistent\n", root(copy, CHECK), label)
        assert(copy:destroy())
      end
      assert.equal("consistent\n", root(box, CHECK))
    end)

    it("keeps all that a file can be, in snapshots, forks, rollbacks and archives", function()
      root(box, "mkdir -p /workspace/tree/below /usr/share/old/a && echo below >/workspace/tree/below/file")
      assert(client:call("stop", { name = box.name }))
      assert(box:snapshot("before"))
      root(box, CHANGES)
      assert(box:snapshot("after"))
      assert.equal(SEEN, root(box, LOOK))
      assert.equal(SEEN, root(restored(box.name .. "@after", "restored"), LOOK))
      local branches = assert(client:call("fork", { source = box.name, count = 2 }))
      for _, info in ipairs(branches) do
        assert.equal(SEEN, root(other(info.name), LOOK))
      end
      assert(box:rollback("before"))
      assert.equal("below\n", root(box, "cat /workspace/tree/below/file; ls /workspace/moved 2>/dev/null"))
      assert(box:rollback("after"))
      assert.equal(SEEN, root(box, LOOK))

      local file = support.scratch() .. "/archive"
      assert(client:call("snapshot_export", { snapshot = box.name .. "@after", file = file }))
      assert(client:call("snapshot_import", { file = file, snapshot = "imported@it" }))
      assert.equal(SEEN, root(restored("imported@it", "imported"), LOOK))
      assert(client:call("snapshot_export", { snapshot = box.name .. "@after", parent = box.name .. "@before", file = file }))
      assert(client:call("snapshot_import", { file = file, snapshot = "imported@part" }))
      assert.equal(SEEN, root(restored("imported@part", "part"), LOOK))
    end)

    it("tells what differs between two snapshots", function()
      root(box, "cd /workspace && rm -rf d && mkdir d && echo 1 >d/same && echo 2 >d/gone && echo 3 >d/changed && ln -s a d/link")
      assert(box:snapshot("old"))
      root(box, "cd /workspace/d && rm gone && echo 33 >changed && echo 4 >new && mkdir sub && echo 5 >sub/file && ln -sfn b link && touch -r same .t && rm .t")
      assert(box:snapshot("new"))
      local found = assert(between("old", "new"))
      local list = {}
      for kind, entries in pairs(found) do
        for _, entry in ipairs(entries) do
          if entry.path:find("^workspace/d/") then
            list[#list + 1] = ("%s %s %s"):format(kind, entry.path:sub(13), entry.kind)
          end
        end
      end
      table.sort(list)
      assert.same({ "added new file", "added sub directory", "added sub/file file", "changed changed file",
        "changed link link", "deleted gone file" }, list)
      assert.same({ added = {}, changed = {}, deleted = {} }, assert(between("new", "new")))
    end)

    it("deletes a snapshot anywhere in the tree, and no other one notices", function()
      local one = server:sandbox({})
      for i = 1, 4 do
        assert(one:write("/workspace/" .. i, tostring(i)))
        if i % 2 == 0 then
          assert(client:call("stop", { name = one.name }))
        end
        assert(one:snapshot("s" .. i))
      end
      assert(client:call("snapshot_rm", { snapshot = one.name .. "@s2" }))
      assert(client:call("snapshot_rm", { snapshot = one.name .. "@s3" }))
      assert.equal("1", root(restored(one.name .. "@s1", "first"), "cd /workspace && cat *"))
      local last = restored(one.name .. "@s4", "last")
      assert(one:destroy())
      assert(client:call("snapshot_rm", { snapshot = one.name .. "@s4" }))
      assert(client:call("snapshot_rm", { snapshot = one.name .. "@s1" }))
      assert.equal("1234", root(last, "cd /workspace && cat *"))
    end)

    it("lets its processes sleep on disk, and go on over files that they hold open", function()
      local shared = support.shared()
      local got, missing = shared.client:call("memory_install", {})
      if not got then
        pending("needs CRIU: " .. missing)
      end
      uv.fs_symlink(shared.state .. "/criu", server.state .. "/criu")
      local one = server:sandbox({})
      assert(one:write("/workspace/log", "begin\n"))
      assert(client:call("stop", { name = one.name })) -- so that the file that is appended to lies in a layer below
      assert(one:snapshot("s"))
      local process = assert(one:start("exec >>log; i=0; while :; do i=$((i+1)); echo $i; echo $i >&2; sleep 0.1; done", { name = "count" }))
      assert(process:wait_log("^3$"))
      assert(one:hibernate())
      assert(one:snapshot("asleep"))
      assert(one:wake())
      assert(process:wait_log("^9$"))
      -- No number is missing. Whether one may be there twice is memory_spec's to say, not storage's.
      assert.equal("begin\n1\n2\n3\n4\n5\n6\n7\n8\n9\n", root(one, "uniq /workspace/log | head -n 10"))
      assert.matches("^begin\n1\n2\n3\n", root(restored(one.name .. "@asleep", "slept"), "cat /workspace/log"))
    end)

    it("lets an image go while a sandbox of it lives", function()
      assert(client:call("image_ls", {}))
      local count = #stored("sandboxes")
      assert(client:call("image_rm", { image = "minimal" }))
      assert.equal("ENOIMAGE", select(3, client:call("create", { name = "none", image = "minimal" })))
      assert(client:call("stop", { name = box.name }))
      assert.equal("there\n", root(box, "[ -x /bin/sh ] && echo there"))
      assert(box:snapshot("imageless"))
      assert.equal("there\n", root(restored(box.name .. "@imageless", "orphan"), "[ -x /bin/sh ] && echo there"))
      assert.equal(count + 1, #stored("sandboxes"))
    end)

    it("sweeps what a killed server left half-made, and keeps the rest", function()
      local places = ("/proc/%d/root%s/pool/"):format(server:pid(), server.state)
      for _, place in ipairs({ "staging/half", "sandboxes/999999", "snapshots/999999", "trash/half" }) do
        assert(uv.fs_mkdir(places .. place, 448))
      end
      local sandboxes, snapshots = #stored("sandboxes") - 1, #stored("snapshots") - 1
      server:kill()
      assert.equal("there\n", root(box, "[ -x /bin/sh ] && echo there"))
      assert.equal(sandboxes, #stored("sandboxes"))
      assert.equal(snapshots, #stored("snapshots"))
      assert.truthy(support.eventually(function()
        return #stored("staging") == 0 and #stored("trash") == 0
      end))
    end)
  end)
end

describe("storage", function()
  local function task(fn)
    return function()
      async.run(fn)
    end
  end

  local pool
  setup(task(function()
    support.needs_root()
    pool = assert(spawner.start(1))
  end))
  teardown(task(function()
    pool:close()
  end))

  it("is what the state directory holds, and only for a new one what TIDEPOOL_STORAGE says", task(function()
    local state = support.scratch()
    local s = assert(storage.open({ state = state, spawners = pool, kind = "overlay" }))
    assert.equal("overlay", s.kind)
    s = assert(storage.open({ state = state, spawners = pool, kind = "pool" }))
    assert.equal("overlay", s.kind)
    assert.matches("TIDEPOOL_STORAGE=pool is not followed", s.why, 1, true)
    assert.is_nil(uv.fs_stat(state .. "/pool.img"))
    assert.equal("EINVAL", select(3, storage.open({ state = support.scratch(), kind = "floppy" })))
    if uv.fs_statfs(state).type ~= 0x9123683E then
      local _, message, code = storage.open({ state = support.scratch(), kind = "btrfs" })
      assert.equal("ENOTSUP", code)
      assert.equal("TIDEPOOL_STORAGE=btrfs: the state directory is on another file system", message)
    end
  end))

  it("by overlayfs deletes layers that no place names, and none that is named late or shared", task(function()
    local patience = layers.PATIENCE
    finally(function()
      layers.PATIENCE = patience
    end)
    layers.PATIENCE = 0.2
    local state = support.scratch()
    local s = assert(storage.open({ state = state, spawners = pool, kind = "overlay" }))
    local stage = assert(s:stage_image("tiny"))
    assert(s:commit_image(stage, "tiny"))
    assert(s:create(1, "tiny"))
    for _, layer in ipairs({ "5000", "5001" }) do
      assert(uv.fs_mkdir(("%s/pool/layers/%s"):format(state, layer), 493))
    end
    local late = assert(layers.read(s:sandbox_place(1)))
    s = assert(storage.open({ state = state, spawners = pool, kind = "overlay" }))
    -- As a spawner of the server before would that had not done yet what it was told.
    late.upper, late.uuid = "5000", ("0"):rep(32)
    assert(pool:execute({ { "mkdir", s:sandbox_place(2), 448 }, { "file", s:sandbox_place(2) .. "/chain", 384, layers.encode(late) } }))
    assert.truthy(support.eventually(function()
      return not uv.fs_stat(state .. "/pool/layers/5001")
    end))
    assert.truthy(uv.fs_stat(state .. "/pool/layers/5000"))
    assert(s:delete(2))
    assert.truthy(support.eventually(function()
      return not uv.fs_stat(state .. "/pool/layers/5000")
    end))
    assert.truthy(uv.fs_stat(("%s/pool/layers/%s"):format(state, late.lower[1])))
    assert(s:create(3, "tiny"))
    local view = assert(s:view(s:sandbox_place(1)))
    view.close()
  end))

  it("by overlayfs shares layers, frees those that nobody needs, and says where the depth ends", task(function()
    local state = support.scratch()
    local s = assert(storage.open({ state = state, spawners = pool, kind = "overlay" }))
    local stage = assert(s:stage_image("tiny"))
    assert(io.open(stage.path .. "/file", "w")):close()
    assert(s:commit_image(stage, "tiny"))
    assert(s:create(1, "tiny"))
    for i = 1, 70 do -- the files that go on stay some 64 deep, since then they are copied
      assert(s:snapshot(1, "s" .. i, nil, true))
    end
    local deepest, message, code = 0, nil, nil
    for i = 1, layers.MOST do
      local ok
      ok, message, code = s:clone(100 + i, s:snapshot_place(i == 1 and "s70" or "d" .. i - 1))
      if ok then -- as if it ran: what is mounted is copied
        ok, message, code = s:snapshot(100 + i, "d" .. i)
      end
      if not ok then
        break
      end
      deepest = i
    end
    assert.is_true(deepest > 300, tostring(deepest))
    assert.equal("EMLINK", code)
    assert.matches("overlayfs takes 400", message, 1, true)
    local view = assert(s:view(s:snapshot_place("d" .. deepest)))
    assert.truthy(uv.fs_stat(view.path .. "/file"))
    view.close()
    for i = 1, 70 do
      assert(s:remove_snapshot("s" .. i))
    end
    for i = 1, deepest do
      assert(s:delete(100 + i))
      assert(s:remove_snapshot("d" .. i))
    end
    s:delete(100 + deepest + 1)
    assert(s:delete(1))
    assert(s:remove_image("tiny"))
    assert.truthy(support.eventually(function()
      return #support.names(state .. "/pool/layers") == 0
    end))
    assert.same({}, support.names(state .. "/pool/trash"))
  end))
end)

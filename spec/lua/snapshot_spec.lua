-- Snapshots: one instant of a sandbox's files, restored, rolled back, kept and deleted.
local support = require("spec.support")
local async = require("tidepool.async")
local core = require("tidepool.core")
local snapshots = require("tidepool.server.snapshots")
local uv = require("luv")

-- A journal whose every line has a checksum, and beside it the number of the last line, written after
-- it and synced by nobody: a torn copy has a number without its line, or a line cut short.
local WRITER = [[
i=0
while :; do
  i=$((i+1))
  line="$i $(echo "$i-payload" | sha256sum | cut -c1-16)"
  echo "$line" >> /workspace/journal
  echo "$i" > /workspace/last.new
  mv /workspace/last.new /workspace/last
done
]]

-- Checks it where it lies, in one program.
local CHECKER = [[
last=$(cat "$1/workspace/last") || exit 3
n=0
while read -r i sum; do
  n=$((n+1))
  [ "$i" = "$n" ] || { echo "line $n is $i"; exit 1; }
  case "$n" in *7) [ "$sum" = "$(echo "$i-payload" | sha256sum | cut -c1-16)" ] || { echo "sum of $n"; exit 1; };; esac
done < "$1/workspace/journal"
[ "$n" = "$last" ] || [ "$n" = "$((last+1))" ] || { echo "$n lines, last $last"; exit 2; }
[ "$(tail -c1 "$1/workspace/journal" | od -An -c | tr -d ' ')" = '\n' ] || { echo "cut short"; exit 4; }
echo "$n"
]]

-- Where the server's own namespace has a snapshot's files.
local function root_of(server, id)
  return ("/proc/%d/root%s/pool/snapshots/%d/root"):format(server:pid(), server.state, id)
end

describe("a snapshot", function()
  local server, client, box
  setup(function()
    support.needs_root()
    server = support.server()
    client = server.client
    box = server:sandbox({ cpu = 2, labels = { team = "a" }, env = { GREETING = "hello" } })
  end)

  local function restored(snapshot, name)
    assert(client:call("restore", { snapshot = snapshot, name = name }))
    local made = require("tidepool.client.box").new(client, name)
    support.defer(function()
      made:destroy()
    end)
    return made
  end

  it("keeps the files as they were, and is restored into a new sandbox that runs", function()
    assert(box:write("/workspace/file", "one"))
    local taken = assert(box:snapshot("one", { labels = { kind = "test" } }))
    assert.equal(box.name .. "@one", taken.snapshot)
    assert.is_true(taken.pause > 0 and taken.pause < taken.total)
    assert(box:write("/workspace/file", "two"))
    local copy = restored(taken.snapshot, "copy")
    assert.equal("one", copy:read("/workspace/file"))
    assert.equal("two", box:read("/workspace/file"))
    local info = copy:info()
    assert.equal("running", info.state)
    assert.equal(taken.snapshot, info.parent)
    assert.same({ team = "a" }, info.labels)
    assert.equal("hello\n", copy:exec("echo $GREETING").stdout)
  end)

  it("makes a sandbox of its own: name, host name, machine-id, ids", function()
    local copy = restored(box.name .. "@one", "own")
    assert.equal("own\n", copy:exec({ "hostname" }).stdout)
    assert.not_equal(box:exec({ "cat", "/etc/machine-id" }).stdout, copy:exec({ "cat", "/etc/machine-id" }).stdout)
    local function base(of)
      return support.read("/proc/" .. of:info().pid .. "/uid_map")
    end
    assert.not_equal(base(box), base(copy))
    assert.not_equal(support.cgroup_of(box), support.cgroup_of(copy))
  end)

  it("is taken of a stopped and of a frozen sandbox too, which stay so", function()
    local other = server:sandbox()
    assert(other:write("/workspace/file", "kept"))
    assert(other:freeze())
    assert.equal(0, assert(other:snapshot("frozen")).pause)
    assert.equal("frozen", other:info().state)
    assert(other:stop())
    assert(other:snapshot("stopped"))
    assert.equal("stopped", other:info().state)
    for _, label in ipairs({ "frozen", "stopped" }) do
      assert.equal("kept", restored(other.name .. "@" .. label, "of-" .. label):read("/workspace/file"))
    end
  end)

  it("survives its sandbox, and then takes its name again", function()
    local other = server:sandbox({ name = "mortal" })
    assert(other:write("/workspace/file", "still"))
    assert(other:snapshot("last"))
    assert(other:destroy())
    server:kill()
    assert.equal("still", restored("mortal@last", "mortal"):read("/workspace/file"))
  end)

  it("can't be changed from inside, since the sandbox has a copy", function()
    local copy = restored(box.name .. "@one", "changer")
    assert(copy:exec({ "rm", "-rf", "/workspace/file", "/etc/passwd" }, { user = "root" }))
    assert.equal("one", restored(box.name .. "@one", "changer-2"):read("/workspace/file"))
  end)

  it("takes the place of the sandbox's files by rollback, and what ran runs again", function()
    local other = server:sandbox()
    assert(other:write("/workspace/file", "before"))
    assert(other:snapshot("before"))
    assert(other:write("/workspace/file", "after"))
    assert(other:start({ "sleep", "1000" }, { name = "sleeper" }))
    local machine = other:exec({ "cat", "/etc/machine-id" }).stdout
    local info = assert(other:rollback("before"))
    assert.equal("running", info.state)
    assert.equal(other.name .. "@before", info.parent)
    assert.equal("before", other:read("/workspace/file"))
    assert.equal(machine, other:exec({ "cat", "/etc/machine-id" }).stdout)
    assert(other:stop())
    assert.equal("stopped", assert(other:rollback("before")).state)
    server:kill()
    assert.equal("before", other:read("/workspace/file"))
  end)

  it("is on the disk when the old files go, so that a power cut leaves the one or the other", function()
    local other = server:sandbox()
    assert(other:snapshot("before"))
    assert(other:rollback("before"))
    local root = support.run({ "sh", "-c", ([==[cp %s/state.db %s/old.db && python3 -c "
import sqlite3, sys
print(sqlite3.connect(sys.argv[1]).execute('SELECT root FROM sandboxes WHERE name = ?', [sys.argv[2]]).fetchone()[0])" %s/old.db %s]==]):format(
      server.state, server.run, server.run, other.name) })
    assert.matches("^%d+%.%x+\n$", root.stdout, nil, root.stderr)
    assert.truthy(uv.fs_stat(("/proc/%d/root%s/pool/sandboxes/%s"):format(server:pid(), server.state, root.stdout:sub(1, -2))))
  end)

  it("answers with stable codes", function()
    local function code(verb, params)
      return (select(3, client:call(verb, params)))
    end
    assert.equal("EEXIST", code("snapshot_create", { name = box.name, label = "one" }))
    assert.equal("ENOSANDBOX", code("snapshot_create", { name = "nobody", label = "one" }))
    assert.equal("EINVAL", code("snapshot_create", { name = box.name, label = "No" }))
    assert.equal("ENOSNAPSHOT", code("restore", { snapshot = "nobody@one", name = "x" }))
    assert.equal("EEXIST", code("restore", { snapshot = box.name .. "@one", name = box.name }))
    assert.equal("EINVAL", code("restore", { snapshot = "no-at", name = "x" }))
    assert.equal("ENOSNAPSHOT", code("rollback", { name = box.name, snapshot = "nobody@one" }))
    assert.equal("ENOSNAPSHOT", code("snapshot_rm", { snapshot = "nobody@one" }))
    assert.equal("EINVAL", code("snapshot_keep", { name = box.name }))
  end)

  it("is restored once by a request that is sent again, since its key tells", function()
    for _ = 1, 2 do
      assert(client:call("restore", { snapshot = box.name .. "@one", name = "keyed", key = "k" }))
    end
    assert(client:call("destroy", { name = "keyed" }))
  end)

  it("counts on its own bill only what was added since", function()
    support.needs("disk limits")
    local other = server:sandbox({ disk = 64 * 2 ^ 20 })
    assert(other:exec("head -c 20000000 /dev/urandom > /workspace/big; sync"))
    assert(other:snapshot("big"))
    local copy = restored(other.name .. "@big", "bill")
    assert.is_true(copy:info().usage.disk < 1e6)
    assert.is_true(other:info().usage.disk > 20e6)
    assert.equal(64 * 2 ^ 20, copy:info().limits.disk)
    local result = copy:exec("head -c 100000000 /dev/zero > /workspace/more")
    assert.not_equal(0, result.exit_code)
  end)

  it("is one of 200 taken under a writing load, each of one instant", function()
    local other = server:sandbox({ cpu = 2, memory = 512 * 2 ^ 20 })
    assert(other:exec(":> /workspace/journal; echo 0 > /workspace/last"))
    local writer = assert(other:start(WRITER, { name = "writer" }))
    assert.is_true(support.eventually(function()
      return tonumber(other:read("/workspace/last")) > 2
    end))
    local before = tonumber(other:read("/workspace/last"))
    for i = 1, 200 do
      assert(other:snapshot("load-" .. i))
    end
    assert(writer:kill(0))
    assert.is_true(tonumber(other:read("/workspace/last")) > before)
    local highest = 0
    assert.equal(200, #assert(other:snapshots()))
    local rows = support.run({ "sh", "-c", ("ls /proc/%d/root%s/pool/snapshots | sort -n | tail -200"):format(server:pid(), server.state) }).stdout
    for id in rows:gmatch("%d+") do
      local result = support.run({ "sh", "-c", CHECKER, "sh", root_of(server, tonumber(id)) })
      assert.equal(0, result.code, ("snapshot %s: %s%s"):format(id, result.stdout, result.stderr))
      local count = tonumber(result.stdout)
      assert.is_true(count >= highest)
      highest = count
    end
    assert.equal(200, #assert(client:call("snapshot_keep", { name = other.name, labels = { none = "x" } })))
  end)
end)

describe("the tree of snapshots", function()
  local server, client, box
  setup(function()
    support.needs_root()
    server = support.server()
    client = server.client
    box = server:sandbox()
  end)

  it("grows to a depth of 50, and each is what it was", function()
    for i = 1, 50 do
      assert(box:write("/workspace/number", tostring(i)))
      assert(box:snapshot("d-" .. i))
    end
    local list = assert(box:snapshots())
    assert.equal(50, #list)
    for i = 2, 50 do
      assert.equal(box.name .. "@d-" .. (i - 1), list[i].parent)
    end
    assert(box:rollback("d-7"))
    assert.equal("7", box:read("/workspace/number"))
    assert.equal(box.name .. "@d-7", assert(box:snapshot("again")).parent)
    assert.equal(box.name .. "@again", box:info().parent)
  end)

  it("loses any of its members, and the others go on from the one before", function()
    assert(client:call("snapshot_rm", { snapshot = box.name .. "@d-8" }))
    assert(client:call("snapshot_rm", { snapshot = box.name .. "@d-1" }))
    local parents = {}
    for _, info in ipairs(assert(box:snapshots())) do
      parents[info.label] = info.parent or ""
    end
    assert.equal(box.name .. "@d-7", parents["d-9"])
    assert.equal("", parents["d-2"])
    assert(client:call("restore", { snapshot = box.name .. "@d-9", name = "nine" }))
    assert.equal("9", require("tidepool.client.box").new(client, "nine"):read("/workspace/number"))
    assert(client:call("destroy", { name = "nine" }))
    server:kill()
    assert.equal(49, #assert(box:snapshots()))
  end)

  it("is shown by the command line, children below their parents", function()
    local result = support.cli({ "snapshot", "ls", box.name }, {
      env = { "PATH=" .. os.getenv("PATH"), "TIDEPOOL_STATE=" .. server.state, "TIDEPOOL_RUN=" .. server.run,
        "TIDEPOOL_BUILD=" .. require("tidepool.paths").build() },
    })
    assert.equal(0, result.code, result.stderr)
    for line, parent in pairs({ ["\n" .. box.name .. "@d-2 "] = "-", ["\n  " .. box.name .. "@d-9 "] = "d-7", ["\n  " .. box.name .. "@again "] = "d-7" }) do
      local at = assert(select(2, result.stdout:find(line, 1, true)), line .. " in " .. result.stdout)
      assert.is_truthy(result.stdout:match("[^\n]*", at):find(parent, 1, true))
    end
  end)

  it("keeps what a rule says, the rest goes", function()
    local removed = assert(box:keep_snapshots({ last = 3 }))
    assert.equal(46, #removed)
    local left = {}
    for i, info in ipairs(assert(box:snapshots())) do
      left[i] = info.label
    end
    assert.same({ "d-49", "d-50", "again" }, left)
  end)

  it("keeps what a rule says, though somebody deletes of them too", function()
    local other = server:sandbox()
    for i = 1, 8 do
      assert(other:snapshot("s" .. i))
    end
    async.run(function()
      local keeping = async.spawn(client.call, client, "snapshot_keep", { name = other.name, last = 1 })
      client:call("snapshot_rm", { snapshot = other.name .. "@s7" })
      local _, removed, message = keeping:join()
      assert(removed, message)
    end)
    assert.same({ other.name .. "@s8" }, { assert(other:snapshots())[1].snapshot, (assert(other:snapshots())[2] or {}).snapshot })
  end)

  it("keeps the newest of a day, and those with a label, whatever their age", function()
    local day = 86400
    local list = {
      { id = 1, created = 10 * day + 1, labels = { keep = "yes" } },
      { id = 2, created = 11 * day + 1, labels = {} },
      { id = 3, created = 11 * day + 2, labels = {} },
      { id = 4, created = 14 * day + 1, labels = {} },
      { id = 5, created = 15 * day + 1, labels = {} },
    }
    local function kept(rule)
      local ids = {}
      for record in pairs(snapshots.kept(list, rule)) do
        ids[#ids + 1] = record.id
      end
      table.sort(ids)
      return ids
    end
    assert.same({ 5 }, kept({ last = 1 }))
    assert.same({ 3, 4, 5 }, kept({ daily = 3 }))
    assert.same({ 1, 5 }, kept({ last = 1, labels = { keep = "yes" } }))
    assert.same({}, kept({ labels = {} }))
  end)
end)

describe("the difference of two snapshots", function()
  local server, client, box
  setup(function()
    support.needs_root()
    server = support.server()
    client = server.client
    box = server:sandbox({ cpu = 2 })
  end)

  local function between(from, to)
    return async.run(require("tidepool.client.diff").between, client, box.name .. "@" .. from, box.name .. "@" .. to)
  end

  -- "path kind old new" of a list, sorted.
  local function lines(list)
    local out = {}
    for i, one in ipairs(list) do
      out[i] = ("%s %s %s %s"):format(one.path, one.kind, one.old_size or "-", one.size or "-")
    end
    table.sort(out)
    return out
  end

  it("names what was added, changed and deleted, with sizes, and nothing else", function()
    assert(box:exec([[
      mkdir -p d/e gone sub; echo a > d/e/f; echo bb > d/g; echo x > gone/y; echo same > same
      echo old > changed; echo rep > rep; echo mode > mode; ln same hard
    ]]))
    assert(box:snapshot("a"))
    assert(box:exec([[
      mv d moved; rm -r gone; echo newer-content > changed; mkdir -p n/m; echo hi > n/m/new; ln -s /etc/passwd link
      chmod 600 mode; mv rep rep.old; echo again > rep; echo z > sub/z; touch same; mkdir d; echo other > d/g; mkfifo fifo
      mv moved/e/f moved/h
    ]]))
    assert(box:snapshot("b"))
    local result = assert(between("a", "b"))
    local w = "workspace/"
    assert.same({
      w .. "changed file 4 14", w .. "d directory 4 2", w .. "d/g file 3 6", w .. "mode file 5 5", w .. "rep file 4 6", w .. "same file 5 5",
    }, (function()
      local list = lines(result.changed)
      for i = #list, 1, -1 do
        if list[i]:find("hard file") then
          table.remove(list, i) -- the same file as `same`, under its other name
        end
      end
      return list
    end)())
    assert.same({
      w .. "fifo fifo - 0", w .. "link link - 11", w .. "moved directory - 6", w .. "moved/e directory - 0",
      w .. "moved/g file - 3", w .. "moved/h file - 2", w .. "n directory - 2", w .. "n/m directory - 6", w .. "n/m/new file - 3",
      w .. "rep.old file - 4", w .. "sub/z file - 2",
    }, lines(result.added))
    assert.same({ w .. "d/e directory 2 -", w .. "d/e/f file 2 -", w .. "gone directory 2 -", w .. "gone/y file 2 -" }, lines(result.deleted))
  end)

  it("is none between one and itself, and the inverse backwards", function()
    assert(box:snapshot("c"))
    local same = assert(between("b", "c"))
    assert.same({ {}, {}, {} }, { same.added, same.changed, same.deleted })
    local forth, back = assert(between("a", "b")), assert(between("b", "a"))
    assert.equal(#forth.added, #back.deleted)
    assert.equal(#forth.deleted, #back.added)
  end)

  it("is the same whatever order names are changed in: what a walk over both finds", function()
    local random = 7
    local function pick(n)
      random = (random * 1103515245 + 12345) % 2147483648
      return math.floor(random / 65536) % n
    end
    for round = 1, 4 do
      local script = {}
      for _ = 1, 120 do
        local a, b = ("r/%d/%d"):format(pick(4), pick(6)), ("r/%d/%d"):format(pick(4), pick(6))
        local c, d = ("r/%d"):format(pick(4)), ("r/%d/%d"):format(pick(4), pick(6))
        local kinds = {
          ("mkdir -p %s"):format(a), ("mkdir -p %s; echo %d > %s/f%d"):format(a, pick(1000), a, pick(3)),
          ("mv %s %s"):format(a, b), ("mv %s %s"):format(c, d), ("rm -rf %s"):format(a), ("mv %s/f0 %s/f1"):format(a, b),
          ("ln %s/f1 %s/l%d"):format(a, b, pick(3)), ("rm -f %s/f%d"):format(a, pick(3)),
        }
        script[#script + 1] = "{ " .. kinds[pick(#kinds) + 1] .. "; } 2>/dev/null"
      end
      assert(box:snapshot("r" .. round .. "-a"))
      assert(box:exec("mkdir -p r; " .. table.concat(script, "\n")))
      assert(box:snapshot("r" .. round .. "-b"))
      local result = assert(between("r" .. round .. "-a", "r" .. round .. "-b"))
      local function listing(label)
        local id
        for _, name in ipairs(support.names(("/proc/%d/root%s/pool/snapshots"):format(server:pid(), server.state))) do
          id = math.max(id or 0, tonumber(name))
        end
        local path = root_of(server, label == "a" and id - 1 or id)
        local set = {}
        for line in support.run({ "find", path, "-mindepth", "1", "-printf", "%P\n" }).stdout:gmatch("[^\n]+") do
          set[line] = true
        end
        return set
      end
      local before, after = listing("a"), listing("b")
      local expected, found = { added = {}, deleted = {} }, { added = {}, deleted = {} }
      for path in pairs(after) do
        expected.added[path] = not before[path] or nil
      end
      for path in pairs(before) do
        expected.deleted[path] = not after[path] or nil
      end
      for kind in pairs(found) do
        for _, one in ipairs(result[kind]) do
          found[kind][one.path] = true
        end
      end
      assert.same(expected, found)
    end
  end)

  it("is found by the command line, and refused for what isn't there", function()
    local env = { "PATH=" .. os.getenv("PATH"), "TIDEPOOL_STATE=" .. server.state, "TIDEPOOL_RUN=" .. server.run,
      "TIDEPOOL_BUILD=" .. require("tidepool.paths").build() }
    local result = support.cli({ "snapshot", "diff", box.name .. "@a", box.name .. "@b" }, { env = env })
    assert.equal(0, result.code, result.stderr)
    assert.matches("\nA  3 B +workspace/n/m/new\n", result.stdout)
    assert.matches("\nM  4 B %-> 14 B +workspace/changed\n", "\n" .. result.stdout)
    assert.equal("ENOSNAPSHOT", (select(3, client:call("snapshot_diff", { from = box.name .. "@a", to = "no@no" }))))
  end)

  -- The kernel needs a minute to say what is new in such a tree.
  it("is given up when nobody waits for it any more", function()
    assert(box:snapshot("shallow"))
    assert(box:exec([[for i in $(seq 1000); do mkdir d; cd d; done; for i in $(seq 3000); do : >$i; done]]))
    assert(box:snapshot("deep"))
    local function comparing()
      return support.run({ "pgrep", "-f", "^" .. require("tidepool.paths").build() .. "/tidepool-diff .*" .. server.state }).stdout ~= ""
    end
    local ok, fds = async.run(client.call, client, "snapshot_diff", { from = box.name .. "@shallow", to = box.name .. "@deep" })
    assert.is_true(ok)
    assert.is_true(comparing())
    fds[1]:close()
    assert.is_true(support.eventually(function()
      return not comparing()
    end, 15))
  end)
end)

describe("a server that is killed", function()
  -- In a server of its own that kills itself at the step; then what there is.
  local function at_step(name, verb, params)
    local server = support.server()
    local box = server:sandbox()
    assert(box:write("/workspace/file", "one"))
    assert(box:snapshot("base"))
    assert(box:write("/workspace/file", "two"))
    server:kill()
    uv.os_setenv("TIDEPOOL_STEP", name)
    server:pid()
    uv.os_unsetenv("TIDEPOOL_STEP")
    local call = {}
    for key, value in pairs(params) do
      call[key] = value:gsub("BOX", box.name)
    end
    require("tidepool.client").new({ state = server.state, run = server.run, start = false }):call(verb, call)
    assert.is_true(support.eventually(function()
      return not uv.fs_stat(server.run .. "/server.sock") or select(3, require("tidepool.client").new({
        state = server.state, run = server.run, start = false }):call("info", {})) ~= nil
    end), "the server did not get to " .. name)
    return server, box
  end

  local function pool(server, kind)
    return support.names(("/proc/%d/root%s/pool/%s"):format(server:pid(), server.state, kind))
  end

  for _, name in ipairs({ "snapshot_recorded", "snapshot_made", "snapshot_committed" }) do
    it("at " .. name .. " has the snapshot whole or not at all", function()
      local server, box = at_step(name, "snapshot_create", { name = "BOX", label = "torn" })
      local list = assert(box:snapshots())
      assert.equal(name == "snapshot_committed" and 2 or 1, #list)
      assert.is_true(support.eventually(function()
        return #pool(server, "snapshots") == #list
      end))
      assert.equal("running", box:info().state)
      assert.equal("two", box:read("/workspace/file"))
      if #list == 1 then
        assert(box:snapshot("torn"))
      end
    end)
  end

  for _, name in ipairs({ "rollback_made", "files_replaced" }) do
    it("at " .. name .. " has the old files or the new", function()
      local server, box = at_step(name, "rollback", { name = "BOX", snapshot = "BOX@base" })
      assert(box:wake())
      assert.equal(name == "rollback_made" and "two" or "one", box:read("/workspace/file"))
      assert.is_true(support.eventually(function()
        return #pool(server, "sandboxes") == 1
      end))
    end)
  end

  for _, name in ipairs({ "sandbox_recorded", "files_made" }) do
    it("at " .. name .. " of a restore has no sandbox, and no files of one", function()
      local server = at_step(name, "restore", { name = "torn", snapshot = "BOX@base" })
      assert.equal("ENOSANDBOX", (select(3, server.client:call("info", { name = "torn" }))))
      assert.is_true(support.eventually(function()
        return #pool(server, "sandboxes") == 1
      end))
    end)
  end

  it("at snapshot_forgotten has forgotten its files too", function()
    local server = at_step("snapshot_forgotten", "snapshot_rm", { snapshot = "BOX@base" })
    assert.same({}, assert(server.client:call("snapshot_ls", {})))
    assert.is_true(support.eventually(function()
      return #pool(server, "snapshots") == 0
    end))
  end)

  it("together with its spawners in the middle of a snapshot leaves the sandbox running", function()
    local server = support.server()
    local box = server:sandbox()
    for i = 1, 6 do
      async.run(function()
        local pid = server:pid()
        local task = async.spawn(function()
          return server.client:call("snapshot_create", { name = box.name, label = "t-" .. i })
        end)
        async.sleep(0.001 * i)
        for child in (support.read(("/proc/%d/task/%d/children"):format(pid, pid)) or ""):gmatch("%d+") do
          if support.read("/proc/" .. child .. "/comm"):find("spawne", 1, true) then
            uv.kill(tonumber(child), "sigkill")
          end
        end
        uv.kill(pid, "sigkill")
        task:join()
        assert.equal("ok\n", assert(box:exec("echo ok", { timeout = 60 })).stdout)
        assert.equal("running", box:info().state)
      end)
    end
  end)
end)

describe("the plan step `freeze`", function()
  it("gives up after its time limit and lets all go on; it is undone with its plan", function()
    support.needs_root()
    local box = support.sandbox()
    local cgroup = support.cgroup_of(box)
    local spawner = require("tidepool.server.spawner")
    async.run(function()
      local pool = assert(spawner.start(1))
      local answer = assert(pool:execute({ { "freeze", cgroup, 60000 } }))
      assert.is_true(answer.values[1] > 0)
      assert.matches("frozen 1", support.read(cgroup .. "/cgroup.events"))
      assert(pool:execute({ { "thaw", cgroup } }))
      local failed = { pool:execute({ { "freeze", cgroup, 60000 }, { "open", 5, "/nonexistent" } }) }
      assert.equal("ENOENT", failed[3])
      assert.is_true(support.eventually(function()
        return support.read(cgroup .. "/cgroup.events"):find("frozen 0") ~= nil
      end))
      assert(pool:execute({ { "thaw", "/sys/fs/cgroup/no-such-group" } }))
      assert.equal("ENOENT", select(3, pool:execute({ { "freeze", "/sys/fs/cgroup/no-such-group", 10 } })))
      pool:close()
    end)
    assert.equal("ok\n", box:exec("echo ok").stdout)
  end)
end)

describe("another process's descriptors", function()
  it("are borrowed (core.fd.borrow), and tell how much they have (core.fd.waiting)", function()
    local ours, theirs = core.fd.pair()
    local pidfd = core.fd.pidfd(uv.os_getpid())
    local before = support.fd_count()
    local borrowed = assert(core.fd.borrow(pidfd, theirs:number()))
    assert.equal(0, core.fd.waiting(borrowed))
    assert(core.fd.write(ours, "hello"))
    assert.equal(5, core.fd.waiting(borrowed))
    assert.equal("hello", core.fd.read(theirs, 10))
    assert.equal(0, core.fd.waiting(borrowed))
    borrowed:close()
    assert.equal("EBADF", select(3, core.fd.borrow(pidfd, 99999)))
    assert.equal("ENOTTY", select(3, core.fd.waiting(pidfd)))
    assert.equal(before, support.fd_count())
  end)
end)

-- Snapshots and forks with memory: processes go on in other sandboxes, from one instant, and the first goes on too.
local support = require("spec.support")
local async = require("tidepool.async")
local uv = require("luv")

local COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"

-- Tells what it reads of the file that names its sandbox, whenever that is replaced.
local WATCHER = [[
import ctypes, os
libc = ctypes.CDLL(None)
watch = libc.inotify_init()
libc.inotify_add_watch(watch, b"/.tidepool", 0x80)
def told():
    return dict(line.strip().split("=", 1) for line in open("/.tidepool/sandbox"))
print("first", told()["NAME"], told().get("OF"), flush=True)
while True:
    os.read(watch, 4096)
    if "OF" in told():
        print("now", told()["NAME"], told()["OF"], flush=True)
]]

local NODE = [[
const http = require("http"); let count = 0;
http.createServer((request, response) => { count++; response.end(process.pid + " " + request.url + " " + count + "\n"); })
  .listen(8000, "127.0.0.1", () => console.log("listening"));
]]

local ASK = [[import urllib.request, sys; print(urllib.request.urlopen("http://127.0.0.1:8000/" + sys.argv[1]).read().decode().strip())]]

local server, client
local known = {} -- dumps that earlier tests have left

local function prepare()
  support.needs_root()
  server = support.shared()
  client = server.client
  support.image("minimal")
end

local it = support.needing(it, function()
  support.needs_criu()
  known = {}
  for _, name in ipairs(support.names(server.state .. "/memory")) do
    known[name] = true
  end
end)

local function box_of(name, of)
  local box = require("tidepool.client.box").new((of or server).client, name)
  support.defer(function()
    box:destroy()
  end)
  return box
end

local function restored(snapshot, options)
  local name = "spec-" .. support.unique()
  local info, message, code = client:call("restore", { snapshot = snapshot, name = name, cold = options and options.cold })
  if not info then
    return nil, message, code
  end
  return box_of(name), info
end

local function destroy(branches)
  for _, branch in ipairs(branches) do
    assert((branch.branch or branch):destroy())
  end
end

local function uid_map(box)
  return assert(box:exec("cat /proc/self/uid_map")).stdout
end

-- The dumps that this test has made and that are still there.
local function dumps()
  local list = {}
  for _, name in ipairs(support.names(server.state .. "/memory")) do
    if not known[name] then
      list[#list + 1] = name
    end
  end
  return list
end

local function literally(text)
  return (text:gsub("%p", "%%%0"))
end

describe("a snapshot with memory", function()
  setup(prepare)

  it("leaves the sandbox running and who reads it connected, and tells its pause apart from its time", function()
    local box = server:sandbox()
    local process = assert(box:start(COUNT, { name = "count" }))
    assert(process:attach({ input = true }))
    assert(process:expect("\n5\n"))
    local before = assert(process:info())
    local taken = assert(box:snapshot("one", { memory = true, labels = { kind = "live" } }))
    assert.is_true(taken.memory)
    assert.is_true(taken.pause > 0 and taken.pause <= taken.total)
    assert.is_true(taken.memory_size > 4096)
    local rest = assert(process:expect("\n20\n"))
    for i = 7, 20 do
      assert.match("\n" .. i .. "\n", rest, 1, true)
    end
    local after = assert(process:info())
    assert.same({ before.id, before.pid }, { after.id, after.pid })
    assert.equal("running", box:info().state)
    local listed = assert(box:snapshots())[1]
    assert.equal("live", listed.labels.kind)
    assert.is_true(listed.memory and (not listed.size or listed.size >= listed.memory_size))
    assert.same({ "snapshot-" }, { dumps()[1]:match("^snapshot%-") })
    assert(client:call("snapshot_rm", { snapshot = box.name .. "@one" }))
    assert.same({}, dumps())
  end)

  it("is taken again and again while commands and file operations come, and none of them fails", function()
    local box = server:sandbox({ cpu = 2 })
    async.run(function()
      local done, tasks = false, {}
      for i = 1, 3 do
        tasks[i] = async.spawn(function()
          local n = 0
          while not done do
            n = n + 1
            assert.equal(n .. "\n", assert(box:exec("echo " .. n)).stdout)
            assert(box:write("/workspace/" .. i, tostring(n)))
            assert.equal(tostring(n), assert(box:read("/workspace/" .. i)))
          end
          return n
        end)
      end
      for i = 1, 6 do
        assert(box:snapshot("busy-" .. i, { memory = true }))
        async.sleep(0.03)
      end
      done = true
      for _, task in ipairs(tasks) do
        local ok, count = task:join()
        assert.is_true(ok, count)
        assert.is_true(count > 0)
      end
    end)
    assert(client:call("snapshot_keep", { name = box.name, last = 1 }))
    assert(client:call("snapshot_rm", { snapshot = box.name .. "@busy-6" }))
  end)

  it("goes on in new sandboxes, several at once, when its own is gone and the server was killed", function()
    local box = server:sandbox({ image = support.image("debian"), cpu = 2 })
    assert(box:mkdir("/workspace/held"))
    assert(box:write("/workspace/everything.py", assert(support.read("spec/support/everything.py"))))
    local process = assert(box:start({ "python3", "/workspace/everything.py", "/workspace/held" }, { name = "all", stdin = true }))
    assert(process:attach({ input = true }))
    assert(process:expect("ready", { timeout = 60 }))
    assert(box:snapshot("held", { memory = true }))
    assert(process:write("check\n"))
    assert.match("all well", assert(process:expect("checked 1: [^\n]*\n", { timeout = 60 })))
    local snapshot = box.name .. "@held"
    assert(box:destroy())
    server:kill()
    async.run(function()
      local tasks = {}
      for i = 1, 2 do
        tasks[i] = function()
          local made = assert(restored(snapshot))
          local there = made:process("all")
          assert(there:attach({ input = true }))
          assert(there:write("check\n"))
          local text = assert(there:expect("checked 1: [^\n]*\n", { timeout = 60 }))
          assert.match("checked 1: all well\r?\n$", text)
          assert(made:hibernate())
          assert(there:write("check\n"))
          assert.match("all well", assert(there:expect("checked 2: [^\n]*\n", { timeout = 60 })))
          assert(made:destroy())
        end
      end
      async.all(tasks)
    end)
    assert(client:call("snapshot_rm", { snapshot = snapshot }))
  end)

  it("is put in the place of its sandbox, with files and processes, or with files only", function()
    local box = server:sandbox()
    assert(box:write("/workspace/file", "before"))
    local process = assert(box:start("read line; echo \"got $line\"; sleep 600", { name = "reader", stdin = true }))
    assert(box:snapshot("asked", { memory = true }))
    for _, line in ipairs({ "one", "two" }) do
      assert(process:attach({ input = true, offset = 0 }))
      assert(process:write(line .. "\n"))
      assert(process:expect("got " .. line .. "\n"))
      assert(box:write("/workspace/file", "after"))
      local info = assert(box:rollback("asked"))
      assert.same({ "running", 0 }, { info.state, info.connections_reset })
      assert.equal("before", box:read("/workspace/file"))
      assert.equal("running", process:info().status)
    end
    assert(box:write("/workspace/file", "after"))
    assert(box:rollback("asked", { cold = true }))
    assert.equal("before", box:read("/workspace/file"))
    assert.equal(0, assert(box:info()).processes)
    assert(box:stop())
    assert.equal("running", assert(box:rollback("asked")).state)
    assert.equal("running", process:info().status)
    assert(client:call("snapshot_rm", { snapshot = box.name .. "@asked" }))
    assert.equal("running", process:info().status)
  end)

  it("is refused where it can't go on, with the reason, and its files are there without it", function()
    local box = server:sandbox()
    assert(box:write("/workspace/file", "kept"))
    assert(box:start(COUNT, { name = "count" }))
    assert(box:snapshot("elsewhere", { memory = true }))
    local path = server.state .. "/memory/" .. dumps()[1] .. "/memory.json"
    local text = assert(support.read(path))
    local file = assert(io.open(path, "w"))
    file:write((text:gsub('"cpu":"', '"cpu":"quantum ')))
    file:close()
    local before = box:process("count"):info()
    for _, try in ipairs({
      function() return restored(box.name .. "@elsewhere") end,
      function() return box:rollback("elsewhere") end,
      function() return client:call("fork", { source = box.name .. "@elsewhere", memory = true }) end,
    }) do
      local made, message, code = try()
      assert.same({ nil, "ENOTSUP" }, { made, code })
      assert.match("a processor with quantum", message)
      assert.match("%-%-cold", message)
    end
    assert.same({ before.id, before.pid, "running" }, { box:process("count"):info().id, before.pid, before.status })
    local cold = assert(restored(box.name .. "@elsewhere", { cold = true }))
    assert.equal("kept", cold:read("/workspace/file"))
    assert.equal(0, cold:info().processes)
    assert(cold:destroy())
    assert(client:call("snapshot_rm", { snapshot = box.name .. "@elsewhere" }))
  end)

  it("is taken of one that hibernates or is frozen, which stays so, and of none that is stopped", function()
    local box = server:sandbox()
    assert(box:start(COUNT, { name = "count" }))
    assert(box:hibernate())
    assert.equal(0, assert(box:snapshot("asleep", { memory = true })).pause)
    assert.equal("hibernated", box:info().state)
    assert(box:wake())
    assert(box:freeze())
    assert(box:snapshot("frozen", { memory = true }))
    assert.equal("frozen", box:info().state)
    for _, label in ipairs({ "asleep", "frozen" }) do
      local made = assert(restored(box.name .. "@" .. label))
      assert.equal("running", made:process("count"):info().status)
      assert(made:destroy())
    end
    assert(box:stop())
    assert.equal("ESTOPPED", (select(3, box:snapshot("stopped", { memory = true }))))
    assert(box:snapshot("files"))
    assert.equal("EINVAL", (select(3, client:call("fork", { source = box.name .. "@files", memory = true }))))
    assert(client:call("snapshot_keep", { name = box.name, last = 1 }))
    assert.same({}, dumps())
  end)

  it("is refused, untouched, for what can't be captured, by the process and what it uses", function()
    local box = server:sandbox()
    local process = assert(box:start(COUNT, { name = "count" }))
    local planted = 0
    local names = { io_uring = "io_uring", userfaultfd = "a userfaultfd", perf = "a performance counter", bpf = "a bpf map" }
    for kind, what in pairs(names) do
      local ready
      local out = uv.new_pipe()
      local handle, pid = uv.spawn("python3", {
        args = { "spec/support/uncapturable.py", kind, tostring(box:info().pid), "-" }, stdio = { nil, out, nil },
      }, function() end)
      out:read_start(function(_, bytes)
        ready = ready or bytes
      end)
      assert(support.eventually(function()
        return ready
      end))
      if ready:find("^ready") then
        planted = planted + 1
        local group = assert(io.open(support.cgroup_of(box) .. "/cgroup.procs", "w"))
        group:write(pid)
        group:close()
        local taken, message, code = box:snapshot("refused", { memory = true })
        assert.same({ nil, "ENOTSUP" }, { taken, code })
        assert.match("process %d+ %(python3%) uses " .. what .. ", which can't be captured", message)
      end
      uv.kill(pid, "sigkill")
      handle:close()
      out:close()
    end
    assert.is_true(planted > 0, "this machine let none of them be made")
    assert.same({}, assert(box:snapshots()))
    assert.equal("running", process:info().status)
    assert.same({}, dumps())
  end)
end)

describe("a fork with memory", function()
  setup(prepare)

  it("continues a Python session and a Node server in eight sandboxes that then differ", function()
    local box = server:sandbox({ image = support.image("debian"), cpu = 2, type = "standard-1" })
    local python = assert(box:start({ "python3", "-iq" }, { name = "python", tty = true }))
    assert(python:attach({ input = true }))
    assert(python:write("x = 41 + 1\n"))
    assert(python:expect("42?.*>>> $"))
    local node = assert(box:start({ "node", "-e", NODE }, { name = "node" }))
    assert(node:wait_log("listening", { timeout = 60 }))
    local pid = box:exec({ "python3", "-c", ASK, "first" }).stdout:match("^(%d+) /first 1\n$")
    assert.truthy(pid)
    local outcomes = assert(box:fork(8, { memory = true }, function(branch, i)
      local there = branch:process("python")
      assert(there:attach({ input = true, offset = 0 }))
      assert(there:expect("x = 41 %+ 1")) -- the screen of before
      assert(there:write(("x += %d; print('here', x)\n"):format(i)))
      local number = assert(there:expect("\nhere %d+\r")):match("here (%d+)\r$")
      for _ = 1, i do
        branch:exec({ "python3", "-c", ASK, "more" })
      end
      return { tonumber(number), branch:exec({ "python3", "-c", ASK, "last" }).stdout, uid_map(branch), branch:exec("hostname").stdout }
    end))
    local maps = { [uid_map(box)] = true }
    for i, outcome in ipairs(outcomes) do
      assert.is_true(outcome.ok, outcome.error)
      local number, answer, map, host = unpack(outcome.result)
      assert.equal(42 + i, number)
      assert.equal(("%s /last %d\n"):format(pid, i + 2), answer)
      assert.is_nil(maps[map])
      maps[map] = true
      assert.equal(outcome.branch.name .. "\n", host)
    end
    assert(python:write("print('still', x)\n"))
    assert(python:expect("\nstill 42\r"))
    assert.equal(pid .. " /again 2\n", box:exec({ "python3", "-c", ASK, "again" }).stdout)
    assert.same({}, dumps())
    destroy(outcomes)
  end)

  it("is a sandbox of its own, and its processes can tell", function()
    local box = server:sandbox({ image = support.image("debian") })
    assert(client:call("egress_set", { name = box.name, policies = { { name = "allow_hosts", options = { hosts = { "example.com" } } } } }))
    local watcher = assert(box:start({ "python3", "-uc", WATCHER }, { name = "watcher" }))
    assert(watcher:wait_log("first " .. literally(box.name) .. " None", { timeout = 60 }))
    local branch = assert(box:fork(1, { memory = true }))[1]
    local look = "hostname; cat /etc/hostname /etc/machine-id; grep -c " .. branch.name .. " /etc/hosts"
    local host, file, machine, count = branch:exec(look).stdout:match("^(%S+)\n(%S+)\n(%x+)\n(%d)\n$")
    assert.same({ branch.name, branch.name, "1" }, { host, file, count })
    assert.not_equal(machine .. "\n", box:exec("cat /etc/machine-id").stdout)
    assert(branch:process("watcher"):wait_log(literally(("now %s %s"):format(branch.name, box.name))))
    assert.not_match("now", watcher:logs({ follow = false }).text)
    assert.match("Read%-only", branch:exec("echo NAME=other > /.tidepool/sandbox", { user = "root" }).stderr)
    local certificate = "cat /usr/local/share/ca-certificates/tidepool.crt"
    assert.equal(box:exec(certificate).stdout, branch:exec(certificate).stdout)
    local shown = assert(branch:egress_show())
    assert.same({ "allow_hosts", "served" }, { shown.policies[1].name, shown.state })
    local usage = assert(branch:info()).usage
    assert.is_true(usage.memory > 0 and usage.cpu_seconds < box:info().usage.cpu_seconds + 60)
    -- As one that was restored it sleeps, wakes, stops and starts like any other.
    assert(branch:hibernate())
    assert.equal(branch.name .. "\n", branch:exec("hostname").stdout)
    assert(branch:stop())
    assert.equal(branch.name .. "\n", branch:exec("hostname").stdout)
    assert.equal(box:exec(certificate).stdout, branch:exec(certificate).stdout)
    destroy({ branch })
  end)

  it("has its connections to the outside reset and counted", function()
    local box = server:sandbox({ image = support.image("debian") })
    local process = assert(box:start({ "python3", "-uc", [[
import socket
held = socket.create_connection(("1.2.3.4", 80))
held.setblocking(False)
print("connected")
while input():
    try:
        print("ended" if held.recv(1) == b"" else "data")
    except BlockingIOError:
        print("held")
    except ConnectionError:
        print("reset")
]] }, { name = "held", stdin = true }))
    assert(process:attach({ input = true }))
    assert(process:expect("connected\n"))
    local info = assert(client:call("fork", { source = box.name, memory = true }))[1]
    assert.equal(1, info.connections_reset)
    local branch = box_of(info.name)
    local there = branch:process("held")
    assert(there:attach({ input = true }))
    assert(there:write("look\n"))
    assert(there:expect("reset\n"))
    destroy({ branch })
  end)

  it("is promoted with its processes", function()
    local box = server:sandbox()
    assert(box:start(COUNT, { name = "count" }))
    local name, branch = box.name, assert(box:fork(1, { memory = true }))[1]
    local pid = assert(branch:process("count"):info()).pid
    assert(branch:promote())
    assert.equal(name, branch.name)
    assert.equal(pid, assert(box:process("count"):info()).pid)
    assert(box:process("count"):wait_log("^40$"))
  end)

  it("is made of one that hibernates without waking it, and of a snapshot", function()
    local box = server:sandbox()
    assert(box:start(COUNT, { name = "count" }))
    assert(box:hibernate())
    local branches = assert(box:fork(2, { memory = true }))
    assert.equal("hibernated", box:info().state)
    assert(box:snapshot("base", { memory = true }))
    for _, info in ipairs(assert(client:call("fork", { source = box.name .. "@base", count = 2, memory = true }))) do
      branches[#branches + 1] = box_of(info.name)
    end
    for _, branch in ipairs(branches) do
      assert.equal("running", branch:process("count"):info().status)
    end
    destroy(branches)
    -- All or none: what can't be restored once can't be the third time.
    local directory = server.state .. "/memory/snapshot-" .. table.concat(dumps(), " "):match("snapshot%-(%d+)")
    assert(uv.fs_rename(directory .. "/pstree.img", directory .. "/away"))
    local count = #client:call("ls", {})
    local made, message = client:call("fork", { source = box.name .. "@base", count = 3, memory = true })
    assert.is_nil(made)
    assert.match("restore: ", message)
    assert.equal(count, #client:call("ls", {}))
    assert.equal("hibernated", box:info().state)
    assert(client:call("snapshot_rm", { snapshot = box.name .. "@base" }))
  end)
end)

describe("a server that is killed in the middle of memory", function()
  setup(prepare)

  local function at_step(name, with)
    local own = support.server()
    local box = own:sandbox()
    uv.fs_symlink(server.state .. "/criu", own.state .. "/criu")
    local process = assert(box:start(COUNT, { name = "count" }))
    assert(process:wait_log("^3$"))
    if with then
      with(box)
    end
    own:kill()
    uv.os_setenv("TIDEPOOL_STEP", name)
    own:pid()
    uv.os_unsetenv("TIDEPOOL_STEP")
    return own, box, process
  end

  for _, name in ipairs({ "memory_taken", "snapshot_made", "snapshot_committed" }) do
    it("at " .. name .. " of a snapshot has it whole or not at all", function()
      local own, box, process = at_step(name)
      local once = require("tidepool.client").new({ state = own.state, run = own.run, start = false })
      assert.is_nil(once:call("snapshot_create", { name = box.name, label = "torn", memory = true }))
      local list = assert(box:snapshots())
      assert.equal(name == "snapshot_committed" and 1 or 0, #list)
      assert.equal(#list, #support.names(own.state .. "/memory"))
      assert(process:wait_log("^30$"))
      if #list == 0 then
        assert(box:snapshot("torn", { memory = true }))
      end
      assert.equal("running", box:info().state)
    end)
  end

  for _, name in ipairs({ "fork_staged", "waking", "restored" }) do
    it("at " .. name .. " of a fork makes all branches when it is asked again, and none that is half", function()
      local own, box, process = at_step(name)
      local branches = assert(box:fork(2, { memory = true })) -- sent again, to the next server
      assert.equal(3, #assert(own.client:call("ls", {})))
      for _, branch in ipairs(branches) do
        assert.equal("running", branch:process("count"):info().status)
        assert(branch:destroy())
      end
      assert(process:wait_log("^30$"))
      assert.same({}, support.names(own.state .. "/memory"))
    end)
  end

  it("at files_replaced of a rollback goes on from the snapshot's memory", function()
    local own, box, process = at_step("files_replaced", function(box)
      assert(box:snapshot("base", { memory = true }))
    end)
    local once = require("tidepool.client").new({ state = own.state, run = own.run, start = false })
    assert.is_nil(once:call("rollback", { name = box.name, snapshot = box.name .. "@base" }))
    assert.equal("hibernated", box:info().state)
    assert(box:wake())
    assert.equal("running", process:info().status)
    assert.equal(1, #support.names(own.state .. "/memory"))
  end)
end)

-- Hibernation: the memory of a sandbox goes to disk and comes back, and nothing inside notices.
local support = require("spec.support")
local async = require("tidepool.async")
local uv = require("luv")

describe("a sandbox that hibernates", function()
  local server, client

  -- CRIU comes from a mirror; a machine that reaches none can't show anything of this.
  setup(function()
    support.needs_root()
    server = support.shared()
    client = server.client
    support.image("minimal")
  end)

  local it = support.needing(it, support.needs_criu)

  local function state_of(box)
    local info = assert(box:info())
    return info.state, info.reason
  end

  local function lines(process)
    return assert(process:logs({ follow = false })).text
  end

  local COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"

  it("goes on where it was: same process, same output, no memory in between", function()
    local box = server:sandbox()
    local process = assert(box:start(COUNT, { name = "count" }))
    assert(process:wait_log("^3$"))
    local before, group = assert(process:info()), support.cgroup_of(box)
    local took = assert(box:hibernate())
    assert.is_true(took.bytes > 4096 and took.seconds > 0)
    assert.equal(0, took.connections_reset)
    assert.equal("hibernated", (state_of(box)))
    assert.is_nil(uv.fs_stat(group .. "/cgroup.procs"))

    assert.equal("running", assert(box:wake()).state)
    local after = assert(process:info())
    assert.same({ before.id, before.pid, before.started }, { after.id, after.pid, after.started })
    assert(process:wait_log("^9$"))
    assert.match("^1\n2\n3\n4\n5\n6\n7\n8\n9\n", lines(process))
    assert.equal(143, 128 + assert(process:kill()).signal)
    assert.equal("hi\n", box:exec("echo hi").stdout)
  end)

  it("wakes again and again, and sleeps again", function()
    local box = server:sandbox()
    local process = assert(box:start(COUNT, { name = "count" }))
    for round = 1, 4 do
      assert(process:wait_log("^" .. round * 3 .. "$"))
      assert(box:hibernate())
      assert(box:wake())
    end
    assert(process:wait_log("^15$"))
  end)

  it("is woken by whatever is asked of it, once, however many ask", function()
    local box = server:sandbox()
    local process = assert(box:start(COUNT, { name = "count" }))
    assert(box:hibernate())
    local outputs = {}
    async.run(function()
      local tasks = {}
      for i = 1, 8 do
        tasks[i] = function()
          outputs[i] = assert(box:exec("echo " .. i)).stdout
        end
      end
      async.all(tasks)
    end)
    assert.same({ "1\n", "2\n", "3\n", "4\n", "5\n", "6\n", "7\n", "8\n" }, outputs)
    assert.is_nil(assert(process:info()).kind)
    assert(box:hibernate())
    assert(process:signal("KILL"))
    assert.equal("KILL", assert(process:wait(60)).signal_name or "KILL")
  end)

  it("sleeps through the death of its server", function()
    local own = support.server()
    local box = own:sandbox()
    uv.fs_symlink(server.state .. "/criu", own.state .. "/criu")
    local process = assert(box:start(COUNT, { name = "count" }))
    assert(process:wait_log("^3$"))
    assert(box:hibernate())
    own:kill()
    assert.equal("hibernated", (state_of(box)))
    assert(box:wake())
    assert(process:wait_log("^9$"))
    own:kill()
    assert(process:wait_log("^15$"))
  end)

  it("is refused when the disk could not take it, which nobody may fill up, and it runs on", function()
    local own = support.server(function()
      local small = support.scratch()
      assert.equal(0, support.run({ "mount", "-t", "tmpfs", "-o", "size=220m,mode=700", "tmpfs", small }).code)
      return small, function()
        support.run({ "umount", "--lazy", small })
      end
    end)
    local box = own:sandbox()
    uv.fs_symlink(server.state .. "/criu", own.state .. "/criu")
    local process = assert(box:start({ "sleep", "1000" }))
    assert.equal(0, assert(box:exec({ "dd", "if=/dev/zero", "of=/dev/shm/much", "bs=1M", "count=180" })).exit_code)
    local result, message, code = box:hibernate()
    assert.is_nil(result)
    assert.equal("ENOSPC", code, message)
    assert.matches("its memory of %d+ MiB does not fit on the disk", message)
    assert.equal("running", (state_of(box)))
    assert.equal("running", assert(process:info()).status)
  end)

  it("has its own network again, and refuses what it refused", function()
    local box = server:sandbox()
    local look = "ip addr show lo; ip route show table local; nc -w 2 1.2.3.4 80 </dev/null; echo $?; nc -w 2 127.0.0.1 80; echo $?"
    local before = assert(box:exec(look)).stdout
    assert.match("10%.200%.0%.2", before)
    assert(box:hibernate())
    assert.equal(before, assert(box:exec(look)).stdout)
  end)

  it("keeps limits, groups and what is protected", function()
    local box = server:sandbox({ memory = 100 * 1048576 })
    local process = assert(box:start(COUNT, { name = "count" }))
    assert(box:hibernate())
    assert(box:wake())
    assert.match("^tmpfs /.tidepool tmpfs ro,", assert(box:exec("grep tidepool /proc/mounts")).stdout)
    local leaf = assert(box:exec("cat /proc/" .. assert(process:info()).pid .. "/cgroup", { user = "root" })).stdout:match("0::/(%S+)")
    assert.match("^%x+$", leaf)
    assert(process:kill(0))
    assert.is_nil(uv.fs_stat(support.cgroup_of(box) .. "/" .. leaf))
  end)

  it("is refused, untouched, when something can't be captured, which is named", function()
    local box = server:sandbox()
    local process = assert(box:start(COUNT, { name = "count" }))
    local handle, pid = uv.spawn("unshare", { args = { "--user", "sleep", "60" } }, function() end)
    assert(support.eventually(function()
      return uv.fs_readlink(("/proc/%d/ns/user"):format(pid)) ~= uv.fs_readlink("/proc/self/ns/user")
    end))
    local group = assert(io.open(support.cgroup_of(box) .. "/cgroup.procs", "w"))
    group:write(pid)
    group:close()
    local took, message, code = box:hibernate()
    uv.kill(pid, "sigkill")
    handle:close()
    assert.is_nil(took)
    assert.equal("ENOTSUP", code)
    assert.match("process %d+ %(sleep%) uses a user namespace of its own", message)
    assert.equal("running", (state_of(box)))
    assert(process:wait_log("^5$"))
  end)

  it("stays asleep when it can't be woken, says why, and starts from its files when told to", function()
    local box = server:sandbox()
    assert(box:exec("echo kept > /workspace/file"))
    assert(box:start(COUNT, { name = "count" }))
    assert(box:hibernate())
    local directory = ("%s/memory/%d"):format(server.state, assert(box:info()).id)
    assert(uv.fs_rename(directory .. "/pstree.img", directory .. "/away"))
    local awake, message, code = box:wake()
    assert.same({ nil, "EIO" }, { awake, code })
    assert.match("%-%-cold", message)
    local state, reason = state_of(box)
    assert.equal("hibernated", state)
    assert.match("wake failed", reason)

    assert(uv.fs_rename(directory .. "/away", directory .. "/pstree.img"))
    assert(box:wake())
    assert.equal(1, assert(box:info()).processes)
    assert(box:hibernate())
    assert.equal("running", assert(client:call("open", { name = box.name, cold = true })).state)
    assert.equal(0, assert(box:info()).processes)
    assert.equal("kept\n", box:exec("cat /workspace/file").stdout)
    assert.is_nil(uv.fs_stat(directory))
  end)

  it("leaves nothing on disk when it is stopped or destroyed", function()
    local box = server:sandbox()
    assert(box:hibernate())
    local directory = ("%s/memory/%d"):format(server.state, assert(box:info()).id)
    assert.truthy(uv.fs_stat(directory))
    assert(box:stop())
    assert.equal("stopped", (state_of(box)))
    assert.is_nil(uv.fs_stat(directory))
    assert(box:wake())
    assert(box:hibernate())
    assert(box:destroy())
    assert.is_nil(uv.fs_stat(directory))
  end)

  it("gets back one of everything that a process may hold", function()
    support.image("debian")
    local box = server:sandbox({ image = "debian", cpu = 2 })
    assert(box:write("/workspace/everything.py", assert(support.read("spec/support/everything.py"))))
    for _, tty in ipairs({ false, true }) do
      local directory = tty and "/workspace/tty" or "/workspace/pipes"
      assert(box:mkdir(directory))
      local process = assert(box:start({ "python3", "/workspace/everything.py", directory }, { tty = tty, stdin = true }))
      assert(process:attach({ input = true }))
      assert(process:expect("ready", { timeout = 60 }))
      for round = 1, 3 do
        assert(process:write("check\n"))
        local text = assert(process:expect("checked " .. round .. ": [^\n]*\n", { timeout = 60 }))
        assert.match("checked " .. round .. ": all well\r?\n$", text)
        assert(box:hibernate())
        assert(box:wake())
        assert(process:attach({ input = true, offset = -1 }))
      end
      process:kill(0)
    end
  end)

  it("has its connections to the outside reset, which is counted, and makes new ones", function()
    local box = server:sandbox({ image = support.image("debian") })
    local process = assert(box:start({ "python3", "-uc", [[
import socket
def outside():
    return socket.create_connection(("1.2.3.4", 80))
held = outside()
print("connected")
input()
try:
    held.recv(1)
except ConnectionResetError:
    print("reset")
print("again" if outside() else "")
]] }, { stdin = true }))
    assert(process:attach({ input = true }))
    assert(process:expect("connected\n"))
    assert.equal(1, assert(box:hibernate()).connections_reset)
    assert(box:wake())
    assert(process:attach({ input = true, offset = -1 }))
    assert(process:write("\n"))
    assert(process:expect("reset\nagain\n"))
    process:kill(0)
  end)

  -- CRIU has the process itself write its pages into a pipe; whoever kills CRIU then leaves it a SIGPIPE. What CRIU
  -- does with it is in CRIU's memory alone, so nothing here could save it.
  it("goes on after a dump that was killed, but at most for the process whose pages it was writing", function()
    local box = server:sandbox({ cpu = 2 })
    local other = assert(box:start(COUNT, { name = "count" }))
    assert(other:wait_log("^1$", { timeout = 60 }))
    local info = assert(box:info())
    local directory = ("%s/memory/%d"):format(server.state, info.id)
    local function written()
      local bytes = 0
      for _, name in ipairs(support.names(directory)) do
        local stat = name:find("^pages") and uv.fs_stat(directory .. "/" .. name)
        bytes = bytes + (stat and stat.size or 0)
      end
      return bytes
    end
    local killed, round = 0, 0
    while killed < 3 and round < 30 do -- a dump may be over before it is found
      round = round + 1
      local large = assert(box:start("x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo held; read nothing",
        { name = "large" .. round, stdin = true }))
      assert(large:wait_log("held", { timeout = 60 }))
      async.run(function()
        local done = false
        local task = async.spawn(function()
          box:hibernate()
          done = true
        end)
        while not done and written() < 8e6 do
          async.sleep(0.001)
        end
        local found = not done and support.run({ "pgrep", "-f", "[c]riu dump --tree " .. info.pid .. " " }).stdout:match("%d+")
        if found and uv.kill(tonumber(found), "sigkill") == 0 then
          killed = killed + 1
        end
        task:join()
      end)
      assert.equal("ok\n", assert(box:exec("echo ok")).stdout)
      local now = assert(large:info())
      assert.is_true(now.status == "running" or now.signal == 13, now.status)
      large:kill(0)
      info = assert(box:info())
    end
    assert.is_true(killed > 0)
    assert.equal("running", (state_of(box)))
    assert(box:hibernate())
    assert(box:wake())
    assert.is_nil(assert(other:info()).kind)
  end)

  it("does nothing between the instant of its image and its end, which it would do again", function()
    local box = server:sandbox()
    local process = assert(box:start("i=0; while :; do i=$((i+1)); echo $i >> /workspace/log; done", { name = "busy" }))
    for _ = 1, 4 do
      assert(box:hibernate())
      assert(box:wake())
    end
    process:kill(0)
    local wanted = 0
    for line in assert(box:read("/workspace/log")):gmatch("[^\n]+") do
      wanted = wanted + 1
      assert.equal(tostring(wanted), line)
    end
    assert.is_true(wanted > 4)
  end)

  it("loses no output of a command that somebody waits for", function()
    local box = server:sandbox()
    local command = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; sleep 0.05; done"
    local expected = {}
    for i = 1, 20 do
      expected[i] = i .. "\n"
    end
    async.run(function()
      local exec = async.spawn(box.exec, box, command)
      local cli = async.spawn(async.command, {
        require("tidepool.paths").launcher(), "exec", box.name, "--", "sh", "-c", command, stdout = "pipe", stderr = "pipe",
      })
      async.sleep(0.6)
      assert(box:hibernate())
      assert(box:wake())
      local _, result = exec:join()
      assert.equal(table.concat(expected), assert(result).stdout)
      assert.equal(0, result.exit_code)
      local _, shown = cli:join()
      assert.equal(table.concat(expected), assert(shown).stdout)
      assert.equal(0, shown.code)
    end)
  end)

  it("leaves to the next one what CRIU found out about the kernel, also after one that was killed", function()
    local notes = require("tidepool.server.memory.criu").notes(server.state)
    if not notes then
      pending("needs a file system in memory")
    end
    local unfinished = notes .. "/criu.kdat.tmp"
    uv.fs_unlink(notes .. "/criu.kdat")
    assert(io.open(unfinished, "w")):close()
    assert(uv.fs_utime(unfinished, 1e9, 1e9))
    local box = server:sandbox()
    assert(box:hibernate())
    assert(box:wake())
    assert.truthy(uv.fs_stat(notes .. "/criu.kdat"))
    assert.is_nil(uv.fs_stat(unfinished))
  end)

  it("wakes on a machine with cgroup v2 alone", function()
    local own = support.server()
    local script = [[
umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
TIDEPOOL_STATE="$1" TIDEPOOL_RUN="$2" exec "$3" info]]
    local result = support.run({ "unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh",
      own.state, own.run, require("tidepool.paths").launcher() })
    assert.equal(0, result.code, result.stderr)
    local box = own:sandbox()
    uv.fs_symlink(server.state .. "/criu", own.state .. "/criu")
    local process = assert(box:start(COUNT, { name = "count" }))
    assert(process:wait_log("^3$"))
    assert(box:hibernate())
    assert(box:wake())
    assert(process:wait_log("^9$"))
    assert.match("0::/%x+\n$", assert(box:exec("cat /proc/self/cgroup")).stdout)
    assert.match("cgroup.procs", assert(box:exec("ls /sys/fs/cgroup")).stdout)
  end)

  it("spends its time limits and its pauses awake, while the time of day goes on", function()
    local box = server:sandbox()
    local pauses = assert(box:start("read up rest </proc/uptime; sleep 2; read now rest </proc/uptime; echo $up $now $(date +%s)"))
    async.run(function()
      local exec = async.spawn(box.exec, box, "sleep 1; echo done", { timeout = 12 })
      async.sleep(0.3)
      assert(box:hibernate())
      async.sleep(13)
      assert(box:wake())
      local _, result = exec:join()
      assert.same({ "done\n", 0, nil }, { assert(result).stdout, result.exit_code, result.timed_out })
    end)
    assert(pauses:wait(20))
    local before, after, date = lines(pauses):match("(%S+) (%S+) (%d+)")
    assert.is_true(tonumber(after) - tonumber(before) >= 1.9)
    assert.is_true(math.abs(tonumber(date) - os.time()) < 30)
  end)

  it("does not see the time of its sleep in its monotonic clock", function()
    local box = server:sandbox()
    local function uptime()
      return tonumber(assert(box:exec("cat /proc/uptime")).stdout:match("^[%d.]+"))
    end
    local began, before = uv.hrtime(), uptime()
    assert(box:hibernate())
    async.run(async.sleep, 3)
    assert(box:wake())
    local inside = uptime() - before
    assert.is_true(inside < (uv.hrtime() - began) / 1e9 - 2.5, inside .. " s passed inside")
  end)
end)

describe("a server that is killed while a sandbox goes to sleep or wakes", function()
  local after = { dumped = "running", hibernated = "hibernated", waking = "hibernated", restored = "hibernated" }
  for name, expected in pairs(after) do
    it("at " .. name .. " leaves it " .. expected .. ", and whole", function()
      local shared = support.shared()
      support.needs_criu()
      local server = support.server()
      local box = server:sandbox()
      uv.fs_symlink(shared.state .. "/criu", server.state .. "/criu")
      local process = assert(box:start("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done", { name = "count" }))
      assert(process:wait_log("^3$"))
      local verb = "hibernate"
      if name == "waking" or name == "restored" then
        verb = "wake"
        assert(box:hibernate())
      end
      server:kill()
      uv.os_setenv("TIDEPOOL_STEP", name)
      server:pid()
      uv.os_unsetenv("TIDEPOOL_STEP")
      local once = require("tidepool.client").new({ state = server.state, run = server.run, start = false })
      assert.is_nil(once:call(verb, { name = box.name }))
      assert.equal(expected, assert(box:info()).state)
      assert(box:wake())
      assert(process:wait_log("^9$"))
      assert.same({}, support.names(server.state .. "/memory"))
    end)
  end
end)

describe("without CRIU", function()
  it("hibernation says how to get it, and changes nothing", function()
    support.needs_root()
    if uv.fs_stat("/usr/sbin/criu") then
      pending("needs a machine without CRIU")
    end
    local server = support.server()
    local box = server:sandbox()
    local took, message, code = box:hibernate()
    assert.same({ nil, "ENOPKG" }, { took, code })
    assert.match("memory install", message)
    assert.equal("running", assert(box:info()).state)
  end)

  it("the command line gets it first, or says why that can't be", function()
    support.needs_root()
    if uv.fs_stat("/usr/sbin/criu") then
      pending("needs a machine without CRIU")
    end
    local server = support.server()
    uv.os_setenv("TIDEPOOL_CRIU_SUITES", "")
    local box = server:sandbox()
    uv.os_unsetenv("TIDEPOOL_CRIU_SUITES")
    local result = support.cli({ "hibernate", box.name }, { env = { "PATH=" .. os.getenv("PATH"), "TIDEPOOL_STATE=" .. server.state,
      "TIDEPOOL_RUN=" .. server.run, "TIDEPOOL_BUILD=" .. require("tidepool.paths").build(), "HOME=/" } })
    assert.equal(125, result.code)
    assert.matches("TIDEPOOL_CRIU_SUITES is empty.*%(ENOPKG%)", result.stderr)
    assert.equal("running", assert(box:info()).state)
    assert(uv.fs_symlink(support.shared().state .. "/criu", server.state .. "/criu"))
    if support.shared().client:call("memory_install", {}) then
      assert(box:hibernate())
    end
  end)
end)

-- Spawners: plans are executed, undone when they fail, and nothing leaks.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local spawner = require("tidepool.server.spawner")
local support = require("spec.support")

local function task(fn)
  return function()
    async.run(fn)
  end
end

-- A child that does nothing but exec.
local function child_plan(program, changes)
  local plan = {
    { "clone", "user,pid,mount", 0x70000000, 0 },
    { "idmaps", 0x70000000, 65536 },
    { "child" },
    { "exec", program, 1 },
  }
  for _, change in ipairs(changes or {}) do
    table.insert(plan, change[1], change[2])
  end
  return plan
end

describe("a spawner", function()
  local pool, directory

  lazy_setup(task(function()
    pool = assert(spawner.start(2))
    directory = support.scratch()
  end))

  lazy_teardown(task(function()
    pool:close()
  end))

  -- A spawner closes what a plan held just after it has answered.
  local function spawner_fds()
    return support.settled(function()
      return support.fd_count(pool.members[1].pid) + support.fd_count(pool.members[2].pid)
    end)
  end

  it("executes steps in order", task(function()
    assert(pool:execute({
      { "mkdir", directory .. "/one", 493 },
      { "file", directory .. "/one/file", 420, "hello" },
      { "symlink", "file", directory .. "/one/link" },
      { "rename", directory .. "/one", directory .. "/two" },
    }))
    assert.equal("hello", support.read(directory .. "/two/link"))
  end))

  it("says which step failed and undoes what came before", task(function()
    assert(pool:execute({ { "file", directory .. "/kept", 420, "kept" } }))
    local answer, message, code = pool:execute({
      { "mkdir", directory .. "/half", 493 },
      { "file", directory .. "/half/file", 420, "x" },
      { "symlink", "x", directory .. "/half/link" },
      { "rename", directory .. "/kept", directory .. "/half/kept" },
      { "mount", "tmpfs", directory .. "/nowhere", "tmpfs", "", "" },
    })
    assert.is_nil(answer)
    assert.equal("ENOENT", code)
    assert.truthy(message:find("^plan step 5: mount tmpfs on "), message)
    assert.is_nil(uv.fs_stat(directory .. "/half"))
    assert.equal("kept", support.read(directory .. "/kept"))
  end))

  it("undoes mounts and the groups it made", task(function()
    local detected = require("tidepool.server.cgroup").detect()
    if not detected.unified then
      return pending("needs cgroup v2")
    end
    local group = detected.unified .. "/tidepool-spec-" .. support.unique()
    local _, message = pool:execute({
      { "mkdir", directory .. "/mnt", 493 },
      { "mount", "tmpfs", directory .. "/mnt", "tmpfs", "", "" },
      { "group", group, 5 },
      { "write", group .. "/no-such-file", "1" },
    })
    assert.truthy(message:find("^plan step 4: open "), message)
    assert.is_nil(uv.fs_stat(directory .. "/mnt"))
    assert.is_nil(uv.fs_stat(group))
    assert.is_nil(support.read("/proc/" .. pool.members[1].pid .. "/mountinfo"):find(directory .. "/mnt", 1, true))
  end))

  it("ignores the failure of an optional step", task(function()
    assert(pool:execute({ { "rmdir?", directory .. "/kept" }, { "mkdir", directory .. "/optional", 493 } }))
    assert.truthy(uv.fs_stat(directory .. "/optional"))
  end))

  it("makes a child and tells how it ended", task(function()
    local ended = async.event()
    pool:on_exit(function(pid, status)
      ended:set(pid, status)
    end)
    local answer = assert(pool:execute(child_plan("/bin/true")))
    local pid, status = ended:wait(60)
    assert.equal(answer.pid, pid)
    assert.same({ code = 0 }, status)
    assert.is_true(async.readable(answer.pidfd:number(), 60))
    answer.pidfd:close()
  end))

  it("kills the child when a step inside fails, and says which", task(function()
    local before = spawner_fds()
    for _, case in ipairs({
      { { 4, { "hostname", ("x"):rep(100) } }, "^plan step 4: set hostname: ", "EPERM" },
      { { 4, { "mount", "proc", "/nowhere", "proc", "", "" } }, "^plan step 4: mount proc on /nowhere: ", "ENOENT" },
      { { 4, { "root", 5 } }, "^plan step 4: slot 5 is empty", "EBADF" },
      { { 4, { "join", "/nowhere" } }, "^plan step 4: join /nowhere", "ENOENT" },
      { { 5, { "write", "/nowhere", "x" } }, "^plan step 5: open /nowhere", "ENOENT" },
    }) do
      local answer, message, code = pool:execute(child_plan("/bin/sleep", { case[1] }))
      assert.is_nil(answer)
      assert.truthy(message:find(case[2]), message)
      assert.equal(case[3], code)
    end
    local _, message, code = pool:execute(child_plan("/no/such/program"))
    assert.truthy(message:find("^plan step 4: exec /no/such/program: "), message)
    assert.equal("ENOENT", code)
    assert.equal(before, spawner_fds())
    for i = 1, 2 do
      assert.equal("", support.read(("/proc/%d/task/%d/children"):format(pool.members[i].pid, pool.members[i].pid)))
    end
  end))

  it("passes descriptors by slot and leaks none", task(function()
    local file = assert(core.fd.open(directory .. "/kept"))
    local before, ours = spawner_fds(), support.fd_count()
    for i = 1, 20 do
      assert(pool:execute({ { "copy", 0, directory .. "/copy" .. i, 384 } }, { file }))
      assert.is_nil((pool:execute({ { "copy", 0, directory .. "/copy" .. i, 384 } }, { file })))
      assert.equal("EBADF", select(3, pool:execute({ { "copy", 1, directory .. "/none", 384 } }, { file })))
    end
    assert.equal("kept", support.read(directory .. "/copy20"))
    assert.equal(before, spawner_fds())
    assert.equal(ours, support.fd_count())
    file:close()
  end))

  it("reads ahead what lies below a root, and nothing outside", task(function()
    local root = directory .. "/root"
    assert(pool:execute({
      { "mkdir", root, 493 },
      { "file", root .. "/inside", 420, "x" },
      { "symlink", "/inside", root .. "/link" },
      { "symlink", "/../../../../../etc/passwd", root .. "/out" },
      { "symlink", "/", root .. "/top" },
    }))
    local function code(path)
      return select(3, pool:execute({ { "prefetch", root, path } }))
    end
    assert.is_nil(code("/inside"))
    assert.is_nil(code("/link"))
    assert.equal("ENOENT", code("/out"))
    assert.equal("ENOENT", code("/../../../../../etc/passwd"))
    assert.equal("EINVAL", code("/top"))
  end))

  it("mounts layers one over the other, for ids of a range, and leaves nothing of it when a step fails", task(function()
    local layers, point = directory .. "/layers", directory .. "/point"
    local function overlay(data)
      return { "overlay", 0, layers, directory .. "/mounts", data, 0x71000000 }
    end
    assert(pool:execute({
      { "mkdir", layers, 448 }, { "mkdir", directory .. "/mounts", 448 }, { "mkdir", point, 448 },
      { "mkdir", layers .. "/1", 493 }, { "mkdir", layers .. "/2", 493 }, { "mkdir", layers .. "/2.w", 448 },
      { "file", layers .. "/1/below", 420, "below" },
    }))
    local before = spawner_fds()
    assert(pool:execute({ overlay("lowerdir=1,upperdir=2,workdir=2.w"), { "attach", 0, point } }))
    assert.equal("below", support.read(point .. "/below"))
    local stat = uv.fs_stat(point .. "/below")
    assert.equal(0x71000000, stat.uid)
    assert.equal(0x71000000, stat.gid)
    assert(uv.fs_chmod(point .. "/below", 384))
    assert.equal(384, uv.fs_stat(layers .. "/2/below").mode % 512)
    assert.equal(0, uv.fs_stat(layers .. "/2/below").uid)
    assert.equal(420, uv.fs_stat(layers .. "/1/below").mode % 512)
    assert(pool:execute({ { "umount", point } }))

    local _, message, code = pool:execute({ overlay("lowerdir=no-such-layer,upperdir=2,workdir=2.w") })
    assert.matches("^plan step 1: mount an overlay of lowerdir=no%-such%-layer", message)
    assert.equal("ENOENT", code)
    assert.equal("ENOENT", select(3, pool:execute({
      overlay("lowerdir=1,upperdir=2,workdir=2.w"), { "attach", 0, point }, { "open", 1, "/no/such/file" },
    })))
    assert.equal("EBADF", select(3, pool:execute({ { "attach", 0, point } })))
    assert.equal(before, spawner_fds())
    assert.is_nil(support.read("/proc/self/mountinfo"):find(directory, 1, true))
    assert.same({}, support.names(directory .. "/mounts"))
  end))

  it("refuses bytes that are no plan", task(function()
    assert.equal("EBADMSG", select(3, pool:execute("garbage")))
    assert.equal("EINVAL", select(3, pool:execute({ { "fly" } })))
    assert(pool:execute({}))
  end))

  it("works on while another is busy", task(function()
    local done = {}
    local tasks = {}
    for i = 1, 40 do
      tasks[i] = function()
        assert(pool:execute({ { "ensure", directory .. "/many", 493 }, { "file", directory .. "/many/" .. i, 420, "x" } }))
        done[i] = true
      end
    end
    async.all(tasks)
    assert.equal(40, #done)
  end))

  it("is not kept waiting by what is done in the background", task(function()
    local behind = async.spawn(function()
      for _ = 1, 20 do
        assert(pool:execute({ { "sync", directory } }, nil, true))
      end
    end)
    assert.equal(4, pool.members[2].load)
    for i = 1, 3 do
      async.spawn(function()
        assert(pool:execute({ { "mkdir", directory .. "/before" .. i, 493 } }))
      end)
    end
    assert.equal(3, pool.members[1].load)
    assert(behind:join())
    assert.equal(0, pool.members[1].load + pool.members[2].load)
  end))

  it("is started again when it dies", task(function()
    local old = pool.members[1].pid
    uv.kill(old, 9)
    assert.truthy(support.eventually(function()
      return pool.members[1] and pool.members[1].pid ~= old
    end))
    assert(pool:execute({ { "mkdir", directory .. "/again", 493 } }))
  end))
end)

describe("a pool of spawners", function()
  it("ends with its server; children live on", task(function()
    local pool = assert(spawner.start(1))
    local pid = pool.members[1].pid
    local child = assert(pool:execute(child_plan("/usr/bin/yes"))) -- runs until it is killed
    pool:close()
    assert.truthy(support.eventually(function()
      return not support.alive(pid)
    end))
    assert.is_true(support.alive(child.pid))
    uv.kill(child.pid, 9)
    assert.is_true(async.readable(child.pidfd:number(), 60))
    child.pidfd:close()
    assert.equal("ECANCELED", select(3, pool:execute({})))
  end))

  it("ends with its server though somebody has stopped it", task(function()
    local pool = assert(spawner.start(2))
    local pids = { pool.members[1].pid, pool.members[2].pid }
    for _, pid in ipairs(pids) do
      assert(uv.kill(pid, "sigstop"))
    end
    pool:close()
    assert.truthy(support.eventually(function()
      return not support.alive(pids[1]) and not support.alive(pids[2])
    end))
  end))

  it("fails to start with a reason when the program is missing", task(function()
    local pool, message, code = spawner.start(1, { tools = "/nowhere" })
    assert.is_nil(pool)
    assert.equal("ENOENT", code)
    assert.truthy(message:find("/nowhere/tidepool-spawner", 1, true))
  end))
end)

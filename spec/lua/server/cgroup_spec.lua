-- Control groups: finding the hierarchies, leaves, counters, killing, freezing.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local cgroup = require("tidepool.server.cgroup")
local containers = require("spec.support.container")
local support = require("spec.support")

local function task(fn)
  return function()
    async.run(fn)
  end
end

describe("detecting control groups", function()
  local v1 = "31 23 0:28 / /cg/%s rw - cgroup cgroup rw,%s\n"
  local v2 = "41 31 0:38 / %s rw - cgroup2 cgroup2 rw\n"

  it("finds a hybrid host", function()
    local found = cgroup.detect(v1:format("memory", "memory") .. v1:format("cpu", "cpu,cpuacct") .. v2:format("/nowhere"))
    assert.equal("hybrid", found.mode)
    assert.equal("/nowhere", found.unified)
    assert.same({ memory = "v1", cpu = "v1" }, found.controllers)
    assert.equal("/cg/cpu", found.v1.cpu)
  end)

  it("does not take cpuacct or cpuset for cpu", function()
    assert.same({}, cgroup.detect(v1:format("a", "cpuacct") .. v1:format("b", "cpuset")).controllers)
  end)

  it("finds v2 alone, v1 alone, and nothing", function()
    assert.equal("v2", cgroup.detect(v2:format("/sys/fs/cgroup")).mode)
    assert.equal("v1", cgroup.detect(v1:format("pids", "pids")).mode)
    assert.equal("none", cgroup.detect("22 27 0:21 / /proc rw - proc proc rw\n").mode)
  end)

  it("looks at whole hierarchies only", function()
    assert.equal("none", cgroup.detect("41 31 0:38 /part /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").mode)
  end)
end)

describe("the groups of a server", function()
  local function write(path, text)
    local file = assert(io.open(path, "w"))
    file:write(text)
    file:close()
  end

  -- Directories and files as of a host with v2 alone: what the server writes, the kernel does elsewhere.
  local function tree()
    local root = support.scratch()
    write(root .. "/cgroup.controllers", "cpuset cpu io memory pids\n")
    write(root .. "/cgroup.subtree_control", "")
    return root, ("41 31 0:38 / %s rw - cgroup2 cgroup2 rw\n"):format(root)
  end

  it("get each controller handed down from the root on, which enables none by itself", function()
    local root, mountinfo = tree()
    local groups = assert(cgroup.open("instance", mountinfo))
    assert.same({}, groups.unenforced)
    for _, path in ipairs { "", "/tidepool", "/tidepool/instance" } do
      assert.equal("+pids", support.read(root .. path .. "/cgroup.subtree_control")) -- written last
    end
    assert.equal(root .. "/tidepool/instance", groups.limits.cpu)
  end)

  it("have no limits below a group with processes, where a controller would keep all others out", function()
    local root, mountinfo = tree()
    write(root .. "/cgroup.type", "domain\n") -- the tree's own root has none
    write(root .. "/cgroup.procs", "1\n")
    local groups = assert(cgroup.open("instance", mountinfo))
    assert.equal("", support.read(root .. "/cgroup.subtree_control"))
    assert.equal(3, #groups.unenforced)
    assert.matches("processes in " .. root .. " are in the way", groups.unenforced[1], 1, true)
    assert.same({}, groups.limits)
  end)

  it("say which group does not hand a controller down", function()
    local root, mountinfo = tree()
    assert(os.remove(root .. "/cgroup.subtree_control"))
    assert(uv.fs_mkdir(root .. "/cgroup.subtree_control", 493))
    local groups = assert(cgroup.open("instance", mountinfo))
    assert.equal(3, #groups.unenforced)
    assert.matches("CPU quota: no cpu controller (enable cpu below " .. root .. ": EISDIR", groups.unenforced[1], 1, true)
    assert.same({}, groups.limits)
  end)
end)

describe("a sandbox's control group", function()
  local box, groups, key

  lazy_setup(task(function()
    box = assert(containers.start())
    groups, key = box.host.cgroups, box.spec.cgroup
  end))

  lazy_teardown(task(function()
    box:stop()
  end))

  it("says what can't be enforced", function()
    for _, reason in ipairs(groups.unenforced) do
      assert.truthy(reason:find("no %w+ controller"), reason)
    end
    assert.is_true(#groups.unenforced <= 3)
    if groups.mode == "v2" then
      local offered = support.read(groups.unified .. "/cgroup.controllers")
      for _, name in ipairs { "cpu", "memory", "pids" } do
        assert.equal(offered:find("%f[%w]" .. name .. "%f[%W]") ~= nil, groups.limits[name] ~= nil, name)
      end
    end
  end)

  it("has its limits where the kernel enforces them", function()
    local path = groups.limits.memory
    if not path then
      return pending("needs a memory controller")
    end
    local file = groups.controllers.memory == "v2" and "memory.max" or "memory.limit_in_bytes"
    assert.equal(tostring(box.spec.limits.memory), (support.read(path .. "/" .. key .. "/" .. file):gsub("\n", "")))
    -- On v1 the second one is of memory and swap together.
    local swap, of = "memory.memsw.limit_in_bytes", box.spec.limits.memory * 2
    if groups.controllers.memory == "v2" then
      swap, of = "memory.swap.max", box.spec.limits.memory
    end
    if uv.fs_stat(path .. "/" .. key .. "/" .. swap) then
      assert.equal(("%d\n"):format(of), support.read(path .. "/" .. key .. "/" .. swap))
    end
    local pids = support.read(groups.limits.memory .. "/" .. key .. "/cgroup.procs")
    assert.truthy(pids:find(tostring(box.pid), 1, true))
  end)

  it("makes a leaf for a process, whose cgroup.procs the sandbox's root owns", function()
    local before = support.fd_count()
    local leaf = assert(cgroup.leaf(groups, key, "n1", box.spec.range.base))
    local path = cgroup.directory(groups, key .. "/n1")
    assert.equal(box.spec.range.base, uv.fs_stat(path .. "/cgroup.procs").uid)
    assert.equal(0, uv.fs_stat(path .. "/cgroup.subtree_control").uid)
    assert.equal(0, uv.fs_stat(path).uid)
    assert.same({ "n1" }, cgroup.leaves(groups, key))
    local again = assert(cgroup.leaf(groups, key, "n1", box.spec.range.base + 1))
    assert.equal(box.spec.range.base + 1, uv.fs_stat(path .. "/cgroup.procs").uid)
    again:close()
    leaf:close()
    assert.is_true(cgroup.remove_leaf(groups, key .. "/n1"))
    assert.is_true(cgroup.remove_leaf(groups, key .. "/n1"))
    assert.is_true(support.fd_count() <= before + 1) -- the directory stays open
  end)

  it("makes leaves by the hundred, without much work", function()
    local function cpu() -- microseconds; the clock on the wall tells of the whole machine
      local used = uv.getrusage()
      return (used.utime.sec + used.stime.sec) * 1e6 + used.utime.usec + used.stime.usec
    end
    local began = cpu()
    for i = 1, 100 do
      cgroup.leaf(groups, key, "f" .. i, box.spec.range.base):close()
    end
    local each = (cpu() - began) / 100
    for i = 1, 100 do
      assert.is_true(cgroup.remove_leaf(groups, key .. "/f" .. i))
    end
    assert.is_true(each < 10000, ("%d µs each"):format(each))
  end)

  it("counts CPU time, memory and processes", task(function()
    box:run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    local usage = cgroup.usage(groups, key)
    assert.is_true(usage.cpu_seconds > 0)
    if groups.limits.memory then
      assert.is_true(usage.memory > 0 and usage.memory_peak >= usage.memory)
      assert.equal(0, cgroup.oom_kills(groups, key))
    end
    if groups.limits.pids then
      assert.is_true(usage.pids >= 1)
    end
    assert.is_nil(cgroup.cpu_seconds(groups, "no-such-group"))
  end))

  it("kills the tree of a process and nothing else", task(function()
    local ended = async.spawn(function()
      return box:run("(sleep 100 & sleep 100) & sleep 100")
    end)
    local leaf
    assert.truthy(support.eventually(function()
      for _, name in ipairs(cgroup.leaves(groups, key)) do
        if #support.processes_in(cgroup.directory(groups, key .. "/" .. name)) >= 3 then
          leaf = key .. "/" .. name
        end
      end
      return leaf
    end))
    assert.is_true(cgroup.populated(groups, leaf))
    assert.is_false(cgroup.remove_leaf(groups, leaf))
    assert(cgroup.kill(groups, leaf))
    local _, result = ended:join()
    assert.equal(9, result.signal)
    assert.truthy(support.eventually(function()
      return not cgroup.populated(groups, leaf)
    end))
    assert.is_true(support.alive(box.pid))
    assert.is_true(cgroup.kill(groups, "no-such-group"))
  end))

  it("signals each process of a tree", task(function()
    local ended = async.spawn(function()
      return box:run({ "sleep", "100" })
    end)
    local leaf
    assert.truthy(support.eventually(function()
      for _, name in ipairs(cgroup.leaves(groups, key)) do
        for _, pid in ipairs(support.processes_in(cgroup.directory(groups, key .. "/" .. name))) do
          leaf = support.read("/proc/" .. pid .. "/cmdline") == "sleep\000100\000" and key .. "/" .. name or leaf
        end
      end
      return leaf
    end))
    cgroup.signal(groups, leaf, 15)
    local _, result = ended:join()
    assert.equal(15, result.signal)
  end))

  it("freezes and thaws", task(function()
    assert(cgroup.freeze(groups, key))
    assert.truthy(support.eventually(function()
      return cgroup.frozen(groups, key)
    end))
    assert(cgroup.thaw(groups, key))
    assert.truthy(support.eventually(function()
      return not cgroup.frozen(groups, key)
    end))
    assert.equal(0, box:run({ "true" }).code)
  end))
end)

describe("removing a sandbox's groups", function()
  it("goes on in the background while processes end, and stops when they are wanted again", task(function()
    local box = assert(containers.start())
    local groups, key = box.host.cgroups, box.spec.cgroup
    assert.equal("EBUSY", select(3, cgroup.remove(groups, key)))
    cgroup.kill(groups, key)
    assert.truthy(support.eventually(function()
      return not uv.fs_stat(cgroup.directory(groups, key)) and next(groups.removing) == nil
    end))
    box.link:close()
    box.pidfd:close()
    box = assert(containers.start())
    key = box.spec.cgroup
    assert.equal("EBUSY", select(3, cgroup.remove(groups, key)))
    assert.truthy(groups.removing[key])
    cgroup.steps(groups, key, box.spec.range.base, {})
    assert.is_nil(groups.removing[key])
    box:stop()
  end))
end)

describe("core.cgroup", function()
  it("names what it could not do", function()
    local directory = assert(core.fd.open("/tmp", "rd"))
    assert.equal("ENOENT", select(3, core.cgroup.kill(directory)))
    assert.equal("ENOENT", select(3, core.cgroup.populated(directory)))
    local leaf, message, code = core.cgroup.leaf(directory, "tidepool-spec-" .. support.unique(), 0)
    assert.is_nil(leaf)
    assert.equal("ENOENT", code)
    assert.truthy(message:find("prepare cgroup"))
    assert.equal("ENAMETOOLONG", select(3, core.cgroup.leaf(directory, ("x"):rep(300), 0)))
    directory:close()
  end)
end)

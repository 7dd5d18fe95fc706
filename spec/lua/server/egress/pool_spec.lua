-- Which egress process serves whom, and what happens when one ends.
local async = require("tidepool.async")
local core = require("tidepool.core")
local ids = require("tidepool.server.ids")
local outside = require("tidepool.server.egress.outside")
local egress_pool = require("tidepool.server.egress.pool")
local state = require("tidepool.server.state")
local support = require("spec.support")
local paths = require("tidepool.paths")
local uv = require("luv")

local PEER = paths.repo() .. "/spec/support/egress_peer.lua"

-- What the pool needs of a server.
local function new_server(directory)
  directory = directory or support.scratch()
  return {
    directory = directory,
    run = directory,
    state = assert(state.open(directory .. "/state.db")),
    ids = assert(ids.open({ state = directory, directory = directory .. "/ids" })),
  }
end

-- Notes what the pool asks of its owner, and attaches by a call without descriptors.
local function new_owner()
  local owner = { attached = {}, refused = {}, requests = {} }
  function owner.attach(sandbox)
    owner.attached[#owner.attached + 1] = sandbox.id
  end
  function owner.refuse(sandbox, reason)
    owner.refused[#owner.refused + 1] = { sandbox.id, reason }
  end
  function owner.request(member, method, params)
    owner.requests[#owner.requests + 1] = { member.number, method, params }
    return { answer = method }
  end
  owner.overdue = function() end
  owner.adopted = function() end
  return owner
end

local function sandbox(id, labels)
  return { id = id, name = "box-" .. id, spec = { labels = labels or {} } }
end

local function count(map)
  local number = 0
  for _ in pairs(map) do
    number = number + 1
  end
  return number
end

describe("the pool of egress processes", function()
  local pool, owner, server
  local function open(setting, main)
    owner = new_owner()
    pool = assert(egress_pool.open(server, owner, { setting = setting, main = main or PEER }))
  end
  before_each(function()
    support.needs_root()
    server = new_server()
  end)
  after_each(function()
    async.run(function()
      if pool then
        pool:close(false)
      end
      pool = nil
      async.sleep(0.1)
    end)
    server.state:close()
  end)

  it("starts one when it is needed, as a process of its own", function()
    async.run(function()
      open("1")
      assert.same({}, pool:list())
      local member = pool:assign(sandbox(1))
      local process = assert(pool:wait(member))
      assert.is_true(support.alive(process.pid))
      assert.is_true(process.base >= ids.FIRST)
      assert.equal(1, pool:list()[1].sandboxes)
      assert.is_truthy(support.eventually(function()
        return owner.attached[1] == 1
      end))
      assert.equal(1, #server.state.db:rows("SELECT * FROM egress_processes"))
    end)
  end)

  it("gives a process to the sandbox with the least loaded one, and no more processes than it is told", function()
    async.run(function()
      open("2")
      local first = pool:assign(sandbox(1))
      local second = pool:assign(sandbox(2))
      local third = pool:assign(sandbox(3))
      assert.equal(first, second)
      assert.not_equal(first, third)
      pool:assign(sandbox(4))
      pool:assign(sandbox(5))
      assert.equal(2, count(pool.members))
    end)
  end)

  it("gives one to each value of a label, or to each sandbox", function()
    async.run(function()
      open("label:tenant")
      local a = pool:assign(sandbox(1, { tenant = "a" }))
      assert.equal(a, pool:assign(sandbox(2, { tenant = "a" })))
      assert.not_equal(a, pool:assign(sandbox(3, { tenant = "b" })))
      assert.not_equal(a, pool:assign(sandbox(4)))
      pool:wait(a)
      pool:close(false)
      open("sandbox")
      assert.not_equal(pool:assign(sandbox(1)), pool:assign(sandbox(2)))
    end)
  end)

  it("refuses its sandboxes when one is killed, starts another and attaches them again", function()
    async.run(function()
      open("1")
      local member = pool:assign(sandbox(1))
      local process = assert(pool:wait(member))
      uv.kill(process.pid, "sigkill")
      assert.is_truthy(support.eventually(function()
        return #owner.attached == 2
      end))
      assert.equal(1, owner.refused[1][1])
      assert.matches("its egress process ended", owner.refused[1][2])
      assert.not_equal(process.pid, member.process.pid)
      assert.is_true(support.alive(member.process.pid))
    end)
  end)

  it("tries again and again when one can't be started, and holds nobody up", function()
    async.run(function()
      local main = server.directory .. "/main.lua"
      open("1", main)
      local member = pool:assign(sandbox(1))
      local process, message = pool:wait(member)
      assert.is_nil(process)
      assert.matches("egress process", message)
      local before = uv.hrtime()
      assert.is_nil((pool:wait(member)))
      assert.is_true(uv.hrtime() - before < 10e9) -- as long as a start may take is 15 s
      assert(uv.fs_symlink(PEER, main))
      assert.is_truthy(support.eventually(function()
        return #owner.attached == 1
      end))
    end)
  end)

  it("asks any of them what concerns no sandbox, also once more when that one dies", function()
    async.run(function()
      open("1")
      assert.is_true(pool:call_any("check", { policies = { { name = "a", text = "fine" } } }))
      local ok, message, code = pool:call_any("check", { policies = { { name = "a", text = "wrong" } } })
      assert.is_nil(ok)
      assert.equal("policy a: wrong", message)
      assert.equal("EINVAL", code)
      ok = pool:call_any("check", { policies = { { name = "a", text = "die" } } })
      assert.is_nil(ok)
      assert.is_true(pool:call_any("check", { policies = {} }))
    end)
  end)

  it("has certificate authorities ready, each for one sandbox", function()
    async.run(function()
      open("1")
      pool:warm()
      assert.is_truthy(support.eventually(function()
        return #pool.reserve >= 8
      end))
      local seen = {}
      for _ = 1, 20 do
        local ca = assert(pool:take_ca())
        assert.is_nil(seen[ca.cert])
        seen[ca.cert] = true
      end
    end)
  end)

  it("answers what a process asks, and knows which one asks", function()
    async.run(function()
      open("1")
      local member = pool:assign(sandbox(1))
      local answer = assert(assert(pool:wait(member)):call("ask", { method = "audit", params = { entries = { { id = 1 } } } }))
      assert.equal("audit", answer.result.answer)
      assert.same({ member.number, "audit", { entries = { { id = 1 } } } }, owner.requests[1])
    end)
  end)

  it("passes on who ran too long when one ended", function()
    async.run(function()
      open("1")
      local seen
      owner.overdue = function(_, text)
        seen = text
      end
      local member = pool:assign(sandbox(1))
      local process = assert(pool:wait(member))
      process.overdue = function()
        return "policy p of sandbox box-1, request"
      end
      uv.kill(process.pid, "sigkill")
      assert.is_truthy(support.eventually(function()
        return seen
      end))
    end)
  end)

  it("leaves them alone when the server ends, and finds them again", function()
    async.run(function()
      open("1")
      local ours, theirs = assert(core.fd.pair())
      local member = pool:assign(sandbox(7))
      local process = assert(pool:wait(member))
      assert(process:call("attach", { id = 7, revision = 3, handles = { "tcp4" } }, { theirs }))
      theirs:close()
      pool:close(true)
      async.sleep(0.1)
      assert.is_true(support.alive(process.pid))

      open("1")
      assert(pool:adopt())
      local holder, entry = pool:holder(7)
      assert.equal(process.pid, holder.process.pid)
      assert.equal(3, entry.revision)
      local names, fds = holder.process:call("handles", { id = 7 })
      assert.same({ "tcp4" }, names)
      fds[1]:close()
      holder.sandboxes[7] = sandbox(7)
      pool:reconcile()
      assert.equal(7, holder.process:call("told", { id = 7 }).id)
      ours:close()

      -- One that nobody claims is told so.
      pool:close(true)
      open("1")
      assert(pool:adopt())
      holder = pool:holder(7)
      pool:reconcile()
      assert.is_truthy(support.eventually(function()
        return holder.process:call("told", { id = 7 }) == nil
      end))
    end)
  end)

  it("takes one over that tells nonsense, believes none of it and starts all the same", function()
    async.run(function()
      for _, nonsense in ipairs({ "nothing", { 1, "x", {}, { id = "7" }, { id = 7, revision = "all" } } }) do
        open("1")
        local ours, theirs = assert(core.fd.pair())
        local member = pool:assign(sandbox(7))
        local process = assert(pool:wait(member))
        assert(process:call("attach", { id = 7, handles = { "tcp4" }, nonsense = nonsense }, { theirs }))
        theirs:close()
        pool:close(true)
        async.sleep(0.1)
        open("1")
        assert(pool:adopt())
        local _, entry = pool:holder(7)
        assert.same(type(nonsense) == "table" and { revision = 0 } or nil, entry)
        assert.is_nil((pool:holder("7")))
        pool:reconcile()
        pool:close(false)
        ours:close()
      end
    end)
  end)

  it("does not take another process for one of its own", function()
    async.run(function()
      local host = require("tidepool.server.host")
      local other = uv.os_getpid()
      local base = server.ids:allocate()
      server.state.db:execute("INSERT INTO egress_processes (number, pid, start_time, boot_id, base) VALUES (1, ?, 1, ?, ?)",
        other, host.boot_id(), base)
      open("1")
      assert(pool:adopt())
      assert.same({}, pool:list())
      assert.is_true(support.alive(other))
      assert.same({}, server.state.db:rows("SELECT * FROM egress_processes"))
    end)
  end)

  it("leaves nothing open or running when it is closed, also while garbage is collected all the time", function()
    async.run(function()
      local before = support.fd_count()
      for turn = 1, 6 do
        collectgarbage("setpause", turn > 3 and 1 or 200)
        collectgarbage("setstepmul", turn > 3 and 10000 or 200)
        open("2")
        local member = pool:assign(sandbox(1))
        pool:assign(sandbox(2))
        local pid = assert(pool:wait(member)).pid
        pool:close(false)
        assert.is_truthy(support.eventually(function()
          return not support.alive(pid)
        end))
        async.sleep(0.1)
      end
      collectgarbage("setpause", 200)
      collectgarbage("setstepmul", 200)
      collectgarbage()
      assert.is_true(support.eventually(function()
        return support.fd_count() <= before + 2
      end))
      assert.same({}, server.state.db:rows("SELECT * FROM egress_processes"))
      for _, name in ipairs(support.names(server.directory)) do
        assert.is_nil(name:match("^egress%-"), name)
      end
    end)
  end)
end)

describe("what egress processes are told of the host", function()
  it("is how many they are", function()
    assert.same({ most = 3 }, outside.setting("3"))
    assert.same({ label = "tenant" }, outside.setting("label:tenant"))
    assert.same({ each = true }, outside.setting("sandbox"))
    assert.is_true(outside.setting("core").most >= 1)
    assert.same(outside.setting(nil), outside.setting("core"))
    for _, text in ipairs({ "0", "many", "label:", "-1", "5000" }) do
      local setting, _, code = outside.setting(text)
      assert.is_nil(setting)
      assert.equal("EINVAL", code)
    end
  end)

  it("is who answers for names", function()
    assert.same({ "10.0.0.1", "fd00::1" }, outside.nameservers("search x\nnameserver 10.0.0.1\n nameserver fd00::1\nnameserver fe80::1%eth0\n#nameserver 1.1.1.1"))
    assert.same({ "127.0.0.1" }, outside.nameservers(""))
    assert.same({ "127.0.0.1" }, outside.nameservers(nil))
  end)

  it("is the hosts file, without the host's own loopback", function()
    assert.same({ ["a.test"] = { "10.0.0.1", "fd00::1" }, b = { "10.0.0.1" } },
      outside.hosts("127.0.0.1 localhost\n::1 localhost\n10.0.0.1 A.test b # c\nfd00::1 a.test\nff02::1 all\n\n# 10.0.0.2 x\n"))
  end)
end)

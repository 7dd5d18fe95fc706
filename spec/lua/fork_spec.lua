-- Branches: forks of a sandbox or snapshot that run at once, and the one that takes its parent's place.
local support = require("spec.support")
local async = require("tidepool.async")
local uv = require("luv")

local function box_of(server, name)
  return require("tidepool.client.box").new(server.client, name)
end

-- A server, destroyed with all that its branches left.
local function fresh()
  local server = support.server()
  local box = server:sandbox({ cpu = 2 })
  support.defer(function()
    for _, info in ipairs(assert(server.client:call("ls", {}))) do
      server.client:call("destroy", { name = info.name })
    end
  end)
  return server, box
end

describe("a fork", function()
  local server, box
  setup(function()
    support.needs_root()
    server, box = fresh()
    assert(box:write("/workspace/file", "shared"))
  end)

  it("gives branches with the files of one instant, each a sandbox of its own", function()
    local outcomes = assert(box:fork(3, function(branch, i)
      assert(branch:write("/workspace/own", tostring(i)))
      return branch:exec("cat /workspace/file; hostname; cat /etc/machine-id").stdout
    end))
    assert.equal(3, #outcomes)
    local seen = {}
    for i, outcome in ipairs(outcomes) do
      assert.is_true(outcome.ok, outcome.error)
      local content, host, machine = outcome.result:match("^(shared)(%S+)\n(%x+)\n$")
      assert.equal("shared", content)
      assert.equal(outcome.branch.name, host)
      assert.is_nil(seen[machine])
      seen[machine] = true
      assert.equal(tostring(i), outcome.branch:read("/workspace/own"))
      assert.equal(box.name, outcome.branch:info().branch_of)
    end
    assert.is_nil(box:read("/workspace/own"))
    for _, outcome in ipairs(outcomes) do
      assert(outcome.branch:destroy())
    end
  end)

  it("runs them concurrently, and tells each one's error apart", function()
    local together, most = 0, 0
    local outcomes = assert(box:fork(3, function(branch, i)
      together = together + 1
      most = math.max(most, together)
      assert(branch:exec("sleep 0.3"))
      together = together - 1
      assert(i ~= 2, "the second can't")
      return i * 10
    end))
    assert.equal(3, most)
    assert.same({ true, false, true }, { outcomes[1].ok, outcomes[2].ok, outcomes[3].ok })
    assert.matches("the second can't", outcomes[2].error)
    assert.equal(30, outcomes[3].result)
    for _, outcome in ipairs(outcomes) do
      assert(outcome.branch:destroy())
    end
  end)

  it("is made of a snapshot and of a stopped sandbox too", function()
    assert(box:snapshot("base"))
    local list = assert(server.client:call("fork", { source = box.name .. "@base", count = 2 }))
    assert.equal(2, #list)
    assert.equal(box.name .. "@base", list[1].parent)
    assert.equal("shared", box_of(server, list[2].name):read("/workspace/file"))
    assert(box:stop())
    local of_stopped = assert(box:fork(1))[1]
    assert.equal("shared", of_stopped:read("/workspace/file"))
    assert.equal("stopped", box:info().state)
    for _, name in ipairs({ list[1].name, list[2].name, of_stopped.name }) do
      assert(server.client:call("destroy", { name = name }))
    end
    assert(box:wake())
  end)

  it("has its parent's policies, and a certificate authority of its own", function()
    assert(server.client:call("egress_set", { name = box.name, policies = { { name = "allow_hosts", options = { hosts = { "example.com" } } } } }))
    local branch = assert(box:fork(1))[1]
    local shown = assert(branch:egress_show())
    assert.equal("allow_hosts", shown.policies[1].name)
    assert.same({ "example.com" }, shown.policies[1].options.hosts)
    assert.equal("served", shown.state)
    local function certificate(of)
      return of:exec({ "cat", "/usr/local/share/ca-certificates/tidepool.crt" }).stdout
    end
    assert.not_equal(certificate(box), certificate(branch))
    assert.not_equal(box:egress_show().counters.denied, nil)
    assert(branch:destroy())
  end)

  it("answers with stable codes", function()
    assert.equal("ENOSANDBOX", (select(3, server.client:call("fork", { source = "nobody" }))))
    assert.equal("ENOSNAPSHOT", (select(3, server.client:call("fork", { source = "nobody@one" }))))
    assert.equal("EINVAL", (select(3, server.client:call("fork", { source = box.name, count = 0 }))))
    assert.equal("EINVAL", (select(3, server.client:call("promote", { name = box.name }))))
  end)

  it("is made once by a request that is sent again, over servers that are killed", function()
    for i = 1, 5 do
      async.run(function()
        local pid = server:pid()
        local task = async.spawn(function()
          return box:fork(4)
        end)
        async.sleep(0.004 * i)
        uv.kill(pid, "sigkill")
        local _, branches, message = task:join()
        assert(branches, message)
        local names = {}
        for _, branch in ipairs(branches) do
          names[branch.name] = true
          assert.equal("shared", branch:read("/workspace/file"))
        end
        local count = 0
        for _, info in ipairs(assert(server.client:call("ls", {}))) do
          count = count + (names[info.name] and 1 or 0)
        end
        assert.equal(4, count)
        assert.equal(5, #server.client:call("ls", {}), "more than the four and their parent")
        for _, branch in ipairs(branches) do
          assert(branch:destroy())
        end
      end)
    end
  end)

  it("makes 100 at once, and all of them run", function()
    local branches = assert(box:fork(100))
    assert.equal(100, #branches)
    async.run(function()
      local tasks = {}
      for i, branch in ipairs(branches) do
        tasks[i] = function()
          assert.equal("shared", assert(branch:exec({ "cat", "/workspace/file" })).stdout)
          assert(branch:destroy())
        end
      end
      async.all(tasks)
    end)
    assert.equal(1, #assert(server.client:call("ls", {})))
  end)
end)

describe("a branch that is promoted", function()
  local server, box
  setup(function()
    support.needs_root()
  end)
  before_each(function()
    server, box = fresh()
    assert(box:write("/workspace/file", "old"))
  end)

  it("is the sandbox of its parent's name, with its processes, and the parent is gone", function()
    local name, parent = box.name, box:info()
    local branch = assert(box:fork(1))[1]
    local former = branch.name
    assert(branch:write("/workspace/file", "new"))
    local process = assert(branch:start("while :; do echo tick; sleep 0.05; done", { name = "ticker" }))
    local pid = branch:info().pid
    assert.equal(branch, assert(branch:promote()))
    assert.equal(name, branch.name)
    local info = box:info()
    assert.not_equal(parent.id, info.id)
    assert.equal(pid, info.pid)
    assert.is_nil(info.branch_of)
    assert.equal("new", box:read("/workspace/file"))
    assert.equal("running", box:process("ticker"):info().status)
    assert.equal("ENOSANDBOX", (select(3, server.client:call("info", { name = former }))))
    assert.is_true(support.eventually(function()
      return not support.alive(parent.pid)
    end))
    server:kill()
    assert.equal("running", box:process("ticker"):info().status)
    assert.equal(pid, box:info().pid)
    assert(process)
    assert(box:stop())
    assert.equal("new", box:read("/workspace/file"))
    assert.equal(name .. "\n", box:exec({ "hostname" }).stdout)
  end)

  it("wins over its siblings, who can't replace it", function()
    local branches = assert(box:fork(2))
    async.run(function()
      local tasks, codes = {}, {}
      for i, branch in ipairs(branches) do
        tasks[i] = function()
          local ok, _, code = branch:promote()
          codes[i] = ok and "ok" or code
        end
      end
      async.all(tasks)
      table.sort(codes)
      assert.same({ "ENOSANDBOX", "ok" }, codes)
    end)
    assert.equal(2, #assert(server.client:call("ls", {})))
  end)

  it("takes the place of a stopped or frozen parent too", function()
    for _, verb in ipairs({ "stop", "freeze" }) do
      local branch = assert(box:fork(1))[1]
      assert(branch:write("/workspace/file", verb))
      assert(box[verb](box))
      assert(branch:promote())
      assert.equal(verb, box:read("/workspace/file"))
      assert.equal(1, #assert(server.client:call("ls", {})))
    end
  end)

  it("is the old or the new one when the server is killed at any instant", function()
    local seen = {}
    for i = 0, 11 do
      local branch = assert(box:fork(1))[1]
      assert(box:write("/workspace/file", "old"))
      assert(branch:write("/workspace/file", "new"))
      async.run(function()
        local pid = server:pid()
        local task = async.spawn(branch.promote, branch)
        async.sleep(0.0005 * i)
        uv.kill(pid, "sigkill")
        task:join()
      end)
      server:pid() -- until there is a server again, a connection to the old one's files may live on
      local content = assert(box:read("/workspace/file"))
      seen[content] = true
      local list = assert(server.client:call("ls", {}))
      assert.equal(content == "new" and 1 or 2, #list)
      for _, info in ipairs(list) do
        if info.name ~= box.name then
          server.client:call("destroy", { name = info.name })
        end
      end
    end
    assert.is_true(seen.new or seen.old)
  end)

  it("is the new one when the server is killed right after the name was given", function()
    local branch = assert(box:fork(1))[1]
    assert(branch:write("/workspace/file", "new"))
    server:kill()
    uv.os_setenv("TIDEPOOL_STEP", "name_taken")
    server:pid()
    uv.os_unsetenv("TIDEPOOL_STEP")
    server.client:call("promote", { name = branch.name })
    server:pid()
    assert.equal("new", box:read("/workspace/file"))
    assert.equal(1, #assert(server.client:call("ls", {})))
    assert.is_true(support.eventually(function()
      return #support.names(("/proc/%d/root%s/pool/sandboxes"):format(server:pid(), server.state)) == 1
    end))
  end)
end)

describe("a server that is killed while it forks", function()
  for _, name in ipairs({ "fork_staged", "files_made", "forked" }) do
    it("at " .. name .. " leaves no files that belong to nobody, and whole branches or none", function()
      support.needs_root()
      local server, box = fresh()
      assert(box:write("/workspace/file", "shared"))
      server:kill()
      uv.os_setenv("TIDEPOOL_STEP", name)
      server:pid()
      uv.os_unsetenv("TIDEPOOL_STEP")
      assert.equal(3, #assert(box:fork(3))) -- sent again, to the next server
      local list = assert(server.client:call("ls", {}))
      assert.equal(4, #list)
      for _, info in ipairs(list) do
        assert.equal("shared", box_of(server, info.name):read("/workspace/file"))
      end
      local pool = ("/proc/%d/root%s/pool/"):format(server:pid(), server.state)
      assert.is_true(support.eventually(function()
        return #support.names(pool .. "sandboxes") == 4 and #support.names(pool .. "staging") == 0
      end))
    end)
  end
end)

-- The key that seals secrets at rest, lost and found, with a real server and sandboxes that go on without it.
local uv = require("luv")
local search = require("spec.support.search")
local support = require("spec.support")
local web = require("spec.support.web")

describe("an egress process that outlived its server", function()
  it("is told which secrets there are, since the last change may not have reached it", function()
    support.needs_root()
    local server, echo = support.server(), web.echo()
    local box = server:sandbox()
    for _, name in ipairs({ "gone", "kept" }) do
      assert(server.client:call("secret_set", { secret = name, value = "the value of " .. name }))
    end
    local function ask(name)
      assert(box:egress_set({ { "http_basic", hosts = { "a.test" }, user = "me", secret = name, plain = true, ports = { "80" },
        to = { ["a.test"] = "127.0.0.1:" .. echo.port } } }))
      return assert(box:exec("wget -qO- http://a.test/echo 2>&1")).stdout
    end
    assert.matches("GET /echo", ask("gone"))
    local pid = assert(box:egress_show()).process.pid
    server:kill()
    assert.equal(0, support.run({ "/usr/bin/python3", "-c",
      "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(\"DELETE FROM secrets WHERE name = 'gone'\"); c.commit()",
      server.state .. "/state.db" }).code)
    assert.matches("403", ask("gone"))
    assert.matches("GET /echo", ask("kept"))
    assert.equal(pid, assert(box:egress_show()).process.pid)
  end)
end)

describe("the key of a state directory", function()
  local server, key
  setup(function()
    support.needs_root()
    server = support.server()
    server:sandbox()
    key = server.state .. "/secret.key"
  end)

  -- A server that finds its key like this: the problem that `secret ls` tells, and the rest works.
  local function expect(problem)
    local name = assert(server.client:call("ls", {}))[1].name
    server:kill()
    assert.is_truthy(assert(server.client:call("secret_ls", {}))[1].problem:find(problem, 1, true))
    local kept = require("tidepool.client.box").new(server.client, name)
    assert.equal("hi\n", assert(kept:exec("echo hi")).stdout)
    assert(kept:egress_set({ { "http_basic", hosts = { "a.test" }, user = "me", secret = "kept" }, { "allow_hosts", hosts = { "b.test" } } }))
    assert.matches("Address: 198.18", assert(kept:exec({ "nslookup", "b.test" })).stdout)
    local made = server:sandbox()
    assert.equal("served", support.eventually(function()
      local state = assert(made:egress_show()).state
      return state == "served" and state
    end))
    assert(made:destroy())
    local made_other, message = server.client:call("secret_set", { secret = "other", value = "long enough" })
    return made_other, message
  end

  it("is read by its owner alone", function()
    assert(server.client:call("secret_set", { secret = "kept", value = "a value that is kept" }))
    local stat = uv.fs_lstat(key)
    assert.equal(tonumber("100600", 8), stat.mode)
    assert.equal(0, stat.uid)
  end)

  it("seals what policies remember, too, which may be a token", function()
    local policy = server.state .. "/../keeper.lua"
    web.write(policy, [[return policy { name = "keeper", about = "Remembers.",
      connect = function() return allow() end,
      request = function(event)
        state.token = state.token or "remembered-" .. event.path
        return respond(200, {}, state.token)
      end }]])
    local box = server:sandbox()
    assert(box:egress_set({ { policy } }))
    local function ask(path)
      return assert(box:exec({ "wget", "-qO-", "http://a.test" .. path })).stdout
    end
    assert.equal("remembered-/first", ask("/first"))
    local function rows()
      return support.run({ "/usr/bin/python3", "-c",
        "import sqlite3, sys; print([r[0] for r in sqlite3.connect(sys.argv[1]).execute('SELECT state FROM policy_states')])",
        server.state .. "/state.db" }).stdout
    end
    assert.is_truthy(support.eventually(function()
      return rows():find("%x%x%x%x")
    end))
    assert.matches("^%['%x+'%]\n$", rows())
    assert.same({}, search.files(server.state, "remembered-/first", "pool.img"))
    local pid = assert(box:egress_show()).process.pid
    assert(uv.kill(pid, "sigkill"))
    assert.is_truthy(support.eventually(function()
      return ask("/second") == "remembered-/first"
    end))
    assert(box:destroy())
  end)

  it("is missed with a clear word when it is gone, and what needs no secret goes on", function()
    assert(os.rename(key, key .. ".away"))
    local made, message = expect("secret.key is gone, and with it every secret")
    assert.is_nil(made)
    assert.matches("bring it back", message)
    assert.is_nil(support.read(key))
  end)

  it("is not mistaken for another's", function()
    web.write(key, ("k"):rep(32))
    assert(uv.fs_chmod(key, tonumber("600", 8)))
    expect("was not sealed with")
    assert(server.client:call("secret_rm", { secret = "other" }))
  end)

  it("opens all again when it is back", function()
    assert(os.rename(key .. ".away", key))
    server:kill()
    assert.is_nil(assert(server.client:call("secret_ls", {}))[1].problem)
  end)
end)

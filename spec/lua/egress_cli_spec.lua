-- Egress, policies and secrets as people meet them: the command line and the Lua API, with real egress
-- processes.
local async = require("tidepool.async")
local sandbox = require("sandbox")
local support = require("spec.support")
local uv = require("luv")

local cjson = require("cjson")

local VALUE = "ghp_" .. ("Zq9"):rep(12)

local function cli(...)
  return support.cli({ ... })
end

local function json(...)
  local words = { ... }
  words[#words + 1] = "--json"
  local result = support.cli(words)
  return cjson.decode(result.stdout), result
end

local function write(path, text)
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
  return path
end

-- The address that a name has inside, or nil.
local function resolve(box, name)
  local result = assert(box:exec({ "nslookup", name }))
  return result.stdout:match("Name:%s+" .. name:gsub("%p", "%%%0") .. "\nAddress: (%d[%d.]+)")
end

-- The pid of the egress process that serves it, once one does.
local function served(box)
  local info = support.eventually(function()
    local shown = assert(box:egress_show())
    return shown.state == "served" and shown
  end)
  assert.is_truthy(info, "no egress process serves " .. box.name)
  return info.process.pid
end

-- Waits for an entry: what is decided is written down a moment later.
local function entry(box, wanted)
  return support.eventually(function()
    for _, found in ipairs(assert(box:egress_log({ limit = 2000 }))) do
      local same = true
      for key, value in pairs(wanted) do
        same = same and found[key] == value
      end
      if same then
        return found
      end
    end
  end)
end

describe("egress policies", function()
  local box
  setup(function()
    support.needs_root()
    box = support.sandbox()
  end)

  it("deny everything unless told otherwise", function()
    served(box)
    local info = assert(box:egress_show())
    assert.equal("deny_all", info.policies[1].name)
    assert.is_nil(resolve(box, "example.test"))
    local denied = entry(box, { action = "deny", host = "example.test" })
    assert.equal("deny_all", denied.policy)
    assert.equal("resolve", denied.hook)
    assert.equal(box.name, denied.sandbox)
    assert.is_true(assert(box:egress_show()).counters.denied >= 1)
  end)

  it("are set, added, changed and removed while it runs", function()
    assert.equal(0, cli("egress", "set", box.name, "allow_hosts", "hosts=a.test,b.test").code)
    assert.is_truthy(resolve(box, "a.test"))
    assert.is_nil(resolve(box, "c.test"))
    local shown = json("egress", "add", box.name, "allow_hosts", "hosts=c.test")
    assert.equal(1, #shown.policies)
    assert.is_truthy(resolve(box, "c.test"))
    assert.is_nil(resolve(box, "a.test"))
    assert(box:egress("audit_only"))
    assert.equal(2, #assert(box:egress_show()).policies)
    assert.is_truthy(resolve(box, "c.test"))
    assert.equal(0, cli("egress", "rm", box.name, "audit_only").code)
    assert.is_truthy(resolve(box, "c.test"))
    assert(box:egress_set({}))
    assert.equal("deny_all", assert(box:egress_show()).policies[1].name)
    assert.is_nil(resolve(box, "c.test"))
  end)

  it("are given when a sandbox is made", function()
    local name = "spec-" .. support.unique()
    local made = cli("create", name, "--image", "minimal", "--egress", "allow_hosts,hosts=a.test,b.test", "--egress", "deny_all")
    assert.equal(0, made.code, made.stderr)
    local other = sandbox.get(name)
    support.defer(function()
      other:destroy()
    end)
    assert.equal("allow_hosts,deny_all", assert(other:info()).egress)
    assert.is_truthy(resolve(other, "b.test"))
    assert(other:destroy())

    other = assert(sandbox.create(name, { image = "minimal", egress = { { "allow_hosts", hosts = { "a.test" } } } }))
    assert.is_truthy(resolve(other, "a.test"))
    assert.is_nil(resolve(other, "b.test"))
    assert(other:destroy())
  end)

  it("may be files, which the caller reads", function()
    local path = write(support.scratch() .. "/mine.lua", [[
      return policy {
        name = "mine",
        about = "One host.",
        options = { host = { type = "string", required = true } },
        connect = function(event, options)
          if event.host == options.host then return allow() end
        end,
      }]])
    assert(box:egress_set({ { path, host = "mine.test" } }))
    assert.is_true(assert(box:egress_show()).policies[1].file)
    os.remove(path)
    assert.is_truthy(resolve(box, "mine.test"))
    assert.is_nil(resolve(box, "a.test"))
    local shown = cli("egress", "show", box.name)
    assert.matches("mine%s+host=mine.test %(from a file%)", shown.stdout)
  end)

  it("take options from files", function()
    local path = write(support.scratch() .. "/hosts", "a.test,b.test\n")
    assert.equal(0, cli("egress", "set", box.name, "allow_hosts", "hosts=@" .. path).code)
    assert.is_truthy(resolve(box, "b.test"))
  end)

  it("that are wrong are refused with the reason, and nothing changes", function()
    assert(box:egress_set({ { "allow_hosts", hosts = { "a.test" } } }))
    local before = assert(box:egress_show())
    local broken = write(support.scratch() .. "/broken.lua", "return policy { name = 'broken', connect = ")
    for expected, words in pairs({
      ["ENOPOLICY"] = { "nosuch" },
      ["unknown option colour.*EINVAL"] = { "allow_hosts", "hosts=a.test", "colour=red" },
      ["private.*EINVAL"] = { "allow_hosts", "hosts=a.test", "private=maybe" },
      ["broken.*EINVAL"] = { broken },
      ["no such file.*ENOENT"] = { "./nowhere.lua" },
      ["ENOENT"] = { "allow_hosts", "hosts=@/nowhere" },
      ["expected KEY=VALUE.*EINVAL"] = { "allow_hosts", "hosts" },
    }) do
      local result = cli("egress", "set", box.name, unpack(words))
      assert.equal(125, result.code)
      assert.matches(expected:lower(), result.stderr:lower())
    end
    local created = cli("create", "spec-" .. support.unique(), "--image", "minimal", "--egress", "nosuch")
    assert.matches("ENOPOLICY", created.stderr)
    local after = assert(box:egress_show())
    assert.equal(before.revision, after.revision)
    assert.same(before.policies, after.policies)
    assert.is_truthy(resolve(box, "a.test"))
    local _, _, code = box:egress_rm("github")
    assert.equal("ENOPOLICY", code)
  end)

  it("are listed and printed", function()
    local list = json("policy", "ls")
    local names = {}
    for _, item in ipairs(list) do
      names[item.name] = item.about
    end
    assert.is_truthy(names.deny_all and names.allow_hosts)
    assert.matches("return policy", cli("policy", "show", "allow_hosts").stdout)
    assert.matches("ENOPOLICY", cli("policy", "show", "nosuch").stderr)
  end)

  it("leave what they decided in a log that is one line a decision, and can be followed", function()
    assert(box:egress_set({ { "allow_hosts", hosts = { "a.test" } } }))
    local name = "log-" .. support.unique() .. ".test"
    async.run(function()
      local following = assert(box:egress_log({ follow = true }))
      local follower = async.spawn(function()
        for found in following do
          if found.host == name then
            return found
          end
        end
      end)
      async.sleep(0.2)
      resolve(box, name)
      local _, seen = follower:join()
      assert.equal("deny", seen.action)
    end)
    local shown = cli("egress", "log", box.name, "--denied")
    assert.equal(0, shown.code)
    assert.is_truthy(shown.stdout:find(name, 1, true))
    for line in shown.stdout:gmatch("[^\n]+") do
      assert.matches("^%d+%-%d+%-%d+ %d+:%d+:%d+  deny", line)
    end
    local list = json("egress", "log", box.name, "--limit", "1")
    assert.equal(1, #list)
    assert.matches("ENOSANDBOX", cli("egress", "log", "nobody-had-this-name").stderr)
  end)
end)

describe("a sandbox's egress", function()
  local server, box
  setup(function()
    support.needs_root()
    server = support.server()
    box = server:sandbox()
    assert(box:egress_set({ { "allow_hosts", hosts = { "*.test" } } }))
    served(box)
    assert.is_truthy(resolve(box, "first.test"))
  end)

  it("is served again when its process was killed, by another", function()
    local before, address = served(box), resolve(box, "kept.test")
    assert(uv.kill(before, "sigkill"))
    assert.is_truthy(support.eventually(function()
      local shown = box:egress_show()
      return shown.process and shown.process.pid ~= before
    end))
    assert.equal(address, resolve(box, "kept.test"))
    assert.equal("running", assert(box:info()).state)
    assert.is_truthy(support.eventually(function()
      for _, found in ipairs(assert(box:egress_log())) do
        if found.action == "deny" and (found.reason or ""):find("egress process ended", 1, true) then
          return true
        end
      end
    end), "nothing says that it was refused meanwhile")
  end)

  it("is refused everything while a policy of its is missing, and served once it is there", function()
    local path = server.state .. "/policies/own.lua"
    uv.fs_mkdir(server.state .. "/policies", 448)
    local function put()
      write(path, 'return policy { name = "own", about = "All of test.", hosts = { ["*.test"] = { connect = function() return allow() end } } }')
    end
    put()
    assert(box:egress_set({ "own" }))
    assert.is_truthy(resolve(box, "kept.test"))
    os.remove(path)
    assert(box:stop({ grace = 0 }))
    assert.is_nil(resolve(box, "kept.test"))
    local shown = assert(box:egress_show())
    assert.equal("refused", shown.state)
    assert.matches("no such policy: own", shown.problem)
    put()
    served(box)
    assert.is_truthy(resolve(box, "kept.test"))
    os.remove(path)
    assert(box:stop({ grace = 0 }))
    assert.equal("running", assert(box:exec("true")) and assert(box:info()).state)
    assert(box:egress_set({ { "allow_hosts", hosts = { "*.test" } } }))
    assert.equal("served", assert(box:egress_show()).state)
  end)

  it("goes on while no server runs, and the next one finds its process", function()
    local before, address = served(box), resolve(box, "kept.test")
    server:kill()
    assert.equal(before, served(box))
    assert.equal(address, resolve(box, "kept.test"))
    assert(box:egress_set({ { "allow_hosts", hosts = { "other.test" } } }))
    assert.is_nil(resolve(box, "kept.test"))
    assert.is_truthy(resolve(box, "other.test"))
    assert(box:egress_set({ { "allow_hosts", hosts = { "*.test" } } }))
  end)

  it("is made anew when both were killed, with the same addresses and certificate authority", function()
    local address = resolve(box, "kept.test")
    local before = served(box)
    local pid = server:pid()
    assert(uv.kill(before, "sigkill"))
    assert(uv.kill(pid, "sigkill"))
    assert.is_truthy(support.eventually(function()
      return not support.alive(pid)
    end))
    assert.not_equal(before, served(box))
    assert.equal(address, resolve(box, "kept.test"))
    assert.is_nil(resolve(box, "example.org"))
  end)

  it("whose policy runs away in a call is denied, and others that share its process go on", function()
    local other = server:sandbox()
    assert(other:egress_set({ { "allow_hosts", hosts = { "*.test" } } }))
    local path = write(support.scratch() .. "/slow.lua", [[
      return policy {
        name = "slow",
        about = "Runs away where no debug hook sees it.",
        connect = function(event)
          return (event.host ~= "slow.test" or string.find(("a"):rep(3000), (".-"):rep(30) .. "b")) and allow()
        end,
      }]])
    assert(box:egress_set({ path }))
    assert.is_truthy(resolve(box, "fast.test"))
    assert.is_nil(resolve(box, "slow.test")) -- asks several times
    local denied = entry(box, { policy = "slow", action = "deny", hook = "resolve" })
    assert.matches("exceeded its time", denied.reason)
    assert.is_truthy(support.eventually(function()
      if (assert(box:egress_show()).problem or ""):find("exceeded its time 3 times", 1, true) then
        return true
      end
      resolve(box, "slow.test")
    end))
    assert.is_nil(resolve(box, "fast.test"))
    served(other)
    assert.is_truthy(resolve(other, "fast.test"))
    assert(box:egress_set({ { "allow_hosts", hosts = { "*.test" } } }))
    assert.is_truthy(resolve(box, "slow.test"))
    assert(other:destroy())
  end)

  it("survives a stop, policies and all", function()
    assert(box:stop({ grace = 0 }))
    assert.equal("stopped", assert(box:egress_show()).state)
    assert(box:egress("deny_all"))
    assert(box:egress_rm("deny_all"))
    assert.is_truthy(resolve(box, "kept.test"))
    served(box)
  end)

  it("believes in its own certificate authority, unless its environment says otherwise", function()
    local found = assert(box:exec("cat /usr/local/share/ca-certificates/tidepool.crt; echo $SSL_CERT_FILE; echo $NODE_EXTRA_CA_CERTS"))
    assert.matches("BEGIN CERTIFICATE", found.stdout)
    assert.matches("\n/etc/ssl/certs/ca%-certificates.crt\n/usr/local/share/ca%-certificates/tidepool.crt\n$", found.stdout)
    assert.equal("mine\n", assert(box:exec("echo $SSL_CERT_FILE", { env = { SSL_CERT_FILE = "mine" } })).stdout)
    local other = server:sandbox()
    assert.not_equal(found.stdout, assert(other:exec("cat /usr/local/share/ca-certificates/tidepool.crt")).stdout)
    assert(other:destroy())
  end)

  it("leaves no process behind when the last sandbox is gone and the server ends", function()
    local other = support.server()
    local last = other:sandbox()
    local pid = served(last)
    assert(last:destroy())
    assert(other.client:call("shutdown", {}))
    assert.is_truthy(support.eventually(function()
      return not support.alive(pid)
    end))
  end)

  it("can have a process of its own", function()
    uv.os_setenv("TIDEPOOL_EGRESS", "sandbox")
    local other = support.server()
    local a, b = other:sandbox(), other:sandbox()
    local first, second = served(a), served(b)
    uv.os_unsetenv("TIDEPOOL_EGRESS")
    assert.not_equal(first, second)
    assert(a:destroy())
    assert.is_truthy(support.eventually(function()
      return not support.alive(first)
    end))
    assert.equal(second, served(b))
  end)
end)

describe("secrets", function()
  local function set(words, options)
    options = options or {}
    return support.cli({ "secret", "set", unpack(words) }, options)
  end
  setup(function()
    support.needs_root()
    support.image("minimal")
  end)

  it("come from a file, a variable, a command or standard input, and are not shown again", function()
    local path = write(support.scratch() .. "/value", VALUE .. "\n")
    assert.equal(0, set({ "from-file", "--file", path, "--hosts", "a.test,*.b.test" }).code)
    uv.os_setenv("SPEC_SECRET", VALUE)
    assert.equal(0, set({ "from-env", "--env", "SPEC_SECRET" }).code)
    assert.equal(0, set({ "from-command", "--command", "cat " .. path }).code)
    uv.os_unsetenv("SPEC_SECRET")
    local input = assert(uv.fs_open(path, "r", 0))
    assert.equal(0, set({ "from-stdin" }, { stdin = input }).code)
    uv.fs_close(input)

    local list, raw = json("secret", "ls")
    assert.equal(4, #list)
    assert.is_nil(raw.stdout:find(VALUE, 1, true))
    assert.same({ "a.test", "*.b.test" }, list[3].hosts)
    for _, item in ipairs(list) do
      assert.equal(#VALUE, #item.placeholder, item.name) -- the newline is not part of any
      assert.matches("^ghp_TIDEPOOL", item.placeholder)
    end
    assert.equal(list[1].placeholder .. "\n", cli("secret", "placeholder", list[1].name).stdout)
    assert.is_nil(support.read(require("tidepool.paths").state() .. "/server.log"):find(VALUE, 1, true))
    for _, item in ipairs(list) do
      assert.equal(0, cli("secret", "rm", item.name).code)
    end
    assert.same({}, (json("secret", "ls")))
  end)

  it("that are no good are refused without being shown", function()
    local path = write(support.scratch() .. "/value", "short")
    for expected, words in pairs({
      ["less than 8.*EINVAL"] = { "x", "--file", path },
      ["ENOENT"] = { "x", "--file", "/nowhere" },
      ["NOSUCHVARIABLE.*ENOENT"] = { "x", "--env", "NOSUCHVARIABLE" },
      ["status 3.*ESCRIPT"] = { "x", "--command", "exit 3" },
      ["one source.*EINVAL"] = { "x", "--command", "true", "--env", "HOME" },
      ["name is.*EINVAL"] = { "../x", "--command", "echo long enough" },
      ["EEXTRA"] = { "x", "-", "value on the command line" },
    }) do
      local result = set(words)
      assert.equal(125, result.code, result.stdout)
      assert.matches(expected, result.stderr)
    end
    assert.matches("ENOSECRET", cli("secret", "rm", "nobody").stderr)
    assert.matches("ENOSECRET", cli("secret", "placeholder", "nobody").stderr)
  end)

  it("are set and listed by Lua, too", function()
    local made = assert(sandbox.secret.set("lua", VALUE, { hosts = { "a.test" } }))
    assert.equal(made.placeholder, assert(sandbox.secret.placeholder("lua")))
    assert.equal("lua", assert(sandbox.secret.ls())[1].name)
    assert.is_true(sandbox.secret.rm("lua"))
    local value, _, code = sandbox.secret.placeholder("lua")
    assert.is_nil(value)
    assert.equal("ENOSECRET", code)
  end)
end)

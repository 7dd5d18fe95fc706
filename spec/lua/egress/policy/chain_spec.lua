local policy = require("tidepool.egress.policy")

local SANDBOX = { id = "id-1", name = "box", labels = { team = "a" }, image = "minimal" }

local function definition(fields, name)
  return assert(policy.load(("return policy { name = %q, about = \"a\", %s }"):format(name or "p", fields)))
end

local function chain_of(list, services, states)
  local items = {}
  for i, fields in ipairs(list) do
    local made = type(fields) == "table" and fields or definition(fields, "p" .. i)
    items[i] = { definition = made, options = assert(made:options({})) }
  end
  services = services or {}
  services.now = services.now or os.time
  return assert(policy.chain(items, SANDBOX, services, states))
end

local function decide(fields, hook, event, services)
  return chain_of({ fields }, services):decide(hook, event)
end

describe("several policies", function()
  it("are asked in order, and the first that says something decides", function()
    local chain = chain_of({
      "connect = function(event) if event.host == \"a\" then return deny(\"first\") end end",
      "connect = function(event) if event.host ~= \"c\" then return allow() end end",
    })
    local verdict = chain:decide("connect", { host = "a" })
    assert.same({ "deny", "first", "p1", "connect" }, { verdict.action, verdict.reason, verdict.policy, verdict.hook })
    verdict = chain:decide("connect", { host = "b" })
    assert.same({ "allow", "p2" }, { verdict.action, verdict.policy })
    verdict = chain:decide("connect", { host = "c" })
    assert.same({ "deny", "no policy allows it", 403 }, { verdict.action, verdict.reason, verdict.status })
  end)

  it("that are none deny", function()
    assert.equal("deny", chain_of({}):decide("connect", { host = "a" }).action)
  end)
end)

describe("a hook that is missing", function()
  it("is answered by connect, for a name and for a request", function()
    local fields = "connect = function(event) if event.host == \"a\" then return allow { headers = { x = event.hook } } end end"
    assert.equal("allow", decide(fields, "resolve", { host = "a" }).action)
    assert.equal("deny", decide(fields, "resolve", { host = "b" }).action)
    assert.equal("request", decide(fields, "request", { host = "a" }).changes.headers.x)
  end)

  it("is not answered by connect when the policy has it and is silent", function()
    local fields = "request = function() end, connect = function() return allow() end"
    assert.equal("deny", decide(fields, "request", { host = "a" }).action)
  end)

  it("lets a response pass", function()
    assert.equal("allow", decide("connect = function() return deny() end", "response", { host = "a" }).action)
  end)

  it("lets a name resolve that connect means to relay or to answer itself", function()
    assert.equal("allow", decide("connect = function() return passthrough() end", "resolve", { host = "a" }).action)
    assert.equal("allow", decide("connect = function() return respond(200) end", "resolve", { host = "a" }).action)
  end)
end)

describe("handlers of a host", function()
  local FIELDS = [[hosts = {
    ["a.x"] = { request = function() return deny("exact") end },
    ["*.x"] = { request = function() return deny("glob") end },
    ["*.b.x"] = { request = function(event) if event.path == "/" then return deny("longer") end end },
    ["*"] = { connect = function() return deny("any") end },
    ["c.x"] = { connect = function() return passthrough() end },
  }, request = function() return deny("general") end]]

  local function reason(host, path)
    return decide(FIELDS, "request", { host = host, path = path or "/" }).reason
  end

  it("go by the exact name, then the longest glob, then the general hook", function()
    assert.equal("exact", reason("a.x"))
    assert.equal("exact", reason("A.X."))
    assert.equal("glob", reason("z.y.x"))
    assert.equal("longer", reason("z.b.x"))
    assert.equal("glob", reason("b.x"))
    assert.equal("any", reason("x"))
    assert.equal("general", reason("z.b.x", "/else"))
    assert.equal("general", reason(nil))
  end)

  it("with a request let the host resolve and be connected to at 443 and 80", function()
    assert.equal("allow", decide(FIELDS, "resolve", { host = "a.x" }).action)
    assert.equal("allow", decide(FIELDS, "connect", { host = "a.x", port = 443 }).action)
    assert.equal("allow", decide(FIELDS, "connect", { host = "a.x", port = 80 }).action)
    assert.equal("deny", decide(FIELDS, "connect", { host = "a.x", port = 22 }).action)
    assert.equal("passthrough", decide(FIELDS, "connect", { host = "c.x", port = 22 }).action)
    assert.equal("deny", decide(FIELDS, "connect", { host = "d", port = 443 }).action)
  end)
end)

describe("what the event itself rules out", function()
  it("is a mismatch of names, unless the policy says otherwise", function()
    local event = { host = "a", mismatch = "Host is b" }
    local verdict = decide("connect = function() return allow() end", "request", event)
    assert.same({ "deny", "mismatch: Host is b" }, { verdict.action, verdict.reason })
    assert.equal("deny", decide("connect = function() return passthrough() end", "connect", event).action)
    assert.equal("deny", decide("connect = function() return redirect(\"c\") end", "request", event).action)
    assert.equal("respond", decide("connect = function() return respond(200) end", "request", event).action)
    assert.equal("allow", decide("connect = function() return allow { mismatch = true } end", "request", event).action)
  end)

  it("is to read what is not HTTP", function()
    local event = { host = "a", port = 22, protocol = "tcp" }
    local verdict = decide("connect = function() return allow() end", "connect", event)
    assert.same({ "deny", "not HTTP: a policy must say passthrough to relay it" }, { verdict.action, verdict.reason })
    assert.equal("passthrough", decide("connect = function() return passthrough() end", "connect", event).action)
  end)

  it("is to relay what was opened already", function()
    assert.equal("deny", decide("request = function() return passthrough() end", "request", { host = "a" }).action)
  end)

  it("is to answer what is not HTTP", function()
    assert.equal("deny", decide("connect = function() return respond(200) end", "connect", { host = "a", protocol = "tcp" }).action)
  end)
end)

describe("an event", function()
  it("tells who asks, with what options", function()
    local made = definition([[options = { o = { type = "string", default = "v" } }, connect = function(event, options)
      return deny(table.concat({ event.sandbox, event.id, event.labels.team, event.image, event.options.o, options.o, event.hook }, " "))
    end]])
    assert.equal("box id-1 a minimal v v connect", chain_of({ made }):decide("connect", { host = "a" }).reason)
  end)

  it("is the hook's own: what it changes there changes nothing", function()
    local fields = "connect = function(event) event.host = nil; event.headers.a = \"z\"; event.labels.team = nil end"
    local event = { host = "a", headers = { a = "b" } }
    chain_of({ fields, fields }):decide("connect", event)
    assert.same({ host = "a", headers = { a = "b" } }, event)
    assert.equal("a", SANDBOX.labels.team)
  end)
end)

describe("a verdict", function()
  local function failed(call)
    local verdict = decide("connect = function(event) return " .. call .. " end", "request", { host = "a" })
    assert.equal("deny", verdict.action, call)
    assert.matches("policy p1 failed", verdict.reason)
    return verdict.reason
  end

  it("carries its changes", function()
    local verdict = decide([[request = function() return allow {
      headers = { Authorization = "Bearer x", Cookie = false, ["X-N"] = 5 }, path = "/a?b", to = "[::1]:443", private = true,
      mismatch = true, scrub = false,
    } end]], "request", { host = "a" })
    assert.same({
      headers = { authorization = "Bearer x", cookie = false, ["x-n"] = "5" },
      path = "/a?b", to = "[::1]:443", private = true, mismatch = true, scrub = false,
    }, verdict.changes)
    verdict = decide("request = function() return redirect(\"B.example:8443\", { path = \"/x\" }) end", "request", { host = "a" })
    assert.same({ "redirect", "b.example:8443", "/x" }, { verdict.action, verdict.host, verdict.changes.path })
    verdict = decide("request = function() return respond(404, { A = \"b\" }, \"no\") end", "request", { host = "a" })
    assert.same({ "respond", 404, { a = "b" }, "no" }, { verdict.action, verdict.status, verdict.headers, verdict.body })
  end)

  it("is refused with a header that would split or frame the message", function()
    for _, header in ipairs({
      "a = \"x\\r\\ny: z\"", "a = \"x\\ny\"", "a = \"x\\0y\"", "[\"a b\"] = \"x\"", "[\"a:\"] = \"x\"", "[\"\"] = \"x\"", "[1] = \"x\"",
      "[\"Content-Length\"] = \"5\"", "[\"transfer-encoding\"] = \"chunked\"", "Connection = \"close\"", "upgrade = \"h2c\"",
      "te = \"trailers\"", "expect = false", "a = {}", "a = true",
    }) do
      failed("allow { headers = { " .. header .. " } }")
      failed("respond(200, { " .. header .. " })")
    end
  end)

  it("is refused with anything else that it can't mean", function()
    for _, call in ipairs({
      "allow { path = \"x\" }", "allow { path = \"/a b\" }", "allow { path = \"/a\\r\\nb\" }", "allow { to = \"host:1\" }",
      "allow { to = \"1.2.3.4\" }", "allow { private = 1 }", "allow { ca = \"x\" }", "allow { hedaers = {} }", "allow(1)",
      "deny(1)", "deny(\"x\", 200)", "deny(\"x\", 403.5)", "redirect(\"a b\")", "redirect()", "redirect(\"a:99999\")",
      "respond(100)", "respond(200, 1)", "respond(200, {}, 1)", "passthrough { headers = {} }", "true", "{ action = \"allow\" }", "allow",
    }) do
      failed(call)
    end
  end)

  it("can't be changed after it was made", function()
    local fields = [[request = function()
      local headers = { a = "b" }
      local verdict = allow { headers = headers }
      headers.a = "x\r\ny"
      verdict.action = "passthrough"
      return verdict
    end]]
    local verdict = decide(fields, "request", { host = "a" })
    assert.same({ "allow", "b" }, { verdict.action, verdict.changes.headers.a })
  end)
end)

describe("a policy that fails", function()
  it("is a deny that names it, what happened and where", function()
    local verdict = decide("connect = function(event) local x; return x.y end", "connect", { host = "a" })
    assert.equal("policy p1 failed: attempt to index local 'x' (a nil value) (policy.lua:1)", verdict.reason)
    assert.equal("policy p1 failed: error of type table (policy.lua:1)", decide("connect = function() error({}) end", "connect", {}).reason)
  end)

  it("does not tell a secret that it had", function()
    local services = { secret = function() return "hunter2hunter2" end }
    for _, call in ipairs({ "error(secret(\"k\"))", "return deny(\"no \" .. secret(\"k\"))", "error(\"x\" .. secret(\"k\") .. secret(\"k\"))" }) do
      local reason = decide("connect = function() " .. call .. " end", "connect", {}, services).reason
      assert.is_nil(reason:find("hunter2", 1, true), call)
      assert.matches("%[secret k%]", reason)
    end
    local verdict = decide("connect = function() return respond(200, { a = secret(\"k\") }, secret(\"k\")) end", "request", {}, services)
    assert.same({ "[secret k]", "[secret k]" }, { verdict.headers.a, verdict.body })
  end)

  it("names the secret that is missing", function()
    local reason = decide("connect = function() return allow { headers = { a = secret(\"k\") } } end", "connect", {}, {
      secret = function() return nil, "no such secret" end,
    }).reason
    assert.matches("secret \"k\" is not there", reason)
  end)
end)

describe("state", function()
  local COUNT = "connect = function() state.n = (state.n or 0) + 1; return deny(\"n \" .. state.n) end"

  it("is kept between hooks and given back as data", function()
    local made = definition(COUNT)
    local chain = chain_of({ made, made })
    assert.is_false(chain.dirty)
    chain:decide("connect", {})
    assert.equal("n 2", chain:decide("connect", {}).reason)
    assert.is_true(chain.dirty)
    assert.same({ p = { n = 2 } }, chain:states())
    assert.is_false(chain.dirty)
    local again = chain_of({ made }, nil, { p = { n = 2 } })
    assert.equal("n 3", again:decide("connect", {}).reason)
  end)

  it("is not dirty when a hook only looks at it", function()
    local chain = chain_of({ "connect = function() return deny(tostring(state.n)) end" }, nil, { p1 = { n = 1 } })
    assert.equal("1", chain:decide("connect", {}).reason)
    assert.is_false(chain.dirty)
  end)

  it("goes back when it can't be kept, and that is a deny", function()
    for _, value in ipairs({ "function() end", "(\"x\"):rep(70000)", "0/0" }) do
      local chain = chain_of({ ("connect = function(event) if event.port then state.bad = %s end; return deny(tostring(state.bad)) end"):format(value) })
      assert.matches("state can't be kept", chain:decide("connect", { port = 1 }).reason)
      assert.equal("nil", chain:decide("connect", {}).reason)
    end
  end)
end)

describe("what policies want to see", function()
  it("is the most that one with a say on the host asks for", function()
    local chain = chain_of({
      "hosts = { [\"a\"] = { body = 100, tail = 5, request = function() end } }",
      "body = 50, tail = function(event) return event.method == \"GET\" and 9 or nil end",
    })
    assert.same({ body = 100, tail = 5 }, chain:wants("a"))
    assert.same({ body = 50, tail = 9 }, chain:wants("b", { host = "b", method = "GET" }))
    assert.same({}, chain_of({ "connect = function() end" }):wants("a"))
  end)
end)

describe("log hooks", function()
  it("all hear what was decided, and one that fails is told of", function()
    local heard = {}
    local services = { log = function(name, text) heard[#heard + 1] = name .. ": " .. text end }
    local chain = chain_of({
      "log = function(event) log(\"saw \" .. event.action) end",
      "log = function(event) error(\"oops\") end",
      "hosts = { a = { log = function(event) log(\"host \" .. event.status) end } }",
    }, services)
    chain:log({ host = "a", action = "allow", status = 200 })
    assert.same({ "p1: saw allow", "p2: policy p2 failed: oops (policy.lua:1)", "p3: host 200" }, heard)
  end)
end)

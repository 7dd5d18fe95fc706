local policy = require("tidepool.egress.policy")

local SERVICES = {
  now = os.time,
}

local function refused(text, name)
  local definition, message = policy.load(text, name or "p")
  assert.is_nil(definition)
  return message
end

local function declared(fields)
  return "return policy { name = \"p\", about = \"a\",\n" .. fields .. " }"
end

describe("the text of a policy", function()
  it("is refused when it does not compile, with the line", function()
    assert.matches("p.lua:2", refused("local x = 1\nreturn policy {{"))
  end)

  it("is never bytecode", function()
    assert.matches("wrong mode", refused(string.dump(function() end)))
  end)

  it("must return what it declares", function()
    assert.matches("must end in", refused("policy { name = \"p\", about = \"a\" }"))
    assert.matches("must end in", refused("return { name = \"p\", about = \"a\" }"))
    assert.matches("takes a table", refused("return policy(1)"))
  end)

  it("is refused when it loops while it is loaded", function()
    assert.matches("exceeded its instruction budget", refused("while true do end"))
  end)

  it("is refused with the line of a field that is not known", function()
    assert.equal("policy: conect is unknown (p.lua:3)", refused(declared("\nconect = function() end")))
    assert.equal("policy: connect must be a function (p.lua:2)", refused(declared("connect = 1")))
  end)

  it("is refused without a name or without a word on what it does", function()
    assert.matches("name must be", refused("return policy { about = \"a\" }"))
    assert.matches("name must be", refused("return policy { about = \"a\", name = \"a b\" }"))
    assert.matches("about must say", refused("return policy { name = \"p\" }"))
  end)

  it("is refused with a schema that says nothing", function()
    assert.matches("option a: its type is unknown %(p.lua:2%)", refused(declared("options = { a = { type = \"str\" } }")))
    assert.matches("option a: abuot is not understood", refused(declared("options = { a = { type = \"string\", abuot = \"\" } }")))
    assert.matches("option a: an enum needs values", refused(declared("options = { a = { type = \"enum\" } }")))
    assert.matches("option a: expected a whole number", refused(declared("options = { a = { type = \"integer\", default = 1.5 } }")))
  end)

  it("is refused with hosts that are none", function()
    assert.matches("api%*.x\" is no host", refused(declared("hosts = { [\"api*.x\"] = {} }")))
    assert.matches("must be a table of handlers", refused(declared("hosts = { [\"x\"] = 1 }")))
    assert.matches("hosts: x: reqest is unknown", refused(declared("hosts = { [\"x\"] = { reqest = function() end } }")))
  end)

  it("takes the name it is attached under", function()
    assert.equal("mine", assert(policy.load(declared(""), "mine")).name)
    assert.equal("p", assert(policy.load(declared(""))).name)
  end)

  it("describes itself as data", function()
    local definition = assert(policy.load(declared("version = 2, connect = function() end, options = { a = { type = \"host\" } }")))
    local about = definition:describe()
    assert.same({ "connect" }, about.hooks)
    assert.same({ a = { type = "host" } }, about.options)
    assert.equal(2, about.version)
  end)
end)

describe("the options of a policy", function()
  local function given(schema, values)
    local definition = assert(policy.load(declared("options = " .. schema), "p"))
    return definition:options(values)
  end

  it("are refused when unknown, missing or of the wrong type, by name", function()
    local _, message = given("{ a = { type = \"string\" }, b = { type = \"string\" } }", { c = 1 })
    assert.equal("unknown option c: it knows a, b", message)
    _, message = given("{}", { c = 1 })
    assert.equal("unknown option c: it takes none", message)
    _, message = given("{ a = { type = \"secret\", required = true, about = \"the token\" } }", {})
    assert.equal("option a is required: the token", message)
    _, message = given("{ a = { type = \"integer\" } }", { a = "1.5" })
    assert.equal("option a: expected a whole number", message)
    _, message = given("{ a = { type = \"enum\", values = { \"read\", \"write\" } } }", { a = "rwad" })
    assert.equal("option a: expected one of read, write", message)
    _, message = given("{ a = { type = \"integer\", least = 1, most = 5 } }", { a = 6 })
    assert.equal("option a: expected at most 5", message)
    _, message = given("{}", "a")
    assert.matches("must be a table", message)
  end)

  it("may be text, as the command line gives them", function()
    local values = assert(given([[{
      list = { type = "string_list" }, hosts = { type = "host_list" }, map = { type = "map" }, on = { type = "boolean" },
      off = { type = "boolean" }, size = { type = "bytes" }, time = { type = "seconds" }, n = { type = "integer" },
      ports = { type = "port_list" }, globs = { type = "glob_list" }, f = { type = "number" }, host = { type = "host" }, unset = { type = "string" }, d = { type = "string", default = "x" },
    }]], {
      list = "a, b,", hosts = "A.example,*.B.example", map = "k:v,l:w:x", on = "yes", off = "false", size = "64K",
      ports = "443, 8080", globs = "a/*,b.c", time = "5m", n = "7", f = "0.5", host = "API.example.",
    }))
    assert.same({ "a", "b" }, values.list)
    assert.same({ k = "v", l = "w:x" }, values.map)
    assert.same({ true, false, 65536, 300, 7, 0.5, "api.example", "x" }, {
      values.on, values.off, values.size, values.time, values.n, values.f, values.host, values.d,
    })
    assert.is_true(values.hosts:has("a.example"))
    assert.is_true(values.hosts:has("x.y.b.example"))
    assert.is_false(values.hosts:has("b.example"))
    assert.is_false(values.hosts:has(nil))
    assert.same({ true, true, false }, { values.ports:has(8080), values.ports:has(nil), values.ports:has(80) })
    assert.same({ true, true, false, false, false }, {
      values.globs:has("a/b/c"), values.globs:has("b.c"), values.globs:has("bxc"), values.globs:has("xa/b"), values.globs:has(nil),
    })
    assert.is_nil(values.unset)
  end)

  it("of globs hold for any characters at each star", function()
    for glob, texts in pairs({
      ["*"] = { "", "a", "a/b" }, ["a*"] = { "a", "ab" }, ["*a"] = { "a", "aaa", "ba" }, ["a*a"] = { "aa", "aba" },
      ["*a*b*"] = { "ab", "xaybz" }, ["a**b"] = { "ab", "a-b" }, ["%d.*"] = { "%d.x" },
    }) do
      local list = assert(given("{ a = { type = \"glob_list\" } }", { a = { glob } })).a
      for _, text in ipairs(texts) do
        assert.is_true(list:has(text), glob .. " " .. text)
      end
      for _, text in ipairs({ "-", "b-", "a" .. "-a-" }) do
        assert.equal(glob == "*" or (glob == "a*" and text:sub(1, 1) == "a"), list:has(text), glob .. " " .. text)
      end
    end
    local list = assert(given("{ a = { type = \"glob_list\" } }", { a = "a*aba" })).a
    assert.is_false(list:has("aba"))
  end)

  it("are refused as a list with a hole, a map of something else, a PEM of nothing", function()
    for kind, value in pairs({
      string_list = { 1, 2 }, map = { a = 1 }, pem = "x", host = "a b", host_list = { "a", "*b" }, secret = "a b",
      port_list = { 443, 65536 }, glob_list = { a = "b" }, boolean = "perhaps", bytes = "1x", seconds = "later", number = "0/0",
    }) do
      local values, message = given(("{ a = { type = %q } }"):format(kind), { a = value })
      assert.is_nil(values, kind)
      assert.matches("option a: expected", message)
    end
  end)

  it("are tried on the hosts that follow from them", function()
    local definition = assert(policy.load(declared([[
      options = { host = { type = "string", default = "x" } },
      hosts = function(options) return { [options.host] = {} } end]])))
    assert(definition:options({}))
    local values, message = definition:options({ host = "a b" })
    assert.is_nil(values)
    assert.matches("no host", message)
    definition = assert(policy.load(declared("hosts = function(options) return options.a.b end")))
    values, message = definition:options({})
    assert.is_nil(values)
    assert.matches("attempt to index.*policy.lua:2", message)
  end)
end)

describe("two sandboxes with one policy", function()
  it("share no local of it", function()
    local definition = assert(policy.load(declared([[
      connect = (function()
        local count = 0
        return function() count = count + 1; return deny("asked " .. count) end
      end)()]])))
    local function reasons()
      local chain = assert(policy.chain({ { definition = definition, options = {} } }, { id = "1", name = "a" }, SERVICES))
      return { chain:decide("connect", { host = "x" }).reason, chain:decide("connect", { host = "x" }).reason }
    end
    assert.same({ "asked 1", "asked 2" }, reasons())
    assert.same({ "asked 1", "asked 2" }, reasons())
  end)

  it("share no option, and no list's methods", function()
    local definition = assert(policy.load(declared([[
      options = { hosts = { type = "host_list" }, map = { type = "map" } },
      connect = function(event, options)
        local count = #options.hosts
        options.hosts[count + 1] = "evil"
        options.map.evil = "x"
        pcall(function() options.hosts.__index.has = function() return true end end)
        options.hosts.has = nil
        return deny(count .. " " .. tostring(options.hosts:has("b")) .. " " .. tostring(options.map.evil))
      end]])))
    local values = assert(definition:options({ hosts = "a", map = "k:v" }))
    for _ = 1, 2 do
      local chain = assert(policy.chain({ { definition = definition, options = values } }, { id = "1", name = "a" }, SERVICES))
      assert.equal("1 false x", chain:decide("connect", { host = "x" }).reason)
    end
    assert.same({ "a" }, { unpack(values.hosts) })
    assert.same({ k = "v" }, values.map)
  end)
end)

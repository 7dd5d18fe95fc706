local verbs = require("tidepool.verbs")

local function many(count, prefix)
  local list = {}
  for i = 1, count do
    list[prefix and prefix .. i or i] = "x"
  end
  return list
end

describe("the verbs table", function()
  it("has a server handler for each verb and no other", function()
    local handlers = require("tidepool.server.handlers")
    for _, verb in ipairs(verbs.list) do
      assert.is_function(handlers[verb.name], verb.name)
    end
    for name in pairs(handlers) do
      assert.is_table(verbs.by_name[name], name)
    end
  end)

  it("says of each verb and parameter what it is for", function()
    for _, verb in ipairs(verbs.list) do
      assert.is_true(#verb.about > 10 and verb.result ~= nil, verb.name)
      for _, param in ipairs(verb.params) do
        assert.is_string(param.about, verb.name .. "." .. param.name)
      end
    end
  end)

  it("fills in defaults and leaves what was given", function()
    local checked = assert(verbs.check("create", { name = "a", pids = 5 }))
    assert.equal("debian", checked.image)
    assert.equal(5, checked.pids)
  end)

  for _, case in ipairs({
    { "nosuch", {}, "ENOVERB", "nosuch" },
    { "create", {}, "EINVAL", "name is missing" },
    { "create", { name = "UPPER" }, "EINVAL", "name must be" },
    { "create", { name = "-a" }, "EINVAL", "name must be" },
    { "create", { name = ("a"):rep(64) }, "EINVAL", "name must be" },
    { "create", { name = "../etc" }, "EINVAL", "name must be" },
    { "create", { name = "a", type = "huge" }, "EINVAL", "unknown type: huge" },
    { "create", { name = "a", memory = -1 }, "EINVAL", "memory must be" },
    { "create", { name = "a", cpu = 0 / 0 }, "EINVAL", "cpu must be" },
    { "create", { name = "a", cpu = math.huge }, "EINVAL", "cpu must be" },
    { "create", { name = "a", env = { ["A=B"] = "c" } }, "EINVAL", "env must be" },
    { "create", { name = "a", env = { A = "b\0c" } }, "EINVAL", "env must be" },
    { "create", { name = "a", colour = "red" }, "EINVAL", "unknown parameter: colour" },
    { "exec", { name = "a", argv = {} }, "EINVAL", "argv must be" },
    { "exec", { name = "a", argv = { "a", 1 } }, "EINVAL", "argv must be" },
    { "exec", { name = "a", argv = { "a\0b" } }, "EINVAL", "argv must be" },
    { "create", { name = "a", memory = 1 }, "EINVAL", "memory is too small" },
    { "create", { name = "a", memory = 2 ^ 52 }, "EINVAL", "memory is too large" },
    { "create", { name = "a", pids = 0 }, "EINVAL", "pids is too small" },
    { "create", { name = "a", pids = 2 ^ 40 }, "EINVAL", "pids is too large" },
    { "exec", { name = "a", argv = { "a" }, cols = 65536 }, "EINVAL", "cols is too large" },
    { "exec", { name = "a", argv = { "a" }, ring = 2 ^ 40 }, "EINVAL", "ring is too large" },
    { "exec", { name = "a", argv = { "a" }, user = ("u"):rep(257) }, "EINVAL", "user is too large" },
    { "exec", { name = "a", argv = { "a" }, cwd = ("/d"):rep(2049) }, "EINVAL", "cwd is too large" },
    { "exec", { name = "a", argv = many(65537) }, "EINVAL", "argv is too large" },
    { "exec", { name = "a", argv = { "a" }, env = many(16385, "V") }, "EINVAL", "env is too large" },
    { "exec", "string", "EINVAL", "parameters must be a table" },
  }) do
    it(("answers %s to %s with %s"):format(case[3], case[1], case[4]), function()
      local checked, message, code = verbs.check(case[1], case[2])
      assert.is_nil(checked)
      assert.equal(case[3], code)
      assert.matches(case[4], message, 1, true)
    end)
  end

  it("takes names of 1 to 63 characters", function()
    assert.is_true(verbs.valid_name("a"))
    assert.is_true(verbs.valid_name("9-agent"))
    assert.is_true(verbs.valid_name(("a"):rep(63)))
  end)
end)

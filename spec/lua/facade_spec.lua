-- What `require "sandbox"` gives a script: names that scripts written today keep.
local support = require("spec.support")
local sandbox = require("sandbox")

support.image("minimal")

local function name()
  local made = "facade-" .. support.unique()
  support.defer(function()
    sandbox.get(made):destroy()
  end)
  return made
end

describe("the facade", function()
  it("opens a sandbox by name, and says whether it was made now", function()
    local which = name()
    local box = assert(sandbox.open(which, { image = "minimal", type = "lite", labels = { team = which }, env = { LANG = "C.UTF-8" } }))
    assert.is_true(box.created)
    assert.equal("C.UTF-8\n", box:exec("echo $LANG").stdout)
    assert.is_false(assert(sandbox.open(which)).created)
    assert.equal("EEXIST", select(3, sandbox.create(which, { image = "minimal" })))

    local list = assert(sandbox.ls({ labels = { team = which } }))
    assert.equal(1, #list)
    assert.equal(which, list[1].name)
    assert.equal("lite", list[1].type)
    assert.equal(2 ^ 28, list[1].limits.memory)
    assert.equal(0, #sandbox.ls({ labels = { team = "no such" } }))
  end)

  it("refuses options that it doesn't know, images and types that are not there", function()
    assert.same({ nil, "unknown option: colour", "EINVAL" }, { sandbox.open("a", { colour = "red" }) })
    assert.equal("ENOIMAGE", select(3, sandbox.create(name(), { image = "no-such" })))
    assert.equal("EINVAL", select(3, sandbox.create(name(), { image = "minimal", type = "huge" })))
  end)

  it("gives a sandbox that is not there a name, and its methods say that", function()
    local box = sandbox.get("nobody-" .. support.unique())
    for _, call in ipairs({
      function() return box:exec({ "true" }) end,
      function() return box:start({ "true" }) end,
      function() return box:read("/etc/passwd") end,
      function() return box:info() end,
      function() return box:ps() end,
      function() return box:stop() end,
      function() return box:destroy() end,
      function() return box:session() end,
      function() return box:terminal() end,
      function() return box:process("p"):wait() end,
      function() return box:process("p"):logs() end,
    }) do
      local result, message, code = call()
      assert.is_nil(result)
      assert.is_string(message)
      assert.equal("ENOSANDBOX", code)
    end
  end)

  it("runs tasks beside each other, inside and outside of one", function()
    local box = support.sandbox()
    -- Each waits for the others.
    local meet = "touch /tmp/%s; until [ -e /tmp/one -a -e /tmp/two -a -e /tmp/three ]; do sleep 0.05; done; echo %s"
    local results = sandbox.all({
      function() return box:exec(meet:format("one", "one"), { timeout = 60 }).stdout end,
      function() return box:exec(meet:format("two", "two"), { timeout = 60 }).stdout end,
      function() sandbox.sleep(0.1) return box:write("/tmp/three", "").size end,
    })
    assert.same({ "one\n", "two\n", 0 }, results)
    assert.equal("x", sandbox.run(function()
      local task = sandbox.spawn(function()
        sandbox.sleep(0.01)
        return "x"
      end)
      local _, value = task:join()
      return value
    end))
    assert.has_error(function()
      sandbox.all({ function() error("first", 0) end, function() sandbox.sleep(0.01) end })
    end)
  end)

  it("lists images, and imports from where the script stands", function()
    local names = {}
    for _, image in ipairs(assert(sandbox.image.ls())) do
      names[image.name] = true
    end
    assert.is_true(names.minimal)
    assert.equal("ENOENT", select(3, sandbox.image.import("no/such/file.tar")))
    assert.equal("ENOIMAGE", select(3, sandbox.image.rm("no-such")))
    assert.equal("EINVAL", select(3, sandbox.image.build("no-such")))
  end)

  it("tells about the server", function()
    local info = assert(sandbox.info())
    assert.is_true(support.alive(info.pid))
    assert.is_string(info.version)
    assert.equal(sandbox.client().state, info.state_directory)
    assert.equal(sandbox.client().run, info.run_directory)
  end)
end)

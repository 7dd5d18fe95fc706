-- Plans as bytes: what Lua may write, and what the decoder refuses. Executing them: spawner_spec.
local core = require("tidepool.core")
local plan = core.plan

local sample = {
  { "mkdir", "/a", 493 },
  { "mount?", "tmpfs", "/a", "tmpfs", "nosuid,nodev", "size=1m" },
  { "clone", "user,pid,mount", 268435456, 0 },
  { "child" },
  { "identity" },
  { "exec", "/init", 1 },
}

describe("a plan", function()
  it("is encoded and found well-formed", function()
    assert.equal(#sample, plan.check(assert(plan.encode(sample))))
    assert.equal(0, plan.check(assert(plan.encode({}))))
  end)

  it("names the step that is wrong", function()
    local function refused(step, pattern)
      local bytes, message, code = plan.encode({ { "mkdir", "/a", 493 }, step })
      assert.is_nil(bytes)
      assert.equal("EINVAL", code)
      assert.truthy(message:find("plan step 2", 1, true), message)
      assert.truthy(message:find(pattern), message)
    end
    refused({ "fly", "/a" }, "unknown operation 'fly'")
    refused({ "mkdir", "/a" }, "takes 2 arguments, not 1")
    refused({ "mkdir", "/a", "b" }, "argument 2: a number")
    refused({ "mkdir", "", 493 }, "argument 1: a path")
    refused({ "mkdir", "a\0b", 493 }, "argument 1: a path")
    refused({ "mkdir", ("a"):rep(5000), 493 }, "argument 1: a path")
    refused({ "mkdir", "/a", -1 }, "whole number")
    refused({ "mkdir", "/a", 0 / 0 }, "whole number")
    refused({ "open", 16, "/a" }, "no such slot")
    refused({ "mount", "a", "/a", "tmpfs", "nosuid,fast", "" }, "flags")
    refused({}, "unknown operation")
    refused("mkdir", "no table")
  end)

  it("has at most 256 steps", function()
    local steps = {}
    for i = 1, 257 do
      steps[i] = { "rmdir", "/a" }
    end
    assert.equal("E2BIG", select(3, plan.encode(steps)))
  end)

  it("is refused when its child's steps are out of order", function()
    local function check(steps)
      return select(3, plan.check(assert(plan.encode(steps))))
    end
    assert.equal("EBADMSG", check({ { "child" } }))
    assert.equal("EBADMSG", check({ { "exec", "/init", 0 } }))
    assert.equal("EBADMSG", check({ { "clone", "user", 1, 0 } }))
    assert.equal("EBADMSG", check({ sample[3], sample[3], sample[4], sample[6] }))
    assert.equal("EBADMSG", check({ sample[3], sample[4], sample[6], sample[6] }))
  end)

  it("is refused when bytes are missing, changed or added, wherever", function()
    local bytes = assert(plan.encode(sample))
    for length = 0, #bytes - 1 do
      assert.equal("EBADMSG", select(3, plan.check(bytes:sub(1, length))))
    end
    assert.equal("EBADMSG", select(3, plan.check(bytes .. "\0")))
    for i = 1, #bytes do
      for _, byte in ipairs({ 0, 1, 0x7f, 0xff }) do
        plan.check(bytes:sub(1, i - 1) .. string.char(byte) .. bytes:sub(i + 1)) -- must return
      end
    end
  end)

  it("frees what it wrote when a step is wrong, under a busy collector", function()
    collectgarbage("setpause", 1)
    for _ = 1, 2000 do
      plan.encode({ { "file", "/a", 1, ("x"):rep(1000) }, { "bad" } })
    end
    collectgarbage("setpause", 200)
    collectgarbage()
  end)

  it("tells errors of the spawner by name", function()
    assert.equal("ENOENT", plan.code(2))
    assert.equal("EDQUOT", plan.code(122))
  end)
end)

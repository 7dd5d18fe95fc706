-- What egress decided, kept.
local async = require("tidepool.async")
local audit = require("tidepool.server.audit")
local support = require("spec.support")
local uv = require("luv")

local function entry(changes)
  local made = { time = os.time(), id = 1, sandbox = "box", action = "allow", hook = "connect", host = "a.test", count = 1 }
  for key, value in pairs(changes or {}) do
    made[key] = value
  end
  return made
end

describe("the audit", function()
  local path, log
  before_each(function()
    path = support.scratch() .. "/audit.db"
    log = assert(audit.open({ path = path }))
  end)
  after_each(function()
    log:close()
  end)

  it("gives back what was stored, the oldest first, with a number to go on from", function()
    assert(log:add({ entry(), entry({ action = "deny", reason = "not on the list", port = 443, bytes_sent = 7 }) }))
    local list = log:read({ id = 1 })
    assert.equal(2, #list)
    assert.equal("allow", list[1].action)
    assert.equal("not on the list", list[2].reason)
    assert.equal(443, list[2].port)
    assert.equal("box", list[2].sandbox)
    assert.same({}, log:read({ id = 1, after = list[2].seq }))
    assert.equal(list[2].seq, log:read({ id = 1, after = list[1].seq })[1].seq)
  end)

  it("is for its owner's eyes only", function()
    for _, ending in ipairs({ "", "-wal", "-shm" }) do
      assert.equal(tonumber("100600", 8), uv.fs_stat(path .. ending).mode, ending)
    end
  end)

  it("gives the latest ones when there is no place to go on from", function()
    local many = {}
    for i = 1, 30 do
      many[i] = entry({ port = i })
    end
    assert(log:add(many))
    local list = log:read({ id = 1, limit = 3 })
    assert.same({ 28, 29, 30 }, { list[1].port, list[2].port, list[3].port })
    assert.equal(3, #log:read({ id = 1, after = 0, limit = 3 }))
    assert.equal(1, log:read({ id = 1, after = 0, limit = 3 })[1].port)
  end)

  it("tells sandboxes apart, and one that is gone by its name", function()
    assert(log:add({ entry(), entry({ id = 2, sandbox = "other" }) }))
    assert.equal(1, #log:read({ id = 2 }))
    assert.equal(1, #log:read({ name = "other" }))
    assert.is_true(log:knows("other"))
    assert.is_false(log:knows("nobody"))
    assert.equal(0, #log:read({ id = 1, action = "deny" }))
  end)

  it("keeps only the fields that it knows, of the types that they have", function()
    assert(log:add({ entry({ value = "a secret", port = "443", reason = ("x"):rep(100000), host = 7, status = 403 }) }))
    local kept = log:read({ id = 1 })[1]
    assert.is_nil(kept.value)
    assert.is_nil(kept.port)
    assert.is_nil(kept.host)
    assert.equal(403, kept.status)
    assert.is_true(#kept.reason <= 2048)
  end)

  it("counts what was allowed, denied and moved, also over a reopening", function()
    assert(log:add({
      entry({ bytes_sent = 10, bytes_received = 20 }), entry({ action = "passthrough" }),
      entry({ action = "deny", count = 5 }), entry({ action = "note" }), entry({ action = "deny", count = 0 / 0 }),
    }))
    for _ = 1, 2 do
      local counters = log:counters(1)
      assert.equal(2, counters.allowed)
      assert.equal(6, counters.denied)
      assert.equal(10, counters.bytes_sent)
      assert.equal(20, counters.bytes_received)
      log:close()
      log = assert(audit.open({ path = path }))
    end
    assert.equal(0, log:counters(99).allowed)
  end)

  it("stores a batch as a whole or not at all", function()
    local ok, message = log:add({ entry(), entry({ reason = "\0" }), setmetatable({}, { __index = function()
      return nil
    end }) })
    assert.is_truthy(ok, message)
    assert.equal(2, #log:read({ id = 1 }))
    log.db:execute("DROP TABLE counters")
    local stored, _, code = log:add({ entry({ port = 99 }) })
    assert.is_nil(stored)
    assert.equal("EIO", code)
    assert.equal(2, #log:read({ id = 1 }))
  end)

  it("wakes whoever waits, and lets go of it in time", function()
    async.run(function()
      local waiting = async.spawn(log.read, log, { id = 1, after = 0 }, 60)
      async.sleep(0.05)
      assert(log:add({ entry({ id = 2 }) }))
      async.sleep(0.05)
      assert(log:add({ entry({ port = 7 }) }))
      local _, list = waiting:join()
      assert.equal(7, list[1].port)
      local before = uv.hrtime()
      assert.same({}, log:read({ id = 1, after = list[1].seq }, 0.2))
      assert.is_true(uv.hrtime() - before < 60e9)
    end)
  end)

  it("removes what is too old or too much, in the background", function()
    log:close()
    log = assert(audit.open({ path = path, days = 1, rows = 100 }))
    local many = {}
    for i = 1, 50 do
      many[i] = entry({ time = os.time() - 3 * 86400 })
    end
    for i = 51, 200 do
      many[i] = entry({ port = i })
    end
    assert(log:add(many))
    async.run(function()
      local left
      support.eventually(function()
        left = log:read({ id = 1, after = 0, limit = 2000 })
        return #left <= 100
      end)
      assert.equal(100, #left)
      assert.equal(200, left[100].port)
    end)
  end)

  it("keeps what is known of one sandbox when another one floods it", function()
    log:close()
    log = assert(audit.open({ path = path, rows = 100 }))
    async.run(function()
      assert(log:add({ entry({ id = 2, sandbox = "quiet" }), entry({ id = 2, sandbox = "quiet" }) }))
      async.sleep(1.2) -- the first look
      for round = 1, 5 do
        local many = {}
        for i = 1, 200 do
          many[i] = entry({ port = round * 1000 + i })
        end
        assert(log:add(many))
      end
      support.eventually(function()
        return #log:read({ after = 0, limit = 2000 }) <= 100
      end)
      local left = log:read({ id = 1, after = 0, limit = 2000 })
      assert.equal(98, #left)
      assert.equal(5200, left[98].port)
      assert.equal(2, #log:read({ id = 2, after = 0 }))
    end)
  end)

  it("says which secret was used", function()
    log:close()
    local used = {}
    log = assert(audit.open({ path = path, on_secret_used = function(name, time)
      used[name] = time
    end }))
    assert(log:add({ entry({ time = 1234567890, secrets = { "github" } }) }))
    assert.same({ github = 1234567890 }, used)
    assert.same({ "github" }, log:read({ id = 1 })[1].secrets)
  end)
end)

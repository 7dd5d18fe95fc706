local async = require("tidepool.async")
local audit = require("tidepool.egress.audit")
local support = require("spec.support")

local function identity(text)
  return text
end

local function deny(fields)
  local entry = { id = 1, sandbox = "a", action = "deny", hook = "connect", host = "x.example", port = 443, reason = "no" }
  for key, value in pairs(fields or {}) do
    entry[key] = value
  end
  return entry
end

describe("the audit's way to the server", function()
  it("sends entries in order, with the time, and keeps them until they are stored", function()
    local sent, answers = {}, { nil, true, true }
    async.run(function()
      local queue = audit.new(function(entries)
        sent[#sent + 1] = entries
        return table.remove(answers, 1) or (#sent > 1)
      end, identity)
      queue:add(deny({ action = "allow", host = "first" }))
      queue:add(deny({ action = "allow", host = "second" }))
      assert.is_true(support.eventually(function()
        return #sent == 2
      end))
    end)
    assert.equal(2, #sent[1])
    assert.equal("first", sent[2][1].host)
    assert.equal("second", sent[2][2].host)
    assert.is_true(math.abs(sent[2][1].time - os.time()) < 300)
  end)

  it("counts the same refusal up instead of repeating it", function()
    local sent
    async.run(function()
      local queue = audit.new(function(entries)
        sent = entries
        return true
      end, identity)
      for _ = 1, 100 do
        queue:add(deny())
      end
      queue:add(deny({ port = 80 }))
      support.eventually(function()
        return sent
      end)
    end)
    assert.equal(2, #sent)
    assert.equal(100, sent[1].count)
    assert.equal(1, sent[2].count)
  end)

  it("is full at a bound, and says so before anything is allowed", function()
    async.run(function()
      local queue = audit.new(function()
        async.sleep(3600)
      end, identity)
      local added = 0
      while not queue:is_full() and added < 1e6 do
        queue:add(deny({ id = added % 10, host = "host" .. added }))
        added = added + 1
      end
      assert.is_true(added < 1e5)
      queue:add(deny({ host = "one more" }))
      assert.equal(1, queue.dropped)
    end)
  end)

  it("is full for who floods it long before it is for the others, and counts what it does not list", function()
    local sent = {}
    async.run(function()
      local queue = audit.new(function(entries)
        for _, entry in ipairs(entries) do
          sent[#sent + 1] = entry
        end
        return true
      end, identity)
      for i = 1, 5000 do
        queue:add(deny({ host = "host" .. i }))
      end
      assert.is_true(queue:is_full(1))
      assert.is_false(queue:is_full(2))
      queue:add(deny({ id = 2, action = "allow" }))
      queue:add(deny({ action = "allow", host = "was allowed before" }))
      assert.is_true(support.eventually(function()
        return not queue:is_full(1) and #queue.queue == 0
      end))
    end)
    local counted, allowed = 0, 0
    for _, entry in ipairs(sent) do
      counted = counted + (entry.action == "deny" and entry.count or 0)
      allowed = allowed + (entry.action == "allow" and 1 or 0)
    end
    assert.equal(5000, counted)
    assert.equal(2, allowed)
    assert.is_true(#sent < 2100)
  end)

  it("takes secrets, queries and control characters out", function()
    local sent
    async.run(function()
      local queue = audit.new(function(entries)
        sent = entries
        return true
      end, function(text)
        return (text:gsub("hunter2", "*******"))
      end)
      queue:add(deny({ path = "/a/hunter2?key=abc", reason = "line\nbreak hunter2" }))
      support.eventually(function()
        return sent
      end)
    end)
    assert.equal("/a/*******?...", sent[1].path)
    assert.equal("line?break *******", sent[1].reason)
  end)
end)

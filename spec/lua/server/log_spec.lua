-- The server's log: a JSON object a line, in a file that stays bounded.
local support = require("spec.support")
local cjson = require("cjson")
local log = require("tidepool.server.log")

describe("the log", function()
  after_each(function()
    log.to_stderr()
  end)

  it("has time, level, event and fields in each line, whatever they are", function()
    local path = support.scratch() .. "/log"
    assert(log.to_file(path))
    log.warn("odd_things", { text = "a\nb\0\255", number = 1.5, truth = true, list = { 1, 2 }, nan = 0 / 0 })
    log.info("plain")
    local lines = {}
    for line in support.read(path):gmatch("[^\n]+") do
      lines[#lines + 1] = cjson.decode(line)
    end
    assert.equal(2, #lines)
    assert.equal("warn", lines[1].level)
    assert.equal("odd_things", lines[1].event)
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%d%d%d%dZ$", lines[2].time)
    assert.equal("plain", lines[2].event)
  end)

  it("does not grow without bound while a server lives, and goes on where an earlier one ended", function()
    local path = support.scratch() .. "/log"
    assert(log.to_file(path, 2000))
    for i = 1, 100 do
      log.info("event", { number = i })
    end
    log.to_stderr()
    local now, before = support.read(path), support.read(path .. ".1")
    assert.is_true(#now <= 2200 and #before <= 2200)
    assert.matches('"number":100', now .. before)
    assert(log.to_file(path, 1000000))
    log.info("more")
    assert.equal(now, support.read(path):sub(1, #now))
  end)

  it("says when the file can't be opened", function()
    local ok, _, code = log.to_file("/no/such/directory/log")
    assert.is_nil(ok)
    assert.equal("EIO", code)
  end)
end)

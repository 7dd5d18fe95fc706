package.path = "spec/core/?.lua;" .. package.path
local harness = require("init_harness")

describe("the output ring", function()
  local init

  if not harness.available() then
    pending("needs root and tidepool-init")
    return
  end

  setup(function()
    init = harness.start()
  end)

  teardown(function()
    init:stop()
  end)

  local function listed(id)
    for _, process in ipairs(init:request("list").processes_listed) do
      if process.id == id then
        return process
      end
    end
  end

  local function log(id, fields)
    local _, stream = init:attach(id, fields or {})
    local result = harness.collect(stream)
    stream:close()
    return result
  end

  it("keeps the newest bytes and counts what it dropped unread", function()
    local started = init:start_detached({ argv = { "seq", "100000", "199999" }, ring = 65536 })
    local exit = init:exit_of(started.id)
    assert.equal(700000, exit.end_offset)
    local process = listed(started.id)
    assert.same({ 700000, 700000 - process.start_offset }, { process.end_offset, 65536 })
    assert.equal(process.start_offset, process.dropped)
    local result = log(started.id)
    assert.equal(process.start_offset, result.lost)
    assert.equal("199999\n", result.stdout:sub(-7))
    assert.equal(65536, #result.stdout)
  end)

  it("does not count as dropped what a client has read", function()
    local answer, stream = init:start({ argv = { "seq", "100000", "199999" }, ring = 65536 })
    assert.equal(700000, #harness.collect(stream).stdout)
    assert.equal(0, init:exit_of(answer.id).dropped)
    local process = listed(answer.id)
    assert.same({ 0, 65536 }, { process.dropped, process.end_offset - process.start_offset })
  end)

  it("remembers which stream each span came from", function()
    local result = init:sh("for i in 1 2 3; do printf o$i; sleep 0.02; printf e$i >&2; sleep 0.02; done")
    local again = log(result.id)
    assert.same({ "o1o2o3", "e1e2e3" }, { again.stdout, again.stderr })
    again = log(result.id, { offset = 5 })
    assert.same({ "2o3", "e2e3" }, { again.stdout, again.stderr })
  end)

  it("stays within its size when streams alternate byte by byte", function()
    local started = init:start_detached({
      argv = { "perl", "-e", "$|=1; for (1..20000) { syswrite(STDOUT, 'o'); syswrite(STDERR, 'e') }" },
      ring = 1048576,
    })
    assert.equal(40000, init:exit_of(started.id).end_offset)
    local result = log(started.id)
    assert.equal(40000, #result.stdout + #result.stderr + result.lost)
  end)

  it("has a least and a most size", function()
    local small = init:start_detached({ argv = { "head", "-c", "100000", "/dev/zero" }, ring = 1 })
    init:exit_of(small.id)
    assert.equal(4096, #log(small.id).stdout)
    local default = init:start_detached({ argv = { "head", "-c", "1000000", "/dev/zero" } })
    init:exit_of(default.id)
    assert.equal(262144, #log(default.id).stdout)
  end)

  it("of ended processes takes 16 MiB in all, the oldest give theirs up first", function()
    local ids = {}
    for i = 1, 24 do
      ids[i] = init:start_detached({ argv = { "head", "-c", "1048576", "/dev/zero" }, ring = 1048576, name = "n" .. i }).id
      init:exit_of(ids[i])
    end
    assert.equal(1048576, #log(ids[24]).stdout)
    local oldest = log(ids[1], { follow = true })
    assert.same({ 1048576, "", "code" }, { oldest.lost, oldest.stdout, oldest.exit.kind })
    local status = io.open("/proc/" .. init:pid() .. "/status"):read("*a")
    assert.is_true(tonumber(status:match("VmRSS:%s+(%d+)")) < 18 * 1024)
    for _, id in ipairs(ids) do
      assert.equal("ok", init:request("forget", { id = id }).type)
    end
    assert.is_true(harness.eventually(function()
      status = io.open("/proc/" .. init:pid() .. "/status"):read("*a")
      return tonumber(status:match("VmRSS:%s+(%d+)")) < 4 * 1024
    end))
  end)
end)

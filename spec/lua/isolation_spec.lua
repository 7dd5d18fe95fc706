-- What a hostile sandbox can't do: to the host, to its neighbours, to its own init; and that its owner
-- gets it back in the end.
local uv = require("luv")
local support = require("spec.support")

-- A sandbox with the program of hostile deeds in /workspace, on the shared server or that one.
local function hostile(options, server)
  local program = support.scratch() .. "/hostile"
  local compiled = support.run({ "cc", "-static", "-O1", "-o", program, "spec/support/hostile.c" })
  assert.equal(0, compiled.code, compiled.stderr)
  local box = (server or support.shared()):sandbox(options)
  assert(box:upload(program, "/workspace/hostile"))
  return box
end

describe("two sandboxes", function()
  it("meet nowhere: not by abstract socket, port or shared memory", function()
    local one, two = hostile(), hostile()
    assert(one:start({ "./hostile", "offer" }, { name = "offer" }):wait_log("offered"))
    assert.equal("name\nport\nsegment\n", assert(one:exec({ "./hostile", "meet" })).stdout)
    assert.equal("", assert(two:exec({ "./hostile", "meet" })).stdout)
    assert.equal("", assert(two:exec({ "./hostile", "meet" }, { user = "root" })).stdout)
  end)

  it("have ids of their own, so that a file of one is nobody's to the other", function()
    local one, two = support.sandbox(), support.sandbox()
    local function first_id(box)
      return tonumber((support.read("/proc/" .. box:info().pid .. "/uid_map"):match("^%s*0%s+(%d+)")))
    end
    assert.is_true(math.abs(first_id(one) - first_id(two)) >= 65536)
  end)
end)

describe("init", function()
  it("can't be reached by root inside", function()
    local box = hostile()
    for _, user in ipairs({ "root", "agent" }) do
      local result = assert(box:exec({ "./hostile", "init" }, { user = user }))
      assert.equal("", result.stdout, user)
      assert.equal(0, result.exit_code)
    end
    assert.equal("alive\n", box:exec("echo alive").stdout)
  end)
end)

describe("a server that was killed", function()
  it("finds back to a sandbox whose root crowds init's socket", function()
    local server = support.server()
    local box = hostile(nil, server)
    assert(box:start({ "./hostile", "crowd" }, { name = "crowd", user = "root" }):wait_log("crowding"))
    local pid = box:info().pid
    server:kill()
    assert.equal("alive\n", assert(box:exec("echo alive")).stdout)
    assert.equal(pid, box:info().pid)
  end)
end)

describe("what all sandboxes draw on", function()
  it("is not used up by one: pseudo terminals", function()
    local box = hostile()
    local count = tonumber(assert(box:exec({ "./hostile", "terminals" })).stdout)
    assert.is_true(count >= 64 and count <= 256, count)
    local terminal = assert(support.sandbox():terminal({ cols = 80, rows = 24 }))
    terminal:close()
  end)

  it("is not used up by one: what TCP holds counts for its memory", function()
    support.needs("memory limits")
    local box = hostile({ memory = 64 * 2 ^ 20 })
    local held = tonumber((assert(box:exec({ "./hostile", "sockets" })).stdout)) or 0
    assert.is_true(held < 64 * 2 ^ 20, held)
  end)
end)

describe("a sandbox that does its worst", function()
  it("is answered, and ended at once, under a fork bomb", function()
    support.needs("process limits")
    local box = hostile({ pids = 64 })
    local bomb = assert(box:start({ "./hostile", "bomb" }, { name = "bomb" }))
    assert.is_true(support.eventually(function()
      return box:info().usage.pids >= 60
    end))
    local result, message, code = box:exec("echo hi")
    assert.is_true(result ~= nil or code == "EAGAIN", message)
    assert(bomb:kill(0))
    assert.is_true(support.eventually(function()
      return box:info().usage.pids <= 2
    end))
    assert.equal("alive\n", box:exec("echo alive").stdout)
  end)

  it("keeps room for a command whatever its dead have left in memory", function()
    support.needs("memory limits")
    local box = hostile({ memory = 128 * 2 ^ 20 })
    box:exec("for d in /tmp /dev/shm; do cat /dev/zero >$d/fill; done; ./hostile segments")
    box:exec("cat /dev/zero >/run/fill", { user = "root" })
    assert.equal("alive\n", box:exec("echo alive").stdout)
    assert.equal(0, box:exec("rm /tmp/fill /dev/shm/fill").exit_code)
  end)

  it("lists and copies what a path can name of 10,000 directories in each other, says so, and removes them", function()
    local box = hostile()
    assert(box:mkdir("/workspace/tree"))
    assert.equal("10000\n", assert(box:exec({ "../hostile", "deep" }, { cwd = "/workspace/tree" })).stdout)
    local list, _, code = box:list("/workspace/tree", { recursive = true })
    assert.is_true(list ~= nil or code == "ENAMETOOLONG", code)
    local done = box:download("/workspace/tree", support.scratch() .. "/tree")
    assert.is_nil(done)
    assert(box:remove("/workspace/tree", { recursive = true }))
    assert.equal("ENOENT", select(3, box:stat("/workspace/tree")))
  end)

  it("can be repaired by its owner: no user database, no shell, no workspace, no way into the root", function()
    local box = support.sandbox()
    box:exec("rm -rf /etc/passwd /etc/group; mkfifo /etc/passwd /etc/group; rm -rf /workspace; ln -s /workspace /workspace; chmod 0 /",
      { user = "root" })
    assert(box:stop({ grace = 0 }))
    assert.equal("in\n", box:exec("echo in", { user = "root", cwd = "/" }).stdout) -- id would wait for the FIFO
    assert(box:remove("/etc/passwd", { user = "root" }))
    assert(box:write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/workspace:/bin/sh\n", { user = "root", mode = 420 }))
    assert(box:exec("rm /workspace; mkdir /workspace; chown 1000 /workspace; chmod 755 /", { user = "root", cwd = "/" }))
    assert.equal("1000\n", box:exec("id -u").stdout)
  end)

  it("leaves the server and its neighbours as they were", function()
    local neighbour, box = support.sandbox(), hostile({ pids = 32, memory = 64 * 2 ^ 20 })
    local server = support.shared():pid()
    box:start({ "./hostile", "bomb" }, { name = "bomb" })
    box:start("while :; do cat /dev/zero; done", { name = "flood" })
    local before = uv.hrtime()
    for i = 1, 20 do
      assert.equal(i .. "\n", neighbour:exec("echo " .. i).stdout)
    end
    assert.is_true(uv.hrtime() - before < 120e9)
    assert(box:stop({ grace = 0 }))
    assert.equal("stopped", box:info().state)
    assert.equal(server, support.shared():pid())
  end)
end)

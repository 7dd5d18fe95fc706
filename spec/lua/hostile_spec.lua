-- What must not bring the server down: hostile bytes, files taken away under it, copies of its state.
local support = require("spec.support")
local async = require("tidepool.async")
local core = require("tidepool.core")
local uv = require("luv")

local function connect(server)
  return assert(core.channel.connect(server.run .. "/server.sock"))
end

local function sql(server, statement)
  local db = assert(require("tidepool.server.state").open(server.state .. "/state.db"))
  assert(db.db:execute(statement))
  db:close()
end

local function spawners_of(pid)
  local found = {}
  for child in support.read(("/proc/%d/task/%d/children"):format(pid, pid)):gmatch("%d+") do
    if (support.read("/proc/" .. child .. "/cmdline") or ""):find("tidepool-spawner", 1, true) then
      found[#found + 1] = tonumber(child)
    end
  end
  return found
end

local function shut_down(server)
  local pid = server:pid()
  assert(server.client:call("shutdown", {}))
  assert(support.eventually(function()
    return not support.alive(pid)
  end))
end

describe("the server's socket", function()
  local server, pid
  setup(function()
    server = support.server()
    pid = server:pid()
  end)

  local hostile = {
    ["garbage"] = ("\193"):rep(100),
    ["an array that claims four billion elements"] = "\221\255\255\255\255",
    ["a string that claims four gigabytes"] = "\219\255\255\255\255",
    ["a hundred thousand arrays in each other"] = ("\145"):rep(100000) .. "\192",
    ["a parameter named by NaN"] = "\148\0\1\164info\129\203\127\248\0\0\0\0\0\0\1",
    ["parameters that are an extension type"] = "\148\0\1\164info\199\1\5x",
    ["a response that nobody asked for"] = "\148\1\1\192\192",
  }
  for what, bytes in pairs(hostile) do
    it("survives " .. what, function()
      local before = support.fd_count(pid)
      for _ = 1, 20 do
        local channel = connect(server)
        channel:send(bytes)
        channel:close()
      end
      assert.equal(pid, server:pid())
      assert(support.eventually(function()
        return support.fd_count(pid) <= before + 5 -- fewer than the connections
      end), "descriptors leaked")
    end)
  end

  it("closes a connection whose descriptors belong to no frame, and keeps none of them", function()
    local before = support.fd_count(pid)
    local channel = connect(server)
    local null = assert(core.fd.open("/dev/null", "r"))
    for _ = 1, 100 do
      if not channel:send("\147\2\161x\192", { null, null, null, null, null, null, null, null }) then
        break
      end
    end
    channel:close()
    assert(support.eventually(function()
      return support.fd_count(pid) <= before + 5
    end), "descriptors leaked")
    assert.equal(pid, server:pid())
  end)

  it("drops a client that asks on and on and never reads, and serves the others meanwhile", function()
    async.run(function()
      local channel = connect(server)
      local most, ended = 0, nil
      local request = require("mpack").pack({ 0, 1, "info", {} })
      for _ = 1, 400 do
        for _ = 1, 1000 do
          ended = ended or select(3, channel:send(request)) or select(3, channel:flush())
        end
        local start = uv.hrtime()
        assert(server.client:call("info", {}))
        most = math.max(most, (uv.hrtime() - start) / 1e9)
        if ended then
          break
        end
      end
      assert.is_truthy(ended == "EPIPE" or ended == "ECONNRESET", ended)
      assert.is_true(most < 30, "another client waited " .. most .. " s")
    end)
  end)

  it("takes a thousand silent connections, which cost little", function()
    local function rss()
      return tonumber(support.read(("/proc/%d/status"):format(pid)):match("VmRSS:%s+(%d+)"))
    end
    core.fd.raise_limit(4096)
    local before, channels = rss(), {}
    for i = 1, 1000 do
      channels[i] = connect(server)
    end
    assert(support.eventually(function()
      return support.fd_count(pid) > 1000
    end))
    assert.equal(pid, server:pid())
    assert.is_true(rss() - before < 16384, ("%d KiB, then %d"):format(before, rss()))
    for _, channel in ipairs(channels) do
      channel:close()
    end
    assert(support.eventually(function()
      return support.fd_count(pid) < 100
    end))
  end)

  it("refuses descriptors that are no connected socket for what needs one", function()
    local box = server:sandbox()
    local path = support.scratch() .. "/socket"
    local kinds = {
      assert(core.fd.open("/etc/passwd", "r")),
      assert(core.fd.open("/dev/null", "rw")),
      assert(core.fd.open("/", "rd")),
      assert(core.channel.listen(path)),
    }
    for i, fd in ipairs(kinds) do
      for _, verb in ipairs({ "exec", "agent" }) do
        local params = { name = box.name, argv = verb == "exec" and { "true" } or nil }
        local result, _, code = server.client:call(verb, params, { fd })
        assert.is_nil(result, verb .. " took descriptor " .. i)
        assert.equal("ENOTSOCK", code)
      end
    end
    assert.equal("ok\n", box:exec("echo ok").stdout)
  end)

  it("may have as many descriptors open as the machine allows", function()
    local soft, hard = support.read(("/proc/%d/limits"):format(pid)):match("Max open files%s+(%d+)%s+(%d+)")
    assert.equal(hard, soft)
  end)
end)

describe("a server under which", function()
  local server, box
  before_each(function()
    server = support.server()
    box = server:sandbox()
  end)

  it("its run directory is removed makes its socket anew", function()
    local pid = server:pid()
    server.client:close()
    support.run({ "rm", "-rf", server.run })
    assert(support.eventually(function()
      return uv.fs_stat(server.run .. "/server.sock")
    end))
    assert.equal(pid, server:pid())
    assert.equal("ok\n", box:exec("echo ok").stdout)
  end)

  it("the state directory is removed says so, and its sandboxes go on", function()
    support.run({ "sh", "-c", 'mv "$0" "$0.old"', server.state })
    local made, message, code = server.client:call("create", { name = "other", image = "minimal" })
    assert.is_nil(made)
    assert.equal("ESTALE", code)
    assert.matches("was removed", message)
    assert.equal("ok\n", box:exec("echo ok").stdout)
    support.run({ "sh", "-c", 'mv "$0.old" "$0"', server.state })
    assert(server.client:call("create", { name = "other", image = "minimal" }))
  end)

  it("another state directory's server wants to listen keeps its socket", function()
    local pid = server:pid()
    local second = support.cli({ "serve" }, {
      env = { "PATH=" .. os.getenv("PATH"), "TIDEPOOL_STATE=" .. support.scratch(), "TIDEPOOL_RUN=" .. server.run,
        "TIDEPOOL_BUILD=" .. require("tidepool.paths").build() },
    })
    assert.equal(125, second.code)
    assert.matches("EADDRINUSE", second.stderr)
    assert.equal(pid, server:pid())
  end)

  it("a spawner is stopped goes on", function()
    local pid = server:pid()
    for _, child in ipairs(spawners_of(pid)) do
      assert(uv.kill(child, "sigstop"))
    end
    assert(server.client:call("create", { name = "late", image = "minimal" }))
    assert(server.client:call("destroy", { name = "late" }))
  end)

  it("a sandbox is made with the least memory keeps its spawners", function()
    local pid = server:pid()
    local children = spawners_of(pid)
    local made, _, code = server.client:call("create", { name = "least", image = "minimal", memory = 4 * 2 ^ 20 })
    assert.is_true(made ~= nil or code ~= "ECONNRESET")
    assert.same(children, spawners_of(pid))
  end)

  it("its spawners are killed fails or finishes each create, and leaves nothing of those that failed", function()
    async.run(function()
      local tasks, pid = {}, server:pid()
      for i = 1, 12 do
        tasks[i] = async.spawn(function()
          local made, _, code = server.client:call("create", { name = "c" .. i, image = "minimal" })
          return made ~= nil, code
        end)
      end
      for _ = 1, 3 do
        for child in support.read(("/proc/%d/task/%d/children"):format(pid, pid)):gmatch("%d+") do
          uv.kill(tonumber(child), "sigkill")
        end
        async.sleep(0.02)
      end
      local expected = { box.name }
      for i, task in ipairs(tasks) do
        local _, made, code = task:join()
        if made then
          expected[#expected + 1] = "c" .. i
        else
          assert.equal("ECONNRESET", code)
        end
      end
      local names = {}
      for _, info in ipairs(assert(server.client:call("ls", {}))) do
        names[#names + 1] = info.name
        assert.equal("running", info.state)
        assert(server.client:call("exec", { name = info.name, argv = { "true" } }))
      end
      table.sort(expected)
      assert.same(expected, names)
      assert.equal(pid, server:pid())
    end)
  end)
end)

describe("the state directory", function()
  it("of a host that was restarted has its sandboxes stopped, with that reason and their files", function()
    local server = support.server()
    local box = server:sandbox()
    assert(box:write("/workspace/file", "kept"))
    local pid = box:info().pid
    shut_down(server)
    sql(server, "UPDATE sandboxes SET run = json_set(run, '$.boot_id', 'another')")
    uv.kill(pid, "sigkill") -- as a reboot would have
    assert(support.eventually(function()
      return not support.alive(pid)
    end))
    local info = box:info()
    assert.equal("stopped", info.state)
    assert.equal("the host was restarted", info.reason)
    assert.equal("kept", box:read("/workspace/file"))
  end)

  it("may be copied: the copy's server leaves the original's sandboxes alone", function()
    local server = support.server()
    local box = server:sandbox()
    assert(box:write("/workspace/file", "mine"))
    assert.equal(0, box:exec("sync").exit_code)
    local copy = support.server()
    support.run({ "mkdir", "-p", copy.state })
    support.run({ "cp", "--sparse=always", "-a", server.state .. "/.", copy.state })
    local info, message, code = copy.client:call("info", { name = box.name })
    if not info then
      assert.equal("ENOSERVER", code)
      pending("this kernel does not mount a second btrfs of one id: " .. message)
    end
    assert.equal("stopped", info.state)
    assert.matches("copied", info.reason)
    assert(copy.client:call("destroy", { name = box.name }))
    assert.equal("running", box:info().state)
    assert.equal("mine", box:read("/workspace/file"))
    assert(server.client:call("stop", { name = box.name, grace = 0 }))
    assert.equal("mine", box:read("/workspace/file"))
  end)

  local broken = {
    ["a database that is none"] = { "echo no database > state.db", "not a database" },
    ["a database of a newer version"] = { nil, "version 99", "PRAGMA user_version = 99" },
    ["a pool that is none"] = { "truncate -s 0 pool.img; truncate -s 1G pool.img", "pool" },
  }
  for what, case in pairs(broken) do
    it("with " .. what .. " stops the start with one clear line", function()
      local server = support.server()
      shut_down(server)
      if case[3] then
        sql(server, case[3])
      else
        support.run({ "sh", "-c", "cd " .. server.state .. "; rm -f state.db-*; " .. case[1] })
      end
      local info, message, code = server.client:call("info", {})
      assert.is_nil(info)
      assert.equal("ENOSERVER", code)
      assert.matches(case[2], message)
      assert.is_nil(message:find("traceback", 1, true))
    end)
  end
end)

describe("a database that is gone", function()
  it("stops the start, and no files go with it", function()
    local server = support.server()
    local box = server:sandbox()
    assert(box:write("/workspace/file", "kept"))
    assert(server.client:call("stop", { name = box.name, grace = 0 }))
    shut_down(server)
    support.run({ "sh", "-ec", 'cd "$1"; mkdir aside; mv state.db* aside', "sh", server.state })
    for _ = 1, 2 do
      local info, message, code = server.client:call("info", {})
      assert.is_nil(info)
      assert.equal("ENOSERVER", code)
      assert.matches("state.db is gone or another one, while the files of 1 sandboxes and snapshots are here", message)
    end
    support.run({ "sh", "-ec", 'cd "$1"; rm -f state.db*; mv aside/* .', "sh", server.state })
    assert.equal("kept", box:read("/workspace/file"))
  end)
end)

describe("a full disk", function()
  it("is said to be full, by a server that lives on and stops and destroys", function()
    local server = support.server()
    local directory = support.scratch()
    local made = support.run({ "sh", "-ec",
      'cd "$0"; truncate -s 320M disk; mkfs.ext4 -q disk; mkdir mount; mount -o loop disk mount', directory })
    if made.code ~= 0 then
      pending("no loop device: " .. made.stderr)
    end
    support.defer(function()
      support.run({ "umount", directory .. "/mount" })
    end)
    local state = directory .. "/mount/state"
    local client = require("tidepool.client").new({ state = state, run = directory .. "/run" })
    server.client:close()
    support.defer(function()
      os.remove(directory .. "/mount/filler")
      assert.same({}, support.close(client))
    end)
    assert(client:call("image_build", { image = "minimal" }))
    assert(client:call("create", { name = "box", image = "minimal" }))
    local box = require("tidepool.client.box").new(client, "box")

    -- A pool never outgrows its disk by itself.
    local result = box:exec("dd if=/dev/zero of=fill bs=1M count=600; sync; rm fill; sync; cat /etc/hostname")
    assert.matches("No space left", result.stderr)
    assert.equal("box\n", result.stdout)

    support.run({ "sh", "-c", "cat /dev/zero > " .. directory .. "/mount/filler; sync" })
    local info, message, code = client:call("create", { name = "other", image = "minimal" })
    assert.is_nil(info)
    assert.equal("ENOSPC", code)
    assert.matches("full", message)
    assert.equal(1, #assert(client:call("ls", {})))
    assert.equal("stopped", assert(client:call("stop", { name = "box", grace = 0 })).state)

    os.remove(directory .. "/mount/filler")
    assert(client:call("destroy", { name = "box" }))
    assert.same({}, assert(client:call("ls", {})))
  end)
end)

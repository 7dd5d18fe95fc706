-- What an egress process still has once it serves somebody: looked at from outside, and tried as whoever it runs as.
local core = require("tidepool.core")
local support = require("spec.support")
local uv = require("luv")

-- Who serves a sandbox, once somebody does: the process's pid.
local function served(box)
  return support.eventually(function()
    local shown = assert(box:egress_show())
    return shown.state == "served" and shown.process.pid
  end)
end

local function status_of(pid)
  local fields = {}
  for name, value in support.read(("/proc/%d/status"):format(pid)):gmatch("([%w_]+):\t([^\n]*)") do
    fields[name] = (value:gsub("%s+$", ""))
  end
  return fields
end

local function list(text, separator)
  local items = {}
  for item in text:gmatch("[^" .. separator .. "]+") do
    items[#items + 1] = item
  end
  return items
end

describe("an egress process that serves a sandbox", function()
  local server, box, other, pid, second, status

  setup(function()
    support.needs_root()
    uv.os_setenv("TIDEPOOL_EGRESS", "sandbox")
    server = support.server()
    box, other = server:sandbox(), server:sandbox()
    uv.os_unsetenv("TIDEPOOL_EGRESS")
    assert(server.client:call("secret_set", { secret = "held", value = "a value that nobody sees" }))
    assert(box:egress_set({ { "allow_hosts", hosts = { "a.test" } } }))
    pid, second = assert(served(box)), assert(served(other))
    assert.matches("Address: 198.18", assert(box:exec({ "nslookup", "a.test" })).stdout)
    status = status_of(pid)
  end)

  -- Runs a program of the host as the user that the process is.
  local function as_it(...)
    local id = status.Uid:match("%d+")
    return support.run({ "setpriv", "--reuid", id, "--regid", status.Gid:match("%d+"), "--clear-groups", ... })
  end

  it("is a user of its own, who is in no group, in no sandbox and in no other process", function()
    local ids = list(status.Uid .. "\t" .. status.Gid, "\t")
    for _, id in ipairs(ids) do
      assert.equal(ids[1], id)
    end
    assert.equal("", status.Groups)
    assert.not_equal(status.Uid, status_of(second).Uid)
    for _, each in ipairs({ box, other }) do
      local first, count = support.read(("/proc/%d/uid_map"):format(assert(each:info()).pid)):match("^%s*0%s+(%d+)%s+(%d+)")
      local id = tonumber(ids[1])
      assert.is_true(id < tonumber(first) or id >= first + count)
    end
    assert.not_equal(0, support.run({ "getent", "passwd", ids[1] }).code) -- nor in the host's list of users
  end)

  it("has no capability, can gain none, and is left a list of system calls", function()
    for _, set in ipairs({ "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb" }) do
      assert.matches("^0+$", status[set])
    end
    assert.equal("1", status.NoNewPrivs)
    assert.equal("2", status.Seccomp)
    assert.equal("1", status.Threads)
    local limits = support.read(("/proc/%d/limits"):format(pid))
    assert.matches("Max core file size%s+0%s+0 ", limits)
    assert.matches("Max processes%s+0%s+0 ", limits)
    assert.matches("Max address space%s+%d+%s+%d+ ", limits)
  end)

  it("sees no file: its root and its directory are empty and can't be written to", function()
    for _, place in ipairs({ "root", "cwd" }) do
      local path = ("/proc/%d/%s/."):format(pid, place)
      assert.same({}, support.names(path))
      assert.equal(tonumber("40555", 8), uv.fs_stat(path).mode)
    end
    assert.equal(1, #list(support.read(("/proc/%d/mountinfo"):format(pid)), "\n"))
  end)

  it("holds sockets, what it waits with, the sandbox's map and link, its log and a page: nothing else", function()
    local allowed = {
      "^socket:", "^pipe:", "^anon_inode:%[event", "^anon_inode:%[timerfd%]$", "^anon_inode:bpf[-_]map$", "^anon_inode:bpf[-_]link$",
      "^/dev/null$", "^" .. server.state:gsub("%p", "%%%0") .. "/server%.log$", "^" .. server.run:gsub("%p", "%%%0") .. "/egress%-%d+%.page$",
    }
    local counts = {}
    for _, number in ipairs(support.names(("/proc/%d/fd"):format(pid))) do
      local target, known = uv.fs_readlink(("/proc/%d/fd/%s"):format(pid, number)), nil
      for _, pattern in ipairs(allowed) do
        known = known or target:find(pattern) and pattern
      end
      assert.is_truthy(known, target)
      counts[known] = (counts[known] or 0) + 1
    end
    local bpf = assert(box:egress_show()).mode == "bpf" and 1 or nil
    assert.equal(bpf, counts[allowed[5]])
    assert.equal(bpf, counts[allowed[6]])
    local flags = support.read(("/proc/%d/fdinfo/2"):format(pid)):match("flags:%s+(%d+)")
    assert.equal(1, bit.band(tonumber(flags, 8), 3)) -- the log it can append to, not read
    assert.equal(1024, bit.band(tonumber(flags, 8), 1024))
  end)

  it("tells nothing by its arguments and its environment", function()
    assert.matches("luajit%z[^%z]*/lua/tidepool/egress/main%.lua%z$", support.read(("/proc/%d/cmdline"):format(pid)))
    local names = {}
    for _, entry in ipairs(list(support.read(("/proc/%d/environ"):format(pid)), "%z")) do
      names[entry:match("^[^=]+")] = true
    end
    for _, name in ipairs({ "LUA_PATH", "LUA_CPATH", "LD_LIBRARY_PATH", "TIDEPOOL_RUN", "TIDEPOOL_BUILD" }) do
      names[name] = nil
    end
    assert.same({}, names)
  end)

  it("can't be looked into by its own user, nor that of another", function()
    for _, each in ipairs({ pid, second }) do
      for _, name in ipairs({ "mem", "environ", "maps", "fd/3" }) do
        local result = as_it("head", "-c1", ("/proc/%d/%s"):format(each, name))
        assert.matches("Permission denied", result.stderr, name)
        assert.equal("", result.stdout)
      end
      assert.equal(0, uv.fs_stat(("/proc/%d/mem"):format(each)).uid) -- not dumpable: what is of it is root's
    end
    assert.matches("not permitted", as_it("kill", "-KILL", tostring(second)).stderr)
    assert.is_true(support.alive(second))
  end)

  it("can't reach the server, its state or the sockets of others as its user", function()
    for _, path in ipairs({ server.run .. "/server.sock", server.run .. "/egress-1.sock", server.run .. "/egress-2.sock" }) do
      local program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
      assert.matches("PermissionError", as_it("/usr/bin/python3", "-c", program, path).stderr)
    end
    for _, path in ipairs({ "/state.db", "/secret.key", "/audit.db", "/server.log" }) do
      assert.matches("Permission denied", as_it("cat", server.state .. path).stderr)
    end
  end)

  it("listens to nobody but root on its own socket", function()
    local path = server.run .. "/egress-1.sock"
    local stat = uv.fs_stat(path)
    assert.equal(tonumber("140600", 8), stat.mode)
    assert.equal(0, stat.uid)
    assert.equal(tonumber("40700", 8), uv.fs_stat(server.run).mode)
    local channel = assert(core.channel.connect(server.run .. "/server.sock")) -- root may
    channel:close()
  end)

  it("serves on after all of this", function()
    assert.equal(pid, served(box))
    assert.matches("Address: 198.18", assert(box:exec({ "nslookup", "a.test" })).stdout)
  end)
end)

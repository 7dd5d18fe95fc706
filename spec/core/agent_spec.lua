local uv = require("luv")
local core = require("tidepool.core")
package.path = "spec/core/?.lua;" .. package.path
local harness = require("init_harness")

local function octal(text)
  return tonumber(text, 8)
end

describe("the file agent", function()
  local init, agent, root

  if not harness.available() then
    pending("needs root and tidepool-init")
    return
  end

  setup(function()
    init = harness.start()
    agent = assert(init:agent("agent"))
    root = assert(init:agent("root"))
  end)

  teardown(function()
    agent.channel:close()
    root.channel:close()
    init:stop()
  end)

  local function write(who, path, bytes, fields)
    fields = fields or {}
    fields.path = path
    local begun = who.call("begin", fields)
    if begun.code then
      return begun
    end
    for at = 0, #bytes - 1, 65536 do
      who.send("write", { offset = at, data = bytes:sub(at + 1, at + 65536) })
    end
    return who.call("commit", fields)
  end

  local function read(who, path)
    local answer = who.call("open", { path = path })
    if answer.code then
      return nil, answer.code
    end
    return harness.read_fd(answer.fds[1], 1000000), answer
  end

  local function list(who, path, recursive)
    who.send("list", { path = path, recursive = recursive })
    local entries = {}
    while true do
      local message = assert(who.receive())
      if message.op == "done" then
        return entries, message
      end
      entries[message.path] = message
    end
  end

  it("writes a file that reads the same, owned by its user", function()
    local bytes = ("0123456789abcdef\0\255"):rep(20000)
    local answer = write(agent, "a.txt", bytes, { mode = octal("640"), mtime = 1500000000.5 })
    assert.same({ "file", octal("640"), 1000, 1000, #bytes, 1500000000.5 }, {
      answer.stat.type, answer.stat.mode, answer.stat.uid, answer.stat.gid, answer.stat.size, answer.stat.mtime,
    })
    local text, opened = read(agent, "/workspace/a.txt")
    assert.equal(bytes, text)
    assert.equal(#bytes, opened.stat.size)
    assert.same({}, { (list(agent, "."))[".a.txt"] })
  end)

  it("shows a new file only when it is whole", function()
    write(agent, "whole", "old", { mode = octal("600") })
    assert.is_nil(agent.call("begin", { path = "whole" }).code)
    agent.send("write", { data = "half" })
    assert.equal("EBUSY", agent.call("begin", { path = "other" }).code)
    assert.equal("old", read(root, "whole"))
    assert.is_nil(agent.call("abort").code)
    assert.equal("old", read(root, "whole"))
    local answer = write(agent, "whole", "new")
    assert.equal(octal("600"), answer.stat.mode)
    assert.equal("new", read(agent, "whole"))
    for name in pairs(list(agent, "/workspace")) do
      assert.is_nil(name:match("%.tp"))
    end
  end)

  it("leaves nothing behind when its client goes away in the middle", function()
    local other = assert(init:agent("agent"))
    other.call("begin", { path = "/tmp/unfinished" })
    other.send("write", { data = "x" })
    other.channel:close()
    harness.eventually(function()
      return next((list(agent, "/tmp"))) == nil
    end)
    assert.same({}, (list(agent, "/tmp")))
  end)

  it("appends, creates exclusively, makes holes", function()
    write(agent, "log", "one\n", { append = true })
    write(agent, "log", "two\n", { append = true })
    assert.equal("one\ntwo\n", read(agent, "log"))
    assert.equal("EEXIST", write(agent, "log", "x", { exclusive = true }).code)
    assert.is_nil(write(agent, "fresh", "x", { exclusive = true }).code)
    agent.call("begin", { path = "holes" })
    agent.send("write", { offset = 10000000, data = "end" })
    local stat = agent.call("commit", { size = 20000000 }).stat
    assert.equal(20000000, stat.size)
    assert.is_true(stat.blocks < 1000)
  end)

  it("writes through a symlink and never instead of it", function()
    agent.call("mkdir", { path = "dir" })
    agent.call("symlink", { path = "link", target = "dir/real" })
    assert.is_nil(write(agent, "link", "through").code)
    assert.equal("through", read(agent, "dir/real"))
    local stat = agent.call("stat", { path = "link" })
    assert.same({ "link", "dir/real" }, { stat.stat.type, stat.target })
    assert.equal("file", agent.call("stat", { path = "link", follow = true }).stat.type)
    agent.call("symlink", { path = "loop", target = "loop" })
    assert.equal("ELOOP", write(agent, "loop", "x").code)
    assert.equal("ENOENT", agent.call("stat", { path = "loop2", follow = true }).code)
  end)

  it("does what its user may and no more", function()
    write(root, "/etc/secret", "s", { mode = octal("600") })
    assert.equal("EACCES", select(2, read(agent, "/etc/secret")))
    assert.equal("EACCES", write(agent, "/etc/new", "x").code)
    assert.equal("EACCES", agent.call("chmod", { path = "/etc/passwd", mode = octal("777") }).code:gsub("EPERM", "EACCES"))
    write(root, "/workspace/roots", "mine", { mode = octal("644") })
    assert.equal("EACCES", write(agent, "roots", "x").code)
    assert.equal("mine", read(agent, "roots"))
    write(root, "/workspace/a.txt", "changed by root")
    assert.equal(1000, agent.call("stat", { path = "a.txt" }).stat.uid)
    assert.equal("user ENOENT", (function()
      local _, answer = init:agent("nobody-at-all")
      return answer.step .. " " .. answer.code
    end)())
  end)

  it("never waits for a FIFO, a device or a socket", function()
    init:sh("mkfifo /workspace/fifo; mkfifo /workspace/fifo2")
    assert.equal("EINVAL", select(2, read(agent, "fifo")))
    assert.equal("EINVAL", select(2, read(agent, "/dev/zero")))
    assert.equal("EISDIR", select(2, read(agent, "/etc")))
    assert.equal("EINVAL", write(agent, "fifo", "x").code)
    assert.equal("ENXIO", write(agent, "fifo2", "x", { append = true }).code)
    assert.equal("fifo", agent.call("stat", { path = "fifo" }).stat.type)
    assert.equal("char", agent.call("stat", { path = "/dev/null" }).stat.type)
  end)

  it("hands out descriptors that can only be read", function()
    write(agent, "readonly", "x")
    local answer = agent.call("open", { path = "readonly" })
    local path = "/proc/self/fdinfo/" .. answer.fds[1]:number()
    local flags = io.open(path):read("*a"):match("flags:%s+(%d+)")
    assert.equal(0, octal(flags) % 4)
    assert.equal("file", core.fd.kind(answer.fds[1]))
  end)

  it("lists a tree without following its links", function()
    agent.call("mkdir", { path = "tree/one/two", parents = true })
    write(agent, "tree/one/file", "abc")
    agent.call("symlink", { path = "tree/etc", target = "/etc" })
    local entries = list(agent, "tree", true)
    local names = {}
    for name, entry in pairs(entries) do
      names[#names + 1] = name .. ":" .. entry.stat.type
    end
    table.sort(names)
    assert.same({ "etc:link", "one/file:file", "one/two:directory", "one:directory" }, names)
    assert.equal("/etc", entries.etc.target)
    assert.equal("ENOTDIR", select(2, list(agent, "tree/one/file")).code)
    assert.equal("ENOENT", select(2, list(agent, "no-such")).code)
  end)

  it("lists what it can read and says what it can't", function()
    root.call("mkdir", { path = "/workspace/part/closed", parents = true, mode = octal("700") })
    root.call("chmod", { path = "/workspace/part/closed", mode = octal("700") })
    write(root, "/workspace/part/open", "x")
    local entries, done = list(agent, "part", true)
    assert.is_truthy(entries.open)
    assert.equal("EACCES", done.code)
    assert.match("closed", done.message)
  end)

  it("lists 20,000 files to a slow reader in little memory", function()
    init:sh("mkdir many; cd many; seq 20000 | xargs touch")
    agent.send("list", { path = "many" })
    uv.sleep(200)
    local rss = init:sh("cat /proc/" .. agent.pid .. "/status", { user = "root" }).stdout:match("VmRSS:%s+(%d+)")
    assert.is_true(tonumber(rss) < 2000, rss)
    local count = 0
    while true do
      local message = assert(agent.receive())
      if message.op == "done" then
        break
      end
      count = count + 1
    end
    assert.equal(20000, count)
  end)

  it("removes, alone and whole trees, and never through a link", function()
    init:sh("mkdir -p del/a/b del/c; touch del/a/b/f; ln -s /workspace/tree del/link; ln -s dir del2")
    assert.equal("ENOTEMPTY", agent.call("remove", { path = "del" }).code)
    assert.is_nil(agent.call("remove", { path = "del", recursive = true }).code)
    assert.is_nil(agent.call("remove", { path = "del2", recursive = true }).code)
    assert.equal("ENOENT", agent.call("stat", { path = "del" }).code)
    assert.equal("directory", agent.call("stat", { path = "tree" }).stat.type)
    assert.equal("directory", agent.call("stat", { path = "dir" }).stat.type)
    assert.equal("ENOENT", agent.call("remove", { path = "del" }).code)
    assert.equal("EBUSY", agent.call("remove", { path = "/", recursive = true }).code)
    assert.equal("EINVAL", agent.call("remove", { path = "tree/..", recursive = true }).code)
    assert.equal("EACCES", agent.call("remove", { path = "/etc/passwd" }).code)
  end)

  it("makes directories, renames, changes modes and times", function()
    assert.equal("ENOENT", agent.call("mkdir", { path = "x/y/z" }).code)
    assert.is_nil(agent.call("mkdir", { path = "x/y/z", parents = true, mode = octal("1700") }).code)
    assert.is_nil(agent.call("mkdir", { path = "x/y/z", parents = true }).code)
    assert.equal("EEXIST", agent.call("mkdir", { path = "x" }).code)
    assert.same({ octal("1700"), octal("755") }, {
      agent.call("stat", { path = "x/y/z" }).stat.mode,
      agent.call("stat", { path = "x" }).stat.mode,
    })
    write(agent, "x/f", "1")
    assert.equal("ENOTDIR", agent.call("mkdir", { path = "x/f", parents = true }).code)
    assert.is_nil(agent.call("rename", { path = "x/f", to = "x/g" }).code)
    assert.equal("ENOENT", agent.call("stat", { path = "x/f" }).code)
    assert.is_nil(agent.call("chmod", { path = "x/g", mode = octal("4711") }).code)
    assert.is_nil(agent.call("times", { path = "x/g", mtime = 1234567890 }).code)
    local stat = agent.call("stat", { path = "x/g" }).stat
    assert.same({ octal("4711"), 1234567890 }, { stat.mode, stat.mtime })
  end)

  it("says that the disk is full, once, at the commit", function()
    write(agent, "/small/kept", "kept")
    assert.equal("ENOSPC", write(agent, "/small/kept", ("x"):rep(2000000)).code)
    assert.equal("kept", read(agent, "/small/kept"))
    assert.equal("EBADF", agent.call("commit").code)
    assert.same({ "kept" }, (function()
      local names = {}
      for name in pairs((list(agent, "/small"))) do
        names[#names + 1] = name
      end
      return names
    end)())
  end)

  it("has no capability that a build does not need", function()
    local status = init:sh("cat /proc/" .. root.pid .. "/status", { user = "root" }).stdout
    assert.match("CapEff:%s00000000a00425fb", status)
    status = init:sh("cat /proc/" .. agent.pid .. "/status", { user = "root" }).stdout
    assert.match("CapEff:%s0+\n", status)
    assert.match("Uid:%s1000%s1000%s1000%s1000\n", status)
  end)

  it("ends at garbage and at the end of its socket", function()
    for _, bytes in ipairs({ "", "\1", "\99\0\0\0\1\0\0\0", ("\255"):rep(50) }) do
      local other = assert(init:agent("agent"))
      other.channel:send(bytes)
      local message, _, code = other.receive()
      assert.is_nil(message)
      assert.not_equal("ETIMEDOUT", code)
      other.channel:close()
    end
    assert.is_true(harness.eventually(function()
      return init:sh("ps -eo user,args | grep '^agent.*tidepool/ini[t]' | tail -n +2").stdout == ""
    end))
  end)

  it("leaves no descriptor in init", function()
    local before = init:fd_count()
    for _ = 1, 30 do
      local other = assert(init:agent("agent"))
      write(other, "x", "y")
      other.channel:close()
    end
    assert.equal(before, init:fd_count())
  end)
end)

local uv = require("luv")
local support = require("spec.support")

local function octal(text)
  return tonumber(text, 8)
end

describe("files of a sandbox", function()
  local box

  setup(function()
    support.needs_root()
    box = support.sandbox()
  end)

  it("are written and read as bytes, whatever they are", function()
    local bytes = "\0\255\r\n" .. ("x"):rep(1000)
    local stat = assert(box:write("/workspace/a", bytes, { mode = octal("640") }))
    assert.equal(#bytes, stat.size)
    assert.equal(octal("640"), stat.mode)
    assert.equal("file", stat.kind)
    assert.equal(1000, stat.uid)
    assert.equal(bytes, box:read("/workspace/a"))
    assert.equal("\255\r", box:read("/workspace/a", { offset = 1, limit = 2 }))
    assert.equal("", box:read("/workspace/a", { offset = 5000 }))
  end)

  it("don't wait for ever for an agent that its own user has stopped", function()
    local files = require("tidepool.client.files")
    local patience = files.patience
    finally(function()
      files.patience = patience
    end)
    assert(box:write("stopped", "x", { user = "1000" }))
    assert(box:exec("for p in /proc/[0-9]*; do case $(cat $p/cmdline | tr '\\0' ' ') in /.tidepool/init*) kill -STOP ${p#/proc/};; esac; done"))
    files.patience = 0.2
    local bytes, message, code = box:read("stopped", { user = "1000" })
    assert.is_nil(bytes)
    assert.equal("ETIMEDOUT", code)
    assert.matches("does not answer", message)
    files.patience = patience
    box:close() -- any other agent of that user has been stopped, too
    assert.equal("x", box:read("stopped", { user = "1000" }))
  end)

  it("relative paths start at /workspace", function()
    assert(box:write("relative", "here"))
    assert.equal("here", box:read("/workspace/relative"))
  end)

  it("belong to the user who asked, and obey that user's rights", function()
    assert.equal("EACCES", select(3, box:write("/etc/mine", "x")))
    assert(box:write("/etc/mine", "x", { user = "root" }))
    assert.equal(0, box:stat("/etc/mine").uid)
    assert.equal("EBADUSER", select(3, box:read("/etc/mine", { user = "nobody-knows" })))
  end)

  it("change as a whole: a reader sees the old or the new", function()
    assert(box:write("whole", "old"))
    local before = box:stat("whole").inode
    assert(box:write("whole", "new"))
    assert.not_equal(before, box:stat("whole").inode)
    -- Failing half way leaves the old one and no litter.
    local pieces = { "half" }
    local ok, _, code = box:write("whole", function()
      local piece = table.remove(pieces)
      if piece then
        return piece
      end
      return nil, "source broke", "EIO"
    end)
    assert.is_nil(ok)
    assert.equal("EIO", code)
    assert.equal("new", box:read("whole"))
    for _, entry in ipairs(box:list("/workspace")) do
      assert.is_nil(entry.path:find("whole.", 1, true), entry.path)
    end
  end)

  it("keep their mode when they are written again", function()
    assert(box:write("script", "1", { mode = octal("755") }))
    assert(box:write("script", "2"))
    assert.equal(octal("755"), box:stat("script").mode)
  end)

  it("are made only once when that is asked", function()
    assert(box:write("once", "1", { exclusive = true }))
    assert.equal("EEXIST", select(3, box:write("once", "2", { exclusive = true })))
    assert.equal("1", box:read("once"))
  end)

  it("grow at their end", function()
    assert(box:append("log", "a"))
    assert(box:append("log", "b"))
    assert.equal("ab", box:read("log"))
  end)

  it("take their content from a function, too", function()
    local n = 0
    assert(box:write("pieces", function()
      n = n + 1
      return n <= 3 and ("%d"):format(n) or nil
    end))
    assert.equal("123", box:read("pieces"))
  end)

  it("are as they were when the function that gives their content raises, and can be written again", function()
    assert(box:write("raised", "before"))
    local count = 0
    local ok, message = pcall(box.write, box, "raised", function()
      count = count + 1
      if count == 2 then
        error("no more", 0)
      end
      return "half"
    end)
    assert.is_false(ok)
    assert.matches("^no more", message)
    assert.equal("before", box:read("raised"))
    assert(box:write("raised", "after"))
    assert.equal("after", box:read("raised"))
  end)

  it("are listed, told about, renamed, changed and removed", function()
    assert.equal("ENOENT", select(3, box:mkdir("tree/a/b")))
    assert(box:mkdir("tree/a/b", { parents = true }))
    assert(box:mkdir("tree/a/b", { parents = true }))
    assert.equal("EEXIST", select(3, box:mkdir("tree")))
    assert(box:write("tree/a/f", "x"))
    assert(box:symlink("/etc/passwd", "tree/l"))
    local paths = {}
    for _, entry in ipairs(assert(box:list("tree", { recursive = true }))) do
      paths[#paths + 1] = entry.path .. ":" .. entry.kind
    end
    assert.same({ "a:directory", "a/b:directory", "a/f:file", "l:link" }, paths)
    assert.equal(2, #box:list("tree"))
    assert.equal("/etc/passwd", box:stat("tree/l", { follow = false }).target)
    assert.equal("file", box:stat("tree/l").kind)
    assert(box:rename("tree/a/f", "tree/g"))
    assert(box:chmod("tree/g", octal("600")))
    assert.equal(octal("600"), box:stat("tree/g").mode)
    assert.equal("ENOTEMPTY", select(3, box:remove("tree")))
    assert(box:remove("tree", { recursive = true }))
    assert.equal("ENOENT", select(3, box:stat("tree")))
    assert.is_truthy(box:stat("/etc/passwd"))
  end)

  it("that a link points to outside are the sandbox's own", function()
    assert(box:symlink("/../../../../etc/hostname", "out"))
    assert.equal(box.name .. "\n", box:read("out"))
  end)

  it("that are no regular files are refused and never waited for", function()
    assert(box:exec({ "mkfifo", "/workspace/fifo" }))
    local started = uv.hrtime()
    assert.equal("EINVAL", select(3, box:read("fifo")))
    assert.equal("EINVAL", select(3, box:read("/dev/zero")))
    assert.equal("EISDIR", select(3, box:read("/workspace")))
    assert.equal("ENOENT", select(3, box:read("none")))
    assert.is_true(uv.hrtime() - started < 50e9)
  end)

  it("with names that make no sense are refused", function()
    for _, path in ipairs({ "", "a\0b" }) do
      assert.equal("EINVAL", select(3, box:read(path)))
      assert.equal("EINVAL", select(3, box:write(path, "x")))
    end
    assert.equal("ENAMETOOLONG", select(3, box:write(("n"):rep(300), "x")))
  end)

  it("can be worked on by many tasks at once", function()
    local jobs = {}
    for i = 1, 20 do
      jobs[i] = function()
        assert(box:write("many" .. i, tostring(i)))
        return assert(box:read("many" .. i))
      end
    end
    local results = require("sandbox").all(jobs)
    for i = 1, 20 do
      assert.equal(tostring(i), results[i])
    end
  end)

  it("are there after a stop, and the next call wakes the sandbox", function()
    assert(box:write("stays", "yes"))
    assert(box:stop())
    assert.equal("yes", box:read("stays"))
  end)

  it("end where they ended when they were opened, and too many bytes for a string are refused", function()
    assert(box:exec({ "truncate", "-s", "3G", "/workspace/huge" }))
    assert.equal("EFBIG", select(3, box:read("huge")))
    assert.equal("\0\0", box:read("huge", { offset = 3 * 2 ^ 30 - 2 }))
    assert(box:remove("huge"))
    assert.matches("^Name:", box:read("/proc/self/status"))
  end)

  it("hold large contents without a copy in memory", function()
    local piece, count = ("0123456789abcdef"):rep(65536), 0
    assert(box:write("large", function()
      count = count + 1
      return count <= 200 and piece or nil
    end))
    assert.equal(200 * #piece, box:stat("large").size)
    assert.equal("f0123", box:read("large", { offset = 150 * #piece - 1, limit = 5 }))
    assert(box:remove("large"))
    assert.is_true(uv.resident_set_memory() < 300 * 2 ^ 20)
  end)
end)

describe("a file agent that lies", function()
  local async = require("tidepool.async")
  local core = require("tidepool.core")
  local files = require("tidepool.client.files")

  local function against(answer)
    local ours, theirs = core.fd.pair()
    local channel = core.channel.wrap(theirs)
    local client = files.open(ours)
    return async.within(function()
      local results
      local asked = async.spawn(function()
        results = { client:stat("/x") }
      end)
      answer(channel)
      asked:join()
      return results, client
    end)
  end

  it("with garbage is left at once", function()
    local results, client = against(function(channel)
      channel:send("\1\0\0")
    end)
    assert.is_nil(results[1])
    assert.equal("EBADMSG", results[3])
    assert.equal("EPIPE", select(3, require("tidepool.async").within(client.stat, client, "/x")))
  end)

  it("with an answer to something else is left at once", function()
    local results = against(function(channel)
      channel:send("\9\0\0\0\99\0\0\0")
    end)
    assert.is_nil(results[1])
    assert.is_string(results[3])
  end)

  it("by going away is an error, not a hang", function()
    local results = against(function(channel)
      channel:close()
    end)
    assert.is_nil(results[1])
    assert.is_true(results[3] == "EPIPE" or results[3] == "ECONNRESET")
  end)
end)

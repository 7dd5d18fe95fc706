local uv = require("luv")
local core = require("tidepool.core")

local function scratch()
  return assert(uv.fs_mkdtemp("/var/tmp/tidepool-copy-XXXXXX"))
end

local function write(path, bytes)
  local file = assert(io.open(path, "wb"))
  file:write(bytes)
  file:close()
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:read("*a")
  file:close()
  return bytes
end

local function descriptors()
  local count = 0
  local scan = uv.fs_scandir("/proc/self/fd")
  while uv.fs_scandir_next(scan) do
    count = count + 1
  end
  return count
end

describe("core.copy", function()
  local root, directory

  before_each(function()
    root = scratch()
    directory = assert(core.fd.open(root, "rd"))
  end)

  after_each(function()
    directory:close()
    os.execute("rm -rf '" .. root .. "'")
  end)

  it("copies a range and says how much there was", function()
    write(root .. "/in", "0123456789")
    local input = assert(core.fd.open(root .. "/in", "r"))
    local output = assert(core.copy.open(directory, "out", "wx", 384))
    assert.equal(6, core.copy.range(input, 4, output, 1, 100))
    assert.equal("\000456789", read(root .. "/out"))
    input:close()
    output:close()
  end)

  it("copies between file systems and out of /proc", function()
    local input = assert(core.fd.open("/proc/self/status", "r"))
    local output = assert(core.copy.open(directory, "out", "wx", 384))
    assert.is_true(core.copy.range(input, 0, output, 0, 2 ^ 20) > 100)
    assert.matches("^Name:", read(root .. "/out"))
    input:close()
    output:close()
  end)

  it("finds the data of a sparse file", function()
    local output = assert(core.copy.open(directory, "sparse", "wx", 384))
    write(root .. "/piece", ("x"):rep(4096))
    local input = assert(core.fd.open(root .. "/piece", "r"))
    assert(core.copy.range(input, 0, output, 8 * 2 ^ 20, 4096))
    assert(core.copy.finish(output, 384, nil, 16 * 2 ^ 20))
    output:close()
    local sparse = assert(core.fd.open(root .. "/sparse", "r"))
    local start, stop = core.copy.extent(sparse, 0)
    assert.is_true(start > 0 and start <= 8 * 2 ^ 20)
    assert.is_true(stop >= 8 * 2 ^ 20 + 4096 and stop < 16 * 2 ^ 20)
    assert.is_false(core.copy.extent(sparse, stop))
    sparse:close()
    input:close()
  end)

  it("takes a name for a name and nothing else", function()
    for _, name in ipairs({ "", ".", "..", "a/b", "/etc/passwd", "../x", "a\0/b" }) do
      for _, call in ipairs({ "open", "mkdir", "unlink", "stat" }) do
        local ok, _, code = core.copy[call](directory, name)
        assert.is_nil(ok)
        assert.equal("EINVAL", code)
      end
      assert.equal("EINVAL", select(3, core.copy.symlink(directory, name, "x")))
      assert.equal("EINVAL", select(3, core.copy.rename(directory, "x", name)))
      assert.equal("EINVAL", select(3, core.copy.rename(directory, name, "x")))
    end
  end)

  it("never follows a link", function()
    assert(core.copy.symlink(directory, "out", "/etc"))
    assert.is_nil((core.copy.open(directory, "out", "rd")))
    assert(core.copy.symlink(directory, "file", "/etc/hostname"))
    assert.equal("ELOOP", select(3, core.copy.open(directory, "file", "r")))
    assert.equal("EEXIST", select(3, core.copy.open(directory, "file", "wx")))
    assert.equal("link", core.copy.stat(directory, "file").kind)
  end)

  it("does not wait for a FIFO", function()
    assert.equal(0, os.execute("mkfifo '" .. root .. "/fifo'"))
    local fd = assert(core.copy.open(directory, "fifo", "r"))
    assert.equal("fifo", core.fd.kind(fd))
    fd:close()
  end)

  it("sets size, mode and time last", function()
    local fd = assert(core.copy.open(directory, "f", "wx", 384))
    assert(core.copy.finish(fd, 416, 1000000000.25, 7))
    fd:close()
    local stat = uv.fs_stat(root .. "/f")
    assert.equal(7, stat.size)
    assert.equal(416, bit.band(stat.mode, 511))
    assert.equal(1000000000, stat.mtime.sec)
    assert.equal(250000000, stat.mtime.nsec)
  end)

  it("says what failed", function()
    assert.equal("ENOENT", select(3, core.copy.open(directory, "none", "r")))
    assert(core.copy.mkdir(directory, "a"))
    assert.equal("EEXIST", select(3, core.copy.mkdir(directory, "a")))
    assert.equal("ENOENT", select(3, core.copy.unlink(directory, "none")))
    assert.equal("ENOENT", select(3, core.copy.rename(directory, "none", "x")))
    assert.equal("ENOENT", select(3, core.copy.stat(directory, "none")))
    assert.equal("EBADF", select(3, core.copy.read(99999, 0, 1)))
    assert.equal("EBADF", select(3, core.copy.extent(99999, 0)))
    assert.equal("EBADF", select(3, core.copy.range(99999, 0, 99998, 0, 1)))
    assert.equal("EBADF", select(3, core.copy.finish(99999, 0)))
    assert.has_error(function() core.copy.range({}, 0, 1, 0, 1) end)
    assert.has_error(function() core.copy.read(0, -1, 1) end)
    assert.has_error(function() core.copy.read(0, 0, 2 ^ 40) end)
  end)

  it("loses no descriptor, also under a hasty collector", function()
    local before = descriptors()
    collectgarbage("setpause", 1)
    collectgarbage("setstepmul", 1000)
    for i = 1, 300 do
      local fd = assert(core.copy.open(directory, "f" .. i, "wx", 384))
      core.copy.open(directory, "none", "r")
      core.copy.finish(fd, 384, 1, 1)
    end
    collectgarbage("setpause", 200)
    collectgarbage("setstepmul", 200)
    collectgarbage()
    collectgarbage()
    assert.equal(before, descriptors())
  end)
end)

local bit = require("bit")
local uv = require("luv")
local core = require("tidepool.core")
local copy = require("tidepool.client.copy")
local support = require("spec.support")

local function octal(text)
  return tonumber(text, 8)
end

local function sh(script)
  local result = support.run({ "sh", "-ec", script })
  assert.equal(0, result.code, result.stderr)
  return result.stdout
end

describe("cp between host and sandbox", function()
  local box, host

  setup(function()
    support.needs_root()
    box = support.sandbox()
    host = support.scratch()
    sh(([[
      cd %s; mkdir -p tree/sub/deep tree/closed
      echo one > tree/one; printf '\000\377' > tree/sub/bytes; echo run > tree/sub/run
      chmod 755 tree/sub/run; chmod 600 tree/one; touch -d 2001-02-03T04:05:06Z tree/one
      ln -s one tree/link; ln -s /nowhere/at/all tree/dangling; ln -s sub tree/dirlink
      echo in > tree/closed/f; chmod 500 tree/closed; touch -d 2002-01-01T00:00:00Z tree/sub
      mkfifo tree/fifo
      truncate -s 64M tree/sparse; printf end | dd of=tree/sparse bs=1 seek=40000000 conv=notrunc status=none
    ]]):format(host))
  end)

  it("carries a tree in and out again with links, modes, times and holes", function()
    local result = assert(box:upload(host .. "/tree", "/workspace/in"))
    assert.same({ host .. "/tree/fifo" }, result.skipped)
    assert.equal(5, result.files)
    assert.equal(3, result.links)
    assert.equal(octal("600"), box:stat("in/one").mode)
    assert.equal(1000, box:stat("in/one").uid)
    assert.equal(981173106, box:stat("in/one").mtime)
    assert.equal("one", box:stat("in/link", { follow = false }).target)
    assert.equal(octal("500"), box:stat("in/closed").mode)
    assert.is_true(box:stat("in/sparse").allocated < 2 ^ 20)

    assert(box:download("/workspace/in", host .. "/out"))
    sh(("cd %s; rm -f tree/fifo; diff -r --no-dereference tree out"):format(host))
    for _, path in ipairs({ "one", "sub", "sub/run", "closed", "sparse" }) do
      local before, after = uv.fs_lstat(host .. "/tree/" .. path), uv.fs_lstat(host .. "/out/" .. path)
      assert.equal(bit.band(before.mode, 511), bit.band(after.mode, 511), path)
      assert.equal(before.mtime.sec, after.mtime.sec, path)
    end
    assert.equal("/nowhere/at/all", uv.fs_readlink(host .. "/out/dangling"))
    assert.is_true(uv.fs_stat(host .. "/out/sparse").blocks * 512 < 2 ^ 20)
  end)

  it("takes files of any age, though not every age exactly", function()
    assert(box:exec("mkdir ages; cd ages; touch -d '1900-01-01 00:00' old && touch -d '2400-06-01 00:00' new"))
    assert.equal(0, box:stat("ages/old").mtime)
    assert(box:download("/workspace/ages", host .. "/ages"))
    assert.equal(0, uv.fs_stat(host .. "/ages/old").mtime.sec)
    assert.is_true(uv.fs_stat(host .. "/ages/new").mtime.sec > 4e9)
    sh(("touch -d '1900-01-01' %s/ages/old; touch -d '2400-06-01' %s/ages/new"):format(host, host))
    assert(box:upload(host .. "/ages", "/workspace/ages2"))
  end)

  it("refuses a file that is larger than any disk, and leaves nothing of it", function()
    assert.equal(0, box:exec("dd if=/dev/null of=whale bs=1 seek=4611686018427387904").exit_code)
    local done, _, code = box:download("/workspace/whale", host .. "/whale")
    assert.is_nil(done)
    assert.equal("EFBIG", code)
    for _, name in ipairs(support.names(host)) do
      assert.is_nil(name:find("whale", 1, true), name)
    end
  end)

  it("goes where docker cp goes", function()
    assert(box:mkdir("dst"))
    assert(box:upload(host .. "/tree/one", "dst"))
    assert.equal("one\n", box:read("dst/one"))
    assert(box:upload(host .. "/tree/one", "dst/other"))
    assert.equal("one\n", box:read("dst/other"))
    assert(box:upload(host .. "/tree/sub", "dst"))
    assert.is_truthy(box:stat("dst/sub/run"))
    assert(box:upload(host .. "/tree/sub/.", "dst"))
    assert.is_truthy(box:stat("dst/run"))
    assert(box:upload(host .. "/tree/sub", "new"))
    assert.is_truthy(box:stat("new/run"))
    assert.equal("ENOENT", select(3, box:upload(host .. "/tree/one", "none/")))
    assert.equal("ENOENT", select(3, box:upload(host .. "/tree/one", "none/x")))
    assert.equal("ENOTDIR", select(3, box:upload(host .. "/tree/sub", "dst/other")))
    assert.equal("ENOENT", select(3, box:upload(host .. "/none", "dst")))

    local out = host .. "/docker"
    uv.fs_mkdir(out, 493)
    assert(box:download("dst/one", out))
    assert(box:download("dst/sub", out))
    assert(box:download("dst/sub/.", out))
    assert(box:download("dst/one", out .. "/renamed"))
    assert.equal("bytes\ndeep\none\nrenamed\nrun\nsub\n", sh("ls " .. out))
    assert.equal("ENOTDIR", select(3, box:download("dst/sub", out .. "/one")))
    assert.equal("ENOENT", select(3, box:download("none", out)))
  end)

  it("replaces files and merges directories when it goes over them again", function()
    assert(box:upload(host .. "/tree/sub/.", "dst"))
    assert(box:write("dst/run", "changed"))
    assert(box:upload(host .. "/tree/sub/.", "dst"))
    assert.equal("run\n", box:read("dst/run"))
    assert(box:download("dst/.", host .. "/docker"))
    assert.equal("run\n", sh("cat " .. host .. "/docker/run"))
  end)

  it("replaces a link that is in the way and doesn't write through it", function()
    assert(box:mkdir("merge"))
    assert(box:write("victim", "safe"))
    assert(box:symlink("/workspace/victim", "merge/run"))
    assert(box:upload(host .. "/tree/sub/.", "merge"))
    assert.equal("safe", box:read("victim"))
    assert.equal("file", box:stat("merge/run", { follow = false }).kind)

    local out = host .. "/merge"
    sh(("mkdir %s; echo safe > %s/victim; ln -s %s/victim %s/run"):format(out, host, host, out))
    assert(box:download("merge/.", out))
    assert.equal("safe\n", sh("cat " .. host .. "/victim"))
    assert.equal("file", uv.fs_lstat(out .. "/run").type)
  end)

  it("leaves setuid and setgid inside", function()
    assert(box:write("suid", "x", { user = "root" , mode = octal("755") }))
    assert(box:chmod("suid", octal("6755"), { user = "root" }))
    assert(box:download("suid", host .. "/suid"))
    assert.equal(octal("755"), bit.band(uv.fs_stat(host .. "/suid").mode, 4095))
  end)

  it("copies 2 GB at constant memory", function()
    sh(("cd %s; head -c 64M /dev/urandom > big; truncate -s 2100M big; head -c 1M /dev/urandom | dd of=big bs=1M seek=2098 conv=notrunc status=none")
      :format(host))
    assert(box:upload(host .. "/big", "big"))
    assert.equal(2100 * 2 ^ 20, box:stat("big").size)
    assert(box:download("big", host .. "/big2"))
    sh(("cd %s; cmp big big2; rm big big2"):format(host))
    assert(box:remove("big"))
    assert.is_true(uv.resident_set_memory() < 300 * 2 ^ 20)
  end)

  it("tells how far it is", function()
    local last
    assert(box:upload(host .. "/tree/sub", "progress", {
      on_progress = function(result)
        last = result.bytes
      end,
    }))
    assert.equal(6, last)
  end)

  it("is offered on the command line", function()
    local result = support.cli({ "cp", host .. "/tree/one", box.name .. ":by-cli" })
    assert.equal(0, result.code, result.stderr)
    result = support.cli({ "cp", box.name .. ":by-cli", "/dev/stdout" })
    assert.equal("one\n", result.stdout)
    result = support.cli({ "cp", host .. "/tree/one", host .. "/x" })
    assert.equal(125, result.code)
    assert.matches("%(EINVAL%)", result.stderr)
  end)
end)

-- A sandbox that lies: what its agent says is made up, and nothing may land outside.
describe("a download from a hostile agent", function()
  local root, victim, file

  before_each(function()
    root = support.scratch()
    victim = root .. "/victim"
    assert(uv.fs_mkdir(victim, 493))
    assert(uv.fs_mkdir(root .. "/in", 493))
    local handle = assert(io.open(root .. "/content", "w"))
    handle:write("evil")
    handle:close()
    file = root .. "/content"
  end)

  local function entry(path, kind, target)
    return { path = path, kind = kind, mode = 511, size = 4, mtime = 1, target = target }
  end

  local function download(entries)
    local agent = {
      stat = function()
        return entry("", "directory")
      end,
      list = function()
        return entries
      end,
      open = function()
        return assert(core.fd.open(file, "r")), entry("", "file")
      end,
    }
    return require("tidepool.async").within(copy.download, agent, "/src/.", root .. "/in")
  end

  local attempts = {
    ["a name that goes up"] = function() return { entry("../victim/x", "file") } end,
    ["an absolute name"] = function() return { entry("/" .. victim .. "/x", "file") } end,
    ["an empty name"] = function() return { entry("", "file") } end,
    ["a name with a NUL"] = function() return { entry("a\0/../../victim/x", "file") } end,
    ["dots inside"] = function() return { entry("a", "directory"), entry("a/../../victim/x", "file") } end,
    ["a link and a file through it"] = function() return { entry("l", "link", victim), entry("l/x", "file") } end,
    ["a link and a directory in its place"] = function() return { entry("l", "link", victim), entry("l", "directory"), entry("l/x", "file") } end,
    ["a link through a link"] = function() return { entry("l", "link", victim), entry("l/x", "link", "/etc") } end,
  }
  for about, make in pairs(attempts) do
    it("writes nothing outside: " .. about, function()
      local ok, _, code = download(make())
      assert.is_nil(ok)
      assert.is_string(code)
      assert.equal("", support.run({ "ls", "-A", victim }).stdout)
    end)
  end

  it("replaces a link by the file of its name, and what it pointed to stays", function()
    assert(download({ entry("l", "link", file .. "2"), entry("l", "file") }))
    assert.equal("file", uv.fs_lstat(root .. "/in/l").type)
    assert.is_nil(uv.fs_stat(file .. "2"))
  end)
end)

local ffi = require("ffi")
local uv = require("luv")
local support = require("spec.support")
local tar = require("spec.support.tar")
local paths = require("tidepool.paths")

local RANGE = 3000000000 -- far from the ids that servers give out

ffi.cdef("ssize_t llistxattr(const char *path, char *list, size_t size);")

local function octal(text)
  return tonumber(text, 8)
end

describe("tidepool-unpack", function()
  local scratch, target

  before_each(function()
    scratch = support.scratch()
    target = scratch .. "/target"
    assert(uv.fs_mkdir(target, octal("755")))
    assert(uv.fs_mkdir(scratch .. "/outside", octal("777")))
    tar.write(scratch .. "/outside/canary", "alive")
  end)

  after_each(function()
    -- Whatever an archive tried, what is beside the target is as it was.
    local names = {}
    for name in function(scan) return uv.fs_scandir_next(scan) end, uv.fs_scandir(scratch .. "/outside") do
      names[#names + 1] = name
    end
    assert.same({ "canary" }, names)
    local stat = assert(uv.fs_stat(scratch .. "/outside/canary"))
    assert.same({ 5, octal("644"), 0 }, { stat.size, stat.mode % 4096, stat.uid })
  end)

  local function run(arguments)
    local command = { paths.tool("tidepool-unpack"), "--target", target, "--uid-base", tostring(RANGE) }
    for _, argument in ipairs(arguments) do
      command[#command + 1] = argument
    end
    return support.run(command)
  end

  -- Unpacks archives (objects or bytes) as layers.
  local function unpack_layers(layers, extra)
    local arguments = {}
    for i, layer in ipairs(layers) do
      local bytes = type(layer) == "string" and layer or layer:bytes()
      arguments[#arguments + 1] = "--layer"
      arguments[#arguments + 1] = tar.write(scratch .. "/layer" .. i, bytes)
    end
    for _, argument in ipairs(extra or {}) do
      arguments[#arguments + 1] = argument
    end
    return run(arguments)
  end

  local function unpacks(layers, extra)
    local result = unpack_layers(layers, extra)
    assert.equal("", result.stderr)
    assert.equal(0, result.code)
    return result
  end

  local function refuses(code, words, layers, extra)
    local result = unpack_layers(layers, extra)
    assert.equal(1, result.code)
    assert.matches("^" .. code .. ": [^\n]*" .. words .. "[^\n]*\n$", result.stderr)
    assert.is_nil(result.stdout:match("done"))
  end

  local function stat(path)
    local found = uv.fs_lstat(target .. "/" .. path)
    return found and { type = found.type, mode = found.mode % 4096, uid = found.uid, gid = found.gid,
      size = found.size, mtime = found.mtime.sec, nlink = found.nlink }
  end

  local function content(path)
    local file = io.open(target .. "/" .. path, "rb")
    if not file then
      return nil
    end
    local bytes = file:read("*a")
    file:close()
    return bytes
  end

  local function compressed(bytes, ...)
    local path = tar.write(scratch .. "/plain", bytes)
    local result = support.run({ ..., "-c", path })
    assert.equal(0, result.code)
    return result.stdout
  end

  local function sha256(bytes)
    local path = tar.write(scratch .. "/sum", bytes)
    return "sha256:" .. support.run({ "sha256sum", path }).stdout:match("^%x+")
  end

  it("restores owners, modes, times and links as they are written", function()
    unpacks({ tar.new():all({
      { name = "./", type = "directory", mode = octal("711") },
      { name = "./dir/", type = "directory", mode = octal("2750"), uid = 12, gid = 34, mtime = 1234567 },
      { name = "dir/file", content = "hello", mode = octal("640"), uid = 65535, gid = 1000, mtime = 7654321 },
      { name = "dir/su", content = "x", mode = octal("4755") },
      { name = "dir/same", type = "hardlink", target = "dir/file" },
      { name = "dir/link", type = "symlink", target = "/nowhere", uid = 5 },
    }) })
    assert.same({ type = "directory", mode = octal("2750"), uid = 12, gid = 34, mtime = 1234567 },
      (function(s) s.size, s.nlink = nil, nil return s end)(stat("dir")))
    assert.same({ type = "file", mode = octal("640"), uid = 65535, gid = 1000, size = 5, mtime = 7654321, nlink = 2 },
      stat("dir/file"))
    assert.equal(octal("4755"), stat("dir/su").mode)
    assert.equal("/nowhere", uv.fs_readlink(target .. "/dir/link"))
    assert.equal(5, stat("dir/link").uid)
    assert.equal(octal("711"), uv.fs_stat(target).mode % 4096)
    assert.equal("hello", content("dir/same"))
  end)

  it("works below a shared mount, as systemd makes them", function()
    local layer = tar.write(scratch .. "/layer", tar.new():add({ name = "file", content = "x" }):bytes())
    local script = 'mount --bind "$1" "$1" && mount --make-shared "$1" && exec "$2" --target "$1/target" --uid-base "$3" --layer "$4"'
    local result = support.run({ "unshare", "--mount", "sh", "-c", script, "sh", scratch, paths.tool("tidepool-unpack"),
      tostring(RANGE), layer })
    assert.equal("", result.stderr)
    assert.equal("x", content("file"))
  end)

  it("keeps file capabilities and user attributes, no others", function()
    local capability = "\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0" -- cap_net_bind_service+ep
    unpacks({ tar.new():add({ name = "ping", content = "x", mode = octal("755"), pax = {
      ["SCHILY.xattr.security.capability"] = capability,
      ["SCHILY.xattr.user.note"] = "kept",
      ["SCHILY.xattr.trusted.overlay.opaque"] = "y",
      ["SCHILY.xattr.security.selinux"] = "z",
    } }) })
    local names = ffi.new("char[4096]")
    local size = ffi.C.llistxattr(target .. "/ping", names, 4096)
    local list = {}
    for name in ffi.string(names, size):gmatch("%Z+") do
      list[#list + 1] = name
    end
    table.sort(list)
    assert.same({ "security.capability", "user.note" }, list)
  end)

  it("reads gzip, zstd, xz and bzip2, and a tar from standard input", function()
    local bytes = tar.new():add({ name = "file", content = ("text"):rep(10000) }):bytes()
    for _, compressor in ipairs({ "gzip", "zstd", "xz", "bzip2" }) do
      unpacks({ compressed(bytes, compressor) })
      assert.equal(40000, #content("file"))
      assert(uv.fs_unlink(target .. "/file"))
    end
    local fd = assert(uv.fs_open(tar.write(scratch .. "/stdin", bytes), "r", 0))
    local result = support.run({ paths.tool("tidepool-unpack"), "--target", target, "--uid-base", tostring(RANGE),
      "--stdin", stdin = fd })
    uv.fs_close(fd)
    assert.equal(0, result.code)
    assert.equal(40000, #content("file"))
  end)

  it("takes names of any bytes but never an upward one", function()
    local latin = "caf\233"
    unpacks({ tar.new():all({
      { name = "new\nline", content = "1" },
      { name = latin, content = "2" },
      { name = "x", pax = { path = "gr\195\188n" }, content = "3" },
      { name = "x", pax = { path = "dir//./" .. latin }, content = "4" },
      { name = "...", content = "5" },
    }) })
    assert.same({ "1", "2", "3", "4", "5" },
      { content("new\nline"), content(latin), content("gr\195\188n"), content("dir/" .. latin), content("...") })
    for _, name in ipairs({ "..", "../outside/canary", "a/../../outside/canary", "a/.." }) do
      refuses("EBADMSG", "leads upwards", { tar.new():add({ name = name, content = "dead!" }) })
    end
  end)

  it("survives a NUL in a name", function()
    local result = unpack_layers({ tar.new():add({ name = "x", pax = { path = "a\0/../../outside/canary" }, content = "dead!" }) })
    assert.is_true(result.code == 0 or result.code == 1)
  end)

  it("says what is wrong in one printable line, whatever an entry is called", function()
    local result = unpack_layers({ tar.new():add({ name = "\27[2J\nEACCES: x/../y", content = "" }) })
    assert.equal("EBADMSG: " .. scratch .. "/layer1: ?[2J?EACCES: x/../y: name leads upwards: Bad message\n", result.stderr)
  end)

  it("puts absolute names inside", function()
    unpacks({ tar.new():add({ name = scratch .. "/outside/canary", content = "inside" }) })
    assert.equal("inside", content(scratch .. "/outside/canary"))
  end)

  it("follows a symbolic link inside, where it leads nowhere else", function()
    unpacks({ tar.new():all({
      { name = "usr/bin/", type = "directory" },
      { name = "bin", type = "symlink", target = "usr/bin" },
      { name = "up", type = "symlink", target = "../../../../usr" },
    }), tar.new():all({
      { name = "bin/tool", content = "tool" },
      { name = "up/share", content = "share" },
    }) })
    assert.equal("link", stat("bin").type)
    assert.equal("tool", content("usr/bin/tool"))
    assert.equal("share", content("usr/share"))
  end)

  it("writes nothing through a link that points at the host", function()
    for _, link in ipairs({ scratch .. "/outside", "../outside", "../../../../../../.." .. scratch .. "/outside" }) do
      unpack_layers({ tar.new():all({
        { name = "link", type = "symlink", target = link },
        { name = "link/canary", content = "dead!" },
        { name = "link/new", content = "dead!" },
      }) })
      unpack_layers({ tar.new():all({
        { name = "file", type = "symlink", target = link .. "/canary" },
        { name = "file", content = "dead!" },
      }) })
      assert.equal("file", stat("file").type)
    end
  end)

  it("makes no hard link to what is outside", function()
    for _, name in ipairs({ scratch .. "/outside/canary", "/etc/passwd" }) do
      refuses("ENOENT", "", { tar.new():add({ name = "hard", type = "hardlink", target = name }) })
      assert.is_nil(stat("hard"))
    end
    refuses("EBADMSG", "leads upwards",
      { tar.new():add({ name = "hard", type = "hardlink", target = "../outside/canary" }) })
  end)

  it("links to a symbolic link itself, and writes nothing through it", function()
    unpack_layers({ tar.new():all({
      { name = "sym", type = "symlink", target = scratch .. "/outside/canary" },
      { name = "hard", type = "hardlink", target = "sym", content = "dead!" },
    }) })
    assert.equal("link", (stat("hard") or { type = "link" }).type)
  end)

  it("does not wait on a FIFO, whatever comes after it under the same name", function()
    unpacks({ tar.new():all({
      { name = "fifo", type = "fifo" },
      { name = "hard", type = "hardlink", target = "fifo", size = 0 },
      { name = "again", type = "fifo" },
      { name = "again", content = "file now" },
    }) })
    assert.equal("fifo", stat("fifo").type)
    assert.equal("file now", content("again"))
  end)

  it("leaves device nodes out and counts them", function()
    local result = unpacks({ tar.new():all({
      { name = "dev/sda", type = "block" },
      { name = "dev/mem", type = "char" },
      { name = "kept", content = "1" },
    }) })
    assert.matches("done 1 3 2\n$", result.stdout)
    assert.is_nil(stat("dev/sda"))
    assert.is_nil(stat("dev/mem"))
  end)

  it("lets the last of several entries of one name win", function()
    unpacks({ tar.new():all({
      { name = "a", content = "first" },
      { name = "a", content = "second" },
      { name = "b/", type = "directory" },
      { name = "b/c", content = "lost" },
      { name = "b", content = "file" },
      { name = "d", content = "file" },
      { name = "d/", type = "directory" },
    }) })
    assert.same({ "second", "file", "directory" }, { content("a"), content("b"), stat("d").type })
  end)

  it("refuses ids that a sandbox can't have", function()
    refuses("ERANGE", "owner 65536:0", { tar.new():add({ name = "a", uid = 65536 }) })
    refuses("ERANGE", "owner 0:100000", { tar.new():add({ name = "a", gid = 100000 }) })
  end)

  describe("with limits", function()
    it("stops a bomb by what comes out of the decompressor", function()
      local bomb = tar.new():add({ name = "big", content = ("\0"):rep(20000000) }):bytes()
      refuses("EFBIG", "more than 1000000 bytes", { compressed(bomb, "zstd") }, { "--max-bytes", "1000000" })
      refuses("EFBIG", "more than 1000000 bytes",
        { compressed(bomb .. ("\0"):rep(20000000), "gzip") }, { "--max-bytes", "1000000" })
    end)

    it("stops a file that claims to be larger than the limit by a hole", function()
      refuses("EFBIG", "", { tar.new():add({ name = "hole", content = "x",
        pax = { ["GNU.sparse.size"] = "1099511627777", ["GNU.sparse.map"] = "1099511627776,1" } }) })
    end)

    it("counts all layers together", function()
      local layer = tar.new():all({ { name = "a", content = ("x"):rep(600) }, { name = "b", content = "" } })
      unpacks({ layer }, { "--max-entries", "2", "--max-bytes", "4096" })
      refuses("EFBIG", "more than 3 entries", { layer, layer }, { "--max-entries", "3" })
      refuses("EFBIG", "more than 10000 bytes", { tar.new():add({ name = "a", content = ("x"):rep(6000) }),
        tar.new():add({ name = "b", content = ("x"):rep(6000) }) }, { "--max-bytes", "10000" })
    end)
  end)

  describe("fed with damaged input", function()
    local whole = tar.new():all({ { name = "a", content = ("x"):rep(5000) }, { name = "b", content = ("y"):rep(5000) } }):bytes()

    it("refuses what is no archive", function()
      refuses("EBADMSG", "damaged archive", { ("garbage "):rep(1000) })
      refuses("EBADMSG", "not an archive", { "" })
      refuses("EBADMSG", "", { "\31\139\8\0garbage" })
      refuses("EBADMSG", "", { "\40\181\47\253" .. ("garbage"):rep(100) })
    end)

    it("refuses an archive that was cut inside an entry, plain or compressed", function()
      refuses("EBADMSG", "", { whole:sub(1, 3000) })
      refuses("EBADMSG", "", { compressed(whole, "gzip"):sub(1, -20) })
      refuses("EBADMSG", "", { compressed(whole, "zstd"):sub(1, -10) })
    end)

    it("refuses a size that the archive does not hold", function()
      refuses("EBADMSG", "", { tar.new():add({ name = "a", content = "x", size = 8000000000 }) })
    end)

    it("compares both digests: as stored, and as unpacked", function()
      local gz = compressed(whole, "gzip")
      unpacks({ gz }, { "--digest", sha256(gz), "--diff-id", sha256(whole) })
      refuses("EBADMSG", "digest is sha256", { gz }, { "--digest", sha256(whole) })
      refuses("EBADMSG", "content is sha256", { gz }, { "--diff-id", sha256(gz) })
      refuses("EBADMSG", "digest is sha256", { whole .. "tail" }, { "--digest", sha256(whole) })
      unpacks({ whole .. "tail" }, { "--digest", sha256(whole .. "tail") })
    end)
  end)

  describe("applying layers", function()
    local lower = tar.new():all({
      { name = "dir/", type = "directory" },
      { name = "dir/old", content = "old" },
      { name = "dir/sub/deep", content = "old" },
      { name = "dir/sub/other", content = "old" },
      { name = "gone/a/b", content = "old" },
      { name = "file", content = "old" },
    })

    it("removes what a whiteout names, file or tree", function()
      unpacks({ lower, tar.new():all({ { name = ".wh.gone" }, { name = "dir/.wh.old" }, { name = ".wh.never" } }) })
      assert.same({ nil, nil, "old" }, { stat("gone"), stat("dir/old"), content("file") })
      assert.is_nil(stat(".wh.never"))
    end)

    it("hides lower layers by an opaque mark, wherever in its own layer the mark stands", function()
      for _, mark_first in ipairs({ true, false }) do
        local upper = { { name = "dir/new", content = "new" }, { name = "dir/sub/deep", content = "new" } }
        table.insert(upper, mark_first and 1 or 3, { name = "dir/.wh..wh..opq" })
        unpacks({ lower, tar.new():all(upper) })
        assert.is_nil(stat("dir/old"))
        assert.is_nil(stat("dir/sub/other"))
        assert.same({ "new", "new" }, { content("dir/new"), content("dir/sub/deep") })
        assert.is_nil(stat("dir/.wh..wh..opq"))
      end
    end)

    it("keeps what a layer makes and whites out at once", function()
      unpacks({ lower, tar.new():all({
        { name = "gone/", type = "directory" }, { name = "gone/new", content = "new" }, { name = ".wh.gone" },
      }) })
      assert.is_nil(stat("gone/a"))
      assert.equal("new", content("gone/new"))
    end)

    it("refuses whiteouts of no name or of the directory above", function()
      for _, name in ipairs({ ".wh.", ".wh..", ".wh...", "dir/.wh...", "dir/sub/.wh..." }) do
        refuses("EBADMSG", "whiteout of no name", { lower, tar.new():add({ name = name }) })
      end
      assert.equal("old", content("file"))
    end)

    it("removes nothing outside through a link", function()
      unpacks({ tar.new():all({
        { name = "link", type = "symlink", target = scratch .. "/outside" },
        { name = "up", type = "symlink", target = "../outside" },
      }), tar.new():all({
        { name = "link/.wh.canary" }, { name = "up/.wh.canary" },
        { name = "link/.wh..wh..opq" }, { name = "up/.wh..wh..opq" },
      }) })
    end)
  end)

  describe("--finish", function()
    it("gives any tree an agent, a home, mount points and files of its own", function()
      unpacks({ tar.new():add({ name = "bin/sh", content = "#", mode = octal("755") }) }, { "--finish" })
      for _, path in ipairs({ "proc", "sys", "dev/pts", "dev/shm", "tmp", "run", ".tidepool", "etc" }) do
        assert.equal("directory", stat(path).type)
      end
      assert.equal(octal("1777"), stat("tmp").mode)
      assert.same({ 1000, 1000, octal("755") }, { stat("workspace").uid, stat("workspace").gid, stat("workspace").mode })
      assert.matches("\nagent:x:1000:1000:agent:/workspace:/bin/sh\n", content("etc/passwd"), 1, true)
      assert.matches("\nagent:x:1000:\n", content("etc/group"), 1, true)
      for _, path in ipairs({ "etc/hostname", "etc/hosts", "etc/resolv.conf" }) do
        assert.equal("file", stat(path).type)
      end
    end)

    it("names uid 1000 agent, whoever had it, and replaces another agent", function()
      unpacks({ tar.new():all({
        { name = "etc/passwd", content = "root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\nagent:x:77:77::/:/bin/false" },
        { name = "etc/group", content = "root:x:0:\nnode:x:1000:\n" },
        { name = "etc/shadow", content = "root:*:1::::::\n", mode = octal("640"), gid = 42 },
        { name = "bin/bash", content = "#", mode = octal("755") },
        { name = "usr/bin/sudo", content = "#", mode = octal("4755") },
      }) }, { "--finish" })
      assert.equal("root:x:0:0::/root:/bin/sh\nagent:x:1000:1000:agent:/workspace:/bin/bash\n" ..
        "node:x:1000:1000::/home/node:/bin/sh\n", content("etc/passwd"))
      assert.equal("root:x:0:\nagent:x:1000:\nnode:x:1000:\n", content("etc/group"))
      assert.matches("\nagent:%*:", content("etc/shadow"))
      assert.same({ octal("640"), 42 }, { stat("etc/shadow").mode, stat("etc/shadow").gid })
      assert.matches("\nagent ALL=%(ALL:ALL%) NOPASSWD:ALL\n$", content("etc/sudoers.d/agent"))
      assert.equal(octal("440"), stat("etc/sudoers.d/agent").mode)
    end)

    it("replaces links that stand where it writes", function()
      local outside = scratch .. "/outside"
      unpacks({ tar.new():all({
        { name = "etc/resolv.conf", type = "symlink", target = outside .. "/canary" },
        { name = "etc/hosts", type = "symlink", target = "../../outside/canary" },
        { name = "etc/passwd", type = "symlink", target = outside .. "/canary" },
        { name = "etc/group", type = "fifo" },
        { name = "workspace", type = "symlink", target = outside },
        { name = "tmp", type = "symlink", target = outside },
        { name = "dev", type = "symlink", target = outside },
        { name = ".tidepool", content = "a file" },
      }) }, { "--finish" })
      for path, kind in pairs({ ["etc/resolv.conf"] = "file", ["etc/hosts"] = "file", ["etc/passwd"] = "file",
        ["etc/group"] = "file", workspace = "directory", tmp = "directory", dev = "directory",
        [".tidepool"] = "directory" }) do
        assert.equal(kind, stat(path).type, path)
      end
    end)
  end)

  describe("--plain", function()
    it("makes files and directories of the worker's own, without modes or owners", function()
      unpacks({ tar.new():all({
        { name = "dir/su", content = "x", mode = octal("4755"), uid = 99999 },
        { name = "fifo", type = "fifo" },
        { name = ".wh.dir", content = "kept" },
      }) }, { "--plain" })
      assert.same({ octal("600"), RANGE }, { stat("dir/su").mode, stat("dir/su").uid })
      assert.is_nil(stat("fifo"))
      assert.equal("kept", content(".wh.dir"))
    end)

    it("writes nothing through a symbolic link", function()
      refuses("EBADMSG", "through symlink", { tar.new():all({
        { name = "dir/", type = "directory" },
        { name = "link", type = "symlink", target = "dir" },
        { name = "link/file", content = "x" },
      }) }, { "--plain" })
      assert.is_nil(stat("dir/file"))
    end)
  end)

  describe("--print", function()
    local function print_blob(...)
      return support.run({ paths.tool("tidepool-unpack"), "--blobs", target, "--print", ... })
    end

    it("copies a file once its digest is right", function()
      tar.write(target .. "/index.json", "{}")
      assert.equal("{}", print_blob("index.json").stdout)
      assert.equal("{}", print_blob("index.json", "--digest", sha256("{}")).stdout)
      local wrong = print_blob("index.json", "--digest", sha256("[]"))
      assert.same({ 1, "" }, { wrong.code, wrong.stdout })
      assert.matches("^EBADMSG: ", wrong.stderr)
    end)

    it("opens nothing but regular files beneath the directory, of at most 4 MiB", function()
      assert(uv.fs_symlink("../outside/canary", target .. "/up"))
      assert(uv.fs_symlink("/etc/passwd", target .. "/absolute"))
      assert.equal(0, support.run({ "mkfifo", target .. "/fifo" }).code)
      tar.write(target .. "/big", ("x"):rep(4194305))
      for name, code in pairs({ ["../outside/canary"] = "EXDEV", up = "EXDEV", absolute = "EXDEV",
        [scratch .. "/outside/canary"] = "EXDEV", fifo = "EINVAL", big = "EFBIG", none = "ENOENT" }) do
        local result = print_blob(name)
        assert.same({ 1, "" }, { result.code, result.stdout }, name)
        assert.matches("^" .. code .. ": ", result.stderr)
      end
    end)
  end)

  describe("--index", function()
    local function index(bytes)
      local file = tar.write(scratch .. "/outer", bytes)
      return file, support.run({ "sh", "-c", 'exec "$1" --index <"$2"', "sh", paths.tool("tidepool-unpack"), file })
    end

    it("tells where the files of a tar are, so that a layer is read in place", function()
      local layer = tar.new():add({ name = "file", content = "in place" }):bytes()
      local outer = tar.new():all({
        { name = "blobs/", type = "directory" },
        { name = "./blobs/layer", content = layer, pax = { ["SCHILY.xattr.user.x"] = ("y"):rep(2000) } },
        { name = "blobs/same", type = "hardlink", target = "blobs/layer" },
        { name = "blobs/link", type = "symlink", target = "/etc/passwd" },
        { name = "a b", content = "no name of ours" },
        { name = "index.json", content = "{}" },
      })
      local file, result = index(outer:bytes())
      assert.equal("", result.stderr)
      local at, length, document = result.stdout:match("^(%d+) (%d+) blobs/layer\n(%d+) 2 index.json\n$")
      assert.equal(tostring(#layer), length)
      local extra = { "--layer", file, "--at", at, "--length", length, "--digest", sha256(layer) }
      assert.equal("", run(extra).stderr)
      assert.equal("in place", content("file"))
      local printed = support.run({ paths.tool("tidepool-unpack"), "--print", file, "--at", document, "--length", "2" })
      assert.equal("{}", printed.stdout)
      extra[6] = tostring(length - 512)
      assert.matches("^EBADMSG: ", run(extra).stderr)
      extra[4], extra[6] = "99999999", length
      assert.matches("^EBADMSG: ", run(extra).stderr)
    end)

    it("refuses what is no tar, or was cut", function()
      local cut = tar.new():add({ name = "file", content = ("x"):rep(5000) }):bytes():sub(1, 2000)
      for _, bytes in ipairs({ ("\1"):rep(2000), cut }) do
        local _, result = index(bytes)
        assert.equal(1, result.code)
        assert.matches("^EBADMSG: ", result.stderr)
      end
    end)
  end)

  it("refuses a wrong command line with status 2", function()
    for _, arguments in ipairs({ {}, { "--layer" }, { "--frobnicate" }, { "--layer", "x", "--digest", "md5:0" },
      { "--layer", "x", "--max-bytes", "-1" }, { "--layer", "x", "--count", "0" } }) do
      assert.equal(2, run(arguments).code)
    end
    assert.matches("^ENOENT: ", run({ "--layer", scratch .. "/none" }).stderr)
  end)

  it("ends with its supervisor, and leaves no mount", function()
    local ends = assert(uv.pipe({}, {}))
    local handle, pid
    handle, pid = uv.spawn(paths.tool("tidepool-unpack"), {
      args = { "--target", target, "--uid-base", tostring(RANGE), "--stdin" }, stdio = { ends.read },
    }, function() handle:close() end)
    uv.fs_close(ends.read)
    local function worker_alive()
      return support.run({ "pgrep", "-P", tostring(pid) }).stdout:match("%d+")
    end
    assert(support.eventually(worker_alive, 5))
    local worker = tonumber(worker_alive())
    assert(uv.kill(pid, "sigkill"))
    assert(support.eventually(function()
      return not support.alive(worker)
    end), "the worker outlived its supervisor")
    uv.fs_close(ends.write)
    local mounts = io.open("/proc/self/mounts")
    assert.is_nil(mounts:read("*a"):find(target, 1, true))
    mounts:close()
  end)
end)

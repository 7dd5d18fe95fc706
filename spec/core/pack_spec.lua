local uv = require("luv")
local support = require("spec.support")
local paths = require("tidepool.paths")

local RANGE = 3000000000 -- far from the ids that servers give out

-- A tree with all that a layer can hold, and $1 is where.
local MAKE = [[
mkdir -p "$1" && cd "$1" && umask 022
mkdir -p etc dir/inner "new
line" && chmod 2750 dir/inner && chown 12:34 dir/inner
echo hello >dir/file && chmod 4755 dir/file && chown 1000:65535 dir/file
ln dir/file dir/same && ln dir/file also && ln -s ../nowhere dir/link && chown -h 5:6 dir/link
mkfifo etc/fifo && printf 'x' >"$(printf 'bytes\377')"
truncate -s 64M etc/sparse && printf middle | dd of=etc/sparse bs=1 seek=20000000 conv=notrunc status=none
truncate -s 8M etc/hole && : >etc/empty
head -c 3000000 /dev/urandom >etc/random
n=$(printf 'a%.0s' $(seq 120)) && mkdir -p $n/$n && echo deep >$n/$n/file
touch -h -d '2001-02-03 04:05:06.123456789' dir/link etc/random && touch -d '1999-01-01 00:00:00.5' dir/inner
]]

-- Attributes, which no standard program of Debian's base sets.
local ATTRIBUTES = [[
import os, struct, sys
os.setxattr(sys.argv[1] + "/etc/random", "user.note", b"kept\0\xff")
os.setxattr(sys.argv[1] + "/dir", "user.directory", b"also")
acl = lambda *entries: b"\2\0\0\0" + b"".join(struct.pack("<HHI", *entry) for entry in entries)
none = 0xffffffff
os.setxattr(sys.argv[1] + "/etc/empty", "system.posix_acl_access",
  acl((1, 6, none), (2, 4, 1000), (4, 4, none), (8, 7, 33), (16, 4, none), (32, 0, none)))
os.setxattr(sys.argv[1] + "/etc", "system.posix_acl_default", acl((1, 7, none), (2, 5, 12), (4, 5, none), (16, 5, none), (32, 5, none)))
os.setxattr(sys.argv[1] + "/dir/file", "security.capability", b"\1\0\0\2\0\4\0\0" + bytes(12))
]]

describe("tidepool-pack", function()
  local scratch

  local function sh(script, ...)
    local result = support.run({ "sh", "-ec", script, "sh", ... })
    assert.equal("", result.stderr)
    assert.equal(0, result.code)
    return result.stdout
  end

  before_each(function()
    scratch = support.scratch()
    sh(MAKE, scratch .. "/tree")
    assert.equal("", support.run({ "python3", "-c", ATTRIBUTES, scratch .. "/tree" }).stderr)
  end)

  local function run(options)
    local command = { paths.tool("tidepool-pack"), "--uid-base", tostring(RANGE) }
    for name, value in pairs(options) do
      command[#command + 1] = "--" .. name
      command[#command + 1] = value
    end
    return support.run(command)
  end

  -- Packs into scratch/NAME and returns { bytes, entries, skipped, size, digest, diff_id }.
  local function packs(name, options)
    options.output = scratch .. "/" .. name
    sh(': >>"$1"', options.output)
    local result = run(options)
    assert.equal("", result.stderr)
    local bytes, entries, skipped, size, digest, diff_id =
      result.stdout:match("done (%d+) (%d+) (%d+) (%d+) sha256:(%x+) sha256:(%x+)\n$")
    assert.is_not_nil(bytes)
    return { bytes = tonumber(bytes), entries = tonumber(entries), skipped = tonumber(skipped),
      size = tonumber(size), digest = digest, diff_id = diff_id }
  end

  local function unpacks(target, ...)
    assert(uv.fs_mkdir(scratch .. "/" .. target, tonumber("755", 8)))
    local command = { paths.tool("tidepool-unpack"), "--target", scratch .. "/" .. target, "--uid-base", tostring(RANGE) }
    for _, name in ipairs({ ... }) do
      command[#command + 1] = "--layer"
      command[#command + 1] = scratch .. "/" .. name
    end
    local result = support.run(command)
    assert.equal("", result.stderr)
  end

  local function tree(name, ...)
    local result = support.run({ "python3", "spec/support/tree.py", scratch .. "/" .. name, ... })
    assert.equal("", result.stderr)
    return result.stdout
  end

  for _, compression in ipairs({ "zstd", "gzip", "none" }) do
    it("packs a tree of which the unpacker makes the same again: " .. compression, function()
      packs("layer", { tree = scratch .. "/tree", compression = compression })
      unpacks("copy", "layer")
      assert.equal(tree("tree"), tree("copy"))
    end)
  end

  it("tells the digests and the size of what it has written", function()
    local told = packs("layer", { tree = scratch .. "/tree" })
    local path = scratch .. "/layer"
    assert.equal(uv.fs_stat(path).size, told.size)
    assert.equal(sh('sha256sum <"$1"', path):match("^%x+"), told.digest)
    assert.equal(sh('zstd -dc <"$1" | sha256sum', path):match("^%x+"), told.diff_id)
  end)

  it("makes the same bytes of the same tree", function()
    local first = packs("first", { tree = scratch .. "/tree" })
    sh('cp -a "$1/tree" "$1/other"', scratch)
    local second = packs("second", { tree = scratch .. "/other" })
    assert.equal(first.diff_id, second.diff_id)
    assert.equal(first.digest, second.digest)
  end)

  it("writes from the offset on, and nothing before", function()
    sh('printf "%s" begins >"$1/layer"', scratch)
    local told = packs("layer", { tree = scratch .. "/tree", offset = "6" })
    assert.equal("begins", sh('head -c 6 "$1/layer"', scratch))
    assert.equal(sh('tail -c +7 "$1/layer" | sha256sum', scratch):match("^%x+"), told.digest)
  end)

  it("follows no link and packs nothing of the host", function()
    sh('ln -s /etc "$1/tree/host"; ln -s ../../../../../../etc/passwd "$1/tree/dir/passwd"', scratch)
    packs("layer", { tree = scratch .. "/tree", compression = "none" })
    local names = sh('tar tvf "$1/layer" 2>/dev/null', scratch) -- GNU tar knows no hdrcharset, which a name of any bytes needs
    assert.matches("host %-> /etc\n", names)
    assert.is_nil(names:match("host/"))
  end)

  it("leaves out what a layer can't hold, and counts it", function()
    sh('mknod "$1/tree/null" c 1 3; : >"$1/tree/.wh.file"', scratch)
    assert.equal(0, support.run({ "python3", "-c",
      "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", scratch .. "/tree/socket" }).code)
    assert.equal(3, packs("layer", { tree = scratch .. "/tree" }).skipped)
    unpacks("copy", "layer")
    assert.equal(tree("tree", "null", ".wh.file", "socket"), tree("copy"))
  end)

  -- A copy by hard links has the inodes that a snapshot would have.
  describe("against another tree", function()
    before_each(function()
      sh('cp -al "$1/tree" "$1/base"', scratch)
    end)

    local function changes(...)
      local told = packs("changes", { tree = scratch .. "/tree", parent = scratch .. "/base", compression = "none", ... })
      return sh('tar tf "$1/changes" 2>/dev/null', scratch), told
    end

    it("packs what was changed, with the directories above, and hides what is gone", function()
      sh([[cd "$1/tree"; rm etc/random dir/same; rm -r dir/inner; echo new >etc/new; echo other >x; mv x etc/empty]], scratch)
      local names = changes()
      local seen = {}
      for name in names:gmatch("[^\n]+") do
        seen[name] = true
      end
      for _, name in ipairs({ "./", "etc/", "dir/", "etc/new", "etc/empty", "etc/.wh.random", "dir/.wh.same", "dir/.wh.inner" }) do
        assert.is_true(seen[name], name)
      end
      assert.is_nil(seen["etc/sparse"])
      packs("layer", { tree = scratch .. "/base" })
      unpacks("copy", "layer", "changes")
      -- The base has one name less of what was a hard link: the layers know of it, the copy by links does not.
      assert.equal(tree("tree"), tree("copy"))
    end)

    it("replaces a directory by a file, a file by a directory, a link by a file", function()
      sh([[cd "$1/tree"; rm -r dir/inner; echo file >dir/inner; rm etc/empty; mkdir etc/empty; echo in >etc/empty/in
        rm dir/link; echo plain >dir/link]], scratch)
      changes()
      packs("layer", { tree = scratch .. "/base" })
      unpacks("copy", "layer", "changes")
      assert.equal(tree("tree"), tree("copy"))
    end)

    it("packs every name of a file that has got another", function()
      sh('cd "$1/tree"; rm -r etc; ln dir/file zz', scratch)
      changes()
      packs("layer", { tree = scratch .. "/base" })
      unpacks("copy", "layer", "changes")
      assert.equal(tree("tree"), tree("copy"))
    end)

    it("packs a thousand renamed files below a renamed directory", function()
      sh('cd "$1/tree"; mkdir many; seq 1000 | while read n; do echo $n >many/$n; done; rm -rf "$1/base"; cp -al . ../base; mv many other', scratch)
      local _, told = changes()
      assert.is_true(told.entries > 1000)
      packs("layer", { tree = scratch .. "/base" })
      unpacks("copy", "layer", "changes")
      assert.equal(tree("tree"), tree("copy"))
    end)

    it("packs next to nothing when nothing was changed", function()
      sh('touch -r "$1/tree" "$1/base"', scratch)
      local names, told = changes()
      assert.equal(0, told.bytes)
      assert.is_nil(names:match("random"))
    end)
  end)

  it("says what failed, by its path and code", function()
    local result = run({ tree = scratch .. "/nowhere", output = scratch .. "/layer" })
    assert.equal(1, result.code)
    assert.matches("^ENOENT: ", result.stderr)
    sh(': >"$1/layer"', scratch)
    result = run({ tree = scratch .. "/nowhere", output = scratch .. "/layer" })
    assert.matches("^ENOENT: open [^\n]*nowhere", result.stderr)
    result = run({ tree = scratch .. "/tree", output = "/dev/full" })
    assert.matches("^ENOSPC: ", result.stderr)
  end)

  it("refuses a wrong command line with status 2", function()
    for _, options in ipairs({ {}, { tree = scratch }, { tree = scratch, output = "x", compression = "lzma" },
      { tree = scratch, output = "x", level = "90" }, { tree = scratch, output = "x", nonsense = "1" } }) do
      assert.equal(2, run(options).code)
    end
  end)

  it("needs no more memory for a gigabyte than for a byte, nor does the unpacker", function()
    sh('rm -rf "$1/tree"; mkdir "$1/tree"; yes 0123456789 | head -c 1000000000 >"$1/tree/large"', scratch)
    sh(': >"$1/layer"; mkdir "$1/copy"', scratch)
    local measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
      .. "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    local function peak(...)
      local result = support.run({ "python3", "-c", measure, ... })
      assert.equal("", result.stderr)
      return tonumber(result.stdout:match("peak (%d+)")) / 1024
    end
    local base = tostring(RANGE)
    local packing = peak(paths.tool("tidepool-pack"), "--tree", scratch .. "/tree", "--uid-base", base, "--output", scratch .. "/layer")
    local unpacking = peak(paths.tool("tidepool-unpack"), "--target", scratch .. "/copy", "--uid-base", base, "--layer", scratch .. "/layer")
    assert.equal(1000000000, uv.fs_stat(scratch .. "/copy/large").size)
    assert.is_true(packing < 160, packing .. " MiB")
    assert.is_true(unpacking < 64, unpacking .. " MiB")
  end)
end)

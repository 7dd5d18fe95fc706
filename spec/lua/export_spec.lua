-- Snapshots as archives: exported as OCI images, and imported from them, here and on another server.
local cjson = require("cjson")
local uv = require("luv")
local async = require("tidepool.async")
local support = require("spec.support")
local tar = require("spec.support.tar")
local progress = require("tidepool.image.progress")

-- What a sandbox may do to its files, as root.
local WORK = [[
cd /workspace
mkdir -p a/b && echo one >a/b/file && chmod 4710 a/b/file && chown 12:34 a/b/file
ln a/b/file a/same && ln -s ../nowhere a/link && mkfifo a/fifo
truncate -s 32M sparse && printf middle | dd of=sparse bs=1 seek=9000000 conv=notrunc 2>/dev/null
head -c 2000000 /dev/urandom >random && touch -d '2001-02-03 04:05:06' random
rm /bin/vi && mv /bin/ed /bin/edit
]]

describe("an exported snapshot", function()
  local server, client, box, scratch

  local function sh(script, ...)
    local result = support.run({ "sh", "-ec", script, "sh", ... })
    assert.equal(0, result.code, result.stderr)
    return result.stdout
  end

  -- Where the server's own namespace has its pool.
  local function pool(of, kind)
    return ("/proc/%d/root%s/pool/%s"):format(of:pid(), of.state, kind)
  end

  -- All that the files of a server's newest snapshot are.
  local function newest(of)
    local last = 0
    for _, name in ipairs(support.names(pool(of, "snapshots"))) do
      last = math.max(last, tonumber(name))
    end
    local result = support.run({ "python3", "spec/support/tree.py", ("%s/%d/root"):format(pool(of, "snapshots"), last) })
    assert.equal("", result.stderr)
    return result.stdout
  end

  local function export(snapshot, name, options)
    local params = { snapshot = snapshot, file = scratch .. "/" .. name }
    for key, value in pairs(options or {}) do
      params[key] = value
    end
    local result = assert(client:call("snapshot_export", params))
    return params.file, result
  end

  local function import(of, file, snapshot)
    local lines = {}
    local result, message, code = of.client:call("snapshot_import", { file = file, snapshot = snapshot }, nil, function(line)
      lines[#lines + 1] = line
    end)
    return result, message, code, lines
  end

  local function refuses(of, expected, words, file)
    local result, message, code = import(of, file, "refused@one")
    assert.is_nil(result)
    assert.equal(expected, code, message)
    assert.matches(words, message)
    assert.same({}, support.names(pool(of, "imports")))
    for _, info in ipairs(assert(of.client:call("snapshot_ls", {}))) do
      assert.is_not_equal("refused@one", info.snapshot)
    end
  end

  setup(function()
    support.needs_root()
    server = support.server()
    client = server.client
    scratch = support.scratch()
    box = server:sandbox({ name = "origin", type = "standard-1", env = { GREETING = "hello" } })
    assert.equal(0, assert(box:exec({ "sh", "-ec", WORK }, { user = "root" })).exit_code)
    async.within(async.sleep, 0.2) -- what was changed right before a snapshot counts as changed after it
    assert(box:snapshot("one"))
  end)

  it("comes back as it was: modes, owners, links, holes and times", function()
    local before = newest(server)
    local file, told = export("origin@one", "one.tar")
    assert.same({ 2, 0 }, { told.layers, told.skipped })
    assert.equal(uv.fs_stat(file).size, told.size)
    local info = assert(import(server, file, "copy@one"))
    assert.equal("copy@one", info.snapshot)
    assert.equal(before, newest(server))
    assert.same({}, support.names(pool(server, "imports")))
    assert.same({}, support.names(pool(server, "staging")))
    assert(client:call("snapshot_rm", { snapshot = "copy@one" }))
  end)

  it("is restored on another server, and runs with its environment", function()
    local other = support.server()
    local before = newest(server)
    assert(import(other, (export("origin@one", "one.tar")), "moved@one"))
    assert.equal(before, newest(other))
    assert(other.client:call("restore", { snapshot = "moved@one", name = "moved" }))
    local moved = require("tidepool.client.box").new(other.client, "moved")
    support.defer(function()
      moved:destroy()
    end)
    assert.equal("hello one\n", moved:exec({ "sh", "-c", 'echo "$GREETING $(cat /workspace/a/b/file)"' }, { user = "root" }).stdout)
  end)

  it("may hold only the changes since another, for whoever has that one", function()
    local other = support.server()
    assert(box:write("/workspace/later", "two"))
    assert.equal(0, box:exec({ "rm", "-r", "/workspace/a/b" }, { user = "root" }).exit_code)
    assert(box:snapshot("two"))
    local after = newest(server)
    local whole = export("origin@one", "one.tar")
    local file, changes = export("origin@two", "two.tar", { parent = "origin@one" })
    assert.equal(1, changes.layers)
    assert.is_true(changes.bytes < 100000, "it has " .. changes.bytes .. " bytes")
    refuses(other, "ENOPARENT", "import that one first", file)
    assert(import(other, whole, "moved@one"))
    assert(import(other, file, "moved@two"))
    assert.equal(after, newest(other))
    local list = assert(other.client:call("snapshot_ls", {}))
    assert.equal("moved@one", list[2].parent)
    local result, message, code = other.client:call("image_import", { file = file })
    assert.is_nil(result)
    assert.equal("EINVAL", code, message)
  end)

  it("is one layer of all when the image is gone", function()
    local other = support.server()
    local made = other:sandbox({ name = "orphan" })
    assert(made:write("/workspace/file", "x"))
    assert(made:snapshot("one"))
    local before = newest(other)
    assert(other.client:call("image_rm", { image = "minimal" }))
    local told = assert(other.client:call("snapshot_export", { snapshot = "orphan@one", file = scratch .. "/orphan.tar" }))
    assert.equal(1, told.layers)
    assert(import(other, scratch .. "/orphan.tar", "copy@one"))
    assert.equal(before, newest(other))
  end)

  it("is the same file each time", function()
    local _, first = export("origin@one", "first.tar")
    local _, second = export("origin@one", "second.tar")
    assert.equal(first.digest, second.digest)
    assert.equal(sh('sha256sum <"$1/first.tar"', scratch), sh('sha256sum <"$1/second.tar"', scratch))
  end)

  it("is read by skopeo", function()
    if not require("tidepool.image.worker").has("skopeo") then
      return pending("needs skopeo")
    end
    local file, told = export("origin@one", "one.tar")
    local shown = cjson.decode(sh('skopeo inspect oci-archive:"$1"', file))
    assert.equal(told.digest, shown.Digest)
    assert.equal(2, #shown.Layers)
    assert.same("GREETING=hello", shown.Env[1])
    -- It verifies each digest on its way.
    sh('skopeo copy --quiet oci-archive:"$1" dir:"$2/skopeo"', file, scratch)
  end)

  it("is unpacked by umoci to the same files", function()
    if not require("tidepool.image.worker").has("umoci") then
      return pending("needs umoci")
    end
    local file = export("origin@one", "gzip.tar", { compression = "gzip" })
    sh('mkdir "$2/layout" && tar -C "$2/layout" -xf "$1" && umoci unpack --image "$2/layout:one" "$2/bundle"', file, scratch)
    local info = assert(import(server, file, "gzip@one"))
    assert.equal("gzip@one", info.snapshot)
    local unpacked = support.run({ "python3", "spec/support/tree.py", scratch .. "/bundle/rootfs" }).stdout
    local function without_holes(text) -- umoci writes them out
      return (text:gsub(" sparse ", "  "))
    end
    assert.equal(without_holes(newest(server)), without_holes(unpacked))
    assert(client:call("snapshot_rm", { snapshot = "gzip@one" }))
  end)

  it("is written even though it is deleted meanwhile, with its image", function()
    local other = support.server()
    local made = other:sandbox({ name = "gone" })
    assert.equal(0, made:exec({ "sh", "-c", "head -c 60000000 /dev/urandom >/workspace/random" }).exit_code)
    assert(made:snapshot("one"))
    local before = newest(other)
    local told, message = async.within(function()
      local task = async.spawn(function()
        return other.client:call("snapshot_export", { snapshot = "gone@one", file = scratch .. "/gone.tar" })
      end)
      async.sleep(0.3)
      assert(other.client:call("snapshot_rm", { snapshot = "gone@one" }))
      assert(other.client:call("image_rm", { image = "minimal" }))
      return select(2, task:join())
    end)
    assert(told, message)
    assert(import(other, scratch .. "/gone.tar", "copy@one"))
    assert.equal(before, newest(other))
  end)

  it("is written whole or not at all", function()
    local result, _, code = client:call("snapshot_export", { snapshot = "origin@one", file = scratch .. "/nowhere/one.tar" })
    assert.is_nil(result)
    assert.equal("ENOENT", code)
    sh('mkdir "$1/full" && mount -t tmpfs -o size=300k tmpfs "$1/full"', scratch)
    support.defer(function()
      support.run({ "umount", scratch .. "/full" })
    end)
    sh('echo old >"$1/full/one.tar"', scratch)
    -- The server has a mount namespace of its own, in which new mounts of the host's may not appear.
    if not uv.fs_stat(("/proc/%d/root%s/full/one.tar"):format(server:pid(), scratch)) then
      return
    end
    result, _, code = client:call("snapshot_export", { snapshot = "origin@one", file = scratch .. "/full/one.tar" })
    assert.is_nil(result)
    assert.equal("ENOSPC", code)
    assert.same({ "one.tar" }, support.names(scratch .. "/full"))
    assert.equal("old\n", sh('cat "$1/full/one.tar"', scratch))
  end)

  it("is for root alone to read, and takes the place of nothing but a file", function()
    assert.equal(384, uv.fs_stat((export("origin@one", "one.tar"))).mode % 512) -- 0600
    sh('mkdir "$1/directory" && mknod "$1/null" c 1 3 && ln -s one.tar "$1/link"', scratch)
    for name, kind in pairs({ directory = "directory", null = "char", link = "link" }) do
      local result, message, code = client:call("snapshot_export", { snapshot = "origin@one", file = scratch .. "/" .. name })
      assert.is_nil(result)
      assert.equal("EINVAL", code, message)
      assert.matches(kind, message)
      assert.equal(kind, uv.fs_lstat(scratch .. "/" .. name).type)
    end
  end)

  it("has files that are mostly holes, within reason", function()
    local other = support.server()
    local odd = server:sandbox()
    local function hole(size)
      assert.equal(0, assert(odd:exec({ "dd", "if=/dev/zero", "of=/workspace/hole", "bs=1", "count=0", "seek=" .. size })).exit_code)
    end
    hole("1125899906842624")
    assert(odd:snapshot("one"))
    assert(import(other, (export(odd.name .. "@one", "hole.tar")), "moved@one"))
    local size_and_blocks = { "sh", "-c", "stat -c '%s %b' " .. pool(other, "snapshots") .. "/*/root/workspace/hole" }
    assert.equal("1125899906842624 0\n", support.run(size_and_blocks).stdout)
    hole("9223372036854775807")
    assert(odd:snapshot("two"))
    local result, message, code = client:call("snapshot_export", { snapshot = odd.name .. "@two", file = scratch .. "/hole.tar" })
    assert.is_nil(result)
    assert.equal("EFBIG", code)
    assert.matches("workspace/hole", message)
  end)

  it("may have any label, also one by which imports are known", function()
    assert(client:call("snapshot_create", { name = box.name, label = "labelled", labels = { origin = "production" } }))
    assert(import(server, (export("origin@labelled", "labelled.tar")), "copy@labelled"))
    assert(client:call("snapshot_rm", { snapshot = "copy@labelled" }))
    assert(client:call("snapshot_rm", { snapshot = "origin@labelled" }))
  end)

  it("is refused when a byte of it is another, or its end is missing", function()
    local file = export("origin@one", "one.tar")
    sh([[cp "$1" "$2/flipped.tar"; printf X | dd of="$2/flipped.tar" bs=1 seek=1000000 conv=notrunc 2>/dev/null
      head -c 900000 "$1" >"$2/cut.tar"]], file, scratch)
    refuses(server, "EBADMSG", ".", scratch .. "/flipped.tar")
    refuses(server, "EBADMSG", ".", scratch .. "/cut.tar")
    refuses(server, "ENOENT", "no such file", scratch .. "/nowhere.tar")
  end)

  it("is refused when only the digest can tell", function()
    local file = export("origin@one", "plain.tar", { compression = "none" })
    sh([[at=$(grep -abo middle "$1" | head -n1 | cut -d: -f1); printf muddle | dd of="$1" bs=1 seek=$at conv=notrunc 2>/dev/null]], file)
    refuses(server, "EBADMSG", "digest is sha256:", file)
  end)

  it("is not imported over another", function()
    local result, _, code = import(server, (export("origin@one", "one.tar")), "origin@one")
    assert.is_nil(result)
    assert.equal("EEXIST", code)
  end)

  it("by the command line shows its size", function()
    local result = support.run({ require("tidepool.paths").launcher(), "snapshot", "export", "origin@one", scratch .. "/cli.tar",
      env = { "PATH=" .. os.getenv("PATH"), "TIDEPOOL_STATE=" .. server.state, "TIDEPOOL_RUN=" .. server.run,
        "TIDEPOOL_BUILD=" .. (os.getenv("TIDEPOOL_BUILD") or ""), "HOME=/" } })
    assert.equal(0, result.code, result.stderr)
    assert.matches("^[^\n]*/cli.tar: [%d.]+ %S+, %d+ files of [%d.]+ %S+ in 2 layers\n$", result.stdout)
  end)

  -- An OCI layout of one layer in a tar, by hand.
  local function layout(name, layer, annotations)
    local files = {}
    local function blob(bytes)
      local path = tar.write(scratch .. "/blob", bytes)
      local hex = sh('sha256sum <"$1"', path):match("^%x+")
      files["blobs/sha256/" .. hex] = bytes
      return { digest = "sha256:" .. hex, size = #bytes }
    end
    local descriptor = blob(layer)
    descriptor.mediaType = "application/vnd.oci.image.layer.v1.tar"
    local config = blob(cjson.encode({ os = "linux", architecture = require("tidepool.image.manifest").architecture(),
      config = { Env = { "A=1" } }, rootfs = { type = "layers", diff_ids = { descriptor.digest } } }))
    files["index.json"] = cjson.encode({ manifests = { blob(cjson.encode({ schemaVersion = 2, config = config,
      layers = { descriptor }, annotations = annotations })) } })
    local archive = tar.new()
    for path, bytes in pairs(files) do
      archive:add({ name = path, content = bytes })
    end
    return tar.write(scratch .. "/" .. name, archive:bytes())
  end

  it("need not be one: any OCI image becomes a snapshot, with what every sandbox has", function()
    local file = layout("any.tar", tar.new():add({ name = "bin/sh", content = "#", mode = 493 }):bytes())
    local info = assert(import(server, file, "any@one"))
    assert.same({}, info.labels)
    assert.matches("'etc/passwd'", newest(server))
    assert.matches("'workspace'", newest(server))
    assert(client:call("snapshot_rm", { snapshot = "any@one" }))
  end)

  it("is refused when it is hostile", function()
    local function of(entry)
      return layout("hostile.tar", tar.new():add(entry):bytes(), { ["dev.tidepool.snapshot"] = ("a"):rep(32) })
    end
    refuses(server, "EBADMSG", "upwards", of({ name = "../../outside", content = "x" }))
    refuses(server, "EBADMSG", "target", of({ name = "link", type = "hardlink", target = "../../../etc/passwd" }))
    refuses(server, "ERANGE", "beyond the 65536 ids", of({ name = "file", content = "x", uid = 70000 }))
    for name, value in pairs({ ["dev.tidepool.snapshot"] = "../../x", ["dev.tidepool.parent"] = {}, ["dev.tidepool.image"] = "a b" }) do
      refuses(server, "EBADMSG", ".", layout("hostile.tar", tar.new():bytes(), { [name] = value }))
    end
  end)

  it("is packed with a rate and the time that is left", function()
    assert.equal("packing: 120 MB of 480 MB, 1200 files, 90 MB/s, 4 s left",
      progress.sentence("packing", 120e6, 480e6, 1200, 90e6))
    assert.equal("unpacking: 1.2 GB, 12 files", progress.sentence("unpacking", 1.2e9, 0, 12))
    assert.equal("packing: 1.0 GB of 61.0 GB, 1 files, 100 MB/s, 10 min left", progress.sentence("packing", 1e9, 61e9, 1, 1e8))
  end)
end)

describe("an import whose server is killed", function()
  local function imported_at(name)
    local server = support.server()
    local scratch = support.scratch()
    local box = server:sandbox()
    assert(box:write("/workspace/file", "one"))
    assert(box:snapshot("one"))
    local file = scratch .. "/one.tar"
    assert(server.client:call("snapshot_export", { snapshot = box.name .. "@one", file = file }))
    server:kill()
    uv.os_setenv("TIDEPOOL_STEP", name)
    server:pid()
    uv.os_unsetenv("TIDEPOOL_STEP")
    local fresh = require("tidepool.client").new({ state = server.state, run = server.run, start = false })
    local result = fresh:call("snapshot_import", { file = file, snapshot = "copy@one" })
    assert.is_nil(result)
    return server, file, box
  end

  local function pool(server, kind)
    return support.names(("/proc/%d/root%s/pool/%s"):format(server:pid(), server.state, kind))
  end

  for _, name in ipairs({ "import_applied", "import_kept", "import_recorded", "import_renamed", "import_committed" }) do
    it("at " .. name .. " is not seen half-done, and is done when begun again", function()
      local server, file, box = imported_at(name)
      local list = assert(server.client:call("snapshot_ls", {}))
      if name == "import_committed" then
        assert.equal(2, #list)
        return
      end
      assert.equal(1, #list)
      local lines = {}
      assert(server.client:call("snapshot_import", { file = file, snapshot = "copy@one" }, nil, function(line)
        lines[#lines + 1] = line
      end))
      local continued = table.concat(lines, "\n"):match("continuing after layer (%d) of 2")
      assert.equal(({ import_kept = "1", import_recorded = "2" })[name], continued)
      assert.same({}, pool(server, "imports"))
      assert.equal(2, #pool(server, "snapshots"))
      assert(server.client:call("restore", { snapshot = "copy@one", name = "copy" }))
      local copy = require("tidepool.client.box").new(server.client, "copy")
      assert.equal("one", copy:read("/workspace/file"))
      copy:destroy()
      assert.equal("running", box:info().state)
    end)
  end

  it("is forgotten after a day", function()
    local server = imported_at("import_kept")
    server:pid()
    local directory = ("/proc/%d/root%s/pool/imports"):format(server:pid(), server.state)
    local left = support.names(directory)
    assert.equal(1, #left)
    assert.equal(0, support.run({ "touch", "-d", "2 days ago", directory .. "/" .. left[1] }).code)
    server:kill()
    assert.is_true(support.eventually(function()
      return #pool(server, "imports") == 0
    end))
  end)
end)

local cjson = require("cjson")
local uv = require("luv")
local async = require("tidepool.async")
local image = require("tidepool.image")
local manifest = require("tidepool.image.manifest")
local paths = require("tidepool.paths")
local support = require("spec.support")
local registry = require("spec.support.registry")
local tar = require("spec.support.tar")

local RANGE = 3000000000 -- far from the ids that servers give out
local ARCH = manifest.architecture()

local function octal(text)
  return tonumber(text, 8)
end

local function sha256(bytes)
  local path = tar.write(os.tmpname(), bytes)
  local digest = "sha256:" .. support.run({ "sha256sum", path }).stdout:match("^%x+")
  os.remove(path)
  return digest
end

local function base_layer()
  return tar.new():all({
    { name = "etc/", type = "directory" },
    { name = "etc/motd", content = "one" },
    { name = "gone", content = "old" },
    { name = "bin/sh", content = "#", mode = octal("755") },
  }):bytes()
end

local function upper_layer()
  return tar.new():all({ { name = "etc/motd", content = "two", uid = 5 }, { name = ".wh.gone" } }):bytes()
end

describe("an image", function()
  local scratch, target, lines, options

  before_each(function()
    scratch = support.scratch()
    target = scratch .. "/target"
    lines = {}
    assert(uv.fs_mkdir(target, octal("755")))
    options = {
      target = target,
      range = { base = RANGE, count = 65536 },
      tools = paths.build(),
      work = scratch .. "/work",
      progress = function(line)
        lines[#lines + 1] = line
      end,
    }
  end)

  after_each(function()
    assert.is_nil(uv.fs_stat(scratch .. "/work"), "the temporary directory is still there")
  end)

  local function make(verb, what, extra)
    for key, value in pairs(extra or {}) do
      options[key] = value
    end
    return async.run(function()
      return image[verb](what, options)
    end)
  end

  local function content(path)
    local file = io.open(target .. "/" .. path, "rb")
    local bytes = file and file:read("*a")
    if file then
      file:close()
    end
    return bytes
  end

  local function refuses(code, words, verb, what, extra)
    local meta, message, got = make(verb, what, extra)
    assert.is_nil(meta)
    assert.matches(words, message)
    assert.equal(code, got)
  end

  -- A docker-archive's files: name -> bytes.
  local function docker_files(config)
    local layers = { base_layer(), upper_layer() }
    config = config or {}
    config.architecture, config.os = config.architecture or ARCH, config.os or "linux"
    config.rootfs = config.rootfs or { type = "layers", diff_ids = { sha256(layers[1]), sha256(layers[2]) } }
    return {
      ["config.json"] = cjson.encode(config),
      ["a/layer.tar"] = layers[1],
      ["b/layer.tar"] = layers[2],
      ["manifest.json"] = cjson.encode({ { Config = "config.json", Layers = { "a/layer.tar", "b/layer.tar" } } }),
    }
  end

  local function archive(files, links)
    local out = tar.new()
    for name, bytes in pairs(files) do
      out:add({ name = name, content = bytes })
    end
    for name, to in pairs(links or {}) do
      out:add({ name = name, type = "symlink", target = to })
    end
    return tar.write(scratch .. "/image.tar", out:bytes())
  end

  -- An OCI layout's files. `change(documents)` may spoil what is in it before it is written.
  local function oci_files(compressor, change)
    local files = { ["oci-layout"] = '{"imageLayoutVersion":"1.0.0"}' }
    local function put(bytes)
      local digest = sha256(bytes)
      files["blobs/sha256/" .. digest:sub(8)] = bytes
      return { digest = digest, size = #bytes }
    end
    local function layer(bytes)
      if compressor then
        local path = tar.write(scratch .. "/layer", bytes)
        bytes = support.run({ compressor, "-c", path }).stdout
      end
      local descriptor = put(bytes)
      descriptor.mediaType = "application/vnd.oci.image.layer.v1.tar" .. (compressor and ("+" .. compressor) or "")
      return descriptor
    end
    local documents = {
      config = { architecture = ARCH, os = "linux", config = { Env = { "A=1" } } },
      layers = { layer(base_layer()), layer(upper_layer()) },
      platform = { architecture = ARCH, os = "linux" },
    }
    if change then
      change(documents, files)
    end
    local found = put(cjson.encode({ schemaVersion = 2, config = put(cjson.encode(documents.config)), layers = documents.layers }))
    found.platform = documents.platform
    local other = { digest = "sha256:" .. ("0"):rep(64), size = 1, platform = { architecture = "vax", os = "linux" } }
    files["index.json"] = files["index.json"] or cjson.encode({ schemaVersion = 2, manifests = { other, found } })
    return files
  end

  describe("built", function()
    it("minimal from busybox has a shell that runs and an agent", function()
      local meta = assert(make("build", "minimal"))
      assert.equal("agent", meta.user)
      assert.equal("/workspace", meta.cwd)
      assert.is_true(meta.bytes > 100000 and meta.entries > 100)
      local ran = support.run({ "chroot", target, "/bin/sh", "-c", "id -u agent; ls -d /workspace" })
      assert.equal("1000\n/workspace\n", ran.stdout)
    end)

    it("is refused for a kind that nobody knows", function()
      refuses("EINVAL", "no such kind of image: windows %(there are: debian, minimal%)", "build", "windows")
    end)

    it("on a full disk says so and leaves no temporary directory", function()
      assert.equal(0, support.run({ "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", target }).code)
      local meta, message, code = make("build", "minimal")
      support.run({ "umount", target })
      assert.is_nil(meta)
      if code == "EINVAL" and message:match("idmapped") then
        return pending("needs idmapped mounts of tmpfs")
      end
      assert.equal("ENOSPC", code)
      assert.matches("No space left", message)
    end)
  end)

  describe("imported from a docker-archive", function()
    it("has its layers applied in order, and its settings recorded", function()
      local path = archive(docker_files({ config = {
        Env = { "PATH=/bin", "QUOTED=a \"b\"\n\226\130\172 c%20" }, Entrypoint = { "/bin/sh" }, Cmd = { "-c", "x y" },
        WorkingDir = "/srv", User = "5:6",
      } }))
      local meta = assert(make("import", path))
      assert.same({ "PATH=/bin", "QUOTED=a \"b\"\n\226\130\172 c%20" }, meta.env)
      assert.same({ "/bin/sh", "-c", "x y" }, meta.cmd)
      assert.same({ "/srv", "5:6", path }, { meta.cwd, meta.user, meta.source })
      assert.same({ "two", nil }, { content("etc/motd"), content("gone") })
      assert.equal(5, uv.fs_stat(target .. "/etc/motd").uid)
      assert.matches("agent:x:1000", content("etc/passwd"))
      assert.same({ "reading image.tar", "unpacking 2 layers" }, lines)
    end)

    it("may be compressed, and may hold one layer as a link to another", function()
      local files = docker_files()
      files["manifest.json"] = cjson.encode({ { Config = "config.json", Layers = { "a/layer.tar", "c/layer.tar" } } })
      local path = archive(files, { ["c/layer.tar"] = "../b/layer.tar" })
      assert.equal(0, support.run({ "gzip", path }).code)
      assert(make("import", path .. ".gz"))
      assert.equal("two", content("etc/motd"))
    end)

    it("is refused when a layer is not what the configuration promises", function()
      local files = docker_files()
      files["b/layer.tar"] = base_layer()
      refuses("EBADMSG", "b/layer.tar: content is sha256", "import", archive(files))
    end)

    it("is refused when a path in it leads to the host", function()
      for _, bad in ipairs({ "/etc/passwd", "../../../../etc/passwd", "link", "absolute" }) do
        local files = docker_files()
        files["manifest.json"] = cjson.encode({ { Config = bad, Layers = { "a/layer.tar" } } })
        local links = { link = "../../../../../../etc/passwd", absolute = "/etc/passwd" }
        local meta, message, code = make("import", archive(files, links))
        assert.is_nil(meta)
        assert.is_nil(message:match("root:"), message)
        assert.is_true(code == "EXDEV" or code == "ENOENT", code)
        files["manifest.json"] = cjson.encode({ { Config = "config.json", Layers = { bad, "b/layer.tar" } } })
        meta, message = make("import", archive(files, links))
        assert.is_nil(meta)
        assert.is_nil(message:match("root:"), message)
      end
    end)
  end)

  describe("imported from an OCI layout", function()
    it("is found in an index of several machines, its layers gzip, zstd or plain", function()
      for _, compressor in ipairs({ "gzip", "zstd", "plain" }) do
        local meta = assert(make("import", archive(oci_files(compressor ~= "plain" and compressor or nil))))
        assert.same({ "A=1" }, meta.env)
        assert.equal("two", content("etc/motd"))
      end
    end)

    it("may be a directory", function()
      local path = archive(oci_files("gzip"))
      assert(uv.fs_mkdir(scratch .. "/layout", octal("755")))
      assert.equal(0, support.run({ "tar", "-C", scratch .. "/layout", "-xf", path }).code)
      assert(make("import", scratch .. "/layout"))
      assert.equal("two", content("etc/motd"))
    end)

    it("is refused when a blob has another digest, be it a document or a layer", function()
      refuses("EBADMSG", "another digest", "import", archive(oci_files(nil, function(documents, files)
        local bytes = cjson.encode({ schemaVersion = 2, config = {}, layers = documents.layers })
        local lie = "sha256:" .. ("a"):rep(64)
        files["blobs/sha256/" .. ("a"):rep(64)] = bytes
        files["index.json"] = cjson.encode({ manifests = { { digest = lie, size = #bytes } } })
      end)))
      refuses("EBADMSG", "digest is sha256", "import", archive(oci_files(nil, function(documents, files)
        files["blobs/sha256/" .. documents.layers[2].digest:sub(8)] = base_layer()
      end)))
    end)

    it("is refused for another machine, by name", function()
      refuses("EBADMSG", "no image for linux/" .. ARCH .. " %(there are: linux/vax, linux/pdp11%)", "import",
        archive(oci_files(nil, function(documents)
          documents.platform = { architecture = "pdp11", os = "linux" }
        end)))
      refuses("EBADMSG", "the image is for windows/" .. ARCH, "import", archive(oci_files(nil, function(documents)
        documents.config.os = "windows"
      end)))
    end)

    it("is refused when its documents are hostile", function()
      local deep = ("["):rep(100000) .. ("]"):rep(100000)
      for words, index in pairs({
        ["not JSON"] = "{ nonsense",
        ["nested"] = deep,
        ["not an object"] = "17",
        ["no image for"] = "{}",
        ["not a sha256 digest"] = '{"manifests":[{"digest":"sha256:../../../../etc/passwd"}]}',
        ["is not a text"] = '{"manifests":[{"digest":{}}]}',
        ["more than %d+ items"] = '{"manifests":[' .. ("1,"):rep(5000) .. "1]}",
        ["more than %d+ bytes"] = '{"x":"' .. ("x"):rep(5000000) .. '"}',
      }) do
        local meta, message = make("import", archive(oci_files(nil, function(_, files)
          files["index.json"] = index
        end)))
        assert.is_nil(meta)
        assert.matches(words, message)
        assert.is_true(#message < 1000)
      end
      refuses("EBADMSG", "no tar that we can read", "import", archive(oci_files(nil, function(documents)
        documents.layers[1].mediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
      end)))
      refuses("EBADMSG", "Env has more", "import", archive(oci_files(nil, function(documents)
        for i = 1, 2000 do
          documents.config.config.Env[i] = "A" .. i .. "=1"
        end
      end)))
    end)

    it("is refused when indexes are nested without end", function()
      local index = cjson.encode({ manifests = { { digest = "sha256:" .. ("b"):rep(64), size = 1 } } })
      local files = {}
      for _ = 1, 8 do
        local digest = sha256(index)
        files["blobs/sha256/" .. digest:sub(8)] = index
        index = cjson.encode({ manifests = { { digest = digest, size = #index } } })
      end
      files["index.json"] = index
      refuses("EBADMSG", "nested too deeply", "import", archive(files))
    end)
  end)

  it("is refused when the file is anything else", function()
    refuses("EBADMSG", "damaged archive", "import", tar.write(scratch .. "/text", ("no archive\n"):rep(1000)))
    refuses("EBADMSG", "neither an OCI layout", "import", archive({ readme = "hello" }))
    refuses("EINVAL", "neither a file nor a directory", "import", "/dev/null")
    refuses("ENOENT", "no such file", "import", scratch .. "/none")
  end)

  describe("pulled", function()
    local reference

    setup(function()
      reference = registry.start()
    end)

    local function need_registry()
      if not reference then
        pending("needs docker-registry")
      end
      return reference
    end

    it("from a registry is what was pushed, and layers are shown as they come", function()
      if not need_registry() then
        return
      end
      local path = archive(docker_files({ config = { Env = { "B=2" } } }))
      local pushed = support.run({ "skopeo", "copy", "-q", "--dest-tls-verify=false",
        "docker-archive:" .. path, "docker://" .. reference("team/tool:v1") })
      assert.equal("", pushed.stderr)
      local meta = assert(make("pull", reference("team/tool:v1"), { insecure = true }))
      assert.same({ "B=2" }, meta.env)
      assert.equal(reference("team/tool:v1"), meta.source)
      assert.equal("two", content("etc/motd"))
      assert.matches("downloading layer %x+", table.concat(lines, "\n"))
    end)

    it("says whether the tag, the registry or the TLS is missing", function()
      if not need_registry() then
        return
      end
      refuses("ENOENT", "no such image or tag", "pull", reference("team/none:v9"), { insecure = true })
      refuses("EPROTO", "speaks no TLS %(%-%-insecure allows that%)", "pull", reference("team/tool:v1"), { insecure = false })
      refuses("ECONNREFUSED", "no registry answers", "pull", "127.0.0.1:1/team/tool:v1")
      refuses("EHOSTUNREACH", "registry's name", "pull", "registry.invalid/team/tool:v1")
    end)

    it("takes no option for a reference", function()
      for _, bad in ipairs({ "--help", "-x", "a b", "", "a;b", "a\nb", ("x"):rep(600) }) do
        refuses("EINVAL", "not a reference", "pull", bad)
      end
    end)
  end)
end)

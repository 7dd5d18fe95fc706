-- Images as the server's verbs make them: imported and pulled, used by sandboxes, and never half-made.
local cjson = require("cjson")
local uv = require("luv")
local async = require("tidepool.async")
local support = require("spec.support")
local registry = require("spec.support.registry")
local tar = require("spec.support.tar")

local function read(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:read("*a")
  file:close()
  return bytes
end

local function sha256(bytes)
  local path = tar.write(os.tmpname(), bytes)
  local digest = "sha256:" .. support.run({ "sha256sum", path }).stdout:match("^%x+")
  os.remove(path)
  return digest
end

-- A docker-archive of one layer in which busybox is the whole user land.
local function busybox_archive(path, digest)
  local layer = tar.new():all({
    { name = "bin/", type = "directory" },
    { name = "bin/busybox", content = read(support.run({ "sh", "-c", "command -v busybox" }).stdout:match("%S+")), mode = tonumber("755", 8) },
    { name = "bin/sh", type = "symlink", target = "busybox" },
    { name = "bin/cat", type = "symlink", target = "busybox" },
    { name = "etc/", type = "directory" },
    { name = "etc/motd", content = "imported\n" },
  }):bytes()
  local config = {
    architecture = require("tidepool.image.manifest").architecture(),
    os = "linux",
    config = { Env = { "FROM_IMAGE=yes" } },
    rootfs = { type = "layers", diff_ids = { digest or sha256(layer) } },
  }
  local out = tar.new()
  out:add({ name = "config.json", content = cjson.encode(config) })
  out:add({ name = "layer.tar", content = layer })
  out:add({ name = "manifest.json", content = cjson.encode({ { Config = "config.json", Layers = { "layer.tar" } } }) })
  return tar.write(path, out:bytes())
end

describe("images of the server", function()
  local server, scratch, call

  setup(function()
    server = support.server()
    scratch = support.scratch()
    function call(verb, params)
      return server.client:call(verb, params)
    end
  end)

  local function names()
    local list = {}
    for _, image in ipairs(assert(call("image_ls", {}))) do
      list[#list + 1] = image.name
    end
    return list
  end

  it("are imported from a docker-archive, and a sandbox runs from them with their environment", function()
    local file = busybox_archive(scratch .. "/Busy_Box.tar")
    local image = assert(call("image_import", { file = file }))
    assert.equal("busy_box", image.name)
    assert(call("create", { name = "imported", image = "busy_box" }))
    local box = require("tidepool.client.box").new(server.client, "imported")
    local result = assert(box:exec("cat /etc/motd; echo $FROM_IMAGE; echo $PWD; busybox id -un"))
    assert.equal("imported\nyes\n/workspace\nagent\n", result.stdout)
    assert(call("image_rm", { image = "busy_box" }))
    assert.equal("still here\n", box:exec("echo still here").stdout)
    assert(box:destroy())
  end)

  it("are not replaced unless asked, and then at once", function()
    local file = busybox_archive(scratch .. "/again.tar")
    assert(call("image_import", { file = file, image = "again" }))
    local _, message, code = call("image_import", { file = file, image = "again" })
    assert.equal("EEXIST", code)
    assert.matches("again", message)
    assert(call("image_import", { file = file, image = "again", replace = true }))
    assert(call("create", { name = "replaced", image = "again" }))
    assert(call("destroy", { name = "replaced" }))
    assert(call("image_rm", { image = "again" }))
  end)

  for _, case in ipairs({
    { "a file that is not there", { file = "/no/such/file.tar" }, "ENOENT" },
    { "a relative path", { file = "image.tar" }, "EINVAL" },
    { "a name that is none", { file = "/etc/os-release", image = "../up" }, "EINVAL" },
    { "a file that is no image", { file = "/etc/os-release", image = "release" }, "EBADMSG" },
  }) do
    it("are not made from " .. case[1], function()
      local image, _, code = call("image_import", case[2])
      assert.is_nil(image)
      assert.equal(case[3], code)
      assert.same({}, names())
    end)
  end

  it("are not made from a layer whose digest is another, and nothing of it stays", function()
    local file = busybox_archive(scratch .. "/wrong.tar", "sha256:" .. ("0"):rep(64))
    local image, _, code = call("image_import", { file = file, image = "wrong" })
    assert.is_nil(image)
    assert.equal("EBADMSG", code)
    assert.same({}, names())
    local _, _, missing = call("create", { name = "wrong", image = "wrong" })
    assert.equal("ENOIMAGE", missing)
    assert.equal("", support.run({ "sh", "-c", "ls -d " .. server.state .. "/work-*" }).stdout)
  end)

  it("are made once at a time under one name", function()
    local outcomes = {}
    async.run(function()
      local tasks = {}
      for i = 1, 3 do
        tasks[i] = function()
          local image, _, code = call("image_build", { image = "minimal" })
          outcomes[#outcomes + 1] = image and "made" or code
        end
      end
      async.all(tasks)
    end)
    table.sort(outcomes)
    assert.same({ "EBUSY", "EBUSY", "made" }, outcomes)
    assert(call("image_rm", { image = "minimal" }))
  end)

  it("half-made when the server is killed are gone with the next one", function()
    async.run(function()
      local pid = server:pid()
      local task = async.spawn(function()
        return call("image_build", { image = "debian" })
      end)
      async.sleep(1.5)
      assert(uv.kill(pid, "sigkill"))
      task:join()
    end)
    assert.same({}, names())
    local _, _, code = call("create", { name = "half", image = "debian" })
    assert.equal("ENOIMAGE", code)
    assert(support.eventually(function()
      local left = support.run({ "sh", "-c", "ls -d " .. server.state .. "/work-*" })
      return left.stdout == ""
    end))
  end)
end)

describe("an image of a registry", function()
  it("is pulled by its reference and runs", function()
    local reference_of = registry.start()
    if not reference_of then
      pending("needs docker-registry")
      return
    end
    local server, root = support.server(), support.scratch()
    local reference = reference_of("team/tool:v1")
    local pushed = support.run({ "skopeo", "copy", "-q", "--dest-tls-verify=false",
      "docker-archive:" .. busybox_archive(root .. "/tool.tar"), "docker://" .. reference })
    assert.equal(0, pushed.code, pushed.stderr)
    local lines = {}
    local image = assert(server.client:call("image_pull", { reference = reference, insecure = true }, nil, function(line)
      lines[#lines + 1] = line
    end))
    assert.equal("tool", image.name)
    assert.is_true(#lines > 0)
    assert(server.client:call("create", { name = "pulled", image = "tool" }))
    local box = require("tidepool.client.box").new(server.client, "pulled")
    assert.equal("imported\n", box:exec({ "cat", "/etc/motd" }).stdout)
    assert(box:destroy())
  end)
end)

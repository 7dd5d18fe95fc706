-- The certificate that a sandbox's programs are to trust: where it goes, and what it must not touch.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local container = require("tidepool.server.container")
local containers = require("spec.support.container")
local steering = require("tidepool.server.steering")
local cgroup = require("tidepool.server.cgroup")
local support = require("spec.support")

local function certificate(letter)
  return "-----BEGIN CERTIFICATE-----\n" .. (letter:rep(64) .. "\n"):rep(12) .. "-----END CERTIFICATE-----\n"
end

local own, other, public = certificate("o"), certificate("x"), certificate("p"):rep(3)

-- Which certificates, by their letters: an error message that can be read.
local function holds(path)
  local text = support.read(path)
  for letter in ("oxp"):gmatch(".") do
    text = text:gsub(certificate(letter):gsub("%-", "%%-"), letter .. "!")
  end
  return text
end
local bundle, own_file = "/etc/ssl/certs/ca-certificates.crt", "/usr/local/share/ca-certificates/tidepool.crt"

local function task(fn)
  return function()
    async.run(fn)
  end
end

describe("a certificate to trust", function()
  local host

  lazy_setup(task(function()
    host = containers.host()
  end))

  local function root_with(files)
    local root = containers.root()
    if not root then
      pending("needs busybox-static")
    end
    for path, content in pairs(files) do
      assert.equal(0, support.run({ "mkdir", "-p", root .. path:match("^(.*)/") }).code)
      local file = assert(io.open(root .. path, "w"))
      file:write(content)
      file:close()
    end
    return root
  end

  -- Starts a sandbox on these files and ends it.
  local function start(root, pem)
    local spec = containers.spec(host, { root = root, trust = pem or own })
    local made = assert(container.start(host.pool, spec))
    assert(cgroup.kill(host.cgroups, spec.cgroup))
    assert(async.readable(made.pidfd:number(), 5))
    made.pidfd:close()
    steering.close(made.steering)
    assert(cgroup.remove(host.cgroups, spec.cgroup))
  end

  it("is added to the bundle, once, and has a file of its own", task(function()
    local root = root_with({ [bundle] = public })
    for _ = 1, 3 do
      start(root)
      assert.equal("p!p!p!o!", holds(root .. bundle))
      assert.equal("o!", holds(root .. own_file))
    end
    assert.equal(420, bit.band(uv.fs_stat(root .. bundle).mode, 511))
    assert.equal("file", uv.fs_lstat(root .. bundle).type)
    assert.same({ "ca-certificates.crt" }, support.names(root .. "/etc/ssl/certs"))
  end))

  it("is added where the bundle doesn't end in a newline, and when it is given without one", task(function()
    local root = root_with({ [bundle] = public:sub(1, -2) })
    start(root, own:sub(1, -2))
    assert.equal("p!p!p!o!", holds(root .. bundle))
  end))

  it("takes the place of the one that was there before", task(function()
    local root = root_with({ [bundle] = public })
    start(root, other)
    start(root, own)
    assert.equal("p!p!p!o!", holds(root .. bundle))
    assert.equal("o!", holds(root .. own_file))
  end))

  it("is found where somebody else wrote the bundle anew with it", task(function()
    local root = root_with({ [bundle] = own .. public, [own_file] = own })
    start(root)
    assert.equal("o!p!p!p!", holds(root .. bundle))
  end))

  it("makes a bundle where there is none", task(function()
    local root = root_with({})
    start(root)
    assert.equal("o!", holds(root .. bundle))
  end))

  it("goes into the bundle of the Fedora kind, which gets Debian's name too", task(function()
    local real = "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"
    local root = root_with({ [real] = public, ["/etc/pki/tls/certs/x"] = "" })
    assert(uv.fs_symlink(real, root .. "/etc/pki/tls/certs/ca-bundle.crt"))
    start(root)
    assert.equal("p!p!p!o!", holds(root .. real))
    assert.equal("link", uv.fs_lstat(root .. "/etc/pki/tls/certs/ca-bundle.crt").type)
    assert.equal("/etc/pki/tls/certs/ca-bundle.crt", uv.fs_readlink(root .. bundle))
  end))

  it("is what OpenSSL reads without any variable", task(function()
    local root = root_with({ [bundle] = public, ["/usr/lib/ssl/openssl.cnf"] = "" })
    start(root)
    assert.equal(bundle, uv.fs_readlink(root .. "/usr/lib/ssl/cert.pem"))
    start(root)
  end))

  it("follows links inside and none that leads out", task(function()
    local outside = support.scratch()
    assert.equal(0, support.run({ "chmod", "777", outside }).code)
    local root = root_with({ ["/data/real.crt"] = public, ["/etc/ssl/certs/x"] = "" })
    assert(uv.fs_symlink("../../../../../../data/real.crt", root .. bundle))
    assert.equal(0, support.run({ "mkdir", "-p", root .. "/usr/local" }).code)
    assert(uv.fs_symlink(outside, root .. "/usr/local/share"))
    start(root)
    assert.equal("p!p!p!o!", holds(root .. "/data/real.crt"))
    assert.same({}, support.names(outside))
    for _, target in ipairs({ "/proc/self/fd/0", "/proc/self/root/etc/hosts", "/dev/null", "/proc/self/exe", "/proc/1/fd/4" }) do
      local trap = root_with({ ["/etc/ssl/certs/x"] = "" })
      assert(uv.fs_symlink(target, trap .. bundle))
      start(trap)
      assert.equal(target, uv.fs_readlink(trap .. bundle))
    end
  end))

  it("neither waits for nor breaks what is no file", task(function()
    for _, make in ipairs({ { "mkfifo" }, { "mkdir" } }) do
      local root = root_with({ ["/etc/ssl/certs/x"] = "" })
      assert.equal(0, support.run({ make[1], root .. bundle }).code)
      local before = uv.hrtime()
      start(root)
      assert.is_true(uv.hrtime() - before < 60e9)
      assert.equal("o!", holds(root .. own_file))
      assert.are_not.equal("file", uv.fs_lstat(root .. bundle).type)
    end
    local root = root_with({ ["/etc/ssl"] = "a file" })
    start(root)
    assert.equal("o!", holds(root .. own_file))
  end))

  it("that is none is refused by the plan", function()
    assert.equal("EINVAL", select(3, core.plan.encode({ { "trust", 1 } })))
  end)

  it("is named to programs that have bundles of their own", function()
    local variables = container.trust_environment()
    assert.equal(bundle, variables.SSL_CERT_FILE)
    assert.equal(own_file, variables.NODE_EXTRA_CA_CERTS)
  end)
end)

local uv = require("luv")
local proxy = require("tidepool.proxy")
local support = require("spec.support")
local harness = require("spec.core.proxy.tls_harness")

local function write(name, text)
  local path = support.scratch() .. "/" .. name
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

local function openssl(words)
  local result = support.run({ "openssl", unpack(words) })
  return result.stdout .. result.stderr, result.code
end

describe("a sandbox's CA", function()
  local ca, _, pem = harness.authority("Tidepool sandbox demo, the \"first\"=1")
  local ca_file = write("ca.pem", pem)

  local function leaf_of(host)
    local der = assert(ca:identity(host)):certificate()
    local file = write("leaf.der", der)
    openssl({ "x509", "-inform", "der", "-in", file, "-out", file .. ".pem" })
    return file .. ".pem", (openssl({ "x509", "-in", file .. ".pem", "-noout", "-text" }))
  end

  it("names itself as told, whatever the characters", function()
    local text = openssl({ "x509", "-in", ca_file, "-noout", "-subject", "-nameopt", "multiline" })
    assert.matches('= Tidepool sandbox demo, the "first"=1\n', text, 1, true)
  end)

  it("signs certificates that the strictest check accepts, for a name", function()
    local leaf = leaf_of("a-b.c_d.example")
    local said, code = openssl({ "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname",
      "a-b.c_d.example", "-CAfile", ca_file, leaf })
    assert.equal(0, code, said)
    said, code = openssl({ "verify", "-verify_hostname", "other.example", "-CAfile", ca_file, leaf })
    assert.not_equal(0, code, said)
  end)

  it("signs certificates for addresses of either kind", function()
    for _, address in ipairs({ "192.0.2.7", "2001:db8::7" }) do
      local leaf = leaf_of(address)
      local said, code = openssl({ "verify", "-x509_strict", "-verify_ip", address, "-CAfile", ca_file, leaf })
      assert.equal(0, code, said)
    end
  end)

  it("signs certificates for names too long for a subject", function()
    local host = ("abcdefghi."):rep(25) .. "xyz"
    local leaf = leaf_of(host)
    local said, code = openssl({ "verify", "-x509_strict", "-verify_hostname", host, "-CAfile", ca_file, leaf })
    assert.equal(0, code, said)
  end)

  it("takes a name as clients write it: in capitals, with a final dot", function()
    assert.matches("DNS:example.test\n", select(2, leaf_of("EXAMPLE.Test.")), 1, true)
  end)

  it("starts certificates in the past and ends them within weeks", function()
    local _, text = leaf_of("dated.example")
    local begins = text:match("Not Before: (.-)\n")
    assert.equal(os.date("!%b %e", os.time() - 86400), begins:match("^%a+ +%d+"))
    local left = assert(ca:identity("dated.example")):expires() - os.time()
    assert.is_true(left > 29 * 86400 and left <= 30 * 86400)
  end)

  it("gives each certificate a serial of its own and one key to all", function()
    local one, two = select(2, leaf_of("x.example")), select(2, leaf_of("x.example"))
    local function field(text, pattern)
      return text:match(pattern)
    end
    local key, serial = "Public%-Key:.-X509v3", "Serial Number:%s*(%S+)"
    assert.equal(field(one, key), field(two, key))
    assert.not_equal(field(one, serial), field(two, serial))
  end)

  it("refuses what is no host", function()
    for _, bad in ipairs({ "", ".", "a b", "*.example", "a/b", "a:b", "a\nb", ("a"):rep(254) }) do
      local identity, message, code = ca:identity(bad)
      assert.is_nil(identity)
      assert.equal("EINVAL", code, message)
    end
    assert.has_error(function()
      ca:identity({})
    end)
  end)

  it("refuses names of no or too many bytes for itself", function()
    for _, bad in ipairs({ "", ("x"):rep(65) }) do
      assert.equal("EINVAL", (select(3, proxy.ca.generate(bad))))
    end
  end)

  it("opens only a certificate and a key that belong together", function()
    local one_pem, one_key = assert(proxy.ca.generate("one"))
    local _, two_key = assert(proxy.ca.generate("two"))
    assert(proxy.ca.open(one_pem, one_key))
    assert.equal("EKEYREJECTED", (select(3, proxy.ca.open(one_pem, two_key))))
    assert.equal("EBADMSG", (select(3, proxy.ca.open(one_pem, "nothing"))))
    assert.equal("EBADMSG", (select(3, proxy.ca.open("nothing", one_key))))
    assert.equal("EBADMSG", (select(3, proxy.ca.open(("x"):rep(1e5), one_key))))
  end)

  it("stays while an identity of it lives, and leaves no memory behind", function()
    local function round()
      local own = proxy.ca.open(proxy.ca.generate("short"))
      local identity = own:identity("kept.example")
      own = nil -- luacheck: ignore
      collectgarbage()
      assert(proxy.tls.server(identity)):free()
    end
    local function resident()
      collectgarbage()
      collectgarbage()
      return uv.resident_set_memory()
    end
    for _ = 1, 20 do
      round()
    end
    local before = resident()
    for _ = 1, 100 do
      round()
    end
    assert.is_true(resident() - before < 400000, "grew by " .. resident() - before)
  end)

  it("survives an eager collector", function()
    local pause, step = collectgarbage("setpause", 0), collectgarbage("setstepmul", 1000)
    for i = 1, 20 do
      local own, trust = harness.authority("eager")
      local server, client = harness.pair(own, trust, "h" .. i .. ".example")
      assert.is_true(server:state().writable and client:state().writable)
    end
    collectgarbage("setpause", pause)
    collectgarbage("setstepmul", step)
  end)
end)

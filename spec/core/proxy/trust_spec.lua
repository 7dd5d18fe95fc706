local proxy = require("tidepool.proxy")
local support = require("spec.support")
local certificates = require("spec.support.certificates")
local harness = require("spec.core.proxy.tls_harness")

describe("a TLS client end", function()
  local HOST = "www.upstream.test"
  local root = certificates.ca()
  local trust, count = assert(proxy.tls.trust(root.pem))

  local function ask(leaf, options, own_trust)
    local server, port = harness.openssl_server(leaf, options)
    local text, state, code = harness.ask(port, own_trust or trust, HOST, not options and "GET / HTTP/1.0\r\n\r\n")
    server:stop()
    return text, state, code
  end

  for form, make in pairs(certificates.good) do
    it("believes a chain that is good: " .. form, function()
      local text, state = ask(make(root, HOST))
      assert.matches("200 ok", text, 1, true, state)
    end)
  end

  local day = function(offset) return os.date("!%Y-%m-%d", os.time() + offset * 86400) end
  local refused = {
    expired = { "EKEYEXPIRED", "certificate of www.upstream.test expired on " .. day(-1) },
    future = { "EKEYEXPIRED", "certificate of www.upstream.test is not valid before " .. day(2) },
    expired_intermediate = { "EKEYEXPIRED",
      "certificate of www.upstream.test: that of its issuer Test Intermediate expired on " .. day(-1) },
    wrong_host = { "EKEYREJECTED", "certificate is for someone-else.test, not www.upstream.test" },
    name_in_subject = { "EKEYREJECTED", "certificate is for someone-else.test, not www.upstream.test" },
    wide_wildcard = { "EKEYREJECTED", "certificate is for *, not www.upstream.test" },
    weak_key = { "EKEYREJECTED", "certificate of www.upstream.test has a weak key in its chain" },
    weak_digest = { "EKEYREJECTED", "certificate of www.upstream.test is signed with a weak hash" },
    client_only = { "EKEYREJECTED", "certificate of www.upstream.test is not for a TLS server" },
    self_signed = { "ENOKEY", "certificate of www.upstream.test is self-signed" },
    unknown_issuer = { "ENOKEY", "certificate of www.upstream.test: its issuer \"Stranger\" is not known, or the "
      .. "server did not send an intermediate certificate" },
    missing_intermediate = { "ENOKEY", "certificate of www.upstream.test: its issuer \"Test Intermediate\" is not "
      .. "known, or the server did not send an intermediate certificate" },
  }
  for form, make in pairs(certificates.bad) do
    it("refuses a chain that is not, and says why: " .. form, function()
      -- OpenSSL itself would refuse to present the weak ones.
      local weak = form:find("^weak") and { "-cipher", "DEFAULT@SECLEVEL=0", "-www" }
      local text, message, code = ask(make(root, HOST), weak)
      assert.is_nil(text)
      if refused[form] then
        assert.same(refused[form], { code, message })
      else
        assert.matches("^EKEYREJECTED", code:gsub("ENOKEY", "EKEYREJECTED"), 1, false, message)
      end
    end)
  end

  it("says that a server speaks only TLS 1.3", function()
    local text, message, code = ask(certificates.good.ec(root, HOST), { "-tls1_3", "-www" })
    assert.same({ nil, "www.upstream.test speaks only TLS 1.3, the proxy TLS 1.2", "EPROTONOSUPPORT" },
      { text, message, code })
  end)

  it("says that a server speaks only what is too old", function()
    local leaf = certificates.good.rsa(root, HOST)
    for _, old in ipairs({ { "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0", "-www" }, { "-cipher", "AES128-SHA", "-tls1_2", "-www" } }) do
      local _, message, code = ask(leaf, old)
      assert.equal("EPROTONOSUPPORT", code)
      assert.matches("no TLS version or cipher suite in common", message, 1, true)
    end
  end)

  it("falls back to CHACHA20 and CBC with SHA-2 for a server without AES-GCM", function()
    for _, suite in ipairs({ "CHACHA20-POLY1305", "AES128-SHA256", "AES256-SHA384" }) do
      local _, state = ask(certificates.good.rsa(root, HOST), { "-cipher", "ECDHE-RSA-" .. suite, "-tls1_2", "-www" })
      assert.matches("^ECDHE_RSA_WITH_" .. (suite:match("^CHACHA20") or suite:match("^AES") ), state.suite)
    end
  end)

  -- An authority below the root whose certificate says for whom it may vouch.
  local function limited(limits)
    local directory = support.scratch()
    local base = ("%s/limited-%s"):format(directory, support.unique())
    local result = support.run({ "sh", "-ec", [[
      openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -subj "/CN=Limited" -out $1.csr
      printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nnameConstraints=%s\n' "$2" > $1.ext
      openssl x509 -req -in $1.csr -CA $3 -CAkey $4 -CAcreateserial -days 3 -extfile $1.ext -out $1.pem]],
      "sh", base, limits, root.cert, root.key })
    assert.equal(0, result.code, result.stderr)
    local pem = support.read(base .. ".pem")
    return setmetatable({ key = base .. ".key", cert = base .. ".pem", pem = pem, directory = root.directory,
      chain = { pem } }, getmetatable(root))
  end

  it("keeps to name constraints, critical or not, of roots and of those below", function()
    local inside, outside = "critical,permitted;DNS:upstream.test", "permitted;DNS:.elsewhere.test"
    local but = "critical,permitted;DNS:.test,excluded;DNS:www.upstream.test"
    assert(ask(limited(inside):leaf({ hosts = { HOST } })))
    for _, limits in ipairs({ outside, but, "critical,permitted;DNS:am.test" }) do
      local _, message, code = ask(limited(limits):leaf({ hosts = { HOST } }))
      assert.same({ "certificate of www.upstream.test: \"Limited\" may not vouch for this host", "EKEYREJECTED" },
        { message, code })
    end
    -- As a root, by itself: mbedTLS alone would leave it out of the bundle.
    local anchor = limited(inside)
    anchor.chain = {}
    assert(ask(anchor:leaf({ hosts = { HOST } }), nil, assert(proxy.tls.trust(anchor.pem))))
    assert(ask(limited("permitted;IP:10.0.0.0/255.0.0.0"):leaf({ hosts = { HOST } })))
  end)

  it("follows chains only so far", function()
    local deep = root
    for i = 1, 9 do
      deep = deep:intermediate({ name = "Level " .. i })
    end
    local _, message, code = ask(deep:leaf({ hosts = { HOST } }))
    assert.equal("EKEYREJECTED", code)
    assert.matches("certificate of www.upstream.test can't be verified", message, 1, true)

    local wide = root:intermediate()
    for i = 2, 16 do
      wide.chain[i] = wide.pem
    end
    _, message, code = ask(wide:leaf({ hosts = { HOST } }))
    assert.same({ "certificate chain of www.upstream.test is too long", "EKEYREJECTED" }, { message, code })
    table.remove(wide.chain)
    assert(ask(wide:leaf({ hosts = { HOST } })))
  end)

  it("keeps to name constraints on addresses", function()
    local function told(limits)
      local server, port = harness.openssl_server(limited(limits):leaf({ hosts = { "127.0.0.1" } }))
      local text = harness.ask(port, trust, "127.0.0.1")
      server:stop()
      return text ~= nil
    end
    assert.is_true(told("permitted;IP:127.0.0.0/255.0.0.0"))
    assert.is_false(told("permitted;IP:10.0.0.0/255.0.0.0"))
    assert.is_false(told("excluded;IP:0.0.0.0/0.0.0.0"))
    assert.is_true(told("permitted;DNS:upstream.test"))
  end)

  it("resumes a server's sessions, without its certificate being shown again", function()
    local server, port = harness.openssl_server(certificates.good.ec(root, HOST), { "-no_ticket", "-tls1_2", "-www" })
    local own = assert(proxy.tls.trust(root.pem))
    local request = "GET / HTTP/1.0\r\n\r\n"
    assert.is_false(select(2, assert(harness.ask(port, own, HOST, request))).resumed)
    assert.is_true(select(2, assert(harness.ask(port, own, HOST, request))).resumed)
    server:stop()
  end)

  it("believes a subject's common name only where there are no alternative names", function()
    assert(ask(root:leaf({ name = HOST })))
    local _, message, code = ask(root:leaf({ name = "other.test" }))
    assert.same({ "certificate is for other.test, not www.upstream.test", "EKEYREJECTED" }, { message, code })
  end)

  it("checks addresses against addresses", function()
    local server, port = harness.openssl_server(root:leaf({ hosts = { "127.0.0.1", "::1" } }))
    assert(harness.ask(port, trust, "127.0.0.1"))
    assert(harness.ask(port, trust, "::1"))
    local _, message = harness.ask(port, trust, "127.0.0.2")
    assert.equal("certificate is for 127.0.0.1, ::1, not 127.0.0.2", message)
    server:stop()
  end)

  it("reads bundles, without what it can't read in them", function()
    assert.equal(1, count)
    local second = certificates.ca({ name = "Second", key = "rsa" })
    local junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    local _, both = assert(proxy.tls.trust("# comment\n" .. root.pem .. junk .. second.pem))
    assert.equal(2, both)
    for _, none in ipairs({ "", "nothing", junk }) do
      assert.equal("EBADMSG", (select(3, proxy.tls.trust(none))))
    end
  end)

  it("reads this machine's own bundle", function()
    local text = support.read("/etc/ssl/certs/ca-certificates.crt")
    if not text then
      pending("no ca-certificates here")
    end
    assert.is_true(select(2, assert(proxy.tls.trust(text))) > 50)
  end)

  it("outlives its trust", function()
    local own = assert(proxy.tls.trust(root.pem))
    local client = assert(proxy.tls.client(own, HOST))
    own = nil -- luacheck: ignore
    collectgarbage()
    assert.is_true(#client:take() > 100)
  end)
end)

local uv = require("luv")
local proxy = require("tidepool.proxy")
local support = require("spec.support")
local certificates = require("spec.support.certificates")
local harness = require("spec.core.proxy.tls_harness")

local function descriptors()
  return support.fd_count()
end

local function have(program)
  return support.run({ "sh", "-c", "command -v " .. program }).code == 0
end

local function write(name, text)
  local path = support.scratch() .. "/" .. name
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
  return path
end

describe("two TLS ends", function()
  local ca, trust = harness.authority()

  it("agree on AES-GCM and HTTP/1.1", function()
    local server, client = harness.pair(ca, trust, "one.example")
    for _, tls in ipairs({ server, client }) do
      local state = tls:state()
      assert.equal("ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", state.suite)
      assert.equal("http/1.1", state.alpn)
      assert.is_true(state.writable)
      assert.is_false(state.resumed)
    end
  end)

  it("carry bytes both ways unchanged", function()
    local server, client = harness.pair(ca, trust, "bulk.example")
    local block = uv.random(65536) .. ("z"):rep(100000)
    for _, way in ipairs({ { server, client }, { client, server } }) do
      local from, to, sent, got = way[1], way[2], 0, {}
      while sent < #block do
        sent = sent + from:write(block:sub(sent + 1))
        local records = from:take()
        while #records > 0 do
          local taken = to:feed(records)
          records = records:sub(taken + 1)
          got[#got + 1] = to:read()
        end
      end
      assert.is_true(block == table.concat(got))
    end
  end)

  it("resume their session the next time, and not for another host", function()
    harness.pair(ca, trust, "again.example")
    assert.is_true(select(2, harness.pair(ca, trust, "again.example")):state().resumed)
    assert.is_false(select(2, harness.pair(ca, trust, "other.example")):state().resumed)
  end)

  it("handshake in full when the server has forgotten the session", function()
    local pem, key = assert(proxy.ca.generate("forgetful"))
    local own = assert(proxy.tls.trust(pem))
    harness.pair(assert(proxy.ca.open(pem, key)), own, "again.example")
    local _, client = harness.pair(assert(proxy.ca.open(pem, key)), own, "again.example")
    assert.is_false(client:state().resumed)
  end)

  it("close in order, with what was written before", function()
    local server, client = harness.pair(ca, trust, "close.example")
    server:write("last words")
    server:close()
    assert.equal("last words", (select(2, harness.connect(server, client))))
    for _, tls in ipairs({ server, client }) do
      assert.is_true(tls:state().closed)
      assert(tls:failure())
      assert.equal(0, tls:write("too late"))
    end
  end)

  it("notice a changed byte", function()
    local server, client = harness.pair(ca, trust, "changed.example")
    server:write("hello")
    local records = server:take()
    client:feed(records:sub(1, -2) .. string.char((records:byte(-1) + 1) % 256))
    assert.equal("", client:read())
    assert.same({ "a TLS record of changed.example was corrupted", "EPROTO" }, { select(2, client:failure()) })
  end)

  it("say so when the other end speaks no TLS", function()
    local client = assert(proxy.tls.client(trust, "plain.example"))
    client:take()
    client:feed("HTTP/1.1 400 Bad Request\r\n\r\n")
    assert.same({ "plain.example does not speak TLS on this port, or none as new as 1.2", "EPROTONOSUPPORT" }, { select(2, client:failure()) })
  end)

  it("refuse what is no host, and arguments of the wrong kind", function()
    for _, bad in ipairs({ "", "a b", "a/b", "*.example", ("a"):rep(254) }) do
      assert.equal("EINVAL", (select(3, proxy.tls.client(trust, bad))))
    end
    assert.has_error(function() proxy.tls.client("trust", "x.example") end)
    assert.has_error(function() proxy.tls.server(trust) end)
    local tls = assert(proxy.tls.client(trust, "freed.example"))
    tls:free()
    tls:free()
    assert.has_error(function() tls:take() end)
  end)

  it("take less than 40 KiB each, and give it back", function()
    local function resident()
      collectgarbage()
      collectgarbage()
      return uv.resident_set_memory()
    end
    local kept, fds = {}, descriptors()
    harness.pair(ca, trust, "many.example")
    local before = resident()
    for i = 1, 100 do
      kept[i] = { harness.pair(ca, trust, "many.example") }
      local server, client = unpack(kept[i])
      server:write(("x"):rep(16384)) -- so that the buffers are really there
      harness.connect(server, client)
    end
    local each = (resident() - before) / 200
    assert.is_true(each < 40 * 1024, ("%d bytes an end"):format(each))
    for i = 1, 100 do
      kept[i][1]:free()
      kept[i][2]:free()
    end
    local held = resident()
    for _ = 1, 200 do
      local server, client = harness.pair(ca, trust, "many.example")
      server:free()
      client:free()
    end
    assert.is_true(resident() - held < 400000)
    assert.equal(fds, descriptors())
  end)

  it("survive an eager collector", function()
    local pause, step = collectgarbage("setpause", 0), collectgarbage("setstepmul", 1000)
    for i = 1, 30 do
      local _, client = harness.pair(ca, trust, "eager" .. i .. ".example")
      assert.is_true(client:state().writable)
    end
    collectgarbage("setpause", pause)
    collectgarbage("setstepmul", step)
  end)
end)

describe("a TLS server end", function()
  local ca, _, pem = harness.authority()
  local file = write("ca.pem", pem)
  local identity = assert(ca:identity("localhost"))

  -- Runs a client, with PORT replaced in its words, against a server that answers "welcome".
  local function against(words, options)
    return harness.serve(identity, "welcome", function(port, failures)
      options = options or {}
      for i, word in ipairs(words) do
        options[i] = (word:gsub("PORT", tostring(port)))
      end
      return support.run(options), failures
    end)
  end

  local function welcomes(words, options)
    local result = against(words, options)
    assert.matches("welcome", result.stdout, 1, true, result.stderr)
  end

  it("is believed by openssl, over every suite it has", function()
    for _, suite in ipairs({ "AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305" }) do
      local result = against({ "sh", "-c", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -ign_eof -connect"
        .. " 127.0.0.1:PORT -servername localhost -verify_return_error -verify_hostname localhost -x509_strict"
        .. " -tls1_2 -cipher ECDHE-ECDSA-" .. suite .. " -CAfile " .. file })
      assert.matches("Verify return code: 0 %(ok%)", result.stdout)
      assert.matches("ECDHE-ECDSA-" .. suite, result.stdout, 1, true)
      assert.matches("welcome", result.stdout, 1, true)
    end
  end)

  it("resumes openssl's sessions", function()
    local session = support.scratch() .. "/session"
    local words = "</dev/null openssl s_client -connect 127.0.0.1:PORT -servername localhost -tls1_2 -no_ticket"
      .. " -CAfile " .. file
    against({ "sh", "-c", words .. " -sess_out " .. session })
    assert.matches("Reused, TLSv1.2", against({ "sh", "-c", words .. " -sess_in " .. session }).stdout, 1, true)
  end)

  it("is believed by curl", function()
    welcomes({ "curl", "-sS", "--cacert", file, "https://localhost:PORT/" })
  end)

  it("is believed by wget", function()
    welcomes({ "wget", "-qO-", "--ca-certificate=" .. file, "https://localhost:PORT/" })
  end)

  it("is believed by git's library", function()
    local result = against({ "git", "ls-remote", "https://localhost:PORT/x" },
      { env = { "GIT_SSL_CAINFO=" .. file, "PATH=" .. os.getenv("PATH") } })
    assert.not_matches("certificate", result.stderr, 1, true)
    assert.not_matches("SSL", result.stderr, 1, true)
  end)

  it("is believed by node", function()
    welcomes({ "node", "-e", "fetch('https://localhost:PORT/').then(r => r.text()).then(console.log)" },
      { env = { "NODE_EXTRA_CA_CERTS=" .. file, "PATH=" .. os.getenv("PATH") } })
  end)

  it("is believed by python at its strictest", function()
    welcomes({ "python3", "-c", [[
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
print(urllib.request.urlopen("https://localhost:PORT/", context=context).read())]], file })
  end)

  it("is believed by gnutls", function()
    if not have("gnutls-cli") then
      pending("gnutls-cli is not installed")
    end
    local result = against({ "sh", "-c", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | gnutls-cli --x509cafile " .. file
      .. " --port PORT --sni-hostname localhost --verify-hostname localhost localhost" })
    assert.matches("certificate is trusted", result.stdout, 1, true)
  end)

  it("tells why a client goes away that does not know its CA", function()
    local result, failures = against({ "curl", "-sS", "https://localhost:PORT/" })
    assert.equal(60, result.code)
    assert.same({ { message = "client does not accept the proxy's certificate (alert unknown_ca)", code = "EPROTO" } },
      failures)
  end)

  it("refuses a client that speaks only TLS 1.3, or only 1.1, and says so", function()
    local connect = "</dev/null openssl s_client -connect 127.0.0.1:PORT -servername localhost -CAfile " .. file
    local result, failures = against({ "sh", "-c", connect .. " -tls1_3" })
    assert.not_equal(0, result.code)
    assert.equal("EPROTONOSUPPORT", failures[1].code)
    assert.matches("only TLS 1.3", failures[1].message, 1, true)
    _, failures = against({ "sh", "-c", connect .. " -tls1_1 -cipher DEFAULT@SECLEVEL=0" })
    assert.same({ { message = "client does not speak TLS 1.2", code = "EPROTONOSUPPORT" } }, failures)
  end)

  it("refuses a client that wants only HTTP/2, by the alert for it", function()
    local result, failures = against({ "sh", "-c", "</dev/null openssl s_client -connect 127.0.0.1:PORT -alpn h2"
      .. " -servername localhost -CAfile " .. file })
    assert.matches("no application protocol", result.stderr, 1, true)
    assert.same({ { message = "client does not accept HTTP/1.1 by its ALPN", code = "EPROTONOSUPPORT" } }, failures)
  end)
end)

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

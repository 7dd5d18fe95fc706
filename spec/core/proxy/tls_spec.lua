local uv = require("luv")
local proxy = require("tidepool.proxy")
local support = require("spec.support")
local harness = require("spec.core.proxy.tls_harness")

local function descriptors()
  return support.fd_count()
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

  it("is believed by git, which asks gnutls", function()
    local result = against({ "git", "ls-remote", "https://localhost:PORT/x" },
      { env = { "GIT_SSL_CAINFO=" .. file, "PATH=" .. os.getenv("PATH") } })
    assert.not_matches("certificate", result.stderr, 1, true)
    assert.not_matches("SSL", result.stderr, 1, true)
  end)

  it("is believed by node", function()
    -- Debian's node tries the first address alone, and that is ::1 on most machines.
    welcomes({ "node", "--dns-result-order=ipv4first", "-e", "fetch('https://localhost:PORT/').then(r => r.text()).then(console.log)" },
      { env = { "NODE_EXTRA_CA_CERTS=" .. file, "PATH=" .. os.getenv("PATH") } })
  end)

  it("is believed by python at its strictest", function()
    welcomes({ "python3", "-c", [[
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
print(urllib.request.urlopen("https://localhost:PORT/", context=context).read())]], file })
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

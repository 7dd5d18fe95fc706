-- The servers that other specs test against do what those specs take for granted, as curl, git and
-- openssl see it.
local cjson = require("cjson")
local support = require("spec.support")
local certificates = require("spec.support.certificates")
local git_server = require("spec.support.git_server")
local web = require("spec.support.web")

local function curl(...)
  return support.run({ "curl", "-sS", "--max-time", "20", ... })
end

describe("servers for specs:", function()
  local ca, leaf

  setup(function()
    ca = certificates.ca()
    leaf = ca:leaf({ hosts = { "server.test", "127.0.0.1" } })
  end)

  it("certificates have the flaw that they are named for, as openssl sees it", function()
    local function verify(made)
      local result = support.run({
        "openssl", "verify", "-auth_level", "2", "-purpose", "sslserver", "-verify_hostname", "www.server.test",
        "-CAfile", ca.cert, "-untrusted", made.cert, made.alone,
      })
      return result.code == 0, result.stdout .. result.stderr
    end
    for name, make in pairs(certificates.good) do
      local ok, output = verify(make(ca, "www.server.test"))
      assert.is_true(ok, name .. ": " .. output)
    end
    for name, make in pairs(certificates.bad) do
      assert.is_false((verify(make(ca, "www.server.test"))), name)
    end
  end)

  it("nginx serves over TLS and plainly, files that take no space too", function()
    local nginx = web.nginx({ leaf = leaf })
    nginx:sparse("big", 3e9)
    local url = ("https://127.0.0.1:%d"):format(nginx.port)
    assert.equal("hello from nginx\n", curl("--cacert", ca.cert, url .. "/").stdout)
    assert.equal("hello from nginx\n", curl(("http://127.0.0.1:%d/"):format(nginx.plain_port)).stdout)
    assert.matches("Content%-Length: 3000000000", curl("-I", "--cacert", ca.cert, url .. "/big").stdout)
    assert.matches("Content%-Encoding: gzip", curl("-H", "Accept-Encoding: gzip", "-o", "/dev/null", "-D", "-",
      "--cacert", ca.cert, url .. "/page.txt").stdout)
    nginx:stop()
    assert.is_false(support.alive(nginx.pid))
  end)

  it("the echo server tells what it got, and answers as it is asked", function()
    local echo = web.echo({ leaf = leaf })
    local function get(path, ...)
      return curl("--cacert", ca.cert, ("https://127.0.0.1:%d%s"):format(echo.port, path), ...)
    end
    local told = cjson.decode(get("/echo?a=b", "-d", "some body", "-H", "X-Own: 1").stdout)
    assert.same({ "POST", "/echo?a=b", "some body" }, { told.method, told.target, told.body })
    assert.matches("X%-Own: 1\r\n", told.head)
    assert.equal("TLSv1.3", told.tls.version)
    assert.equal(87396, #get("/chunked?sizes=1,2,3,1000,1,70000,16384,5&drip").stdout)
    assert.matches("\r\nX%-Digest: %x+\r\n", get("/trailers", "--raw", "-D", "-").stdout)
    assert.equal(413, tonumber(get("/early", "-d", "x", "-o", "/dev/null", "-w", "%{http_code}").stdout))
    assert.equal("after hints\n", get("/hints").stdout)
    assert.equal(18, get("/cut").code) -- CURLE_PARTIAL_FILE
    assert.equal("before c2VjcmV0 after\n", get("/leak?form=base64", "-u", "me:secret").stdout)
    assert.equal("/echo?a=b", echo.requests()[1].target)
    local chunked = cjson.decode(get("/sink?digest", "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue",
      "--data-binary", ("x"):rep(100000)).stdout)
    assert.equal(100000, chunked.size)
  end)

  it("TCP servers greet, echo and count", function()
    local function talk(port, text)
      return support.run({ "bash", "-c", ([[exec 3<>/dev/tcp/127.0.0.1/%d; printf '%%s' '%s' >&3; head -n2 <&3]])
        :format(port, text) }).stdout
    end
    assert.equal("220 hello, connection 1\r\nABC\n", talk(web.tcp("lines").port, "abc\n"))
    assert.equal("abc\ndef\n", talk(web.tcp("echo").port, "abc\ndef\n"))
  end)

  it("openssl serves each form, TLS 1.3 alone too", function()
    local server = web.openssl({ leaf = leaf, flags = { "-tls1_3" } })
    local url = ("https://127.0.0.1:%d/"):format(server.port)
    assert.matches("s_server", curl("--cacert", ca.cert, url).stdout)
    assert.equal(35, curl("--cacert", ca.cert, "--tls-max", "1.2", url).code) -- CURLE_SSL_CONNECT_ERROR
    local weak = web.openssl({ leaf = certificates.bad.expired(ca, "127.0.0.1") })
    assert.equal(60, curl("--cacert", ca.cert, ("https://127.0.0.1:%d/"):format(weak.port)).code)
  end)

  it("the git server gives nothing without its token, and takes pushes with it", function()
    local server = git_server.start({ token = "sesame-12345", leaf = leaf })
    server:repository("me/project")
    local clone = support.scratch() .. "/clone"
    local function git(words, token)
      local argv = { "git", "-c", "http.sslCAInfo=" .. ca.cert, env = {
        "PATH=" .. os.getenv("PATH"), "HOME=" .. support.scratch(), "GIT_TERMINAL_PROMPT=0",
      } }
      for _, word in ipairs(token and { "-c", "http.extraHeader=Authorization: Bearer " .. token } or {}) do
        argv[#argv + 1] = word
      end
      for _, word in ipairs(words) do
        argv[#argv + 1] = word
      end
      return support.run(argv)
    end
    local url = ("https://127.0.0.1:%d/me/project.git"):format(server.port)
    assert.not_equal(0, git({ "clone", url, clone }).code)
    assert.not_equal(0, git({ "clone", url, clone }, "wrong").code)
    local cloned = git({ "clone", "-q", url, clone }, "sesame-12345")
    assert.equal(0, cloned.code, cloned.stderr)
    git({ "-C", clone, "-c", "user.name=A", "-c", "user.email=a@b.test", "commit", "-q", "--allow-empty", "-m", "second" })
    local pushed = git({ "-C", clone, "push", "-q" }, "sesame-12345")
    assert.equal(0, pushed.code, pushed.stderr)
    assert.same({ "second", "first" }, server:commits("me/project"))
  end)

  it("the DNS server changes its answers while it runs", function()
    local server = web.dns({ ["a.test"] = { A = { "192.0.2.7" } } })
    local script = [[
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0\1a\4test\0\0\1\0\1", ("127.0.0.1", int(sys.argv[1])))
print(socket.inet_ntoa(s.recv(512)[-4:]))]]
    local function ask()
      return support.run({ "/usr/bin/python3", "-c", script, tostring(server.port) }).stdout
    end
    assert.equal("192.0.2.7\n", ask())
    server.set({ ["a.test"] = { turns = { { A = { "192.0.2.8" } }, { A = { "127.0.0.1" } } } } })
    assert.equal("192.0.2.8\n", ask())
    assert.equal("127.0.0.1\n", ask())
    assert.same({ name = "a.test", type = "A", over = "udp" }, server.queries()[1])
  end)

  it("the WebSocket server gives every message back", function()
    local server = web.websocket({ leaf = leaf })
    local script = [[
import base64, os, socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
s = context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))), server_hostname="server.test")
s.sendall(b"GET / HTTP/1.1\r\nHost: server.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
          b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n")
f = s.makefile("rb")
while f.readline() != b"\r\n": pass
s.sendall(b"\x81\x85\0\0\0\0hello")
print(f.read(7)[2:].decode())]]
    assert.equal("hello\n", support.run({ "/usr/bin/python3", "-c", script, tostring(server.port), ca.cert }).stdout)
  end)
end)

-- Trust inside, as real clients see it: each verifies the certificate that the egress process minted, with
-- nothing turned off and nothing configured but what a sandbox comes with.
local uv = require("luv")
local cjson = require("cjson")
local support = require("spec.support")
local certificates = require("spec.support.certificates")
local web = require("spec.support.web")

local HOSTS = { "web.test", "git.test", "apt.test", "pip.test", "npm.test" }

-- Runs a line of shell on the host, in a directory; its output.
local function host(line, directory, ...)
  local result = support.run({ "sh", "-ec", line, "sh", directory, ... })
  assert(result.code == 0, line .. ": " .. result.stderr)
  return result.stdout
end

-- What each client installs from: real formats, in files that nginx serves.
local function publish(nginx)
  local root, work = nginx.root, support.scratch()
  host([[cd "$1" && git init -q -b main work && cd work && echo text >file && git add . &&
    git -c user.name=A -c user.email=a@b.test commit -q -m first && git clone -q --bare . "$2/project.git" &&
    git -C "$2/project.git" update-server-info]], work, root)
  host([[cd "$1" && mkdir -p tiny/DEBIAN tiny/usr/share/tiny && echo text >tiny/usr/share/tiny/file &&
    printf 'Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.test>\nDescription: tiny\n' >tiny/DEBIAN/control &&
    dpkg-deb --root-owner-group -b tiny "$2/tiny_1_all.deb" >&2 && cd "$2" && { dpkg-deb -f tiny_1_all.deb; echo 'Filename: ./tiny_1_all.deb';
    echo "Size: $(stat -c %s tiny_1_all.deb)"; echo "SHA256: $(sha256sum <tiny_1_all.deb | cut -d' ' -f1)"; echo; } >Packages]],
    work, root)
  host([[cd "$2" && mkdir -p simple/tiny && /usr/bin/python3 - <<'END'
import zipfile
with zipfile.ZipFile("tiny-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("tiny.py", "text = 'tiny'\n")
    wheel.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
    wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: a\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("tiny-1.dist-info/RECORD", "")
END
echo '<a href="/tiny-1-py3-none-any.whl">tiny-1-py3-none-any.whl</a>' >simple/tiny/index.html]], work, root)
  host([[cd "$1" && mkdir package && echo '{"name":"tiny","version":"1.0.0"}' >package/package.json &&
    echo 'module.exports = "tiny"' >package/index.js && tar -czf "$2/tiny-1.0.0.tgz" package]], work, root)
  -- A Go module proxy, as far as its latest version is asked for.
  host([[mkdir -p "$1/tiny.test/tiny/@v" && cd "$1/tiny.test/tiny/@v" && echo v1.0.0 >list && echo module tiny.test/tiny >v1.0.0.mod &&
    echo '{"Version":"v1.0.0","Time":"2024-01-01T00:00:00Z"}' >v1.0.0.info]], root)
  nginx:put("tiny", cjson.encode({
    name = "tiny", ["dist-tags"] = { latest = "1.0.0" },
    versions = { ["1.0.0"] = { name = "tiny", version = "1.0.0", dist = {
      tarball = "https://npm.test/tiny-1.0.0.tgz",
      shasum = host("sha1sum <\"$1/tiny-1.0.0.tgz\"", root):match("%x+"),
    } } },
  }))
end

describe("certificates inside are trusted by", function()
  local box, ca, nginx

  setup(function()
    support.needs_root()
    support.image("debian")
    ca = certificates.ca()
    nginx = web.nginx({ leaf = ca:leaf({ hosts = HOSTS }) })
    publish(nginx)
    local to = {}
    for _, name in ipairs(HOSTS) do
      to[name] = "127.0.0.1:" .. nginx.port
    end
    box = support.sandbox({
      image = "debian", type = "standard-3",
      egress = { { name = "allow_hosts", options = { hosts = HOSTS, to = to, ca = ca.pem } } },
    })
  end)

  local function inside(line, user)
    local result = assert(box:exec({ "sh", "-c", line }, { timeout = 200, cwd = "/workspace", user = user }))
    return result.stdout, result.exit_code, result.stderr
  end

  local function expect(pattern, line, user)
    local stdout, code, stderr = inside(line, user)
    assert.equal(0, code, stderr .. stdout)
    assert.matches(pattern, stdout)
  end

  it("curl", function()
    expect("^hello from nginx\n$", "curl -sS https://web.test/")
  end)

  it("git", function()
    expect("first", "git clone -q https://git.test/project.git clone && git -C clone log --format=%s")
  end)

  it("apt", function()
    expect("Package: tiny", [[
      echo 'deb [trusted=yes] https://apt.test/ ./' >apt.list
      apt="-q -o Dir::Etc::SourceList=/workspace/apt.list -o Dir::Etc::SourceParts=/dev/null"
      apt-get $apt update >&2 && apt-get $apt download tiny >&2 && dpkg-deb -f tiny_1_all.deb]], "root")
  end)

  it("pip", function()
    -- From the wheel that every virtual environment gets it from, which saves the seconds to make one.
    expect("tiny%-1%-py3", [[python3 "$(echo /usr/share/python-wheels/pip-*.whl)/pip" download -q --no-deps --index-url https://pip.test/simple/ \
      -d wheels tiny >&2 && ls wheels]])
  end)

  it("npm", function()
    expect("^tiny\n$", [[mkdir -p app && cd app && npm install -s --no-audit --no-fund --registry https://npm.test/ tiny >&2 &&
      node -p 'require("tiny")']])
  end)

  it("node's fetch", function()
    expect("^hello from nginx\n$", [[node -e 'fetch("https://web.test/").then(r => r.text()).then(t => process.stdout.write(t))']])
  end)

  it("node's https", function()
    expect("^hello from nginx\n$", [[node -e 'require("https").get("https://web.test/", r => r.pipe(process.stdout))']])
  end)

  it("python's urllib", function()
    expect("^hello from nginx\n$", [[python3 -c 'import urllib.request as u; print(u.urlopen("https://web.test/").read().decode(), end="")']])
  end)

  it("openssl s_client", function()
    expect("Verify return code: 0 %(ok%)", [[openssl s_client -connect web.test:443 -servername web.test \
      -verify_return_error -verify_hostname web.test </dev/null 2>&1]])
  end)

  it("a client that takes its time to begin", function()
    expect("^HTTP/1%.1 %d+ .-\nHTTP/1%.1 200 OK\n$", [[python3 -c '
import socket, ssl, time
for port in 80, 443:
    s = socket.create_connection(("web.test", port))
    time.sleep(0.7)
    if port == 443:
        s = ssl.create_default_context().wrap_socket(s, server_hostname="web.test")
    s.sendall(b"GET / HTTP/1.0\r\nHost: web.test\r\n\r\n")
    print(s.recv(1000).decode().split("\r\n")[0])
']])
  end)

  it("no one in another sandbox: each has an authority of its own", function()
    local function roots(of)
      return assert(of:exec({ "sh", "-c", "cat /usr/local/share/ca-certificates/*" })).stdout
    end
    local other = support.sandbox({ image = "debian" })
    assert.matches("BEGIN CERTIFICATE", roots(box))
    assert.not_equal(roots(box), roots(other))
    assert.is_nil(roots(box):find("PRIVATE KEY", 1, true))
  end)

  it("wget, requests and go, which apt installs through the proxy from this host's mirrors", function()
    local sources = require("tidepool.image.sources")
    local found = require("tidepool.async").within(sources.host, function() end)
    local hosts, to, proxy = {}, {}, require("tidepool.proxy")
    for _, line in ipairs(found and found.lines or {}) do
      local scheme, name = line:match("(https?)://([^/:]+)")
      local address = name and (uv.getaddrinfo(name, nil, { family = "inet", socktype = "stream" }) or {})[1]
      if not address then
        pending("this host can't reach its mirrors")
      end
      hosts[#hosts + 1] = name
      if proxy.resolver.classify(address.addr) ~= "public" then
        to[name] = address.addr .. (scheme == "https" and ":443" or ":80")
      end
    end
    if #hosts == 0 then
      pending("this host has no web mirrors")
    end
    hosts[#hosts + 1], to["web.test"] = "web.test", "127.0.0.1:" .. nginx.port
    local real = support.sandbox({
      image = "debian", type = "standard-3",
      egress = { { name = "allow_hosts", options = { hosts = hosts, to = to, ca = ca.pem } } },
    })
    local installed = assert(real:exec({ "sh", "-c", "apt-get -q update && apt-get -qy --no-install-recommends install wget python3-requests golang-go" },
      { timeout = 200, user = "root" }))
    assert.equal(0, installed.exit_code, installed.stderr:sub(-500))
    for _, line in ipairs({
      "wget -q -O - https://web.test/",
      [[python3 -c 'import requests; print(requests.get("https://web.test/").text, end="")']],
      "GOPROXY=https://web.test GOSUMDB=off go list -m tiny.test/tiny@latest >&2 && echo hello from nginx",
    }) do
      local result = assert(real:exec({ "sh", "-c", line }, { timeout = 200 }))
      assert.equal("hello from nginx\n", result.stdout, line .. ": " .. result.stderr)
    end
  end)
end)

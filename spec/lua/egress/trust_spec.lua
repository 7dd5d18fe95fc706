-- Trust inside, wherever a client is started: with the environment that a sandbox gives and without it,
-- after the bundle was written anew, after a restart. And not without the certificate: each client here
-- does verify, with no option that says how.
local support = require("spec.support")
local certificates = require("spec.support.certificates")
local web = require("spec.support.web")

-- A line of shell for each, with the greeting for its output when all is well. requests are pip's own.
local CLIENTS = {
  curl = "curl -sS https://web.test/",
  git = "git ls-remote -q https://web.test/project.git >/dev/null && echo hello from nginx",
  urllib = [[python3 -c 'import urllib.request as u; print(u.urlopen("https://web.test/").read().decode())']],
  requests = [[python3 -c 'import sys, glob; sys.path.insert(0, glob.glob("/usr/share/python-wheels/pip-*.whl")[0])
from pip._vendor import requests; print(requests.get("https://web.test/").text)']],
  fetch = [[node -e 'fetch("https://web.test/").then(r => r.text()).then(t => process.stdout.write(t))']],
  openssl = [[printf 'GET / HTTP/1.0\r\nHost: web.test\r\n\r\n' |
openssl s_client -quiet -connect web.test:443 -servername web.test -verify_return_error -verify_hostname web.test | grep hello]],
  apt = [[mkdir -p $$/lists/partial && echo 'deb [trusted=yes] https://web.test/ ./' >$$/list &&
apt-get update -qq -o Dir::Etc::SourceList=$PWD/$$/list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::lists=$PWD/$$/lists \
  -o Dir::Cache=$PWD/$$ -o APT::Update::Error-Mode=any -o Acquire::Retries=0 && echo hello from nginx]],
}

-- All of them at once; a line for each: its name and its output, or that it failed.
local function script()
  local lines = { 'cd "$(mktemp -d)"', 'try() { o=$(timeout 150 sh -c "$2" 2>$1.err </dev/null) && echo "$1: $o" || echo "$1: failed"; }' }
  for name, line in pairs(CLIENTS) do
    lines[#lines + 1] = ("try %s '%s' &"):format(name, line:gsub("'", [['\'']]))
  end
  lines[#lines + 1] = "wait; cat *.err >&2"
  return table.concat(lines, "\n")
end

local function all(outcome)
  local expected = {}
  for name in pairs(CLIENTS) do
    expected[name] = outcome
  end
  return expected
end

describe("the sandbox's certificate is trusted", function()
  local box, nginx

  setup(function()
    support.needs_root()
    support.image("debian")
    local ca = certificates.ca()
    nginx = web.nginx({ leaf = ca:leaf({ hosts = { "web.test" } }) })
    nginx:put("Packages", "")
    assert.equal(0, support.run({ "sh", "-ec", [[cd "$1" && git init -q work && cd work &&
      git -c user.name=A -c user.email=a@b.test commit -q --allow-empty -m first && git clone -q --bare . ../project.git &&
      git -C ../project.git update-server-info]], "sh", nginx.root }).code)
    box = support.sandbox({
      image = "debian", type = "standard-3", -- seven clients at once
      egress = { { name = "allow_hosts", options = { hosts = { "web.test" }, to = { ["web.test"] = "127.0.0.1:" .. nginx.port }, ca = ca.pem } } },
    })
  end)

  local function outcomes(text)
    local found = {}
    for name, outcome in text:gmatch("(%w+): ([^\r\n]*)") do
      found[name] = outcome
    end
    return found
  end

  -- Runs the clients as words that take a script; their outcomes by name.
  local function clients(words, options)
    words[#words + 1] = script()
    options = options or {}
    options.timeout = 200
    local result = assert(box:exec(words, options))
    return outcomes(result.stdout), result.stderr
  end

  local function trusted(words, options)
    local found, stderr = clients(words, options)
    assert.same(all("hello from nginx"), found, stderr)
  end

  it("by what root runs", function()
    trusted({ "sh", "-c" }, { user = "root" })
  end)

  it("under sudo", function()
    trusted({ "sudo", "-n", "sh", "-c" })
  end)

  it("in a login shell", function()
    trusted({ "su", "-", "agent", "-c" }, { user = "root" })
  end)

  it("in a session", function()
    local shell = assert(box:session())
    local result = assert(shell:exec(script(), { timeout = 200 }))
    shell:close()
    assert.same(all("hello from nginx"), outcomes(result.stdout), result.stderr)
  end)

  -- Such as Node's own builds, and requests from PyPI.
  it("by programs with a bundle of their own, which the environment tells of it, under sudo too", function()
    local own = [[node --use-bundled-ca -e 'fetch("https://web.test/").then(r => r.text()).then(t => process.stdout.write(t))' &&
python3 -c 'import sys, glob; sys.path.insert(0, glob.glob("/usr/share/python-wheels/pip-*.whl")[0])
from pip._vendor import requests; requests.adapters.DEFAULT_CA_BUNDLE_PATH = glob.glob("/usr/share/ca-certificates/mozilla/*.crt")[0]
print(requests.get("https://web.test/").text, end="")']]
    for _, words in ipairs({ { "sh", "-c", own }, { "sudo", "-n", "sh", "-c", own } }) do
      local result = assert(box:exec(words, { timeout = 200 }))
      assert.equal(("hello from nginx\n"):rep(2), result.stdout, result.stderr)
    end
    assert.not_equal(0, assert(box:exec({ "env", "-i", "/bin/sh", "-c", own }, { timeout = 200 })).exit_code)
    local names = [[env | grep -E '/(ca-certificates|tidepool)[.]crt$' | sort]]
    assert.equal(box:exec({ "sh", "-c", names }).stdout, box:exec({ "sudo", "-n", "sh", "-c", names }).stdout)
  end)

  it("with no environment at all, as cron has it", function()
    trusted({ "env", "-i", "/bin/sh", "-c" })
  end)

  it("after update-ca-certificates has written the bundle anew", function()
    local result = assert(box:exec({ "update-ca-certificates" }, { user = "root", timeout = 200 }))
    assert.equal(0, result.exit_code, result.stderr)
    trusted({ "sh", "-c" })
  end)

  it("no more when root has thrown it out: every client refuses, with and without the environment", function()
    local result = assert(box:exec({ "sh", "-c", "rm /usr/local/share/ca-certificates/tidepool.crt && update-ca-certificates" },
      { user = "root", timeout = 200 }))
    assert.equal(0, result.exit_code, result.stderr)
    for _, words in ipairs({ { "sh", "-c" }, { "env", "-i", "/bin/sh", "-c" } }) do
      local found, stderr = clients(words)
      assert.same(all("failed"), found, stderr)
      assert.matches("SSL certificate problem: self%-signed certificate in certificate chain", stderr)
    end
  end)

  it("again after a stop and a start", function()
    assert(box:stop())
    trusted({ "sh", "-c" })
  end)
end)

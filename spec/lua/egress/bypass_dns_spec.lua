-- DNS as a way out: nothing that is asked leaves, whatever it is, and no name leads into this host or its
-- network, whatever a name server outside says and however often it changes its mind.
local cjson = require("cjson")
local uv = require("luv")
local canary = require("spec.support.canary")
local machine = require("spec.support.machine")
local paths = require("tidepool.paths")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local NOERROR, FORMERR, NXDOMAIN, NOTIMP, REFUSED = "0", "1", "3", "4", "5"

local host, outside

lazy_setup(function()
  support.needs_root()
  outside = canary.outside()
  host = canary.host(outside.port)
end)

describe("tunnelling by DNS", function()
  local box

  lazy_setup(function()
    support.image("debian")
    box = support.sandbox({ image = "debian" })
  end)

  local function try(deed)
    local result = assert(box:exec({
      "python3", "-c", machine.read(paths.repo() .. "/spec/support/intruder.py"), cjson.encode({
        deeds = { deed }, v4 = outside.v4, v6 = outside.v6, host4 = outside.host4, host6 = outside.host6,
      }),
    }, { timeout = 200 }))
    assert.equal("", result.stderr)
    local outcome = cjson.decode(result.stdout)[deed]
    assert.same({}, host:seen())
    assert.same({}, outside:seen())
    return outcome
  end

  it("does not work by names, types, classes or malformed packets", function()
    local outcome = try("dns")
    local expected = {
      txt = NXDOMAIN, long = NXDOMAIN, null = NXDOMAIN, any = NXDOMAIN, axfr = NXDOMAIN, root = NXDOMAIN,
      chaos = REFUSED, update = NOTIMP, notify = NOTIMP,
      nul = FORMERR, line = FORMERR, dot = FORMERR, space = FORMERR, high = FORMERR,
    }
    for name, rcode in pairs(expected) do
      assert(outcome[name] == rcode, name .. ": " .. tostring(outcome[name]))
    end
    for name, what in pairs(outcome) do
      assert(what ~= NOERROR, name .. " was answered")
    end
    assert(talk.entry(box, { hook = "resolve", host = "stolen.example", action = "deny" }))
    assert(talk.entry(box, { hook = "resolve", reason = "malformed DNS query" }))
  end)

  it("does not work by whichever name server is asked: they are all the proxy", function()
    local outcome = try("dns")
    for _, address in ipairs({ outside.v4, outside.v6, outside.host4, "8.8.8.8", "2001:4860:4860::8888" }) do
      assert.equal("131", outcome["txt to " .. address]) -- recursion available, NXDOMAIN
    end
  end)

  it("does not work over TCP, nor does anything else on its port", function()
    local outcome = try("dns_stream")
    assert(tonumber(outcome.query:match("%d+")) > 12)
    assert(tonumber(outcome.thousand:match("%d+")) > 12000)
  end)
end)

describe("a name server that lies", function()
  local server, box, dns, zone

  local function zone_of()
    return {
      ["turns.t.test"] = { A = { outside.v4 }, ttl = 0 },
      ["mixed.t.test"] = { A = { "127.0.0.1", outside.v4, "10.0.0.1" }, AAAA = { "::1" } },
      ["alias.t.test"] = { CNAME = "target.u.test" },
      ["target.u.test"] = { A = { "127.0.0.1" } },
      ["right.t.test"] = { A = { outside.v4 } },
    }
  end

  local LIES = {
    loopback = { A = { "127.0.0.1" } }, ["loopback-far"] = { A = { "127.8.8.8" } }, loopback6 = { AAAA = { "::1" } },
    mapped = { AAAA = { "::ffff:127.0.0.1" } }, compatible = { AAAA = { "::127.0.0.1" } },
    unspecified = { A = { "0.0.0.0" } }, unspecified6 = { AAAA = { "::" } }, ["this-network"] = { A = { "0.1.2.3" } },
    ten = { A = { "10.0.0.1" } }, gateway = { A = { "172.16.0.1" } }, router = { A = { "192.168.0.1" } },
    carrier = { A = { "100.64.0.1" } }, metadata = { A = { "169.254.169.254" } }, ["metadata-mapped"] = { AAAA = { "::ffff:169.254.169.254" } },
    ["metadata6"] = { AAAA = { "fd00:ec2::254" } }, ["link-local"] = { A = { "169.254.1.1" } }, ["link-local6"] = { AAAA = { "fe80::1" } },
    unique = { AAAA = { "fd00::2" } }, nat64 = { AAAA = { "64:ff9b::7f00:1" } }, sixtofour = { AAAA = { "2002:7f00:1::1" } },
    teredo = { AAAA = { "2001:0:7f00:1::" } }, multicast = { A = { "224.0.0.1" } }, broadcast = { A = { "255.255.255.255" } },
    pool = { A = { "198.18.0.1" } }, ["the-sandbox"] = { A = { "10.200.0.2" } },
  }

  lazy_setup(function()
    zone = zone_of()
    for name, answer in pairs(LIES) do
      zone[name .. ".t.test"] = answer
    end
    zone["own.t.test"] = { A = { outside.host4 } }
    zone["own-mapped.t.test"] = { AAAA = { "::ffff:" .. outside.host4 } }
    zone["own6.t.test"] = { AAAA = { outside.host6 } }
    dns = web.dns(zone)
    server = support.server()
    uv.os_setenv("TIDEPOOL_NAMESERVERS", "127.0.0.1:" .. dns.port)
    box = server:sandbox({ egress = { {
      name = "allow_hosts", options = { hosts = { "*.t.test" }, ports = { tostring(outside.port) } },
    } } })
    uv.os_unsetenv("TIDEPOOL_NAMESERVERS")
  end)

  -- What each name leads to. The sandbox's image has no Python, so it is the host's, in its network.
  local function get(list)
    local full = {}
    for i, name in ipairs(list) do
      full[i] = name .. ".t.test"
    end
    local result = support.run({
      "nsenter", "-t", tostring(assert(box:info()).pid), "-U", "-n", "-S", "0", "-G", "0", "/usr/bin/python3", "-c",
      machine.read(paths.repo() .. "/spec/support/intruder.py"),
      cjson.encode({ deeds = { "names" }, names = full, port = outside.port }),
    })
    assert.equal("", result.stderr)
    return cjson.decode(result.stdout).names
  end

  local function seen()
    local seen_outside, seen_here = #outside:seen(), #host:seen()
    outside:forget()
    host:forget()
    return seen_outside, seen_here
  end

  it("is asked nothing while names are only looked up", function()
    assert(box:exec({ "nslookup", "c2VjcmV0.t.test" }))
    assert(box:exec({ "nslookup", "c2VjcmV0.elsewhere.test" }))
    assert.same({}, dns.queries())
  end)

  it("is believed where it says a public address", function()
    assert.same({ ["right.t.test"] = "canary" }, get({ "right" }))
    assert.is_true(#outside:seen() > 0)
    seen()
  end)

  it("is not believed about this host, its network, or what stands for them", function()
    local names = { "own", "own-mapped", "own6", "alias" }
    for name in pairs(LIES) do
      names[#names + 1] = name
    end
    for name, what in pairs(get(names)) do
      assert(what:find("^tidepool: " .. name:gsub("%p", "%%%0") .. " leads to %S+, which is %S"), name .. ": " .. what)
      assert(talk.entry(box, { host = name, action = "deny", hook = "request", reason = "leads to" }))
    end
    assert.same({ 0, 0 }, { seen() })
  end)

  it("is not believed later, when it was right at first", function()
    assert.same({ ["turns.t.test"] = "canary" }, get({ "turns" }))
    assert.is_true((seen()) > 0)
    zone["turns.t.test"] = { A = { "127.0.0.1" }, ttl = 0 }
    dns.set(zone)
    assert(machine.eventually(function() -- an answer is kept for a second at least
      return get({ "turns" })["turns.t.test"]:find("127.0.0.1, which is loopback", 1, true)
    end))
    local _, here = seen()
    assert.equal(0, here)
  end)

  it("gets nobody to this host by an answer of which one address is right", function()
    assert.same({ ["mixed.t.test"] = "canary" }, get({ "mixed" }))
    local there, here = seen()
    assert.is_true(there > 0)
    assert.equal(0, here)
  end)
end)

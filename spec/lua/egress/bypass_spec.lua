-- Getting out of a sandbox past its proxy, from inside, as root: nothing arrives anywhere.
--
-- What the proxy sees leaves a line in the audit: TCP to anywhere, DNS, its own port. What the kernel
-- refuses or drops inside leaves none, since nobody sees it: other protocols, datagrams that are not DNS,
-- packets by raw sockets, names of unix sockets, interfaces and namespaces of the sandbox's own.
local cjson = require("cjson")
local canary = require("spec.support.canary")
local machine = require("spec.support.machine")
local paths = require("tidepool.paths")
local support = require("spec.support")
local talk = require("spec.support.talk")

describe("getting out of a sandbox that may reach nothing", function()
  local host, outside, box

  lazy_setup(function()
    support.needs_root()
    support.image("debian")
    host, outside = canary.host(), canary.outside()
    box = support.sandbox({ image = "debian" })
  end)

  local function program(deed)
    return machine.read(paths.repo() .. "/spec/support/intruder.py"), cjson.encode({
      deeds = { deed }, v4 = outside.v4, v6 = outside.v6, host4 = outside.host4, host6 = outside.host6,
      port = outside.port, host_port = host.port, abstract = host.abstract,
      paths = { paths.run() .. "/server.sock", paths.run() .. "/egress-1.sock", "/run/dbus/system_bus_socket" },
    })
  end

  -- What came of a deed, by way, after making sure that no canary saw any of it.
  local function judge(deed, result)
    assert.equal("", result.stderr)
    local outcome = cjson.decode(result.stdout)[deed]
    for way, what in pairs(outcome) do
      assert(not what:find("canary", 1, true), ("%s, %s: %s"):format(deed, way, what))
    end
    assert.same({}, host:seen())
    assert.same({}, outside:seen())
    return outcome
  end

  local function as_root(deed, from)
    return judge(deed, assert((from or box):exec({ "python3", "-c", program(deed) }, { timeout = 200 })))
  end

  -- As root would inside who had been given every capability over the sandbox's namespaces, and no filter.
  local function with_all_powers(deed, victim)
    return judge(deed, support.run({
      "nsenter", "-t", tostring(assert(victim:info()).pid), "-U", "-n", "-S", "0", "-G", "0",
      "/usr/bin/python3", "-c", program(deed),
    }))
  end

  it("can be noticed: the canaries sing when they are met", function()
    local open = support.sandbox({ image = "debian", egress = { { name = "audit_only", options = {} } } })
    local result = assert(open:exec({ "python3", "-c", program("connects") }, { timeout = 200 }))
    local outcome = cjson.decode(result.stdout).connects
    for _, address in ipairs({ outside.v4, outside.v6, "::ffff:" .. outside.v4 }) do
      assert.equal("canary", outcome[("%s port %d"):format(address, outside.port)])
    end
    assert.is_true(#outside:seen() > 3)
    outside:forget()
  end)

  -- The link of the canary is newer than the egress process, which must have been told of its address.
  it("does not lead to this host by its own addresses, though public ones are allowed", function()
    local open = support.sandbox({ image = "debian", egress = { { name = "audit_only", options = {} } } })
    assert(machine.eventually(function()
      local result = assert(open:exec({ "python3", "-c", program("own") }, { timeout = 200 }))
      local outcome = cjson.decode(result.stdout).own
      for address, what in pairs(outcome) do
        if not what:find("which is private", 1, true) then
          return false, address
        end
      end
      return true
    end))
    host:forget()
    outside:forget()
  end)

  it("does not work by connecting, to anything, and each try is written down", function()
    local outcome = as_root("connects")
    local refused = {}
    for way, what in pairs(outcome) do
      if what:find("^tidepool: no policy") or what:find("^tidepool: the address stands for no name") then
        local address, port = way:match("^(%S+) port (%d+)$")
        refused[#refused + 1] = { address = address:gsub("^::ffff:", ""), port = tonumber(port), action = "deny" }
      else
        assert(what == "ECONNREFUSED" or what == "ENETUNREACH", way .. ": " .. what)
      end
    end
    assert.is_true(#refused >= 11)
    for _, wanted in ipairs(refused) do
      assert(talk.entry(box, wanted), "no line for " .. wanted.address)
    end
  end)

  it("does not work by link-local addresses, and a connection that says nothing is written down too", function()
    as_root("scoped")
    assert(talk.entry(box, { address = "fe80::1", reason = "closed before it asked" }))
  end)

  it("does not work by the proxy's own port", function()
    local outcome = as_root("our_port")
    assert.equal("closed", outcome["192.0.2.1"])
    assert.equal("ECONNREFUSED", outcome["10.200.0.2"])
    assert(talk.entry(box, { action = "deny", address = "192.0.2.1", port = 61080 }))
    assert(talk.entry(box, { action = "deny", address = "100::1", port = 61080 }))
  end)

  for _, row in ipairs({
    { "prepared", "by sockets that are bound, marked or routed elsewhere" },
    { "protocols", "by protocols other than TCP and UDP" },
    { "datagrams", "by datagrams that are not DNS" },
    { "raw", "by packets of one's own making" },
    { "unix", "by the host's unix sockets" },
    { "families", "by other kinds of sockets" },
    { "namespaces", "by another network namespace" },
    { "kernel", "by io_uring, bpf, tun devices and the kernel's switches" },
    { "links", "by interfaces of one's own" },
    { "routes", "without the routes to the proxy" },
    { "destroy", "after destroying the proxy's listeners" },
  }) do
    it("does not work " .. row[2], function()
      as_root(row[1])
    end)
  end

  describe("with every capability over the sandbox's own network, either", function()
    local victim

    lazy_setup(function()
      victim = support.sandbox({ image = "debian" })
    end)

    for _, deed in ipairs({ "connects", "prepared", "protocols", "raw", "links", "namespaces" }) do
      it("does not work: " .. deed, function()
        with_all_powers(deed, victim)
      end)
    end

    it("cuts the sandbox off when it takes the routes away, and nothing more", function()
      local outcome = with_all_powers("routes", victim)
      assert.equal("done", outcome["delete 2 of 255"])
      assert.equal("ENETUNREACH", outcome.v4)
      assert.equal("0", (assert(victim:exec({ "sh", "-c", "echo 0" })).stdout:gsub("%s", "")))
    end)

    it("cuts the sandbox off when it destroys the proxy's listeners, and nothing more", function()
      local other = support.sandbox({ image = "debian" })
      local outcome = with_all_powers("destroy", other)
      assert.same({ "done", "done", "ECONNREFUSED" }, { outcome.v4, outcome.v6, outcome["then"] })
      assert.matches("no policy is attached", as_root("prepared")["dont route"])
    end)
  end)
end)

-- Names as the resolvers in a sandbox see them: glibc's, busybox's, node's own, and queries made by hand.
local cjson = require("cjson")
local support = require("spec.support")
local talk = require("spec.support.talk")
local uv = require("luv")

local program = assert(support.read(require("tidepool.paths").repo() .. "/spec/support/ask_dns.py"))

local A, PTR, MX, TXT, AAAA, SRV, OPT, HTTPS, ANY = 1, 12, 15, 16, 28, 33, 41, 65, 255
local NXDOMAIN = 3
local LONG = ("a"):rep(63) .. "." .. ("b"):rep(63) .. "." .. ("c"):rep(63) .. "." .. ("d"):rep(50) .. ".long.test"

describe("names in a sandbox", function()
  local box, small

  setup(function()
    support.needs_root()
    support.image("debian")
    local policy = { { name = "allow_hosts", options = { hosts = { "a.test", "*.inside.test", "*.long.test" } } } }
    box = support.sandbox({ image = "debian", egress = policy })
    small = support.sandbox({ egress = policy })
  end)

  local function inside(line, where)
    local result = assert((where or box):exec({ "sh", "-c", line }, { timeout = 200, user = "root" }))
    return result.stdout, result.exit_code, result.stderr
  end

  -- The answers to queries { name, type, options }.
  local function ask(...)
    local queries = { ... }
    for _, query in ipairs(queries) do
      query[3] = query[3] or { none = true }
    end
    local result = assert(box:exec({ "python3", "-c", program }, { stdin = cjson.encode(queries), timeout = 200 }))
    assert.equal(0, result.exit_code, result.stderr)
    return unpack(cjson.decode(result.stdout))
  end

  it("are private addresses to glibc when they are permitted, one of each kind", function()
    local addresses = {}
    for address in inside("getent ahosts a.test"):gmatch("(%S+)%s+STREAM") do
      addresses[#addresses + 1] = address
    end
    table.sort(addresses)
    assert.matches("^198%.1[89]%.%d+%.%d+$", addresses[1])
    assert.matches("^fd74:6964:6501::%x+$", addresses[2])
    assert.equal(2, #addresses)
    local hosts = inside("python3 -c 'import socket; print(sorted({a[4][0] for a in socket.getaddrinfo(\"a.test\", 443)}))'")
    assert.equal(("['%s', '%s']\n"):format(addresses[1], addresses[2]), hosts)
    assert.matches("^" .. addresses[1]:gsub("%.", "%%.") .. " ", (inside("getent ahostsv4 a.test")))
  end)

  it("are the same to node's own resolver, and by the system's", function()
    local stdout, code, stderr = inside([[node -e '
      const d = require("dns").promises;
      (async () => {
        const own = [...await d.resolve4("a.test"), ...await d.resolve6("a.test")];
        const system = (await d.lookup("a.test", { all: true })).map(x => x.address).sort();
        const missing = await d.resolve4("b.test").catch(e => e.code);
        const text = await d.resolveTxt("a.test").catch(e => e.code);
        console.log(JSON.stringify([own.sort(), system, missing, text, await d.reverse(own[0]) ]));
      })()']])
    assert.equal(0, code, stderr)
    local own, system, missing, text, reverse = unpack(cjson.decode(stdout))
    assert.same(own, system)
    assert.same({ "ENOTFOUND", "ENODATA", { "a.test" } }, { missing, text, reverse })
  end)

  it("are the same to busybox in the minimal image", function()
    local stdout = inside("nslookup a.test; ping -c1 -W1 -4 a.test 2>&1; ping -c1 b.test 2>&1", small)
    assert.matches("Address: 198%.18%.", stdout)
    assert.matches("Address: fd74:6964:6501::", stdout)
    assert.matches("PING a.test %(198%.18%.", stdout)
    assert.matches("bad address 'b.test'", stdout)
  end)

  it("lead back from their addresses, and other addresses lead nowhere", function()
    local v4, v6 = ask({ "a.test", A }, { "a.test", AAAA })
    for _, address in ipairs({ v4.answers[1].data, v6.answers[1].data }) do
      assert.matches("a%.test", (inside("getent hosts " .. address)))
    end
    for _, address in ipairs({ "198.18.200.200", "8.8.8.8", "10.200.0.2", "fd74:6964:6501::7777", "2001:db8::1" }) do
      assert.equal(2, (select(2, inside("getent hosts " .. address))), address)
    end
    local d, c, b, a = v4.answers[1].data:match("(%d+)%.(%d+)%.(%d+)%.(%d+)")
    local pointer = ask({ ("%s.%s.%s.%s.in-addr.arpa"):format(a, b, c, d), PTR })
    assert.equal("a.test", pointer.answers[1].data)
  end)

  it("that are not permitted do not exist, whatever is asked about them", function()
    for _, answer in ipairs({ ask({ "b.test", A }, { "b.test", AAAA }, { "b.test", TXT }, { "b.test", ANY }, { "inside.test", A }, { "com", A }) }) do
      assert.equal(NXDOMAIN, answer.rcode)
      assert.same({}, answer.answers)
      assert.equal(6, answer.authority[1].type) -- an SOA, so that the denial may be remembered, and for how long
      assert.is_true(answer.authority[1].ttl <= 300)
    end
    local _, code = inside("getent ahosts b.test")
    assert.equal(2, code)
    assert.equal("allow_hosts", talk.entry(box, { action = "deny", host = "b.test", hook = "resolve" }).policy)
  end)

  it("that are permitted have no records but addresses", function()
    for _, answer in ipairs({ ask({ "a.test", TXT }, { "a.test", MX }, { "a.test", SRV }, { "a.test", HTTPS }, { "a.test", ANY }) }) do
      assert.equal(0, answer.rcode)
      assert.same({}, answer.answers)
      assert.equal(6, answer.authority[1].type)
    end
    assert.equal("resolve", talk.entry(box, { action = "allow", host = "a.test" }).hook)
  end)

  it("are answered with a time to live that is neither nothing nor for ever, and by a server that recurses", function()
    local answer = ask({ "a.test", A })
    assert.is_true(answer.answers[1].ttl >= 5 and answer.answers[1].ttl <= 600)
    assert.equal(0x8180, answer.flags) -- a response, to whom recursion was wanted and available
  end)

  it("may be written in any case and with a dot at their end, and the question comes back as it was put", function()
    local answer = ask({ "A.tEsT", A })
    assert.equal("A.tEsT", answer.asked)
    local same = ask({ "a.test", A })
    assert.equal(same.answers[1].data, answer.answers[1].data)
    local expected = inside("getent ahostsv4 a.test | cut -d' ' -f1")
    assert.equal(expected, (inside("getent ahostsv4 A.TEST. | cut -d' ' -f1")))
  end)

  it("may be as long as names get", function()
    assert.equal(252, #LONG)
    local answer, over = ask({ LONG, A }, { LONG, AAAA, { tcp = 1 } })
    assert.matches("^198%.18%.", answer.answers[1].data)
    assert.is_true(answer.length <= 512)
    assert.matches("^fd74:6964:6501::", over.answers[1].data)
    assert.equal(0, (select(2, inside("getent ahosts " .. LONG))))
    assert.not_equal(0, (select(2, inside("getent ahosts x" .. LONG .. "xxxxx"))))
  end)

  it("are completed by the search list, as far as policies permit what comes out", function()
    local address = inside("getent ahostsv4 web.inside.test | cut -d' ' -f1 | head -1")
    assert.matches("^198%.", address)
    inside("cp /etc/resolv.conf /tmp/resolv.conf; printf 'search none.test inside.test\\noptions ndots:2\\n' >>/etc/resolv.conf")
    local found = inside("getent ahostsv4 web | cut -d' ' -f1 | head -1; getent ahosts other.none; cat /tmp/resolv.conf >/etc/resolv.conf")
    assert.equal(address, (found:gsub("^(%S+\n).*", "%1")))
    assert.is_truthy(talk.entry(box, { action = "deny", host = "web.none.test" }))
  end)

  it("are answered over TCP, several on one connection, and by EDNS", function()
    local plain, tcp, edns = ask({ "a.test", A }, { "a.test", A, { tcp = 3 } }, { "a.test", A, { edns = 4096 } })
    assert.same(plain.answers, tcp.answers)
    assert.same(plain.answers, edns.answers)
    assert.equal(OPT, edns.additional[1].type)
    assert.is_true(edns.additional[1].class >= 512) -- the size that it takes itself
    assert.same({}, plain.additional)
    assert.equal(0, (select(2, inside("RES_OPTIONS=use-vc getent ahosts a.test"))))
  end)

  it("are answered at whichever address a name server is thought to be, from that address", function()
    local real, six = ask({ "a.test", A, { server = "8.8.8.8" } }, { "a.test", A, { server = "2001:4860:4860::8888" } })
    assert.matches("^198%.18%.", real.answers[1].data)
    assert.same(real.answers, six.answers)
  end)

  it("that are this machine's own are loopback", function()
    local v4, v6, below = ask({ "localhost", A }, { "localhost", AAAA }, { "any.localhost", A })
    assert.same({ "127.0.0.1", "::1", "127.0.0.1" }, { v4.answers[1].data, v6.answers[1].data, below.answers[1].data })
    assert.equal(0, (select(2, inside("getent ahosts localhost && getent ahosts $(hostname)"))))
  end)

  it("keep their addresses when the egress process is another one", function()
    local before = ask({ "a.test", A })
    local pid = assert(box:egress_show()).process.pid
    assert(uv.kill(pid, "sigkill"))
    assert.is_truthy(support.eventually(function()
      local process = assert(box:egress_show()).process
      return process and process.pid ~= pid
    end))
    local fresh, after = ask({ "new.inside.test", A }, { "a.test", A })
    assert.same(before.answers, after.answers)
    assert.not_equal(before.answers[1].data, fresh.answers[1].data)
  end)

  it("are given to one sandbox and unknown in the next", function()
    local other = support.sandbox()
    local address = ask({ "a.test", A }).answers[1].data
    local stdout = assert(other:exec({ "nslookup", address })).stdout
    assert.is_nil(stdout:find("name = ", 1, true))
    assert(other:destroy())
  end)
end)

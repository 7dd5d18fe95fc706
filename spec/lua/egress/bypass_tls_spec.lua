-- Reaching one host while asking for another: names in TLS that lie, are odd, or are missing, to hosts that are
-- opened, passed through, or relayed. The upstreams count who comes.
local cjson = require("cjson")
local machine = require("spec.support.machine")
local outside = require("spec.support.outside")
local paths = require("tidepool.paths")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")
local canary = require("spec.support.canary")

local OPEN, PASSED, RELAYED = "open.test", "pass.test", "data.test"

local box, bird

lazy_setup(function()
  support.needs_root()
  bird = canary.host()
  local world = outside.new()
  world:serve(OPEN, function(leaf)
    return web.echo({ leaf = leaf })
  end)
  world:point(PASSED, bird.port)
  world:point(RELAYED, bird.port)
  box = world:sandbox({ { "allow_hosts",
    hosts = { OPEN, PASSED }, passthrough = { PASSED }, tcp = { RELAYED .. ":5432" }, to = world.to, ca = world.ca.pem,
  } })
end)

-- What each name in a hello to the host brings.
local function hellos(host, port, names)
  local program = machine.read(paths.repo() .. "/spec/support/hello.py")
  local result = assert(box:exec({ "python3", "-c", program, cjson.encode({ host = host, port = port, names = names }) }, { timeout = 200 }))
  assert.equal("", result.stderr)
  return cjson.decode(result.stdout)
end

-- Names that no host has, or not this one.
local ODD = {
  "evil.test", "open.tes\0", "open\0test", "open.test\0", "open..tes", "*pen.test", "opEn.tes/", "open.tesT.", "[::1].tes", "open.test:",
}

describe("a name in TLS", function()
  it("that is the connection's own is fine, however it is written", function()
    assert.same({ [OPEN] = "hello", [OPEN:upper()] = "hello", [""] = "hello" }, hellos(OPEN, 443, { OPEN, OPEN:upper(), "" }))
  end)

  -- A refusal is told in HTTP, so it may come under a certificate for what was asked.
  it("that is another's, or odd, gets no request through to a host that is opened", function()
    for name, came in pairs(hellos(OPEN, 443, ODD)) do
      assert(came == "hello" or came:find("^alert") or came == "closed" or came == "ConnectionResetError", name .. ": " .. came)
    end
    for _, sni in ipairs({ "evil.test", PASSED, "sub." .. OPEN }) do
      local text = talk.run(box, { host = OPEN, tls = true, sni = sni, steps = { { send = "GET / HTTP/1.1\r\nHost: " .. OPEN .. "\r\n\r\n" } } }).text
      assert.matches("^HTTP/1.1 403 ", text)
      assert.matches("TLS asks for " .. sni, text, 1, true)
      assert(talk.entry(box, { action = "deny", host = OPEN, sni = sni, reason = "mismatch" }))
    end
  end)

  it("that is another's, or odd, is no way through a host that is passed through", function()
    bird:forget()
    hellos(PASSED, 443, ODD)
    assert.same({}, bird:seen())
    assert(talk.entry(box, { action = "deny", host = PASSED, sni = "evil.test", reason = "mismatch" }))
    assert(talk.entry(box, { action = "deny", host = PASSED, reason = "begins like TLS" }))
  end)

  it("that is another's is no way through a host that is relayed", function()
    bird:forget()
    hellos(RELAYED, 5432, { "evil.test" })
    assert.same({}, bird:seen())
    assert(talk.entry(box, { action = "deny", host = RELAYED, sni = "evil.test", reason = "mismatch" }))
  end)

  it("leaves what is right as it was", function()
    bird:forget()
    hellos(PASSED, 443, { PASSED, "" })
    assert.is_true(#bird:seen() >= 2)
    assert.matches("^HTTP/1.1 200 ", talk.say(box, OPEN, "GET / HTTP/1.1\r\nHost: " .. OPEN .. "\r\nConnection: close\r\n\r\n").text)
  end)
end)

describe("a host in HTTP", function()
  it("that is another's changes with no request of a connection", function()
    local first = "GET /first HTTP/1.1\r\nHost: " .. OPEN .. "\r\n\r\n"
    local text = talk.say(box, OPEN, first .. "GET /second HTTP/1.1\r\nHost: evil.test\r\n\r\n" .. first).text
    assert.matches("^HTTP/1.1 200 ", text)
    assert.matches("HTTP/1.1 403 ", text, 1, true)
    local _, answers = text:gsub("HTTP/1.1 %d", "")
    assert.equal(2, answers)
    assert(talk.entry(box, { action = "deny", hook = "request", path = "/second", host = "evil.test" }))
  end)

  it("is not hidden in what follows a response, or a request", function()
    local evil = "GET /hidden HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    local text = talk.say(box, OPEN, ("POST / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"):format(OPEN, #evil, evil)).text
    local _, answers = text:gsub("HTTP/1.1 %d", "")
    assert.equal(1, answers)
    assert.matches("hidden", text) -- it was a body
  end)

  it("is not what an upstream's second answer makes of it", function()
    local answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    local more = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted"
    local hex = (answer .. more):gsub(".", function(char)
      return ("%02x"):format(char:byte())
    end)
    local head = " HTTP/1.1\r\nHost: " .. OPEN .. "\r\n\r\n"
    local text = talk.run(box, { host = OPEN, tls = true, steps = {
      { send = "GET /raw?keep&hex=" .. hex .. head }, { await = "ok" }, { send = "GET /second" .. head }, { await = "/second" },
    }, patience = 1 }).text
    assert.is_nil(text:find("planted", 1, true))
    assert.matches("/second", text)
  end)
end)

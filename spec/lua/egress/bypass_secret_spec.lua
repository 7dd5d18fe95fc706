-- A secret that an upstream has got, and every way to have it say the secret so that nobody notices: in halves,
-- compressed, in names, in frames, later and to somebody else. And a placeholder that goes astray.
local cjson = require("cjson")
local sandbox = require("sandbox")
local daemon = require("spec.support.daemon")
local machine = require("spec.support.machine")
local outside = require("spec.support.outside")
local support = require("spec.support")
local talk = require("spec.support.talk")

local HOST = "hoard.test"
local SECRET = "ghp_" .. ("Kq7Zt2Wm"):rep(4)
local HALVES = { SECRET:sub(5, 20), SECRET:sub(-16) }

local box, placeholder, log

lazy_setup(function()
  support.needs_root()
  local world = outside.new()
  world:serve(HOST, function(leaf)
    local place = support.scratch()
    log = place .. "/hoarder.log"
    return daemon.python("hoarder", { cert = leaf.cert, key = leaf.key, log = log }, { directory = place, defer = support.defer })
  end)
  world:point("other.test", tonumber(world.to[HOST]:match(":(%d+)$")))
  placeholder = assert(sandbox.secret.set("spec-bypass", SECRET, { hosts = { HOST } })).placeholder
  support.defer(function()
    sandbox.secret.rm("spec-bypass")
  end)
  box = world:sandbox()
end)

local function say(line, headers, host)
  local text = ("%s HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n"):format(line, host or HOST, headers or "")
  return talk.say(box, host or HOST, text).text
end

-- The head of the last request that the upstream has got.
local function last_head()
  local last
  for line in (machine.read(log) or ""):gmatch("[^\n]+") do
    last = cjson.decode(line)
  end
  return last
end

describe("a secret that an upstream keeps", function()
  local function hidden(text)
    for _, half in ipairs(HALVES) do
      assert(not text:find(half, 1, true), text)
    end
    return text
  end

  lazy_setup(function()
    assert.matches("kept", say("GET /keep", "Authorization: Bearer " .. placeholder .. "\r\n"))
    assert.matches("Bearer " .. SECRET, last_head())
  end)

  it("is not had in halves, by ranges, not even by a request that holds none", function()
    for _, range in ipairs({ "0-19", "20-", "-16", "0-0,1-1,2-2" }) do
      local text = hidden(say("GET /part", "Range: bytes=" .. range .. "\r\n"))
      assert.matches("200 ", text)
    end
    assert.is_nil(last_head():lower():find("range", 1, true))
  end)

  it("is not had compressed, whatever that is called", function()
    for _, coding in ipairs({ "gzip", "identity,gzip", "identity/gzip", "x-own", "GZIP", "%20br", "identity,identity,zstd" }) do
      local text = hidden(say("GET /coded?as=" .. coding, "Accept-Encoding: gzip\r\n"))
      assert.matches("^HTTP/1.1 502 ", text)
      assert.matches("can't be searched for secrets", text)
    end
    assert.matches("[Aa]ccept%-[Ee]ncoding: identity", last_head())
    assert(talk.entry(box, { host = HOST, path = "/coded", reason = "can't be searched" }))
  end)

  it("is not had by a WebSocket that compresses its messages", function()
    local result = talk.run(box, { host = HOST, tls = true, steps = { { send = table.concat({
      "GET /switch HTTP/1.1", "Host: " .. HOST, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions: permessage-deflate", "\r\n",
    }, "\r\n") } } })
    assert.matches("^HTTP/1.1 101 ", result.text)
    assert.matches(("%*"):rep(#SECRET), hidden(result.text))
    assert.is_nil(last_head():lower():find("extensions", 1, true))
  end)

  for path, sign in pairs({
    ["/hint"] = "103 ", ["/named"] = "X%-%*+: 1", ["/extension"] = "hello", ["/folded"] = "^HTTP/1.1 502 ",
    ["/failed"] = "^HTTP/1.1 500 ", ["/moved"] = "Location: https://elsewhere.test/%?token=%*+", ["/close"] = "%*%*%*%*",
  }) do
    it("is not had by " .. path, function()
      assert.matches(sign, hidden(say("GET " .. path)))
    end)
  end

  it("is not had by TRACE", function()
    local text = hidden(say("TRACE /trace", "Authorization: Bearer " .. placeholder .. "\r\n"))
    assert.matches("Bearer %*+", text)
  end)

  it("is not had by a client of HTTP/1.0", function()
    local text = hidden(talk.say(box, HOST, "GET /failed HTTP/1.0\r\n\r\n").text)
    assert.matches("unknown token %*+", text)
  end)
end)

describe("a placeholder", function()
  local function upper(text)
    return (text:gsub(".", function(char)
      return ("%%%02X"):format(char:byte())
    end))
  end

  local function refused(where, text)
    assert.matches("^HTTP/1.1 40%d ", text)
    assert(not text:find(SECRET, 1, true))
    assert(talk.entry(box, { action = "deny", reason = where }))
    assert.is_nil((machine.read(log) or ""):find("astray", 1, true))
  end

  it("goes nowhere in a path or a query, in any encoding", function()
    for _, form in ipairs({ placeholder, upper(placeholder), placeholder:sub(1, 5) .. upper(placeholder:sub(6)) }) do
      refused("in the request's path", say("GET /astray/" .. form))
      refused("in the request's path", say("GET /astray?token=" .. form))
    end
  end)

  it("goes nowhere in a header's name", function()
    refused("can't be swapped", say("GET /astray", "X-" .. placeholder .. ": 1\r\n"))
  end)

  it("goes to no other host, not even on the same server", function()
    refused("may not go to other.test", say("GET /astray", "Authorization: Bearer " .. placeholder .. "\r\n", "other.test"))
    refused("may not go to other.test", say("GET /astray", "Cookie: a=1; b=" .. placeholder .. "; c=2\r\n", "other.test"))
  end)

  it("is worth nothing when it is written differently", function()
    for _, form in ipairs({ placeholder:lower(), placeholder:reverse(), upper(upper(placeholder)) }) do
      say("GET /trace", "Authorization: Bearer " .. form .. "\r\n")
      assert.is_nil(last_head():find(SECRET, 1, true))
    end
  end)

  it("is swapped for another sandbox too: the secret's hosts decide, not who holds it", function()
    assert.matches("kept", say("GET /keep", "X-Api-Key: " .. placeholder .. "\r\nX-Other: " .. placeholder .. "\r\n"))
    local _, times = last_head():gsub(SECRET, "")
    assert.equal(2, times)
  end)
end)

-- What a policy asks the outside by itself while it decides.
local cjson = require("cjson")
local outside = require("spec.support.outside")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local POLICY = [[
local function ask(event, options)
  local request = { url = "https://sts.test/echo", method = "POST", body = "grant", headers = { ["X-Id"] = event.sandbox },
    to = options.to["sts.test"], ca = options.ca }
  if event.path == "/refused" then
    request.to = nil
    request.url = "http://127.0.0.1:" .. options.to["sts.test"]:match("%d+$") .. "/"
  elseif event.path == "/nowhere" then
    request.to = "sts.test:443"
  elseif event.path == "/hidden" then
    request.headers["X-Id"] = "a\r\nX-Other: b"
  elseif event.path == "/slow" then
    request.url, request.timeout = "https://sts.test/slow?delay=5", 0.3
  end
  return fetch(request)
end

return policy {
  name = "exchanging",
  about = "Gets a token for each request.",
  options = { to = { type = "map", about = "where hosts are" }, ca = { type = "pem", about = "more roots" } },
  connect = function(event, options) return allow { to = options.to[event.host], ca = options.ca } end,
  request = function(event, options)
    local response, message = ask(event, options)
    if not response then
      return deny(message)
    end
    local seen = json.decode(response.body)
    return allow { headers = { authorization = "Bearer " .. seen.method .. "-" .. response.status } }
  end,
}
]]

describe("fetch in a policy", function()
  local world, box, sts

  setup(function()
    world = outside.new()
    world:serve("echo.test", function(leaf) return web.echo({ leaf = leaf }) end)
    sts = world:serve("sts.test", function(leaf) return web.echo({ leaf = leaf }) end)
    box = world:sandbox({ { web.write(support.scratch() .. "/exchanging.lua", POLICY), to = world.to, ca = world.ca.pem } })
  end)

  local function get(path)
    local said = talk.say(box, "echo.test", ("GET %s HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\n\r\n"):format(path))
    return said.text:match("^(.-)\r\n\r\n(.*)$")
  end

  it("asks over verified TLS, waits, and uses what it got", function()
    local _, body = get("/echo")
    local authorization
    for _, header in ipairs(cjson.decode(body).headers) do
      authorization = header[1]:lower() == "authorization" and header[2] or authorization
    end
    assert.equal("Bearer POST-200", authorization)
    assert.equal("POST", sts.requests()[1].method)
    assert.is_truthy(talk.entry(box, { hook = "fetch", action = "allow", host = "sts.test", method = "POST" }))
  end)

  it("does not reach what is private, unless it says so", function()
    assert.matches("^HTTP/1.1 403 .*loopback", (get("/refused")))
    assert.is_truthy(talk.entry(box, { hook = "fetch", action = "deny", reason = "loopback" }))
  end)

  it("is refused what is malformed, and says how", function()
    local count = #sts.requests()
    assert.matches("403 .*to must be", (get("/nowhere")))
    assert.matches("403 .*header X%-Id", (get("/hidden")))
    assert.equal(count, #sts.requests())
  end)

  it("ends in time", function()
    assert.matches("403 .*timeout", (get("/slow")))
  end)

  it("has no way to an address of our own pool that stands for no name", function()
    local said = talk.run(box, { host = "echo.test", address = "198.19.1.1", tls = true,
      steps = { { send = "GET / HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\n\r\n" } } })
    assert.matches("^HTTP/1.1 403 .*stands for no name", said.text)
    assert.is_truthy(talk.entry(box, { action = "deny", hook = "connect", address = "198.19.1.1", reason = "stands for no name" }))
  end)
end)

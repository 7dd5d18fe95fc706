-- Verdicts that make something else of a request, and policies that change under it.
local cjson = require("cjson")
local outside = require("spec.support.outside")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

-- Each way to send a request elsewhere, or nowhere. `to` has the addresses of the hosts.
local POLICY = [[
local function changes(host, options)
  return { to = options.to[host], ca = options.ca }
end

return policy {
  name = "ways",
  about = "Answers and redirects.",
  options = { to = { type = "map", about = "where hosts are" }, ca = { type = "pem", about = "more roots" } },
  connect = function(event, options)
    if event.host == "early.test" then
      return respond(503, { ["Retry-After"] = "7" }, "come back\n")
    elseif event.host == "alias.test" then
      return redirect("echo.test", changes("echo.test", options))
    elseif event.host == "mark.test" then
      local made = changes("mark.test", options)
      made.headers = { ["X-From-Connect"] = "for mark" }
      return allow(made)
    end
    return allow(changes(event.host, options))
  end,
  request = function(event, options)
    if event.path == "/answer" then
      return respond(200, { ["Content-Type"] = "text/plain" }, "from the policy: " .. event.method .. "\n")
    elseif event.path == "/empty" then
      return respond(204)
    elseif event.path == "/other" then
      return redirect("other.test", changes("other.test", options))
    elseif event.path == "/port" then
      return redirect("other.test:8443", changes("other.test", options))
    elseif event.path == "/change" then
      return allow({ path = "/echo?by=policy", headers = { ["X-Added"] = "yes", ["X-Gone"] = false } })
    elseif event.path == "/broken" then
      error("a mistake")
    end
    return allow()
  end,
  response = function(event)
    if event.path == "/status/418" then
      return deny("no tea")
    elseif event.path == "/status/200" then
      return allow({ headers = { ["X-Seen"] = event.method } })
    end
  end,
}
]]

describe("a policy", function()
  local world, box, first, other, ways

  setup(function()
    world = outside.new()
    first = world:serve("echo.test", function(leaf) return web.echo({ leaf = leaf }) end)
    other = world:serve("other.test", function(leaf) return web.echo({ leaf = leaf }) end)
    world:serve("mark.test", function(leaf) return web.echo({ leaf = leaf }) end)
    world.to["lines.test"] = "127.0.0.1:" .. web.tcp("echo").port
    ways = { web.write(support.scratch() .. "/ways.lua", POLICY), to = world.to, ca = world.ca.pem }
    box = world:sandbox({ ways })
  end)

  local function ask(host, path, more)
    local said = talk.say(box, host, ("%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n"):format(path, host, more or ""))
    local head, body = said.text:match("^(.-\r\n\r\n)(.*)$")
    return head or said.ended, body, said
  end

  local function seen(host, path, more)
    return cjson.decode((select(2, ask(host, path, more))))
  end

  it("answers in the upstream's place, and keeps the connection", function()
    local said = talk.run(box, { host = "echo.test", tls = true, steps = {
      { send = "GET /answer HTTP/1.1\r\nHost: echo.test\r\n\r\nHEAD /answer HTTP/1.1\r\nHost: echo.test\r\n\r\n"
        .. "GET /empty HTTP/1.1\r\nHost: echo.test\r\n\r\nGET /answer HTTP/1.1\r\nHost: echo.test\r\nConnection: close\r\n\r\n" },
    } })
    assert.matches("^HTTP/1.1 200 OK\r\n.*from the policy: GET\nHTTP/1.1 200 .*Content%-Length: 22\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 ", said.text)
    assert.matches("Connection: close\r\n\r\nfrom the policy: GET\n$", said.text)
    assert.equal("eof", said.ended)
    assert.is_truthy(talk.entry(box, { action = "respond", path = "/answer", status = 200, method = "HEAD" }))
  end)

  it("does not take the body of an answered request for the next one", function()
    local _, _, said = ask("echo.test", "POST /answer", "Content-Length: 40\r\n")
    assert.equal("eof", said.ended)
    said = talk.say(box, "echo.test", "POST /answer HTTP/1.1\r\nHost: echo.test\r\nContent-Length: 45\r\n\r\nGET /status/200 HTTP/1.1\r\nHost: echo.test\r\n\r\n")
    assert.matches("Connection: close\r\n\r\nfrom the policy: POST\n$", said.text)
  end)

  it("answers for a host before anything is asked", function()
    local head, body = ask("early.test", "GET /any")
    assert.matches("^HTTP/1.1 503 .*retry%-after: 7\r\n", head)
    assert.equal("come back\n", body)
    assert.is_truthy(talk.entry(box, { action = "respond", host = "early.test", hook = "connect" }))
  end)

  it("sends a connection to another host, under that host's name", function()
    local got = seen("alias.test", "GET /echo")
    assert.same({ { "Host", "echo.test" } }, got.headers)
    assert.equal("echo.test", got.tls.sni)
  end)

  it("sends a request to another host, without what the connection's host was given", function()
    local got = seen("mark.test", "GET /echo")
    assert.same({ { "Host", "mark.test" }, { "x-from-connect", "for mark" } }, got.headers)
    local before = #other.requests()
    got = seen("mark.test", "GET /other")
    assert.same({ { "Host", "other.test" } }, got.headers)
    assert.equal("other.test", got.tls.sni)
    assert.same({ { "Host", "other.test:8443" } }, seen("mark.test", "GET /port").headers)
    assert.equal(before + 2, #other.requests())
  end)

  it("changes a request's path and headers", function()
    local got = seen("echo.test", "GET /change", "X-Gone: me\r\nX-Kept: me\r\n")
    assert.equal("/echo?by=policy", got.target)
    assert.same({ { "Host", "echo.test" }, { "X-Kept", "me" }, { "x-added", "yes" } }, got.headers)
  end)

  it("judges a response before the client sees any of it", function()
    assert.matches("^HTTP/1.1 403 .*no tea", (ask("echo.test", "GET /status/418")))
    assert.matches("\r\nx%-seen: GET\r\n", (ask("echo.test", "GET /status/200")))
    assert.is_truthy(talk.entry(box, { action = "deny", path = "/status/418", reason = "no tea" }))
  end)

  it("that raises denies, and the log names its line", function()
    local count = #first.requests()
    assert.matches("^HTTP/1.1 403 ", (ask("echo.test", "GET /broken")))
    assert.matches("a mistake", talk.entry(box, { action = "deny", path = "/broken" }).reason)
    assert.equal(count, #first.requests())
  end)

  -- Runs `line` of shell inside in the background; returns a function that waits for all its output.
  local function background(name, line)
    local process = assert(box:start({ "bash", "-c", ("{ %s; echo done; } >/tmp/%s 2>&1"):format(line, name) }, { name = name }))
    return function()
      process:wait(120)
      return assert(box:exec({ "cat", "/tmp/" .. name })).stdout
    end
  end

  local function wait_for(name, text)
    assert.is_truthy(support.eventually(function()
      return (box:exec({ "cat", "/tmp/" .. name }).stdout or ""):find(text, 1, true)
    end), name .. " never had " .. text)
  end

  it("lets what is in flight end under the one that it began with", function()
    assert(box:egress_set(world:policies()))
    local stream = background("stream", "curl -sSN 'https://echo.test/events?count=6&interval=0.25'")
    wait_for("stream", "event 1")
    assert(box:egress_set("deny_all"))
    assert.matches("000", box:exec("curl -s -o /dev/null -w '%{http_code}' https://echo.test/echo").stdout)
    assert.matches("event 6.*done\n$", stream())
    assert.is_truthy(talk.entry(box, { action = "allow", path = "/events", status = 200 }))
  end)

  it("that is new is for the next request, on the same connection too", function()
    assert(box:egress_set(world:policies()))
    local two = background("two", [[curl -sS -w ' %{http_code} %{num_connects}\n' https://echo.test/status/200 --next \
      -sS -o /dev/null https://echo.test/slow?delay=4 --next -sS -w ' %{http_code} %{num_connects}\n' https://echo.test/status/201]])
    assert.is_truthy(support.eventually(function()
      local requests = first.requests()
      return requests[#requests].target == "/slow?delay=4"
    end))
    assert(box:egress_set("deny_all"))
    assert.matches("200 1\n.*tidepool: .* 403 0\ndone", two())
    assert.matches("deny_all", cjson.encode(talk.entry(box, { action = "deny", host = "echo.test", hook = "connect" })))
  end)

  it("that is new cuts a relay that it would not have begun, and no other", function()
    local relays = { tcp = { "lines.test:7" } }
    assert(box:egress_set(world:policies(relays)))
    local relay = background("relay", [[exec 3<>/dev/tcp/lines.test/7; echo one >&3; read line <&3; echo "$line"; read line <&3 || echo over]])
    wait_for("relay", "one")
    relays.methods = { "GET" } -- another policy that says yes to it
    assert(box:egress_set(world:policies(relays)))
    assert.not_matches("over", box:exec("sleep 0.3; cat /tmp/relay").stdout)
    assert(box:egress_set(world:policies()))
    assert.matches("one\n.*Connection reset by peer\nover\ndone", relay())
    local entry = talk.entry(box, { host = "lines.test", hook = "connect", bytes_sent = 4 })
    assert.equal(4, entry.bytes_received)
    assert.is_truthy(entry.reason)
  end)
end)

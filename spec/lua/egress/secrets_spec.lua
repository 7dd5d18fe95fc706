-- Secrets end to end: real requests from a real sandbox to an upstream that gives back what it was given, and
-- then a search of everything that the sandbox has.
local cjson = require("cjson")
local sandbox = require("sandbox")
local certificates = require("spec.support.certificates")
local search = require("spec.support.search")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local function token()
  return "ghp_" .. support.unique() .. support.unique():upper() .. support.unique() .. "+/" .. support.unique()
end

-- Sends each request on a connection of its own and reads all that comes, as bytes.
local CLIENT = [[
import json, os, socket, ssl, sys, base64
context = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
answers = []
for host, authorization, head in json.load(sys.stdin):
    connection = context.wrap_socket(socket.create_connection((host, 443), 20), server_hostname=host, suppress_ragged_eofs=False)
    if authorization == "basic":
        authorization = "Basic " + base64.b64encode(b"x:" + os.environ["TOKEN"].encode()).decode()
    elif authorization:
        authorization = "Bearer " + os.environ["TOKEN"]
    lines = "Authorization: %s\r\n" % authorization if authorization else ""
    connection.sendall(("GET %s HTTP/1.1\r\nHost: %s\r\n%s" % (head.split("\r\n", 1)[0], host, lines) +
        (head.split("\r\n", 1) + ["Connection: close\r\n"])[1] + "\r\n").encode())
    data = b""
    while piece := connection.recv(65536):
        data += piece
        if b"HTTP/1.1 101" in data and len(data.partition(b"\r\n\r\n")[2]) >= 30:
            break
    answers.append(data.decode("latin-1"))
json.dump(answers, sys.stdout)
open("/workspace/answers", "a").write("\n".join(answers))
open("/dev/shm/answers", "a").write("\n".join(answers))
]]

local FORMS = { "plain", "base64", "base64-1", "base64-2", "base64url", "percent", "percent-upper", "percent-mixed", "quoted" }

local ca, echo, box
local values, placeholders = {}, {}

local function set(name, value, hosts)
  values[name] = value
  placeholders[name] = assert(sandbox.secret.set(name, value, { hosts = hosts })).placeholder
end

local function hex(bytes)
  return (bytes:gsub(".", function(char)
    return ("%02x"):format(char:byte())
  end))
end

local function encoded(text)
  return (support.run({ "sh", "-c", "printf %s \"$1\" | base64 -w0", "sh", text }).stdout)
end

-- Where the hosts are, for a policy's options.
local function with_upstream(options)
  options.to = {}
  for _, host in ipairs({ "basic.test", "swap.test", "other.test" }) do
    options.to[host] = "127.0.0.1:" .. echo.port
  end
  options.ca = ca.pem
  return options
end

local function policies()
  return {
    with_upstream({ "http_basic", hosts = { "basic.test" }, user = "me", secret = "spec-header" }),
    with_upstream({ "allow_hosts", hosts = { "swap.test", "other.test", "plain.test" } }),
  }
end

-- The answers to requests { host, authorization, target and more lines }.
local function ask(requests)
  local result = assert(box:exec({ "python3", "-c", CLIENT }, { stdin = cjson.encode(requests), timeout = 200 }))
  assert.equal(0, result.exit_code, result.stderr)
  return cjson.decode(result.stdout)
end

local function nowhere(text)
  for name, value in pairs(values) do
    assert.same({}, search.bytes(text, value), name .. " in " .. text:sub(1, 2000))
  end
end

local function denied(host, reason)
  return talk.entry(box, { action = "deny", host = host, reason = reason })
end

setup(function()
  support.needs_root()
  support.image("debian")
  ca = certificates.ca()
  echo = web.echo({ leaf = ca:leaf({ hosts = { "basic.test", "swap.test", "other.test" } }) })
  set("spec-header", token(), {})
  set("spec-swap", token(), { "swap.test" })
  support.defer(function()
    for name in pairs(values) do
      sandbox.secret.rm(name)
    end
  end)
  box = support.sandbox({ image = "debian", env = { TOKEN = placeholders["spec-swap"] } })
  assert(box:egress_set(policies()))
end)

describe("a secret", function()
  it("reaches the upstream, from a policy, by its placeholder, and by that in Basic", function()
    local answers = ask({ { "basic.test", false, "/echo" }, { "swap.test", "bearer", "/echo" }, { "swap.test", "basic", "/echo" } })
    local seen = {}
    for _, request in ipairs(echo.requests()) do
      for _, header in ipairs(request.headers) do
        if header[1]:lower() == "authorization" then
          seen[#seen + 1] = header[2]
        end
      end
    end
    assert.equal(3, #seen)
    assert.same({ "base64 +0" }, { search.bytes(seen[1], "me:" .. values["spec-header"])[1] })
    assert.equal("Bearer " .. values["spec-swap"], seen[2])
    assert.same({ "base64 +0" }, { search.bytes(seen[3], "x:" .. values["spec-swap"])[1] })
    nowhere(table.concat(answers))
    for host, name in pairs({ ["basic.test"] = "spec-header", ["swap.test"] = "spec-swap" }) do
      assert.same({ name }, talk.entry(box, { action = "allow", host = host, path = "/echo" }).secrets)
    end
    for _, secret in ipairs(assert(sandbox.secret.ls())) do
      assert.is_true(secret.used > os.time() - 3600, secret.name)
    end
  end)

  it("does not come back, wherever and however the upstream puts it", function()
    local requests = {}
    for _, from in ipairs({ { "basic.test", false }, { "swap.test", "bearer" } }) do
      for _, form in ipairs(FORMS) do
        for _, place in ipairs({ "body", "header", "trailer", "drip" }) do
          requests[#requests + 1] = { from[1], from[2], ("/leak?form=%s&place=%s"):format(form, place) }
        end
      end
      requests[#requests + 1] = { from[1], from[2], "/leak?place=reason" }
      requests[#requests + 1] = { from[1], from[2], "/leak?gzip\r\nAccept-Encoding: gzip\r\nConnection: close\r\n" }
      requests[#requests + 1] = { from[1], from[2], "/echo" }
      requests[#requests + 1] = { from[1], from[2], "/upgrade?leak\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" }
    end
    for i, answer in ipairs(ask(requests)) do
      nowhere(answer)
      assert.is_truthy(answer:find("********", 1, true), cjson.encode(requests[i]) .. answer)
    end
  end)

  it("is not searched for in vain: what is compressed anyway does not pass", function()
    local answer = ask({ { "swap.test", "bearer", "/leak?gzip&force" } })[1]
    assert.matches("^HTTP/1.1 502 ", answer)
    assert.matches("compressed", answer)
    local raw = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    answer = ask({ { "swap.test", "bearer", "/raw?hex=" .. hex(raw) } })[1]
    assert.matches("^HTTP/1.1 502 ", answer)
  end)

  it("is nowhere inside: no file, no environment, no argument, no memory", function()
    assert(box:start("tail -n +1 -f /workspace/answers /dev/shm/answers", { name = "reader" }):wait_log("HTTP"))
    assert(box:start({ "python3", "-c", "import os, time; x = [os.environ['TOKEN'] * 3]; print('up', flush=True); time.sleep(600)" },
      { name = "holder" }):wait_log("up"))
    local found = search.sandbox(box, placeholders["spec-swap"])
    local text = table.concat(found, "\n")
    for _, pattern in ipairs({ "environ of %d+ %(python3%), plain", "memory of %d+ %(python3%), plain" }) do
      assert.matches(pattern, text) -- so that the search is known to find
    end
    assert.same({}, search.sandbox(box, { values["spec-header"], values["spec-swap"] }))
  end)

  it("is on no disk: not in the state, the audit, the log", function()
    local state = os.getenv("TIDEPOOL_STATE")
    local function files(text)
      return table.concat(search.files(state, text, "pool.img"), "\n") -- that one's files were looked at inside
    end
    assert.matches("state.db", files(placeholders["spec-swap"]))
    for _, value in pairs(values) do
      assert.equal("", files(value))
      assert.same({}, search.files(os.getenv("TIDEPOOL_RUN"), value))
    end
  end)

  it("is held by the egress process, by the server that handed it over, and by nobody else", function()
    local may, info = {}, assert(support.shared().client:call("info", {}))
    may[info.pid] = true
    for _, process in ipairs(info.egress) do
      may[process.pid] = true
    end
    local environment = "\0TIDEPOOL_RUN=" .. os.getenv("TIDEPOOL_RUN") .. "\0"
    local me, holders, looked = require("luv").os_getpid(), {}, 0
    for _, name in ipairs(support.names("/proc")) do
      local pid = tonumber(name)
      local environ = pid and pid ~= me and pid ~= echo.pid and support.read("/proc/" .. name .. "/environ")
      if environ and ("\0" .. environ .. "\0"):find(environment, 1, true) then
        looked = looked + 1
        holders[pid] = #search.process(pid, values["spec-swap"]) > 0 or nil
        assert.same({}, search.bytes((support.read("/proc/" .. name .. "/cmdline") or "") .. environ, values["spec-swap"]))
      end
    end
    for holder in pairs(holders) do
      assert.is_true(may[holder], support.read(("/proc/%d/cmdline"):format(holder)))
    end
    assert.is_true(holders[info.pid] and holders[assert(box:egress_show()).process.pid])
    assert.is_true(looked > 3) -- spawners too
  end)
end)

describe("a placeholder", function()
  local function refused(host, text, reason, config)
    local answer = talk.say(box, host, text, config).text
    assert.matches("^HTTP/1.1 403 ", answer)
    assert.is_truthy(answer:find(reason, 1, true), answer)
    assert.is_truthy(denied(host, reason), "no audit entry: " .. reason)
  end

  local function request(line, headers, body)
    return line .. " HTTP/1.1\r\nHost: swap.test\r\nConnection: close\r\n" .. (headers or "") .. "\r\n" .. (body or "")
  end

  it("is swapped in no path, query or body, not even one that is cut into chunks or encoded", function()
    local text = placeholders["spec-swap"]
    local before = #echo.requests()
    refused("swap.test", request("GET /x/" .. text), "in the request's path")
    refused("swap.test", request("GET /x?y=" .. text:gsub("_", "%%5f")), "in the request's path")
    refused("swap.test", request("POST /sink", ("Content-Length: %d\r\n"):format(#text + 4), "a=" .. text .. "&b"), "in the request's body")
    refused("swap.test", request("POST /sink", "Transfer-Encoding: chunked\r\nTrailer: X-A\r\n", "1\r\na\r\n0\r\nX-A: " .. text .. "\r\n\r\n"), "in the request's body")
    refused("swap.test", request("GET /", "Authorization: Bearer " .. encoded(text) .. "\r\n"), "in an encoding that can't be swapped")
    refused("swap.test", request("GET /", "X-A: " .. text:gsub("T", "%%54") .. "\r\n"), "in an encoding that can't be swapped")
    local chunks = text:gsub(".", "1\r\n%0\r\n") .. "0\r\n\r\n"
    refused("swap.test", request("POST /sink", "Transfer-Encoding: chunked\r\n", chunks), "in the request's body")
    for _, each in ipairs({ unpack(echo.requests(), before + 1) }) do
      assert.is_nil(cjson.encode(each):find(text, 1, true))
    end
  end)

  it("goes to no other host, and to none in the clear", function()
    local header = "Authorization: Bearer " .. placeholders["spec-swap"] .. "\r\n"
    local before = #echo.requests()
    refused("other.test", request("GET /", header):gsub("swap", "other"), "may not go to other.test")
    local plain = web.echo({})
    assert(box:egress_set({ { "allow_hosts", hosts = { "swap.test" }, to = { ["swap.test"] = "127.0.0.1:" .. plain.port } } }))
    refused("swap.test", request("GET /", header), "may not go to http://swap.test", { tls = false })
    assert.same({}, plain.requests())
    assert(box:egress_set(policies()))
    assert.equal(before, #echo.requests())
  end)
end)

describe("a secret that changes", function()
  it("is another one for the next request, and the former one stays masked", function()
    local former = values["spec-swap"]
    set("spec-swap", token())
    values.former = former
    local answer = ask({ { "swap.test", "bearer", "/leak" } })[1]
    nowhere(answer)
    assert.matches("%*%*%*%*", answer)
    local requests = echo.requests()
    assert.is_truthy(cjson.encode(requests[#requests]):gsub("\\/", "/"):find(values["spec-swap"], 1, true))
    values.former = nil
    local raw = ("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"):format(#former) .. former
    answer = ask({ { "swap.test", "bearer", "/raw?hex=" .. hex(raw) } })[1]
    assert.same({}, search.bytes(answer, former))
    assert.matches("^HTTP/1.1 200 .*%*%*%*%*", answer)
  end)

  it("is in no reason, note or answer of a policy, whatever that says", function()
    local path = support.scratch() .. "/loose.lua"
    web.write(path, [[return policy { name = "loose", about = "Says too much.",
      connect = function(event) log("a note: " .. secret("spec-header")) return allow() end,
      request = function(event)
        local padding = ("x"):rep(1010)
        if event.path == "/deny" then return deny("because " .. secret("spec-header")) end
        if event.path == "/basic" then return deny("because " .. base64("me:" .. secret("spec-header"))) end
        if event.path == "/long" then return deny(padding .. secret("spec-header")) end
        if event.path == "/error" then error("broken " .. secret("spec-header")) end
        return respond(200, { ["x-a"] = secret("spec-header") }, "b " .. secret("spec-header"))
      end }]])
    assert(box:egress_set({ { path } }))
    local requests = {}
    for i, target in ipairs({ "/deny", "/basic", "/long", "/error", "/" }) do
      requests[i] = { "a.test", false, target }
    end
    local answers = ask(requests)
    nowhere(table.concat(answers))
    assert.is_truthy(denied("a.test", "because [secret spec-header]"))
    assert.is_truthy(talk.entry(box, { action = "note", reason = "a note: [secret spec-header]" }))
    local log = cjson.encode((assert(box:egress_log({ limit = 1000 }))))
    nowhere((log:gsub("\\/", "/")))
    assert.is_nil(log:find(values["spec-header"]:sub(1, 10), 1, true)) -- nor the half that a limit left
    assert(box:egress_set(policies()))
  end)

  it("is missed with a reason when it is gone", function()
    assert(sandbox.secret.rm("spec-header"))
    values["spec-header"] = nil
    local answer = ask({ { "basic.test", false, "/echo" } })[1]
    assert.matches("^HTTP/1.1 403 ", answer)
    assert.is_truthy(denied("basic.test", "secret \"spec-header\" is not there"))
  end)
end)

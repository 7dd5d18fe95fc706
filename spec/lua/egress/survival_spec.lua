-- What goes on when the egress process, the server or both end at any instant: from the network of a sandbox.
local cjson = require("cjson")
local async = require("tidepool.async")
local certificates = require("spec.support.certificates")
local support = require("spec.support")
local talk = require("spec.support.talk")
local uv = require("luv")
local web = require("spec.support.web")

-- Who serves a sandbox, once somebody does: the process's pid; not `before`.
local function served(box, before)
  return assert(support.eventually(function()
    local shown = assert(box:egress_show())
    return shown.state == "served" and shown.process.pid ~= before and shown.process.pid
  end), "nobody serves " .. box.name)
end

-- Asks for a page again and again, each time on a new connection, until a file is there; prints the outcomes.
-- Who waits for 20 s was not refused at once, which makes another outcome.
local LOAD = [[
import json, os, socket, sys, time
address, stop = sys.argv[1:3]
outcomes, last = [], False
while not last:
    last, outcome = os.path.exists(stop), "refused"
    try:
        with socket.create_connection((address, 80), 20) as connection:
            outcome = "cut"
            connection.sendall(b"GET /echo HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
            outcome = connection.recv(12).decode() or "cut"
    except ConnectionRefusedError:
        pass
    except ConnectionResetError:
        outcome = "cut"
    except OSError as error:
        outcome = repr(error)
    if not outcomes:
        print("up", flush=True)
    outcomes.append(outcome)
    time.sleep(0.001)
print(json.dumps(outcomes))
]]

describe("a sandbox whose way out ends", function()
  local server, box, net, plain, secure, ca, policy, address

  setup(function()
    support.needs_root()
    ca = certificates.ca()
    plain, secure = web.echo(), web.echo({ leaf = ca:leaf({ hosts = { "s.test" } }) })
    uv.os_setenv("TIDEPOOL_EGRESS", "1")
    server = support.server()
    box = server:sandbox()
    uv.os_unsetenv("TIDEPOOL_EGRESS")
    assert(server.client:call("secret_set", { secret = "word", value = "open sesame, and close" }))
    policy = {
      { "http_basic", hosts = { "s.test" }, user = "me", secret = "word", to = { ["s.test"] = "127.0.0.1:" .. secure.port }, ca = ca.pem },
      { "allow_hosts", hosts = { "a.test" }, to = { ["a.test"] = "127.0.0.1:" .. plain.port } },
    }
    assert(box:egress_set(policy))
    net = ("--net=/proc/%d/ns/net"):format(assert(box:info()).pid)
    address = assert(box:exec({ "nslookup", "a.test" })).stdout:match("Address: (198[%d.]+)")
    served(box)
  end)

  -- The host's programs in the sandbox's network: no verb is called, so no server is started for it.
  local function inside(...)
    return support.run({ "nsenter", net, ... })
  end

  local function fetch(path)
    local result = inside("curl", "-sS", "--max-time", "60", "--resolve", "a.test:80:" .. address, "http://a.test" .. path)
    return result.code == 0 and result.stdout or nil, result.stderr
  end

  -- Runs in the sandbox's network until it has said `word`; then in the background: a task of support.run.
  local function begun(word, ...)
    local said = async.event()
    local task = async.spawn(support.run, { "nsenter", net, on_line = function(line)
      if line:find(word, 1, true) then
        said:set(true)
      end
    end, ... })
    assert(said:wait(60), "nothing said " .. word)
    return task
  end

  -- Begins, and returns a function that ends it and gives its outcomes, the last of which began after that.
  local function load()
    local stop = support.scratch() .. "/stop"
    local task = begun("up", "/usr/bin/python3", "-c", LOAD, address, stop)
    return function()
      web.write(stop, "")
      local _, result = task:join()
      assert.equal(0, result.code, result.stderr)
      return cjson.decode(result.stdout:match("\n(.*)$"))
    end
  end

  -- By its cached address, over TLS that the sandbox's own authority vouches for, with the secret.
  local function whole()
    local own = ("/proc/%d/root/usr/local/share/ca-certificates/tidepool.crt"):format(assert(box:info()).pid)
    local at = assert(box:exec({ "nslookup", "s.test" })).stdout:match("Address: (198[%d.]+)")
    local result = inside("curl", "-sS", "--max-time", "60", "--cacert", own, "--resolve", "s.test:443:" .. at, "https://s.test/echo")
    assert.equal(0, result.code, result.stderr)
    local requests = secure.requests()
    assert.is_truthy(cjson.encode(requests[#requests].headers):find("Basic bWU6b3BlbiBzZXNhbWUsIGFuZCBjbG9zZQ==", 1, true))
    return at
  end

  it("is refused at once while its egress process is down, and served again in a moment", function()
    local at = whole()
    local before = served(box)
    local outcomes
    async.run(function()
      local finish = load()
      assert(uv.kill(before, "sigkill"))
      served(box, before)
      outcomes = finish()
    end)
    local counts = {}
    for _, outcome in ipairs(outcomes) do
      counts[outcome] = (counts[outcome] or 0) + 1
    end
    assert.is_true((counts.refused or 0) >= 1, cjson.encode(counts))
    assert.equal("HTTP/1.1 200", outcomes[1])
    assert.equal("HTTP/1.1 200", outcomes[#outcomes])
    for outcome in pairs(counts) do
      assert.is_truthy(outcome == "refused" or outcome == "cut" or outcome == "HTTP/1.1 200", outcome)
    end
    assert.equal(at, whole()) -- names, policies, secret and certificate authority are the same
  end)

  it("sees a transfer that was on its way end, not hang", function()
    local began, result
    async.run(function()
      local task = begun("event 1 ", "curl", "-sS", "-N", "--max-time", "200", "--resolve", "a.test:80:" .. address,
        "http://a.test/events?count=2000&interval=0.1")
      began = uv.hrtime()
      assert(uv.kill(served(box), "sigkill"))
      local _
      _, result = task:join()
    end)
    assert.is_true((uv.hrtime() - began) / 1e9 < 100)
    assert.not_equal(0, result.code)
    assert.matches("event 1 ", result.stdout)
    served(box)
    assert.is_truthy(support.eventually(function()
      return fetch("/echo")
    end))
  end)

  it("notices nothing when the server ends, and what was decided meanwhile is written down", function()
    local before, process = server:pid(), served(box)
    local streamed
    async.run(function()
      local task = async.spawn(fetch, "/events?count=15&interval=0.1")
      async.sleep(0.5)
      assert(uv.kill(before, "sigkill"))
      assert.is_truthy(support.eventually(function()
        return not support.alive(before)
      end))
      for i = 1, 20 do
        assert(fetch("/echo?n=" .. i)) -- new ones too, while no server runs
      end
      assert(fetch("/meanwhile"))
      local _
      _, streamed = task:join()
    end)
    assert.matches("event 15 ", streamed)
    assert.is_false(support.alive(before))
    assert.equal(process, served(box)) -- which starts the next server
    assert.not_equal(before, server:pid())
    assert.is_truthy(talk.entry(box, { action = "allow", path = "/meanwhile" }))
    assert.is_truthy(talk.entry(box, { action = "allow", path = "/events" }))
    whole()
  end)

  it("has another one when both have ended, with the same names, authority, policies and secrets", function()
    local at, before, pid = whole(), served(box), server:pid()
    assert(uv.kill(pid, "sigkill"))
    assert(uv.kill(before, "sigkill"))
    assert.is_truthy(support.eventually(function()
      return not support.alive(pid) and not support.alive(before)
    end))
    local began = uv.hrtime()
    assert.is_nil((fetch("/echo"))) -- refused: nobody holds its listeners
    assert.is_true((uv.hrtime() - began) / 1e9 < 30)
    served(box, before)
    assert.equal(at, whole())
    assert.is_truthy(fetch("/echo"))
  end)

  it("is served again twenty times in a row under load, and nothing piles up", function()
    local pid = server:pid()
    local function held()
      local counts = { fds = support.fd_count(pid), bpf = 0 }
      for _, number in ipairs(support.names(("/proc/%d/fd"):format(pid))) do
        local target = uv.fs_readlink(("/proc/%d/fd/%s"):format(pid, number)) or ""
        counts.bpf = counts.bpf + (target:find("bpf") and 1 or 0)
      end
      counts.files = #support.names(server.run)
      return counts
    end
    support.settled(function()
      return held().fds
    end)
    local before = held()
    async.run(function()
      local finish = { load(), load() }
      local process = served(box)
      for _ = 1, 20 do
        assert(uv.kill(process, "sigkill"))
        process = served(box, process)
        async.sleep(0.05)
      end
      for i = 1, 2 do
        local outcomes = finish[i]()
        assert.equal("HTTP/1.1 200", outcomes[#outcomes])
      end
    end)
    assert.is_truthy(support.eventually(function()
      local now = held()
      return now.fds <= before.fds + 5 and now.bpf <= before.bpf and now.files <= before.files
    end), cjson.encode({ before, held() }))
    assert.equal(pid, server:pid())
    assert.is_true(#assert(server.client:call("info", {})).egress == 1)
    whole()
  end)

  it("costs its egress process nothing that stays, a hundred times", function()
    local process = served(box)
    local function one()
      local other = server:sandbox()
      assert(other:egress_set(policy))
      assert.matches("Address: 198", assert(other:exec({ "nslookup", "a.test" })).stdout)
      assert.matches("GET /echo", assert(other:exec({ "wget", "-qO-", "http://a.test/echo" })).stdout)
      assert(other:destroy())
    end
    local function rss()
      return tonumber(support.read(("/proc/%d/status"):format(process)):match("VmRSS:%s+(%d+)"))
    end
    for _ = 1, 20 do
      one()
    end
    local fds, memory = support.fd_count(process), rss()
    for _ = 1, 80 do
      one()
    end
    assert.equal(process, served(box))
    assert.is_truthy(support.eventually(function()
      return support.fd_count(process) <= fds + 8
    end), "descriptors leaked")
    assert.is_true(rss() < memory + 4096, ("%d KiB, then %d"):format(memory, rss()))
  end)
end)

describe("sandboxes", function()
  local function with_setting(setting, fn)
    uv.os_setenv("TIDEPOOL_EGRESS", setting)
    local server = support.server()
    server:sandbox()
    uv.os_unsetenv("TIDEPOOL_EGRESS")
    fn(server)
    assert.same({}, server:close())
  end

  setup(support.needs_root)

  it("share a process by the value of a label, and by no other", function()
    with_setting("label:tenant", function(server)
      local a = server:sandbox({ labels = { tenant = "a" } })
      local b = server:sandbox({ labels = { tenant = "b" } })
      local again = server:sandbox({ labels = { tenant = "a" } })
      assert.equal(served(a), served(again))
      assert.not_equal(served(a), served(b))
      local before = served(a)
      assert(uv.kill(before, "sigkill"))
      assert.equal(served(a, before), served(again, before))
      assert.not_equal(served(a), served(b))
    end)
  end)

  it("share as many processes as there may be", function()
    with_setting("2", function(server)
      local pids, count = {}, 0
      for _ = 1, 6 do
        local pid = served(server:sandbox())
        pids[pid], count = (pids[pid] or 0) + 1, count + (pids[pid] and 0 or 1)
      end
      assert.equal(2, count)
    end)
  end)
end)

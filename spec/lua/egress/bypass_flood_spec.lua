-- A sandbox that floods its proxy: it gets its share of it, the process stays bounded, and the sandboxes that
-- share the process are served meanwhile.
local async = require("tidepool.async")
local cjson = require("cjson")
local machine = require("spec.support.machine")
local paths = require("tidepool.paths")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local FLOOD = 1024 -- the most connections of a sandbox at once, see server/egress/pool.lua

-- Lets every connection come as far as it wants to, and no name resolve.
local HOLD = [[
return policy {
  name = "hold",
  about = "Allow any address, and have it lead to one.",
  options = { to = { type = "string", required = true } },
  resolve = function() return deny("no names") end,
  connect = function(_, options) return allow { to = options.to } end,
}
]]

describe("a flood from one sandbox", function()
  local evil, good, pid, base

  lazy_setup(function()
    support.needs_root()
    support.image("debian")
    local web_server = web.nginx()
    good = support.sandbox({ image = "debian", egress = { {
      name = "allow_hosts", options = { hosts = { "good.test" }, to = { ["good.test"] = "127.0.0.1:" .. web_server.plain_port } },
    } } })
    evil = support.sandbox({ image = "debian", egress = { {
      name = "hold", options = { to = "127.0.0.1:" .. web_server.plain_port }, text = HOLD,
    } } })
    pid = assert(evil:egress_show()).process.pid
    base = machine.fd_count(pid)
  end)

  local function memory()
    return tonumber(machine.read("/proc/" .. pid .. "/status"):match("VmRSS:%s*(%d+)")) / 1024
  end

  -- Floods, and has the good sandbox ask for a page again and again meanwhile. Returns what the flood says, and
  -- the longest wait of the other.
  local function flood(deed, count, hold)
    local outcome, longest, asked = nil, 0, 0
    async.within(function()
      async.spawn(function()
        outcome = assert(evil:exec({
          "python3", "-c", machine.read(paths.repo() .. "/spec/support/flood.py"),
          cjson.encode({ deeds = { deed }, count = count, hold = hold }),
        }, { timeout = 200 }))
      end)
      while not outcome do
        local result = assert(good:exec({ "curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", "http://good.test/" }))
        local status, seconds = result.stdout:match("^(%d+) ([%d.]+)$")
        assert(status == "200", result.stdout .. result.stderr)
        longest, asked = math.max(longest, tonumber(seconds)), asked + 1
      end
    end)
    assert.equal("", outcome.stderr)
    local found = cjson.decode(outcome.stdout)[deed]
    assert.is_true(asked > 0)
    assert.is_true(longest < 15, deed .. ": the other sandbox waited " .. longest .. " s")
    assert.equal(pid, assert(evil:egress_show()).process.pid)
    return found.outcome
  end

  local function settles()
    assert(machine.eventually(function()
      return machine.fd_count(pid) <= base + 8
    end), "descriptors stay open: " .. machine.fd_count(pid) .. " of " .. base)
  end

  it("of connects leaves the others their turn", function()
    assert.equal(5000, flood("connects", 5000))
    settles()
  end)

  it("of requests that never end is held to a share", function()
    local outcome = flood("half_open", 3000)
    assert.is_true(outcome.held > FLOOD / 2 and outcome.held <= FLOOD, outcome.held .. " are held")
    settles()
    assert(talk.entry(evil, { action = "deny", hook = "accept", reason = "connections at once" }))
  end)

  it("of heads that come slowly takes bounded memory", function()
    local before = memory()
    assert.equal(1000, flood("slow_heads", 1000).held)
    assert.is_true(memory() - before < 100)
    settles()
  end)

  it("of half a TLS hello takes bounded memory", function()
    local before = memory()
    flood("half_tls", 1000)
    assert.is_true(memory() - before < 200)
    settles()
  end)

  it("of names in TLS, each of which needs a certificate, leaves the others their turn", function()
    local before = memory()
    assert.equal(1000, flood("hellos", 1000).alive)
    assert.is_true(memory() - before < 100)
    settles()
  end)

  it("of bytes in one head ends", function()
    assert.is_true(flood("pushes", 1) < 50e6)
  end)

  it("of names is answered, and does not stop the others from being written down", function()
    local before = memory()
    assert.is_true(flood("queries", 20000) > 1000)
    assert.is_true(memory() - before < 100)
    assert(talk.entry(good, { action = "allow", hook = "request", host = "good.test" }))
    assert(machine.eventually(function()
      return assert(evil:egress_show()).counters.denied > 1000
    end))
  end)

  it("of names on one connection, faster than they can be answered, leaves the others their turn", function()
    assert.is_true(flood("pipelined", 1, 4).answered > 1000)
  end)

  it("leaves the sandbox itself served", function()
    local result = assert(evil:exec({ "curl", "-sS", "-m", "20", "http://198.51.100.77/" }))
    assert.matches("hello from nginx", result.stdout)
  end)
end)

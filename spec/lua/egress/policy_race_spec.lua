-- Policies that change, and sandboxes that end, while a connection is on its way outside.
local daemon = require("spec.support.daemon")
local outside = require("spec.support.outside")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

describe("a connection that is on its way", function()
  local world, box, go, number, port

  setup(function()
    number = 0
    world = outside.new()
    support.needs_root()
  end)

  -- A host to relay to whose server lets nobody in until `go` is there.
  local function stuck()
    number = number + 1
    go = ("%s/go-%d"):format(support.scratch(), number)
    port = daemon.python("stuck", { go = go }).port
    return "127.0.0.1:" .. port
  end

  local function policies(more)
    local allowed = { "allow_hosts", tcp = { "stuck.test:7" }, to = { ["stuck.test"] = world.to["stuck.test"] } }
    for key, value in pairs(more or {}) do
      allowed[key] = value
    end
    return { allowed }
  end

  -- How many connections to it have begun and not come through; some of them are its own.
  local function knocking()
    local found = support.run({ "ss", "-tnH", "state", "syn-sent", "dport = :" .. port })
    return select(2, found.stdout:gsub("\n", ""))
  end

  -- Begins it inside, and returns a function that gives all that it said once it has ended.
  local function connect(name)
    local before = support.settled(knocking)
    local process = assert(box:start({ "bash", "-c", ([[exec 3<>/dev/tcp/stuck.test/7; echo in >/tmp/%s
      echo one >&3; read line <&3; echo "$line" >>/tmp/%s; read -t 3 line <&3; echo "over $?" >>/tmp/%s]]):format(name, name, name) },
      { name = name }))
    assert(support.eventually(function()
      return knocking() > before
    end), "the egress process does not ask for the server")
    return function()
      process:wait(120)
      return assert(box:exec({ "cat", "/tmp/" .. name })).stdout
    end
  end

  it("is cut when the policies that count by then would not have allowed it", function()
    world.to["stuck.test"] = stuck()
    box = world:sandbox(policies())
    local said = connect("cut")
    assert(box:egress_set("deny_all"))
    web.write(go, "")
    assert.matches("^in\n.*over 1\n$", said())
    local entry = talk.entry(box, { host = "stuck.test", hook = "connect", action = "passthrough" })
    assert.is_truthy(entry and entry.reason:find("ended", 1, true))
  end)

  it("goes on under policies that allow it as well", function()
    world.to["stuck.test"] = stuck()
    assert(box:egress_set(policies()))
    local said = connect("kept")
    assert(box:egress_set(policies({ methods = { "GET" } })))
    web.write(go, "")
    assert.matches("^in\none\nover 142\n$", said())
  end)
end)

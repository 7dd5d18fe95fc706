-- What an egress process tells the server, when it is somebody else's by now.
local audit = require("tidepool.server.audit")
local egress_requests = require("tidepool.server.egress.requests")
local state = require("tidepool.server.state")
local support = require("spec.support")

describe("what an egress process tells the server", function()
  local server, member
  before_each(function()
    local directory = support.scratch()
    server = { audit = assert(audit.open({ path = directory .. "/audit.db" })), state = assert(state.open(directory .. "/state.db")) }
    member = { sandboxes = { [1] = { name = "mine", egress = { policies = {} } } }, former = {} }
  end)
  after_each(function()
    server.audit:close()
    server.state:close()
  end)

  local function tell(method, params)
    return egress_requests.answer(server, member, method, params)
  end

  local function entry(changes)
    local made = { id = 1, sandbox = "yours", action = "allow", time = os.time(), host = "a.test" }
    for key, value in pairs(changes or {}) do
      made[key] = value
    end
    return made
  end

  local function names()
    return server.state:names(1)
  end

  it("is written down under the name of its own sandbox", function()
    assert(tell("audit", { entries = { entry(), entry({ id = 2 }), entry({ id = 0 / 0 }), entry({ id = {} }) } }))
    local list = server.audit:read({})
    assert.equal(1, #list)
    assert.equal("mine", list[1].sandbox)
  end)

  it("is left out where it is no entry", function()
    assert(tell("audit", { entries = { 1, "x", false, {}, entry({ action = ("x"):rep(1e6) }), entry({ action = {} }) } }))
    assert.same({}, server.audit:read({}))
  end)

  it("has not happened tomorrow, since that would never grow old", function()
    assert(tell("audit", { entries = { entry({ time = os.time() + 86400 }), entry({ time = 2 ^ 60 }), entry({ time = 0 / 0 }), entry({ time = "now" }) } }))
    assert.same({}, server.audit:read({}))
  end)

  it("is of bounded length", function()
    local many = {}
    for i = 1, 1000 do
      many[i] = ("x"):rep(1000)
    end
    assert(tell("audit", { entries = { entry({ secrets = many, host = ("h"):rep(1e6) }) } }))
    local stored = server.audit:read({})[1]
    assert.is_true(#stored.secrets <= 64 and #stored.secrets[1] <= 64 and #stored.host <= 2048)
    for i = 1, 1000 do
      many[i] = entry()
    end
    assert.equal("EMSGSIZE", select(3, tell("audit", { entries = many })))
    assert.equal(1, #server.audit:read({}))
  end)

  it("names places of the pool, and each but once", function()
    assert(tell("names", { id = 1, names = {
      { 7, "a.test" }, { 7.5, "b.test" }, { 0, "c.test" }, { 2 ^ 17, "d.test" }, { 0 / 0, "e.test" }, { 8, ("f"):rep(256) }, { "9", "g.test" }, 9, "x", {},
    } }))
    assert.same({ { 7, "a.test" } }, names())
    assert(tell("names", { id = 2, names = { { 1, "a.test" } } }))
    assert.same({}, server.state:names(2))
    assert(tell("names", { id = 1, names = "all" }))
  end)

  it("is not more than it may ask", function()
    assert.equal("ENOSYS", select(3, tell("secrets", {})))
    assert.equal("ENOSYS", select(3, tell("audit", "x")))
    assert(tell("state", { id = 1, states = { unknown = "{}" } }))
    assert(tell("state", { states = 5 }))
  end)
end)

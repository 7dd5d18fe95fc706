-- Servers and egress processes killed at random moments, while policies change: what was acknowledged holds, and
-- everybody is served again.
local async = require("tidepool.async")
local support = require("spec.support")
local uv = require("luv")
local web = require("spec.support.web")

local BOXES, ROUNDS, CHANGES = 4, 15, 4

describe("sandboxes whose server and egress processes are killed again and again", function()
  local server, boxes, to = nil, {}, nil

  setup(function()
    support.needs_root()
    math.randomseed(tonumber(uv.hrtime() % 2 ^ 31))
    to = { ["a.test"] = "127.0.0.1:" .. web.echo().port }
    server = support.server()
    for i = 1, BOXES do
      boxes[i] = server:sandbox()
    end
  end)

  -- The server and its egress processes, as they are now, without asking any of them.
  local function processes()
    local list = {}
    for _, name in ipairs(support.names("/proc")) do
      local environ = name:find("^%d+$") and support.read("/proc/" .. name .. "/environ")
      if environ and ("\0" .. environ):find("\0TIDEPOOL_RUN=" .. server.run .. "\0", 1, true) then
        local command = support.read("/proc/" .. name .. "/cmdline") or ""
        if command:find("/egress/main.lua", 1, true) or command:find("\0serve\0", 1, true) then
          list[#list + 1] = tonumber(name)
        end
      end
    end
    return list
  end

  -- Changes a sandbox's policies a few times; `newest` is the name that the last acknowledged change permits.
  local function change(box, round)
    async.sleep(math.random() * 0.1)
    local names = { "a.test" }
    for i = 1, CHANGES do
      names[#names + 1] = ("r%d-%d.test"):format(round, i)
      assert(box:egress_set({ { "allow_hosts", hosts = names, to = to } }))
    end
    box.newest = names[#names]
  end

  local function kill_some()
    for _, pid in ipairs(processes()) do
      async.sleep(math.random() * 0.1)
      if math.random() < 0.5 then
        uv.kill(pid, "sigkill")
      end
    end
  end

  it("have what they were promised, each time", function()
    for round = 1, ROUNDS do
      async.run(function()
        local tasks = {}
        for i, box in ipairs(boxes) do
          tasks[i] = async.spawn(change, box, round)
        end
        kill_some()
        for _, task in ipairs(tasks) do
          assert(task:join())
        end
      end)
      for _, box in ipairs(boxes) do
        local seen
        assert.is_truthy(support.eventually(function()
          local result = assert(box:exec(("nslookup %s | grep 'Address: 198'; wget -qO- http://a.test/echo 2>&1"):format(box.newest)))
          seen = result.stdout .. result.stderr
          return seen:find("Address: 198.", 1, true) and seen:find("GET /echo", 1, true)
        end), ("round %d: %s"):format(round, seen or "no answer"))
      end
    end
  end)

  it("leave no process and no descriptor over", function()
    local info = assert(server.client:call("info", {}))
    assert.is_truthy(support.eventually(function()
      return #processes() == 1 + #assert(server.client:call("info", {})).egress
    end))
    assert.is_true(support.fd_count(info.pid) < 150)
  end)
end)

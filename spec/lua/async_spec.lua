local async = require("tidepool.async")
local core = require("tidepool.core")
local uv = require("luv")

describe("tasks", function()
  it("wait without blocking each other", function()
    local order = {}
    async.run(function()
      local fast = async.event()
      async.all({
        function()
          fast:wait()
          order[#order + 1] = "slow"
        end,
        function()
          async.sleep(0.01)
          order[#order + 1] = "fast"
          fast:set(true)
        end,
      })
    end)
    assert.same({ "fast", "slow" }, order)
  end)

  it("hand their results and errors to whoever joins them", function()
    async.run(function()
      assert.same({ true, 1, nil, 3 }, { async.spawn(function()
        return 1, nil, 3
      end):join() })
      local ok, err = async.spawn(function()
        error("broken")
      end):join()
      assert.is_nil(ok)
      assert.matches("broken", err)
    end)
  end)

  it("raise from run what was raised inside", function()
    assert.has_error(function()
      async.run(function()
        error({ code = 7 })
      end)
    end, { code = 7 })
  end)

  it("report an error that nobody joins, once", function()
    local seen, before = {}, async.on_error
    async.on_error = function(err)
      seen[#seen + 1] = err
    end
    async.run(function()
      async.spawn(function()
        error("alone")
      end)
      async.sleep(0.01)
    end)
    async.on_error = before
    assert.equal(1, #seen)
    assert.matches("alone", seen[1])
  end)

  it("run concurrently under all, which raises the first failure after all have ended", function()
    local ended = 0
    local ok, err = pcall(async.run, function()
      async.all({
        function()
          error("first")
        end,
        function()
          async.sleep(0.01)
          ended = ended + 1
        end,
      })
    end)
    assert.is_false(ok)
    assert.matches("first", err)
    assert.equal(1, ended)
  end)
end)

describe("a sleep", function()
  it("is no shorter for what ran before it without waiting", function()
    local function busy()
      local till = uv.hrtime() + 0.3e9
      while uv.hrtime() < till do end
    end
    for _, sleep in ipairs({ async.sleep, function(seconds) async.event():wait(seconds) end }) do
      busy()
      async.run(function()
        busy()
        local began = uv.hrtime()
        sleep(0.25)
        assert.is_true(uv.hrtime() - began > 0.24e9)
      end)
    end
  end)
end)

describe("events", function()
  it("wake every waiter with the value and keep it for later ones", function()
    async.run(function()
      local event, seen = async.event(), {}
      for i = 1, 3 do
        async.spawn(function()
          seen[i] = event:wait()
        end)
      end
      event:set("now")
      event:set("never")
      assert.same({ "now", "now", "now" }, seen)
      assert.equal("now", event:wait())
    end)
  end)

  it("say when a wait took too long, and may be waited for again", function()
    async.run(function()
      local event = async.event()
      local _, _, code = event:wait(0.01)
      assert.equal("ETIMEDOUT", code)
      async.after(0.01, function()
        event:set(5)
      end)
      assert.equal(5, event:wait(60))
    end)
  end)
end)

describe("locks", function()
  it("let one holder in at a time, in order, also after an error", function()
    async.run(function()
      local lock, inside, order = async.lock(), 0, {}
      local function hold(i, fail)
        return function()
          pcall(lock.with, lock, function()
            inside = inside + 1
            assert(inside == 1)
            async.sleep(0.002)
            order[#order + 1] = i
            inside = inside - 1
            if fail then
              error("fails while it holds")
            end
          end)
        end
      end
      async.all({ hold(1), hold(2, true), hold(3) })
      assert.same({ 1, 2, 3 }, order)
    end)
  end)
end)

describe("waiting for descriptors", function()
  it("ends when there is something to read, when time is up, or when closed", function()
    async.run(function()
      local one, two = core.fd.pair()
      local poller = async.poller(one:number())
      local _, _, code = poller:readable(0.01)
      assert.equal("ETIMEDOUT", code)
      core.fd.write(two, "x")
      assert.is_true(poller:readable(60))
      core.fd.read(one, 10)
      async.after(0.005, function()
        poller:close()
      end)
      _, _, code = poller:readable()
      assert.equal("ECANCELED", code)
    end)
  end)
end)

describe("watching a broken socket", function()
  it("is told as readiness, and says nothing on stderr", function()
    -- A peer that goes with unread bytes leaves an error on the socket.
    local script = [[
      local async, core = require("tidepool.async"), require("tidepool.core")
      async.run(function()
        local one, two = core.fd.pair()
        local poller = async.poller(one:number())
        core.fd.write(one, "never read")
        async.after(0.01, function() two:close() end)
        assert(poller:readable(60))
        print(select(3, core.fd.read(one, 10)))
      end)
    ]]
    async.run(function()
      local result = async.command({ "luajit", "-e", script, stdout = "pipe", stderr = "pipe" })
      assert.equal("ECONNRESET\n", result.stdout)
      assert.equal("", result.stderr)
    end)
  end)

  it("refuses a plain file, which is always ready (core.poll.open)", function()
    local file = assert(core.fd.open("/etc/os-release"))
    local poller, _, code = async.poller(file:number())
    assert.is_nil(poller)
    assert.equal("EPERM", code)
  end)
end)

describe("host programs", function()
  it("give their output, line by line too, and their status", function()
    async.run(function()
      local lines = {}
      local result = async.command({
        "sh", "-c", "echo one; echo two >&2; printf three; exit 3",
        stdout = "pipe",
        stderr = "pipe",
        on_line = function(line)
          lines[#lines + 1] = line
        end,
      })
      table.sort(lines)
      assert.equal(3, result.code)
      assert.equal("one\nthree", result.stdout)
      assert.equal("two\n", result.stderr)
      assert.same({ "one", "three", "two" }, lines)
    end)
  end)

  it("that are not there are told as ENOENT", function()
    async.run(function()
      local _, message, code = async.command({ "/no/such/program" })
      assert.equal("ENOENT", code)
      assert.matches("/no/such/program", message)
    end)
  end)
end)

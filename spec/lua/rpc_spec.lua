local async = require("tidepool.async")
local core = require("tidepool.core")
local rpc = require("tidepool.rpc")

local function pair(on_request, options)
  local one, two = assert(core.fd.pair())
  local client = rpc.connection(core.channel.wrap(one), options)
  local server = rpc.connection(core.channel.wrap(two), { on_request = on_request })
  return client, server
end

describe("rpc", function()
  it("answers requests in whatever order they finish", function()
    async.run(function()
      local answered = async.event()
      local client, server = pair(function(_, method)
        if method == "slow" then
          answered:wait()
        end
        return method
      end)
      local order = {}
      async.all({
        function()
          local method = client:call("slow")
          order[#order + 1] = method
        end,
        function()
          local method = client:call("fast")
          order[#order + 1] = method
          answered:set(true)
        end,
      })
      assert.same({ "fast", "slow" }, order)
      client:close()
      server:close()
    end)
  end)

  it("carries bytes unchanged, nil, and messages of megabytes", function()
    async.run(function()
      local client, server = pair(function(_, _, params)
        return params
      end)
      local bytes = ("\0\255\128abc"):rep(400000)
      assert.equal(bytes, client:call("echo", bytes))
      assert.is_nil((client:call("echo", nil)))
      client:close()
      server:close()
    end)
  end)

  it("carries descriptors there and back", function()
    async.run(function()
      local client, server = pair(function(_, _, _, fds)
        return #fds, nil, nil, { assert(core.fd.open("/dev/null")) }
      end)
      local file = assert(core.fd.open("/etc/passwd"))
      local count, fds = client:call("open", {}, { file, file })
      assert.equal(2, count)
      assert.equal("char", core.fd.kind(fds[1]))
      client:close()
      server:close()
    end)
  end)

  it("tells a failure as nil, message, code and an error in a handler as EINTERNAL", function()
    local before = async.on_error
    async.on_error = function() end
    async.run(function()
      local client, server = pair(function(_, method)
        if method == "crash" then
          error("secret detail")
        end
        return nil, "refused", "EPERM"
      end)
      assert.same({ nil, "refused", "EPERM" }, { client:call("deny") })
      local _, message, code = client:call("crash")
      assert.equal("EINTERNAL", code)
      assert.not_matches("secret", message)
      client:close()
      server:close()
    end)
    async.on_error = before
  end)

  it("fails what is pending when the connection is lost", function()
    async.run(function()
      local client, server
      client, server = pair(function()
        async.after(0.01, function() -- once the request was read: unread, it would be "ECONNRESET"
          server:close()
        end)
        async.sleep(10)
      end)
      local _, _, code = client:call("wait")
      assert.equal("EPIPE", code)
      _, _, code = client:call("again")
      assert.equal("EPIPE", code)
    end)
  end)

  for name, bytes in pairs({
    ["garbage"] = "\xc1\xc1\xc1\xc1",
    ["a truncated message"] = "\x94\x00\x01",
    ["a message of an unknown kind"] = "\x93\x07\x01\x02",
    ["a number"] = "\x05",
    ["deep nesting"] = ("\x91"):rep(5000),
    ["a response to nothing"] = "\x94\x01\x63\xc0\xc0",
    ["an empty message"] = "",
  }) do
    it("ends the connection on " .. name .. ", and nothing else", function()
      async.run(function()
        local one, two = assert(core.fd.pair())
        local closed = async.event()
        local server = rpc.connection(core.channel.wrap(two), {
          on_request = function() end,
          on_close = function(_, code)
            closed:set(code)
          end,
        })
        core.channel.wrap(one):send(bytes)
        assert.equal("EBADMSG", closed:wait(60))
        assert.is_true(server:is_closed())
      end)
    end)
  end

  it("refuses to send what is larger than a frame may be, and lives on", function()
    async.run(function()
      local client, server = pair(function()
        return ("x"):rep(5 * 2 ^ 20)
      end)
      local _, _, code = client:call("large")
      assert.equal("EMSGSIZE", code)
      _, _, code = client:call("echo", ("x"):rep(5 * 2 ^ 20))
      assert.equal("EMSGSIZE", code)
      assert.is_falsy(client:is_closed())
      client:close()
      server:close()
    end)
  end)
end)

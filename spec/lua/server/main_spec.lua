-- Who may talk to the server: root, by the socket's mode and by what the kernel says of a peer.
local support = require("spec.support")
local paths = require("tidepool.paths")
local uv = require("luv")

describe("the server", function()
  local server
  setup(function()
    server = support.server()
    server:pid()
  end)

  it("keeps its socket, its state and its log to itself", function()
    assert.equal(tonumber("140600", 8), uv.fs_stat(server.run .. "/server.sock").mode)
    assert.equal(tonumber("40700", 8), uv.fs_stat(server.state).mode)
    assert.equal(tonumber("40700", 8), uv.fs_stat(server.run).mode)
  end)

  it("leaves no core file, which would have the secrets in it", function()
    assert.matches("Max core file size%s+0%s+0%s", support.read(("/proc/%d/limits"):format(server:pid())))
  end)

  it("hangs up on a peer that is not root, though it could open the socket", function()
    local script = ([[
      local async, core, rpc = require("tidepool.async"), require("tidepool.core"), require("tidepool.rpc")
      async.run(function()
        local connection = rpc.connection(assert(core.channel.connect(%q)))
        local result, _, code = connection:call("info", {})
        print(result and "answered" or "refused " .. code)
      end)
    ]]):format(server.run .. "/server.sock")
    local environment = {
      "PATH=" .. os.getenv("PATH"), "LUA_PATH=" .. package.path, "LUA_CPATH=" .. paths.build() .. "/?.so;" .. package.cpath,
    }
    local own = support.run({ "luajit", "-e", script, env = environment, cwd = paths.repo() })
    assert.equal("answered\n", own.stdout, own.stderr)
    -- The capability opens the socket for a user whom its mode would keep out.
    local stranger = support.run({
      "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override",
      "luajit", "-e", script, env = environment, cwd = paths.repo(),
    })
    assert.matches("^refused E", stranger.stdout, 1, stranger.stderr)
    assert.matches("peer_refused", support.read(server.state .. "/server.log"))
  end)

  it("leaves no control group behind when it can't start", function()
    local directory = support.scratch()
    assert(uv.fs_mkdir(directory .. "/state", 448))
    local pool = assert(io.open(directory .. "/state/pool.img", "w"))
    pool:write(("no file system"):rep(10000))
    pool:close()
    local client = require("tidepool.client").new({ state = directory .. "/state", run = directory .. "/run" })
    local _, message, code = client:call("info", {})
    assert.equal("ENOSERVER", code)
    assert.matches("open the pool", message, 1, true)
    local instance = assert(require("tidepool.server.state").open(directory .. "/state/state.db")):setting("instance")
    assert.is_nil(uv.fs_stat(require("tidepool.server.cgroup").detect().unified .. "/tidepool/" .. instance))
  end)
end)

-- Who is attached to a process of a sandbox that hibernates is attached again when it wakes, whoever woke
-- it, and misses nothing: output goes on at its offset, input arrives once.
local support = require("spec.support")
local async = require("tidepool.async")
local uv = require("luv")

describe("a client that is attached while its sandbox hibernates", function()
  local server

  setup(function()
    support.needs_root()
    server = support.shared()
    support.image("minimal")
  end)

  local it = support.needing(it, support.needs_criu)

  local function state_of(box)
    return assert(box:info()).state
  end

  -- Lines of a process as a follower reads them, in a task; stop() ends it.
  local function follow(process)
    local got = {}
    local task = async.spawn(process.logs, process, { follow = true }, function(_, bytes)
      got[#got + 1] = bytes
    end)
    return got, task
  end

  local ECHO = "stty -echo; echo ready; while read -r line; do echo \"got $line\"; done"

  it("wakes it by a key, which arrives once, and a follower of its output goes on, too", function()
    local box = server:sandbox()
    async.run(function()
      local terminal = assert(box:terminal({ command = { "sh", "-c", ECHO }, name = "echo" }))
      assert(terminal:expect("ready"))
      local got, task = follow(box:process("echo"))
      for round = 1, 3 do
        assert(box:hibernate())
        assert.equal("hibernated", state_of(box))
        assert(terminal:write(round .. "\n"))
        assert(terminal:expect("got " .. round .. "\r\n"))
        assert.equal("running", state_of(box))
      end
      assert(terminal:write("by a person\n"))
      assert(terminal:expect("got by a person"))
      assert(box:process("echo"):kill(0))
      assert.is_true((task:join()))
      assert.equal("ready\r\ngot 1\r\ngot 2\r\ngot 3\r\ngot by a person\r\n", table.concat(got))
    end)
  end)

  it("lets it sleep, and reads on when somebody else has woken it, over the death of the server as well", function()
    local own = support.server()
    local box = own:sandbox()
    uv.fs_symlink(server.state .. "/criu", own.state .. "/criu")
    local pid = own:pid()
    async.run(function()
      local terminal = assert(box:terminal({ command = { "sh", "-c", ECHO }, name = "echo" }))
      assert(terminal:expect("ready"))
      local got, task = follow(box:process("echo"))
      local waiter = async.spawn(box.process(box, "echo").wait, box:process("echo"))
      local exec = async.spawn(box.exec, box, "sleep 1; echo done")
      async.sleep(0.2)
      assert(box:hibernate())
      uv.kill(pid, "sigkill")
      assert.is_true(support.eventually(function() return not support.alive(pid) end))
      async.sleep(0.3)
      assert.equal("hibernated", state_of(box)) -- asked of the next server, at which they all wait
      async.sleep(0.5)
      assert.equal("hibernated", state_of(box))
      assert(box:wake())
      assert(terminal:write("a\n"))
      assert(terminal:expect("got a"))
      local _, result = exec:join()
      assert.equal("done\n", assert(result).stdout)
      assert(box:process("echo"):kill(0))
      assert.is_true((task:join()))
      assert.equal("ready\r\ngot a\r\n", table.concat(got))
      local _, ended = waiter:join()
      assert.equal(9, assert(ended).signal)
    end)
  end)

  it("loses nothing of a stream of input that flows meanwhile, nor of output, however much", function()
    local box = server:sandbox()
    local pieces, count = {}, 400
    for i = 1, count do
      pieces[i] = ("%06d "):format(i) .. ("x"):rep(8000) .. "\n"
    end
    local sent = 0
    async.run(function()
      local exec = async.spawn(box.exec, box, "while read -r line; do echo \"$line\"; done", {
        stdin = function()
          sent = sent + 1
          if sent % 40 == 0 then
            async.sleep(0.05)
          end
          return pieces[sent]
        end,
      })
      for round = 1, 3 do
        support.eventually(function() return sent >= round * 90 end, 20)
        assert(box:hibernate())
      end
      local _, result = exec:join()
      assert.equal(count + 1, sent)
      assert.is_true(table.concat(pieces) == assert(result).stdout)
      assert.equal(0, result.dropped)
    end)
  end)

  it("does not hold up a process that nobody comes back to", function()
    local box = server:sandbox()
    async.run(function()
      local process = assert(box:start("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); printf '%0200d\\n' $i; done; sleep 60", { name = "p" }))
      local stream = assert(process:connect({ lossless = true }))
      async.sleep(0.3)
      assert(box:hibernate())
      stream:close()
      assert(box:wake())
      assert(process:wait_log("^0+20000$", { timeout = 60, since = -1000 }))
    end)
  end)

  it("is told when its sandbox was stopped instead of woken", function()
    local box = server:sandbox()
    async.run(function()
      local process = assert(box:start("echo here; sleep 60", { name = "p" }))
      assert(process:attach())
      assert(process:expect("here\n"))
      assert(box:hibernate())
      local reader = async.spawn(process.read, process)
      async.sleep(0.1)
      assert(box:stop())
      local _, bytes, _, code = reader:join()
      assert.same({ nil, "EPIPE" }, { bytes, code })
    end)
  end)
end)

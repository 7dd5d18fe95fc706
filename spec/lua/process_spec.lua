-- Commands in a sandbox: what exec, start, logs, kill and wait promise, on a real sandbox.
local support = require("spec.support")
local async = require("tidepool.async")
local uv = require("luv")

describe("exec", function()
  local box
  setup(function()
    box = support.sandbox()
  end)
  teardown(function()
    box:destroy()
  end)

  it("gives exit code, both streams as bytes, and times", function()
    local result = assert(box:exec({ "sh", "-c", "printf 'a\\000\\377b'; printf err >&2; exit 3" }))
    assert.equal(3, result.exit_code)
    assert.equal("a\0\255b", result.stdout)
    assert.equal("err", result.stderr)
    assert.equal(0, result.dropped)
    assert.is_true(result.wall_seconds > 0 and result.wall_seconds < 600)
    assert.is_true(result.cpu_seconds > 0 and result.cpu_seconds < 600)
  end)

  it("takes a shell line as well as an argv", function()
    assert.equal("3\n", assert(box:exec("echo $((1 + 2))")).stdout)
    assert.equal("$HOME *\n", assert(box:exec({ "echo", "$HOME *" })).stdout)
  end)

  it("runs as agent in /workspace with a home there, unless told otherwise", function()
    assert.equal("1000 /workspace /workspace\n", box:exec("echo $(id -u) $PWD $HOME").stdout)
    assert.equal("0 /tmp\n", box:exec("echo $(id -u) $PWD", { user = "root", cwd = "/tmp" }).stdout)
    assert.equal("1234\n", box:exec("id -u", { user = "1234" }).stdout)
  end)

  it("merges the environment of the sandbox and of the command", function()
    local own = support.sandbox({ env = { A = "box", B = "box" } })
    assert.equal("box cmd\n", own:exec('echo "$A $B"', { env = { B = "cmd" } }).stdout)
    own:destroy()
  end)

  it("passes stdin on, of any size, and its end", function()
    assert.equal("hello", box:exec({ "cat" }, { stdin = "hello" }).stdout)
    local large = ("0123456789abcdef"):rep(200000)
    local result = box:exec({ "wc", "-c" }, { stdin = large })
    assert.equal(tostring(#large), (result.stdout:gsub("%s", "")))
    local n = 0
    assert.equal("123", box:exec({ "cat" }, {
      stdin = function()
        n = n + 1
        return n <= 3 and tostring(n) or nil
      end,
    }).stdout)
    assert.equal("", box:exec({ "cat" }).stdout)
  end)

  it("raises what the caller's own functions raise, and still runs the command to its end", function()
    local ok, message = pcall(box.exec, box, "head -c 3000000 /dev/zero; echo done > /workspace/done", {
      on_output = function()
        error("no, thanks", 0)
      end,
    })
    assert.is_false(ok)
    assert.matches("^no, thanks", message)
    assert.equal("done\n", box:read("/workspace/done"))
    ok, message = pcall(box.exec, box, { "cat" }, {
      stdin = function()
        error("nothing more", 0)
      end,
    })
    assert.is_false(ok)
    assert.matches("^nothing more", message)
  end)

  it("tells the signal that ended a command", function()
    local result = box:exec("kill -9 $$")
    assert.equal(9, result.signal)
    assert.is_nil(result.exit_code)
  end)

  for _, case in ipairs({
    { "a program that is not there", { "no-such-program" }, {}, "ENOENT", "no%-such%-program" },
    { "a file that may not be executed", { "/etc/passwd" }, {}, "EACCES", "/etc/passwd" },
    { "an unknown user", { "true" }, { user = "nobody-here" }, "EBADUSER", "nobody%-here" },
    { "a directory that is not there", { "true" }, { cwd = "/nowhere" }, "EBADCWD", "/nowhere" },
  }) do
    it("says that " .. case[1] .. " could not be started, which is not an exit code", function()
      local result, message, code = box:exec(case[2], case[3])
      assert.is_nil(result)
      assert.equal(case[4], code)
      assert.matches(case[5], message)
    end)
  end

  it("differs between a command that can't be started and one that exits 127", function()
    assert.equal(127, box:exec("exit 127").exit_code)
  end)

  it("kills the whole tree at its timeout and says so", function()
    local result = box:exec("setsid sleep 1000 & sleep 1000", { timeout = 0.3 })
    assert.is_true(result.timed_out)
    assert.equal(9, result.signal)
    assert.is_true(result.wall_seconds < 500)
    assert.equal("", box:exec("pgrep sleep || ps | grep '[s]leep 1000'").stdout)
  end)

  it("returns when the command ends though a child keeps its pipes open", function()
    local result = box:exec("sleep 1000 & echo started")
    assert.equal("started\n", result.stdout)
    assert.is_true(result.wall_seconds < 500)
    box:exec("kill $(pgrep sleep)")
  end)

  it("streams output while the command runs", function()
    local pieces = {}
    local result = assert(box:exec("echo one; until [ -e /tmp/seen ]; do sleep 0.05; done; echo two >&2", {
      timeout = 60,
      on_output = function(stream, bytes)
        pieces[#pieces + 1] = stream .. ":" .. bytes
        assert(box:write("/tmp/seen", ""))
      end,
    }))
    assert.same({ "stdout:one\n", "stderr:two\n" }, pieces)
    assert.equal(0, result.exit_code)
  end)

  it("keeps at most the limit of each stream and counts the rest", function()
    local result = box:exec("head -c 100000 /dev/zero; printf abc >&2", { limit = 1000 })
    assert.equal(1000, #result.stdout)
    assert.equal("abc", result.stderr)
    assert.equal(99000, result.dropped)
  end)

  it("loses nothing of twenty megabytes", function()
    local result = box:exec("head -c 20000000 /dev/zero | tr '\\0' x")
    assert.equal(20000000, #result.stdout)
    assert.equal(0, result.dropped)
  end)

  it("runs many at a time", function()
    async.run(function()
      local tasks = {}
      for i = 1, 40 do
        tasks[i] = function()
          assert(box:exec({ "echo", tostring(i) }).stdout == i .. "\n")
        end
      end
      async.all(tasks)
    end)
  end)
end)

describe("a background process", function()
  local box
  setup(function()
    box = support.sandbox()
  end)
  teardown(function()
    box:destroy()
  end)

  it("is there under its name, with output to read from any offset", function()
    local process = assert(box:start("echo one; echo two; sleep 1000", { name = "talker" }))
    assert.equal("one", process:wait_log("one"))
    process:wait_log("two")
    local found = box:process("talker"):info()
    assert.equal("running", found.status)
    assert.equal(8, found.output)
    assert.equal("two\n", box:process("talker"):logs({ since = 4 }).text)
    local lines = {}
    for line in process:lines({ since = 0, follow = true }) do
      lines[#lines + 1] = line
      if #lines == 2 then
        break
      end
    end
    assert.same({ "one", "two" }, lines)
    assert.equal(15, process:kill().signal)
  end)

  it("can't take a name that is in use, and gives it back when it ends", function()
    local first = assert(box:start("sleep 1000", { name = "only" }))
    local _, _, code = box:start("true", { name = "only" })
    assert.equal("EEXIST", code)
    first:kill(0)
    assert(box:start("true", { name = "only" })):wait()
  end)

  it("is forgotten, the oldest first, when very many have ended", function()
    local own = support.sandbox()
    async.run(function()
      for round = 1, 15 do
        local tasks = {}
        for i = 1, 20 do
          tasks[i] = function()
            assert(own:start({ "true" }, { name = ("job-%d-%d"):format(round, i) })):wait(60)
          end
        end
        async.all(tasks)
      end
    end)
    local list = own:ps()
    assert.equal(256, #list)
    assert.equal("ENOPROCESS", select(3, own:process("job-1-1"):wait(1)))
    assert.equal(0, own:process("job-15-20"):wait(1).exit_code)
    own:destroy()
  end)

  it("gives its output line by line, thousands in a piece and one in many pieces", function()
    local process = assert(box:start("yes ab | head -n 50000; head -c 300000 /dev/zero | tr '\\0' x; echo; echo; printf end"))
    local count, last, longest = 0, nil, 0
    for line in process:lines({ follow = true }) do
      count, last, longest = count + 1, line, math.max(longest, #line)
    end
    assert.same({ 50003, "end", 300000 }, { count, last, longest })
    assert.equal("end", process:wait_log("^end$"))
  end)

  it("is started once, however many ask for its name or key at a time", function()
    async.run(function()
      local codes, ids = { EEXIST = 0, none = 0 }, {}
      local tasks = {}
      for i = 1, 5 do
        tasks[i] = function()
          local started, _, code = box:start({ "sleep", "1000" }, { name = "once" })
          codes[code or "none"] = codes[code or "none"] + 1
          if started then
            started:kill(0)
          end
        end
        tasks[5 + i] = function()
          local described = assert(box.client:call("start", { name = box.name, argv = { "sleep", "1000" }, key = "the-key" }))
          ids[described.id] = true
        end
      end
      async.all(tasks)
      assert.same({ EEXIST = 4, none = 1 }, codes)
      local id = next(ids)
      assert.is_nil(next(ids, id))
      box:process(id):kill(0)
    end)
  end)

  it("are killed also when their first thread has ended", function()
    support.image("debian")
    local other = support.sandbox({ image = "debian" })
    local process = assert(other:start({ "python3", "-uc", [[
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print("ready")
ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
]] }, { name = "leaderless" }))
    assert(process:wait_log("ready", { timeout = 30 }))
    assert(support.eventually(function()
      return assert(other:exec("ps -eo stat,args")).stdout:find("Z%S*l.-defunct")
    end, 10))
    assert.equal(9, assert(process:kill(0)).signal)
    assert.is_true(support.eventually(function()
      return not assert(other:exec("ps -eo stat,args")).stdout:find("defunct")
    end, 10))
  end)

  it("starts in what a server that was killed on the way had made for it", function()
    local leaf = support.cgroup_of(box) .. "/left-behind"
    assert(uv.fs_mkdir(leaf, 493))
    local described = assert(box.client:call("start", { name = box.name, argv = { "sleep", "1000" }, key = "left-behind" }))
    assert.equal(1, #support.processes_in(leaf))
    box:process(described.id):kill(0)
  end)

  it("waits with its exit code, and says when it still runs", function()
    local process = assert(box:start("sleep 0.2; exit 5"))
    local _, _, code = process:wait(0.02)
    assert.equal("ETIMEDOUT", code)
    assert.equal(5, process:wait(60).exit_code)
    assert.equal(5, process:wait().exit_code)
  end)

  it("and all its children end by TERM, or by KILL after the grace", function()
    local gentle = assert(box:start("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"))
    assert(gentle:wait_log("up"))
    assert.equal(0, gentle:kill(60).exit_code)
    assert.matches("bye", gentle:logs().text)
    local stubborn = assert(box:start("trap '' TERM; echo up; while :; do sleep 0.1; done"))
    assert(stubborn:wait_log("up"))
    assert.equal(9, stubborn:kill(0.3).signal)
  end)

  it("gets signals by name", function()
    local process = assert(box:start("trap 'echo hup' HUP; echo ready; while :; do sleep 0.05; done"))
    process:wait_log("ready")
    assert(process:signal("HUP"))
    assert.equal("hup", process:wait_log("hup"))
    local _, _, code = process:signal("NOSUCH")
    assert.equal("EINVAL", code)
    process:kill(0)
  end)

  it("drops the oldest output when nobody reads, and counts it", function()
    local process = assert(box:start("head -c 3000000 /dev/zero | tr '\\0' x; echo end", { ring = 65536 }))
    assert(process:wait(60))
    local log = process:logs()
    assert.equal(3000004, #log.text + log.lost)
    assert.is_true(#log.text <= 65536)
    assert.equal("end\n", log.text:sub(-4))
  end)

  it("takes input while it runs", function()
    local process = assert(box:start({ "cat" }, { stdin = true }))
    assert(process:write("ping\n"))
    assert.equal("ping\n", (process:read(60)))
    process:eof()
    assert.equal(0, process:wait(60).exit_code)
  end)

  it("is not wedged by a client that goes away without reading", function()
    local process = assert(box:start("head -c 5000000 /dev/zero; echo done >/workspace/flag; sleep 100"))
    local connection = assert(process:connect({ lossless = true }))
    connection:close()
    assert(support.eventually(function()
      return (box:read("/workspace/flag") or ""):find("done") ~= nil
    end))
    process:kill(0)
  end)

  it("says that no process of that name is there", function()
    local _, message, code = box:process("ghost"):wait(1)
    assert.equal("ENOPROCESS", code)
    assert.matches("ghost", message)
  end)
end)

describe("waiting for a port", function()
  local box
  setup(function()
    box = support.sandbox()
  end)
  teardown(function()
    box:destroy()
  end)

  it("ends when something listens, when time is up, or when the process ends first", function()
    local _, _, code = box:wait_port(8123, { timeout = 0.1 })
    assert.equal("ETIMEDOUT", code)
    local server = assert(box:start("sleep 0.2; nc -l -p 8123 || busybox nc -l -p 8123"))
    assert(server:wait_port(8123, { timeout = 60 }))
    server:kill(0)
    local short = assert(box:start("exit 1"))
    _, _, code = short:wait_port(8124, { timeout = 60 })
    assert.equal("ESRCH", code)
  end)
end)

describe("waiting for a line of output", function()
  local box
  setup(function()
    box = support.sandbox()
  end)
  teardown(function()
    box:destroy()
  end)

  it("ends with the line, at the time limit, or when the process ends first", function()
    local process = assert(box:start("echo one; sleep 0.2; echo 'two (2)'; sleep 0.2; printf three", { name = "teller" }))
    assert.equal("two (2)", process:wait_log("^two"))
    assert.equal("two (2)", process:wait_log("(2)", { plain = true }))
    assert.equal("three", process:wait_log("three"))
    assert.equal("two (2)", process:wait_log("%w", { since = 4 }))
    assert.equal("ESRCH", select(3, process:wait_log("four")))
    local silent = assert(box:start("sleep 1000"))
    local result, message, code = silent:wait_log("x", { timeout = 0.1 })
    assert.is_nil(result)
    assert.matches("0.1 s", message, 1, true)
    assert.equal("ETIMEDOUT", code)
    silent:kill(0)
  end)
end)

-- The command line as a person and a script meet it, on a real server.
local cjson = require("cjson")
local uv = require("luv")
local async = require("tidepool.async")
local paths = require("tidepool.paths")
local support = require("spec.support")

describe("the command line", function()
  local box

  setup(function()
    support.needs_root()
    box = support.sandbox()
  end)

  local function cli(...)
    return support.cli({ ... })
  end

  local function json(...)
    local words = { ... }
    table.insert(words, 2, "--json")
    local result = support.cli(words)
    return cjson.decode(result.stdout), result
  end

  -- How many processes inside have this in their command line.
  local function running(text)
    local lines = cli("exec", "-u", "root", box.name, "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done").stdout
    local count = 0
    for line in lines:gmatch("[^\n]+") do
      count = count + (line:find(text, 1, true) == 1 and 1 or 0)
    end
    return count
  end

  -- With a shell around it, for pipes and signals.
  local function sh(script)
    return support.run({ "sh", "-c", "tp=$1 box=$2; " .. script, "sh", paths.launcher(), box.name })
  end

  describe("exec", function()
    it("passes on output, streams apart, and the exit status", function()
      local result = cli("exec", box.name, "-c", "echo out; echo err >&2; exit 3")
      assert.same({ "out\n", "err\n", 3 }, { result.stdout, result.stderr, result.code })
    end)

    local statuses = {
      { 0, "--", "true" },
      { 127, "--", "no-such-program" },
      { 127, "-c", "no-such-program" },
      { 126, "--", "/etc/passwd" },
      { 137, "-c", "kill -9 $$" },
      { 124, "--timeout", "200ms", "--", "sleep", "60" },
      { 125, "-u", "no-such-user", "--", "true" },
      { 125, "-w", "/no/such/directory", "--", "true" },
      { 125 },
      { 125, "--frobnicate", "--", "true" },
    }
    for _, case in ipairs(statuses) do
      local words = { unpack(case, 2) }
      it(("exits with %d for %s"):format(case[1], table.concat(words, " ")), function()
        local result = cli("exec", box.name, unpack(words))
        assert.equal(case[1], result.code, result.stderr)
        if case[1] ~= 0 and case[1] ~= 137 and words[1] ~= "-c" then
          assert.matches("tidepool: .*%([A-Z0-9]+%)\n", result.stderr)
        end
      end)
    end

    it("says the same in JSON, bytes as they are", function()
      local outcome, result = json("exec", box.name, "-c", "printf 'a\\377'; echo e >&2; exit 2")
      assert.equal(2, result.code)
      assert.same({ "base64", "Yf8=", "ZQo=", 2 }, { outcome.encoding, outcome.stdout, outcome.stderr, outcome.exit_code })
      assert.is_true(outcome.wall_seconds > 0)
      outcome = json("exec", box.name, "--", "echo", "é")
      assert.same({ "utf-8", "é\n" }, { outcome.encoding, outcome.stdout })
    end)

    it("gives it the environment, user and directory that were asked for", function()
      local result = cli("exec", "-u", "root", "-w", "/tmp", "-e", "A=b c", box.name, "-c", "id -u; pwd; echo $A")
      assert.equal("0\n/tmp\nb c\n", result.stdout)
    end)

    it("passes standard input on with -i, and only then", function()
      local result = sh("head -c 3000000 /dev/zero | $tp exec -i $box -- wc -c; echo lost | $tp exec $box -- cat")
      assert.equal("3000000\n", result.stdout)
    end)

    it("carries 20 MB through", function()
      assert.equal("20000000\n", sh("$tp exec $box -- head -c 20000000 /dev/zero | wc -c").stdout)
    end)

    it("ends the command when nobody reads its output any more", function()
      assert.equal("y\n", sh("$tp exec $box -- yes | head -n 1").stdout)
      assert(support.eventually(function()
        for _, process in ipairs(box:ps()) do
          if process.argv[1] == "yes" and process.status == "running" then
            return false
          end
        end
        return true
      end))
    end)

    it("passes Ctrl-C on, and a second one ends the whole tree", function()
      local up = "; until $tp stat $box up >/dev/null 2>&1; do sleep 0.1; done; "
      local result = sh("$tp exec $box -c 'touch up; exec sleep 1000' & p=$!" .. up .. "kill -INT $p; wait $p; echo $?")
      assert.equal("130\n", result.stdout, result.stderr)
      assert(box:remove("up"))
      result = sh("$tp exec $box -c 'trap \"\" INT; touch up; sleep 61; sleep 61' & p=$!" .. up
        .. "kill -INT $p; sleep 1; kill -INT $p; wait $p; echo $?")
      assert.matches("13[07]\n", result.stdout .. result.stderr)
      assert(support.eventually(function()
        return running("sleep 61") == 0
      end))
    end)

    it("does not hang on a child that keeps the pipe open", function()
      local before = uv.hrtime()
      assert.equal("x\n", cli("exec", box.name, "-c", "sleep 1000 & echo x").stdout)
      assert.is_true(uv.hrtime() - before < 500e9)
      box:exec("kill $(pgrep sleep)")
    end)

    it("survives the server's death", function()
      local pid = support.shared():pid()
      local result = sh(("$tp exec $box -c 'sleep 0.5; echo still here; exit 6' & sleep 0.25; kill -9 %d; wait $!; echo $?"):format(pid))
      assert.equal("still here\n6\n", result.stdout, result.stderr)
    end)
  end)

  describe("start, ps, logs, wait, kill", function()
    it("do background work", function()
      assert.equal("work\n", cli("start", box.name, "--name", "work", "-c", "for i in 1 2 3; do echo line $i; sleep 0.1; done; exit 4").stdout)
      assert.equal("line 2\n", cli("wait-log", box.name, "work", "line 2").stdout)
      assert.equal("line 1\nline 2\nline 3\n", cli("logs", "-f", box.name, "work").stdout)
      assert.equal(4, cli("wait", box.name, "work").code)
      assert.equal("line 3\n", cli("logs", "-n", "1", box.name, "work").stdout)
      assert.equal("line 2\nline 3\n", cli("logs", "--since", "7", box.name, "work").stdout)
      assert.matches("work +exited 4 ", cli("ps", box.name).stdout)
      local list = json("ps", box.name)
      assert.equal("table", type(list))
      assert.equal(0, cli("forget", box.name, "work").code)
      assert.matches("ENOPROCESS", cli("logs", box.name, "work").stderr)
    end)

    it("end a tree, and signal one process", function()
      cli("start", box.name, "--name", "tree", "-c", "sleep 62 & sleep 62; true")
      assert(support.eventually(function()
        return running("sleep 62") == 2
      end))
      assert.equal("killed", (json("kill", box.name, "tree")).status)
      assert.equal(0, running("sleep 62"))
      cli("start", box.name, "--name", "one", "--", "sleep", "63")
      assert.equal(0, cli("signal", box.name, "one", "HUP").code)
      assert.equal(129, cli("wait", box.name, "one").code)
    end)

    it("give up in time", function()
      cli("start", box.name, "--name", "slow", "--", "sleep", "64")
      assert.equal(124, cli("wait", "--timeout", "0.1", box.name, "slow").code)
      assert.equal(124, cli("wait-port", "--timeout", "0.1", box.name, "9").code)
      assert.equal(124, cli("wait-log", "--timeout", "0.1", box.name, "slow", "never").code)
      cli("kill", box.name, "slow")
    end)
  end)

  describe("session", function()
    it("keeps directory and variables between commands", function()
      assert.equal(0, cli("session", box.name, "s", "-c", "cd /tmp; X=1").code)
      local result = cli("session", box.name, "s", "-c", "pwd; echo $X; false")
      assert.same({ "/tmp\n1\n", 1 }, { result.stdout, result.code })
      assert.equal(0, cli("session", box.name, "s", "--close").code)
    end)
  end)

  describe("the file verbs", function()
    it("read, write, list and change", function()
      assert.equal(0, sh("printf 'a\\000b' | $tp write $box f --mode 600").code)
      assert.equal("a\0b", cli("read", box.name, "f").stdout)
      assert.equal("\0", cli("read", box.name, "f", "--offset", "1", "--limit", "1").stdout)
      local read = json("read", box.name, "f")
      assert.same({ "utf-8", "a\0b", 3 }, { read.encoding, read.content, read.size })
      assert.equal(384, (json("stat", box.name, "f")).mode)
      assert.equal(0, cli("write", box.name, "f", "--append", "--content", "c").code)
      assert.equal(0, cli("mkdir", "-p", box.name, "d/e").code)
      assert.equal(0, cli("rename", box.name, "f", "d/f").code)
      assert.equal(0, cli("chmod", box.name, "755", "d/f").code)
      assert.matches("%-rwxr%-xr%-x +1000 +1000 +4 .* f\n", cli("list", box.name, "d").stdout)
      assert.matches("ENOTEMPTY", cli("remove", box.name, "d").stderr)
      assert.equal(0, cli("remove", "-r", box.name, "d").code)
      assert.equal(125, cli("read", box.name, "d/f").code)
    end)
  end)

  describe("create, ls, info, stop, destroy", function()
    it("lead a sandbox through its life", function()
      local name = "cli-" .. support.unique()
      local made = json("create", name, "--image", "minimal", "--memory", "64M", "--label", "k=v", "-e", "FROM=create")
      assert.equal(64 * 2 ^ 20, made.limits.memory)
      assert.equal("create\n", cli("exec", name, "-c", "echo $FROM").stdout)
      assert.matches(name:gsub("%-", "%%-") .. " +running +minimal", cli("ls", "--label", "k=v").stdout)
      assert.same({}, (json("ls", "--label", "k=other")))
      assert.matches("state +running", cli("info", name).stdout)
      assert.matches("EEXIST", cli("create", name, "--image", "minimal").stderr)
      assert.equal(0, cli("stop", name).code)
      assert.equal("stopped", (json("info", name)).state)
      assert.equal("running", (json("open", name)).state)
      assert.equal(0, cli("destroy", name).code)
      assert.matches("ENOSANDBOX", cli("info", name).stderr)
    end)

    it("refuse what makes no sense, with a code", function()
      assert.matches("%(EINVAL%)", cli("create", "Bad_Name").stderr)
      assert.matches("%(ENOIMAGE%)", cli("create", "x-" .. support.unique(), "--image", "none").stderr)
      assert.matches("%(EINVAL%)", cli("create", "x", "--type", "huge").stderr)
      local problem, result = json("destroy", "none-such")
      assert.equal("ENOSANDBOX", problem.error.code)
      assert.equal(125, result.code)
      problem = json("exec", "--nonsense")
      assert.equal("ENOOPT", problem.error.code)
    end)
  end)

  describe("info, version, help", function()
    it("tell about the server", function()
      local info = json("info")
      assert.equal(support.shared():pid(), info.pid)
      assert.equal(paths.state(), info.state_directory)
      assert.equal(paths.run(), info.run_directory)
      assert.is_string(info.version)
    end)

    it("explain every verb without a server", function()
      for _, command in ipairs(require("tidepool.cli.commands").list) do
        local words = { "help" }
        for word in command.name:gmatch("%S+") do
          words[#words + 1] = word
        end
        local result = support.cli(words)
        assert.equal(0, result.code)
        assert.matches("^Usage: %./sandbox%.lua " .. command.name:gsub("%-", "%%-"), result.stdout)
      end
      assert.matches("did you mean destroy", cli("destory").stderr)
      assert.equal(125, cli("destory").code)
    end)
  end)

  describe("run", function()
    local function script(text)
      local path = support.scratch() .. "/script.lua"
      local file = assert(io.open(path, "w"))
      file:write(text)
      file:close()
      return path
    end

    it("gives a script its arguments and sandbox", function()
      local path = script("print(arg[0]:match('[^/]*$'), arg[1], arg[2], (...), type(require('sandbox').open))")
      local result = cli("run", path, "--x", "y")
      assert.equal("script.lua\t--x\ty\t--x\tfunction\n", result.stdout, result.stderr)
    end)

    it("says where a script failed", function()
      local result = cli("run", script("local x = nil\nx.y = 1"))
      assert.equal(1, result.code)
      assert.matches("script.lua:2", result.stderr)
      assert.equal(125, cli("run", "/no/such/file.lua").code)
    end)
  end)

  it("says in words that there is no such process to attach to", function()
    local result = cli("attach", box.name, "nothing")
    assert.equal(125, result.code)
    assert.matches("no such process in " .. box.name .. ": nothing", result.stderr, 1, true)
  end)

  it("looks at the words before it builds an image for them", function()
    for _, words in ipairs({ { "create", "not a name" }, { "create", "x", "--cpu", "nan" }, { "open", "x", "--pids", "1.5" } }) do
      local result = cli(unpack(words))
      assert.equal(125, result.code)
      assert.matches("EINVAL", result.stderr)
      assert.is_nil(result.stderr:find("building the default image", 1, true))
    end
  end)

  it("opens a sandbox that is there without its image", function()
    local result = cli("open", box.name)
    assert.equal(0, result.code, result.stderr)
    assert.is_nil(result.stderr:find("building the default image", 1, true))
  end)

  it("attaches to a process without a terminal, and leaves it running", function()
    cli("start", box.name, "--name", "echo", "-i", "--", "cat")
    local out = support.scratch() .. "/out"
    local result = sh(("(echo hello; sleep 0.3) | $tp attach $box echo >%s & p=$!; until grep -q hello %s; do sleep 0.1; done; kill -INT $p; wait $p")
      :format(out, out))
    assert.equal("", result.stdout)
    assert.equal("running", box:process("echo"):info().status)
    cli("kill", box.name, "echo")
  end)

  it("runs one server a state directory", function()
    support.shared():pid()
    local result = cli("serve")
    assert.equal(require("tidepool.client").ALREADY, result.code)
    assert.matches("EALREADY", result.stderr)
    assert.is_nil(async.running() or nil)
  end)
end)

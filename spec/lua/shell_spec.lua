-- A person at a terminal, through tmux: what is typed and what the screen shows.
local paths = require("tidepool.paths")
local support = require("spec.support")

describe("shell, attach and exec -it in a real terminal", function()
  local box, socket

  local function tmux(...)
    return support.run({ "tmux", "-L", socket, ... })
  end

  setup(function()
    support.needs_root()
    box = support.sandbox()
    socket = "tidepool-" .. support.unique()
    assert.equal(0, tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", "env PS1='HOST> ' sh").code)
  end)

  teardown(function()
    if socket then
      tmux("kill-server")
    end
  end)

  local function screen(pane)
    return tmux("capture-pane", "-p", "-J", "-t", pane or "0").stdout
  end

  local function see(pattern, pane)
    local last
    local found = support.eventually(function()
      last = screen(pane)
      return last:find(pattern) ~= nil
    end)
    assert(found, ("no %q on the screen:\n%s"):format(pattern, last))
  end

  local function keys(...)
    assert.equal(0, tmux("send-keys", "-t", "0", ...).code)
  end

  -- A line typed at our own shell, on a clean screen.
  local function host(line)
    keys("clear", "Enter")
    see("^HOST> *\n")
    keys("-l", line)
    keys("Enter")
  end

  local function cli(line)
    host(paths.launcher() .. " " .. line)
  end

  it("gives the size, passes changes on, and the exit code at the end", function()
    cli("shell " .. box.name)
    see("[$#] *\n+$")
    keys("stty size", "Enter")
    see("\n30 100\n")
    tmux("resize-window", "-x", "90", "-y", "25")
    keys("stty size", "Enter")
    see("\n25 90\n")
    tmux("resize-window", "-x", "100", "-y", "30")
    keys("exit 7", "Enter")
    see("HOST> *\n")
    keys("echo status=$?", "Enter")
    see("status=7\n")
  end)

  it("has Ctrl-C, job control and colours", function()
    cli("shell " .. box.name)
    see("[$#] *\n+$")
    keys("sleep 1000", "Enter")
    assert(support.eventually(function()
      return box:exec("pgrep -x sleep || ps | grep '[s]leep 1000'").exit_code == 0
    end))
    keys("C-c")
    keys("echo status=$?", "Enter")
    see("status=130\n")
    keys("sleep 1000 & jobs; kill %1; echo done", "Enter")
    see("sleep 1000")
    see("done\n")
    keys("-l", "printf '\\033[31mred\\033[0m\\n'")
    keys("Enter")
    see("\nred\n")
    assert.matches("\27%[31mred", tmux("capture-pane", "-p", "-e", "-t", "0").stdout)
    keys("exit", "Enter")
    see("HOST> *\n")
  end)

  it("is left with ctrl-p ctrl-q and found again with its screen, by several at once", function()
    cli("shell " .. box.name)
    see("[$#] *\n+$")
    keys("answer=42; echo before", "Enter")
    see("\nbefore\n")
    keys("C-p", "C-q")
    see("detached; it goes on. Come back with: ./sandbox.lua attach " .. box.name:gsub("%-", "%%-") .. " shell")
    host("stty -a | grep -o -- '-*icanon'")
    see("\nicanon\n")

    cli("attach " .. box.name .. " shell")
    see("\nbefore\n")
    keys("echo answer=$answer", "Enter")
    see("\nanswer=42\n")

    tmux("split-window", "-t", "0", paths.launcher() .. " attach " .. box.name .. " shell")
    see("answer=42", "1")
    keys("echo for-both", "Enter")
    see("\nfor%-both\n", "0")
    see("\nfor%-both\n", "1")
    keys("exit", "Enter")
    see("HOST> *\n")
  end)

  it("goes on when the server is killed", function()
    cli("shell " .. box.name)
    see("[$#] *\n+$")
    support.shared():kill()
    keys("echo still-here", "Enter")
    see("\nstill%-here\n")
    keys("exit 3", "Enter")
    see("HOST> *\n")
    keys("echo status=$?", "Enter")
    see("status=3\n")
  end)

  it("gives the terminal back when we are ended by a signal", function()
    cli("shell " .. box.name)
    see("[$#] *\n+$")
    support.run({ "sh", "-c", "kill -TERM $(pgrep -f 'luajit.*shell " .. box.name .. "')" })
    see("HOST> *\n")
    host("stty -a | grep -o -- '-*icanon'")
    see("\nicanon\n")
  end)

  it("runs one command in a terminal with exec -it", function()
    cli("exec -it " .. box.name .. " -- sh -c 'tty; read line; echo got $line; exit 9'; echo status=$?")
    see("/dev/pts/")
    keys("hello", "Enter")
    see("got hello\n")
    see("status=9\n")
  end)

  it("says that it needs a terminal when it has none", function()
    local result = support.cli({ "shell", box.name })
    assert.equal(125, result.code)
    assert.matches("ENOTTY", result.stderr)
  end)
end)

-- A terminal: what a person types and sees, typed and seen by a script.
--
--   sudo ./sandbox.lua run examples/02_terminal.lua
--
-- `./sandbox.lua shell NAME` is the same for a person. Here a script drives it: a size and its
-- change, Ctrl-C, jobs, a full-screen program, leaving and coming back, and the exit code.
local sandbox = require "sandbox"

local box = assert(sandbox.open("terminal-tour", { image = "debian", labels = { example = "02" } }))

-- A terminal is a process like any other, with a name to come back to.
local terminal = assert(box:terminal {
  name = "tour",
  cols = 80,
  rows = 24,
  command = { "bash", "--norc", "--noprofile", "-i" },
  env = { PS1 = "ready> " },
})

local steps = 0
local function check(about, ...)
  assert(...)
  steps = steps + 1
  print(("%d. %s"):format(steps, about))
end

-- Types a line and waits for what it brings, then for the next prompt.
local function type_line(line, expected)
  assert(terminal:write(line .. "\n"))
  if not terminal:expect(expected) then
    return nil, ("no %q after %q"):format(expected, line)
  end
  return terminal:expect "ready> "
end

assert(terminal:expect "ready> ")
check("it is a real terminal", type_line("test -t 0 && tty", "/dev/pts/%d+"))
check("it has the size that we asked for", type_line("stty size", "24 80"))

assert(terminal:resize(120, 40))
check("a resize reaches the shell", type_line("stty size", "40 120"))

-- Ctrl-C is a byte that the terminal turns into a signal for whatever runs in the foreground.
assert(terminal:write "sleep 1000\n")
sandbox.sleep(0.3)
assert(terminal:write "\3")
check("Ctrl-C ends what runs in the foreground", terminal:expect "ready> ")
check("and its status says so", type_line("echo status=$?", "status=130"))

check("jobs go to the background", type_line("sleep 1000 &", "%[1%] %d+"))
check("and are listed and ended", type_line("kill %1; wait; jobs; echo none left", "none left"))

check("colours arrive as they are", type_line("printf '\\033[32mgreen\\033[0m\\n'", "\27%[32mgreen\27%[0m"))

-- A full-screen program draws, we quit it, and the shell is there again.
assert(terminal:write "seq 1 1000 | less\n")
check("a full-screen program draws a page", terminal:expect "39")
assert(terminal:write "q")
check("and gives the terminal back", terminal:expect "ready> ")

-- Leaving is only closing our side. The shell and all its state stay; whoever comes back sees the
-- recent output first. Several may look at the same time.
assert(type_line("answer=42", ""))
terminal:detach()
local again = box:process "tour"
assert(again:attach { input = true, offset = 0 })
check("coming back shows what was there", again:expect "answer=42")
terminal = again
check("and the shell still knows what it knew", type_line("echo the answer is $answer", "the answer is 42"))

assert(terminal:write "exit 7\n")
local outcome = assert(terminal:wait(10))
check("the exit code arrives", outcome.exit_code == 7, "exit code " .. tostring(outcome.exit_code))

assert(box:destroy())
print(("terminal: all %d steps worked"):format(steps))

-- A notebook-like Python process with 200 MB of variables goes to disk, outlives our server there, wakes
-- where it was, and forks into eight that each compute something else.
--
--   sudo ./sandbox.lua run examples/07_hibernate.lua
local uv = require "luv"
local sandbox = require "sandbox"

assert(sandbox.memory.install(print)) -- CRIU, once; `./sandbox.lua memory install` does the same
local box = assert(sandbox.open("hibernate-tour", { image = "debian", type = "standard-1", labels = { example = "07" } }))

-- Runs each line that it reads and keeps its variables, as a notebook's kernel does.
local KERNEL = [[
import os, random, sys
variables = {"os": os, "random": random}
for line in sys.stdin:
    exec(line, variables)
    print("done", flush=True)
]]
local python = assert(box:start({ "python3", "-uc", KERNEL }, { name = "python", stdin = true }))
assert(python:attach { input = true })

local function run(line)
  assert(python:write(line .. "\n"))
  return (assert(python:expect("done\n", { timeout = 60 })):gsub("done\n$", ""))
end

local function milliseconds(fn, ...)
  local began = uv.hrtime()
  local result = assert(fn(...))
  return (uv.hrtime() - began) / 1e6, result
end

run "random.seed(42); data = [random.randbytes(1 << 20) for _ in range(200)]; counter = 1"
local digest = run "import zlib; digest = lambda: zlib.crc32(b''.join(data)); print(digest())"
local pid = assert(python:info()).pid
print("1. Python holds 200 MB")

local took, dump = milliseconds(box.hibernate, box)
assert(box:info().state == "hibernated")
print(("2. asleep after %d ms, %d MB on disk, no memory in use"):format(took, dump.bytes / 1e6))

-- Asleep it needs no server either: this one dies, and the next one finds the sandbox as it was.
local old = assert(sandbox.info()).pid
assert(uv.kill(old, "sigkill"))
assert(assert(sandbox.info()).pid ~= old, "that was the same server")
assert(box:info().state == "hibernated")
print("3. the server was killed, and another one has taken over")

-- Any call would wake it.
took = milliseconds(box.wake, box)
assert(python:attach { input = true, offset = -1 })
assert(assert(python:info()).pid == pid, "it is another process")
assert(run "print(digest())":match("%d+") == digest:match("%d+"), "its variables are others")
assert(run "counter += 1; print(counter)":match("2\n$"))
print(("4. awake after %d ms: the same process, the same variables"):format(took))

-- An interpreter forks itself faster than a machine could, and shares what neither writes to.
run("branch = lambda i, read, write: (os.fork() or (data.__setitem__(0, bytes([i]) * 100), "
  .. "os.write(write, b'%d ' % (sum(data[0]) + counter)), os._exit(0))) and os.wait() and os.read(read, 100).decode()")
local results = run "print(*[branch(i, *os.pipe()) for i in range(1, 9)])"
local seen, count = {}, 0
for number in results:gmatch("%d+") do
  assert(not seen[number], "two branches have computed the same")
  seen[number], count = true, count + 1
end
assert(count == 8, results)
assert(run "print(digest())":match("%d+") == digest:match("%d+"), "a branch has changed its parent")
print("5. eight branches of it computed " .. results:match("^%s*(.-)%s*$"))

assert(box:destroy())
print("hibernate: the variables outlived the server, and eight branches went on from them")

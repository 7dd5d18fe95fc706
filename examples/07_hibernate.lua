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

-- Eight sandboxes in which the same process goes on, each with the 200 MB, and a number of its own to work with.
local outcomes
took, outcomes = milliseconds(box.fork, box, 8, { memory = true }, function(branch, i)
  local there = branch:process("python")
  assert(there:attach { input = true, offset = -1 })
  assert(there:write(("data[0] = bytes([%d]) * 100; print(digest(), sum(data[0]) + counter)\n"):format(i)))
  return assert(there:expect("done\n", { timeout = 60 }):match("%d+ %d+"))
end)
local seen, results = {}, {}
for i, outcome in ipairs(outcomes) do
  assert(outcome.ok, outcome.error)
  local hash, number = outcome.result:match("(%d+) (%d+)")
  assert(not seen[hash] and hash ~= digest:match("%d+"), "two branches have computed the same")
  seen[hash], results[i] = true, number
  assert(outcome.branch:destroy())
end
assert(results[8] == "802", results[8])
assert(run "print(digest())":match("%d+") == digest:match("%d+"), "a branch has changed its parent")
print(("5. eight branches went on from it within %d ms, and computed %s"):format(took, table.concat(results, " ")))

assert(box:destroy())
print("hibernate: the variables outlived the server, and eight branches went on from them")

-- Work that goes on: a server in the background, its port, its log, and a crash of ours that it
-- does not notice.
--
--   sudo ./sandbox.lua run examples/03_background.lua
local uv = require "luv"
local sandbox = require "sandbox"

local box = assert(sandbox.open("background-tour", { image = "debian", labels = { example = "03" } }))
assert(box:write("/workspace/index.html", "hello from inside\n"))

-- start returns at once. The name is how anyone, from anywhere, gets at the process later:
--   ./sandbox.lua logs -f background-tour web
local web = assert(box:start({ "python3", "-u", "-m", "http.server", "8000" }, { name = "web" }))
assert(web:wait_port(8000, { timeout = 20 }))
print("1. the web server listens")

local function fetch()
  return assert(box:exec { "curl", "-sS", "http://127.0.0.1:8000/index.html" })
end
assert(fetch().stdout == "hello from inside\n")
assert(web:wait_log("GET /index.html", { plain = true, timeout = 10 }))
print("2. it serves, and its log says so")

local function describe()
  for _, process in ipairs(assert(box:ps())) do
    if process.name == "web" then
      return process
    end
  end
end
local pid, output = describe().pid, describe().output

-- Now kill Tidepool's own server, as a crash would. Processes belong to their sandbox's init, not to
-- the server: nothing inside notices. The next call starts a new server, which finds it all.
local old = assert(sandbox.info()).pid
assert(uv.kill(old, "sigkill"))
print(("3. killed Tidepool's server (pid %d) with SIGKILL"):format(old))

assert(fetch().stdout == "hello from inside\n")
local new = assert(sandbox.info()).pid
assert(new ~= old, "that was the same server")
assert(describe().pid == pid, "the web server is another one")
print(("4. a new server (pid %d) took over; the web server is the same process and still serves"):format(new))

-- The log has no gap: it lives with the process.
local lines = {}
for line in web:lines { since = 0, follow = true } do
  lines[#lines + 1] = line
  if #lines >= 3 then
    break
  end
end
assert(describe().output > output, "the log did not grow")
for _, line in ipairs(lines) do
  print("   log: " .. line)
end
print("5. its log goes on where it was")

-- kill ends the process and all that it started: TERM, some grace, KILL.
local ended = assert(web:kill())
print(("6. ended by signal %s after %.2f CPU seconds"):format(ended.signal or "none", ended.cpu_seconds or 0))

assert(box:destroy())
print("background: the process outlived the server")

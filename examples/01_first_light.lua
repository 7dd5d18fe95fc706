-- First light: a named sandbox does real work.
--
--   sudo ./sandbox.lua run examples/01_first_light.lua [PACKAGE]
--
-- It opens a sandbox, copies the upstream source of a Debian package in, builds it there, runs the
-- package's own test suite with live output, and says what that took.
local uv = require "luv"
local sandbox = require "sandbox"
local with_source = require "examples.source_package"

local package = arg and arg[1] or "bzip2"

local function say(format, ...)
  print(("\n==> " .. format):format(...))
  io.stdout:flush()
end

local function milliseconds()
  return uv.hrtime() / 1e6
end

-- A sandbox has a name. `open` makes it when it is absent and resumes it when it is there: run this
-- twice with the destroy below taken out, and the second run finds the first one's files.
say("Opening a sandbox")
local before = milliseconds()
local box = assert(sandbox.open("first-light", { image = "debian", type = "standard-3", labels = { example = "01" } }))
print(("%s: %s, after %.1f ms"):format(box.name, box.created and "made" or "resumed", milliseconds() - before))

-- The tarball is fetched on the host, because a sandbox has no network yet, and unpacked inside,
-- because a host should not unpack what it doesn't trust.
say("Fetching the source of %s with apt-get source", package)
with_source(package, function(line) print("  " .. line) end, function(path, name)
  assert(box:upload(path, "/workspace/" .. name))
  assert(box:exec { "sh", "-c", "rm -rf src; mkdir src && tar -xf " .. name .. " -C src --strip-components=1" })
end)
for _, entry in ipairs(assert(box:list "/workspace")) do
  print(("  %-40s %9d bytes"):format(entry.path, entry.size))
end

-- exec waits for the command. With on_output it shows what comes, when it comes. A timeout would
-- kill the whole process tree; a failure to start would be nil, message, code.
local cpu = 0
local function run(...)
  local command = { ... }
  say("%s", table.concat(command, " "))
  local result = assert(box:exec(command, {
    cwd = "/workspace/src",
    timeout = 600,
    on_output = function(_, bytes)
      io.write(bytes)
      io.stdout:flush()
    end,
  }))
  cpu = cpu + (result.cpu_seconds or 0)
  return result
end

if box:stat("/workspace/src/configure") then
  assert(run("./configure").exit_code == 0, "configure failed")
end
local built = run("make", "-j2")
local tested = built.exit_code == 0 and run("make", package == "bzip2" and "test" or "check")

-- What it took, as the kernel counted it.
local usage = assert(box:info()).usage
say("Result")
print(("CPU seconds   %.2f"):format(cpu))
print(("peak memory   %s"):format(usage.memory_peak and ("%.1f MiB"):format(usage.memory_peak / 2 ^ 20) or "not counted on this host"))
assert(box:destroy())

local passed = tested and tested.exit_code == 0
print(("first light: %s %s"):format(package, passed and "was built and passed its own tests" or "FAILED"))
os.exit(passed and 0 or 1)

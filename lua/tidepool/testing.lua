--- `./sandbox.lua test`: everything that must hold, in one command.
--
-- A warnings-as-errors build, lint, C tests, the specs, each in a process of its own, and at the end
-- a look at what was left on the machine. Ends with the line `N passed, N failed, N skipped`.
-- Runs as root, since the specs start servers; it only ever touches directories that it made.
local uv = require("luv")
local async = require("tidepool.async")
local bootstrap = require("tidepool.bootstrap")
local paths = require("tidepool.paths")
local read_file = require("tidepool.file").read

local testing = {}

-- A test that builds an image takes a minute, and several on a machine that is busy with other things.
local FILE_LIMIT = 1200 -- seconds for one spec file
local SILENCE_LIMIT = 480 -- seconds without a word from it
local STORY = 100 -- lines of what failed that are told again at the end, for each program

local totals
local running -- the process group of the program that runs now
local interrupted = false

local function say(...)
  io.write(...)
  io.flush()
end

local function count(passed, failed, skipped)
  totals.passed = totals.passed + passed
  totals.failed = totals.failed + failed
  totals.skipped = totals.skipped + skipped
end

-- Notes what failed, to be told at the end: where a log is long, its beginning and its end are what is seen.
local function broken(name, story)
  totals.broken[#totals.broken + 1] = { name = name, story = story or "" }
end

local function verdict(name, ok, story)
  count(ok and 1 or 0, ok and 0 or 1, 0)
  say(ok and "  ok   " or "  FAIL ", name, "\n")
  if not ok then
    story = story and story:find("%S") and "      " .. story:gsub("%s+$", ""):gsub("\n", "\n      ") .. "\n" or ""
    say(story)
    broken(name, story)
  end
end

local function skipped(name, reason)
  count(0, 0, 1)
  say("  skip ", name, ": ", reason, "\n")
end

local function on_path(program)
  for directory in (os.getenv("PATH") or ""):gmatch("[^:]+") do
    if uv.fs_access(directory .. "/" .. program, "X") then
      return directory .. "/" .. program
    end
  end
end

local function names_in(directory)
  local names, scan = {}, uv.fs_scandir(directory)
  while scan do
    local name, kind = uv.fs_scandir_next(scan)
    if not name then
      break
    end
    names[#names + 1] = { name = name, directory = kind == "directory" }
  end
  table.sort(names, function(a, b)
    return a.name < b.name
  end)
  return names
end

-- Programs ---------------------------------------------------------------------------------------

-- Runs a program in a session of its own, at most `limit` seconds, and at most `silence` without
-- output. That is shown as it comes, unless options.quiet.
-- Returns its exit status (or "timeout", or "signal N") and the output.
local function run(argv, options)
  local args = { unpack(argv, 2) }
  local parts, finished = {}, async.event()
  local ends = assert(uv.pipe({ nonblock = true }, {}))
  local pipe = uv.new_pipe(false)
  pipe:open(ends.read)
  local reading = async.event()
  local handle, pid
  handle, pid = uv.spawn(argv[1], {
    args = args,
    env = options.env,
    cwd = paths.repo(),
    stdio = { nil, ends.write, ends.write },
    detached = true, -- a process group, so that a timeout reaches what it started
  }, async.guarded(function(code, signal)
    handle:close()
    finished:set(signal ~= 0 and ("signal " .. signal) or code)
  end))
  uv.fs_close(ends.write)
  running = handle and pid
  if not handle then
    pipe:close()
    return tostring(pid), ""
  end
  local heard = uv.hrtime()
  pipe:read_start(async.guarded(function(err, bytes)
    heard = uv.hrtime()
    if err or not bytes then
      return reading:set(true)
    end
    parts[#parts + 1] = bytes
    if not options.quiet then
      say(bytes)
    end
  end))
  local status
  local deadline = uv.hrtime() + (options.limit or FILE_LIMIT) * 1e9
  repeat
    status = finished:wait(1)
  until status or uv.hrtime() > deadline or uv.hrtime() - heard > (options.silence or SILENCE_LIMIT) * 1e9
  if status == nil then
    uv.kill(-pid, "sigkill")
    finished:wait()
    status = "timeout"
  end
  running = nil
  -- A daemon that the program left behind may hold the pipe for ever.
  reading:wait(1)
  uv.kill(-pid, "sigkill")
  pipe:close()
  return status, table.concat(parts)
end

-- The environment of every program: ours, and what names the build and the directories of this run.
local function environment(extra)
  local values = uv.os_environ()
  local repo, build = paths.repo(), paths.build()
  values.LUA_PATH = repo .. "/lua/?.lua;" .. repo .. "/lua/?/init.lua;" .. repo .. "/?.lua;"
    .. repo .. "/?/init.lua;;"
  values.LUA_CPATH = build .. "/?.so;;"
  values.TIDEPOOL_BUILD = build
  for name, value in pairs(extra or {}) do
    values[name] = value
  end
  local list = {}
  for name, value in pairs(values) do
    list[#list + 1] = name .. "=" .. value
  end
  return list
end

-- Steps ------------------------------------------------------------------------------------------

local function build_strictly()
  local directory = paths.build() .. "/werror"
  local phase = bootstrap.phase(1, 1, "building with warnings as errors")
  local ok, story = bootstrap.compile(directory, { "-DTIDEPOOL_WERROR=ON" }, phase, "werror")
  if ok then
    phase:finish("done")
  end
  verdict("builds without a warning", ok, story)
  return ok and directory
end

local function lint()
  local argv = { "luacheck", "--quiet", "--no-color", "--codes" }
  for _, name in ipairs { "lua", "spec", "policies", "examples", "sandbox.lua" } do
    if uv.fs_stat(paths.repo() .. "/" .. name) then
      argv[#argv + 1] = name
    end
  end
  local status, story = run(argv, { quiet = true })
  verdict("luacheck has no complaint", status == 0, story)
end

local function c_tests(build)
  if not build or not uv.fs_stat(build .. "/CTestTestfile.cmake") then
    return
  end
  local status, story = run({ "ctest", "--test-dir", build, "--output-on-failure" }, { quiet = true })
  local failed, of = story:match("(%d+) tests? failed out of (%d+)")
  if of then
    count(tonumber(of) - tonumber(failed), tonumber(failed), 0)
    say("  ", status == 0 and "ok   " or "FAIL ", "C tests, ", of, "\n")
    if status ~= 0 then
      say(story)
      broken("C tests", story)
    end
  end
end

-- Replays each target's corpus once. A finding stays found, wherever libFuzzer can be built.
local function replay_corpora()
  if not uv.fs_stat(paths.repo() .. "/core/fuzz") then
    return
  end
  if not on_path("clang") then
    return skipped("fuzz corpora", "needs clang and its libFuzzer")
  end
  local directory = paths.build() .. "/fuzz"
  local phase = bootstrap.phase(1, 1, "building the fuzz targets")
  local ok, story = bootstrap.compile(directory, { "-DTIDEPOOL_FUZZ=ON" }, phase, "fuzz", "fuzz")
  if not ok then
    phase:finish("failed")
    if (read_file(paths.build() .. "/fuzz.log") or ""):find("clang_rt.fuzzer", 1, true) then
      return skipped("fuzz corpora", "clang is here without libFuzzer (libclang-rt-dev)")
    end
    return verdict("the fuzz targets build", false, story)
  end
  phase:finish("done")
  for _, entry in ipairs(names_in(paths.repo() .. "/core/fuzz/corpus")) do
    local status, output = run({ directory .. "/fuzz/" .. entry.name, "-runs=0",
      paths.repo() .. "/core/fuzz/corpus/" .. entry.name }, { quiet = true, limit = 120 })
    verdict("fuzz corpus " .. entry.name, status == 0, output)
  end
end

local function spec_files()
  local files = {}
  local function walk(directory)
    for _, entry in ipairs(names_in(paths.repo() .. "/" .. directory)) do
      local path = directory .. "/" .. entry.name
      if entry.directory then
        walk(path)
      elseif entry.name:match("_spec%.lua$") then
        files[#files + 1] = path
      end
    end
  end
  walk("spec")
  return files
end

-- PATTERN names files; one that names none is a filter of the sentences in all of them.
local function choose(files, pattern)
  if not pattern then
    return files
  end
  local chosen = {}
  for _, file in ipairs(files) do
    if file:find(pattern, 1, true) then
      chosen[#chosen + 1] = file
    end
  end
  if #chosen > 0 then
    return chosen
  end
  return files, pattern
end

-- Of what a spec file has printed: each failure with its story, and the end of it all when it broke off.
local function failures(output, broke_off)
  local told, failing, last = {}, false, {}
  for line in output:gmatch("[^\n]+") do
    failing = line:find("^  FAIL") ~= nil or failing and line:find("^      ") ~= nil
    if failing and #told < STORY then
      told[#told + 1] = line
    end
    last[#last + 1] = line
  end
  if broke_off then
    told[#told + 1] = table.concat(last, "\n", math.max(1, #last - 20))
  end
  return table.concat(told, "\n") .. "\n"
end

local function run_spec(file, filter, root)
  say(file, "\n")
  local counts = root .. "/counts"
  os.remove(counts)
  -- busted's own script, read by LuaJIT: its --lua option would put a shell in between.
  local argv = { "luajit", on_path("busted") or "/usr/bin/busted", "--ignore-lua",
    "--cpath=" .. paths.build() .. "/?.so" }
  if filter then
    argv[#argv + 1] = "--filter=" .. filter
  end
  argv[#argv + 1] = file
  local began = uv.hrtime()
  local status, output = run(argv, {
    env = environment({
      TIDEPOOL_STATE = paths.build() .. "/test-state",
      TIDEPOOL_RUN = root .. "/run",
      TIDEPOOL_TEST_ROOT = root,
      TIDEPOOL_TEST_COUNTS = counts,
    }),
  })
  totals.times[#totals.times + 1] = { file = file, seconds = (uv.hrtime() - began) / 1e9 }
  local passed, failed, pending = (read_file(counts) or ""):match("^(%d+) (%d+) (%d+)")
  count(tonumber(passed) or 0, tonumber(failed) or 0, tonumber(pending) or 0)
  local broke_off = not passed or (status ~= 0 and tonumber(failed) == 0)
  if broke_off then
    count(0, 1, 0)
    local line = ("  FAIL %s: ended with %s before its last test did\n"):format(file, tostring(status))
    say(line)
    output = output .. line
  end
  if status ~= 0 then
    broken(file, failures(output, broke_off))
  end
end

-- The images of the last run are good for this one, as long as what makes them is the same.
local function image_signature()
  local lines = {}
  for _, directory in ipairs { "/lua/tidepool/image", "/core/archive" } do
    for _, entry in ipairs(names_in(paths.repo() .. directory)) do
      lines[#lines + 1] = read_file(paths.repo() .. directory .. "/" .. entry.name) or ""
    end
  end
  return table.concat(lines, "\n")
end

local function prepare_state()
  local state, stamp = paths.build() .. "/test-state", paths.build() .. "/test-state.stamp"
  local signature = image_signature()
  if read_file(stamp) ~= signature then
    run({ "rm", "-rf", "--one-file-system", state }, { quiet = true })
    local file = assert(io.open(stamp, "wb"))
    file:write(signature)
    file:close()
  end
end

local function support(name, root)
  return run({ "luajit", paths.repo() .. "/spec/support/" .. name .. ".lua" }, {
    quiet = true,
    env = environment({
      TIDEPOOL_STATE = paths.build() .. "/test-state",
      TIDEPOOL_RUN = root .. "/run",
      TIDEPOOL_TEST_ROOT = root,
    }),
  })
end

-- Ends what an earlier run, killed, has left.
local function beginning(root)
  local status, story = support("beginning", root)
  say(story)
  if status ~= 0 then
    verdict("what an earlier run has left can be ended", false, story)
  end
end

-- Ends the shared server and looks at what it, or a spec's own, left on the machine.
local function ending(root)
  local status, story = support("ending", root)
  verdict("nothing is left on the machine", status == 0, story)
end

local function usage()
  io.write([[
Usage: ./sandbox.lua test [PATTERN]

Builds with warnings as errors, lints, runs the C tests and the specs. PATTERN chooses the spec files
whose path contains it, or, when there are none, the tests whose sentence matches it.
]])
  return 0
end

--- `./sandbox.lua test [PATTERN]`. Returns the exit status: 0 when nothing failed.
function testing.main(args)
  local pattern
  for _, word in ipairs(args) do
    if word == "--help" or word == "-h" then
      return usage()
    elseif word:sub(1, 1) == "-" or pattern then
      io.stderr:write("tidepool: test: unknown option: ", word, " (EINVAL)\n")
      return 125
    end
    pattern = word
  end
  totals = { passed = 0, failed = 0, skipped = 0, broken = {}, times = {} }
  local began = os.time()
  -- Interrupted, it still ends what the specs started.
  for _, name in ipairs { "sigint", "sigterm" } do
    local signal = uv.new_signal()
    signal:start(name, async.guarded(function()
      interrupted = true
      if running then
        uv.kill(-running, "sigkill")
      end
    end))
    signal:unref()
  end
  async.run(function()
    if not pattern then
      say("the sources\n")
      local strict = build_strictly()
      lint()
      c_tests(strict)
      replay_corpora()
    end
    local root = assert(uv.fs_mkdtemp("/var/tmp/tidepool-test-XXXXXX"))
    beginning(root)
    prepare_state()
    local files, filter = choose(spec_files(), pattern)
    for _, file in ipairs(files) do
      if not interrupted then
        run_spec(file, filter, root)
      end
    end
    ending(root)
    run({ "rm", "-rf", "--one-file-system", root }, { quiet = true })
  end)
  table.sort(totals.times, function(a, b)
    return a.seconds > b.seconds
  end)
  local slow = {}
  for i = 1, math.min(3, #totals.times) do
    slow[i] = string.format("%s %.0f s", totals.times[i].file, totals.times[i].seconds)
  end
  say("\n", tostring(os.time() - began), " s", #slow > 0 and "; slowest: " or "", table.concat(slow, ", "), "\n")
  if interrupted then
    count(0, 1, 0)
    broken("interrupted")
  end
  for _, one in ipairs(totals.broken) do
    say("failed: ", one.name, "\n", one.story)
  end
  say(string.format("%d passed, %d failed, %d skipped\n", totals.passed, totals.failed, totals.skipped))
  return totals.failed == 0 and 0 or 1
end

return testing

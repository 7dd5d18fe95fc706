--- `./sandbox.lua bench`: how fast, side by side with bwrap, crun, runc and podman, in one run; and the
-- egress process beside no proxy and mitmproxy.
--
-- The measurements are in spec/bench, one file each; this is what they share: sampling that takes
-- turns, so that a busy moment of the machine hits all alike, statistics, and the report. Runs as
-- root in the client's process, with a server and directories of its own. Never fails on a time.
local uv = require("luv")
local async = require("tidepool.async")
local bootstrap = require("tidepool.bootstrap")
local paths = require("tidepool.paths")

local bench = {}

-- In the order in which they run; spec/bench/FILE.lua returns one or a list of them.
local FILES = { "create", "exec", "output", "files", "idle", "egress", "snapshot", "sleep", "archive", "story" }
local NAMES = {
  create_first_exit = "create", exec_true = "exec", output_20mb = "output",
  file_write = "files", file_read = "files", idle_memory = "idle", create_rate = "idle",
  egress_connect = "egress", egress_added_1 = "egress", egress_latency_1 = "egress", egress_latency_64 = "egress",
  egress_latency_512 = "egress", egress_requests_1 = "egress", egress_requests_64 = "egress",
  egress_requests_512 = "egress", egress_throughput_core = "egress", egress_throughput = "egress",
  egress_connection_idle = "egress", egress_connection_busy = "egress", egress_attach_100 = "egress",
  egress_latency_1_of_100 = "egress", egress = "egress",
  snapshot_pause_small = "snapshot", snapshot_total_small = "snapshot", restore_first_exec_small = "snapshot",
  fork_1_small = "snapshot", fork_8_small = "snapshot", fork_100_small = "snapshot", snapshot_pause_big = "snapshot",
  snapshot_total_big = "snapshot", restore_first_exec_big = "snapshot", fork_1_big = "snapshot", fork_8_big = "snapshot",
  fork_100_big = "snapshot", snapshot = "snapshot", freeze = "sleep", wake = "sleep", thaw_first_exec = "sleep", sleep = "sleep",
  export_rate = "archive", import_rate = "archive", archive = "archive",
  story_restore = "story", story_ratio = "story", story = "story",
}

local PEERS = { "bwrap", "crun", "runc", "podman" }
local EGRESS = { "mitmproxy", "wrk", "nginx" } -- what the measurements of the egress process need besides
local PROGRAMS = { mitmproxy = "mitmdump" }
local PROGRAM_LIMIT = 30 -- seconds for one run of a peer's program
local PEER_BUDGET = 20 -- seconds for all runs of a peer in one measurement

-- Statistics -------------------------------------------------------------------------------------

--- Median and 99th percentile (nearest rank) of a list of numbers; `worst` "low" for rates, where
-- the bad end is the small one.
function bench.statistics(samples, worst)
  local sorted = { unpack(samples) }
  table.sort(sorted)
  local n = #sorted
  if n == 0 then
    return nil
  end
  local middle = n % 2 == 1 and sorted[(n + 1) / 2] or (sorted[n / 2] + sorted[n / 2 + 1]) / 2
  local rank = worst == "low" and math.floor(n * 0.01) + 1 or math.ceil(n * 0.99)
  return { median = middle, p99 = sorted[math.min(n, math.max(1, rank))], n = n }
end

-- Programs ---------------------------------------------------------------------------------------

--- Runs a program, at most `limit` seconds (30). options: stdin (bytes), `keep` (return its output;
-- else only its size), cwd. Returns milliseconds from before the start to the end of both process
-- and output, and the output or its size | nil, message.
function bench.program(argv, options)
  options = options or {}
  local stdout, stdin = uv.new_pipe(false), options.stdin and uv.new_pipe(false) or nil
  local parts, size, exited, ended = {}, 0, async.event(), async.event()
  local errors = assert(uv.fs_open(bench.directory .. "/stderr", "w+", 384))
  local began = uv.hrtime()
  local handle, pid
  handle, pid = uv.spawn(argv[1], {
    args = { unpack(argv, 2) },
    stdio = { stdin, stdout, errors },
    cwd = options.cwd,
    detached = true,
  }, async.guarded(function(code, signal)
    handle:close()
    exited:set(signal ~= 0 and ("signal " .. signal) or code)
  end))
  local function finish(...)
    stdout:close()
    if stdin then
      stdin:close()
    end
    uv.fs_close(errors)
    return ...
  end
  if not handle then
    return finish(nil, argv[1] .. ": " .. tostring(pid))
  end
  stdout:read_start(async.guarded(function(err, bytes)
    if err or not bytes then
      ended:set(true)
      return
    end
    size = size + #bytes
    if options.keep then
      parts[#parts + 1] = bytes
    end
  end))
  if stdin then
    stdin:write(options.stdin)
    stdin:shutdown()
  end
  local status = exited:wait(options.limit or PROGRAM_LIMIT)
  if status == nil then
    uv.kill(-pid, "sigkill")
    exited:wait()
    return finish(nil, table.concat(argv, " ") .. ": killed after its time limit")
  end
  ended:wait(1) -- whoever was left behind may hold the pipe
  local took = (uv.hrtime() - began) / 1e6
  if status ~= 0 then
    local story = uv.fs_read(errors, 2000, 0) or ""
    return finish(nil, ("%s: ended with %s: %s"):format(table.concat(argv, " "), status, (story:gsub("%s+$", ""))))
  end
  return finish(took, options.keep and table.concat(parts) or size)
end

--- Milliseconds that fn takes; raises its failure (nil, message).
function bench.time(fn)
  local began = uv.hrtime()
  local ok, message = fn()
  local took = (uv.hrtime() - began) / 1e6
  if ok == nil then
    error(message, 0)
  end
  return took
end

-- Sampling ---------------------------------------------------------------------------------------

local function note(...)
  io.stderr:write(string.format(...), "\n")
end

-- One measurement: { name, unit, goal, rounds, burst, ours = fn, peers = { NAME = fn } }. Each fn
-- takes one sample and returns it (or raises). A round is `burst` samples of ours and one of each
-- peer; a peer that fails or has spent its budget is left out of the later ones. With `after`, they
-- don't take turns: each has all its rounds, then after(NAME, or nil for ours) is called.
-- One that samples by itself has `measure`, which returns { ours, peers } of statistics.
local function sample(measurement, peers)
  if measurement.measure then
    local ok, taken = pcall(measurement.measure)
    if not ok then
      note("  %s is left out: %s", measurement.name, tostring(taken))
      return nil
    end
    return {
      name = measurement.name, unit = measurement.unit, goal = measurement.goal, worst = measurement.worst,
      n = taken.ours.n, ours = taken.ours, peers = taken.peers,
    }
  end
  local ours, theirs, out, extra, spent = {}, {}, {}, {}, {}
  for name in pairs(measurement.peers) do
    if peers[name] then
      theirs[name] = {}
    end
  end

  local function sample_ours()
    for _ = 1, measurement.burst do
      local value, also = measurement.ours()
      ours[#ours + 1] = value
      extra[#extra + 1] = also
    end
  end

  local function sample_peer(name)
    if not theirs[name] or out[name] or (spent[name] or 0) > PEER_BUDGET then
      return
    end
    local began = uv.hrtime()
    local ok, value = pcall(measurement.peers[name])
    spent[name] = (spent[name] or 0) + (uv.hrtime() - began) / 1e9
    if ok then
      table.insert(theirs[name], value)
    else
      out[name] = true
      note("  %s: %s is left out: %s", measurement.name, name, tostring(value))
    end
  end

  if measurement.after then
    for _ = 1, measurement.rounds do
      sample_ours()
    end
    measurement.after(nil)
    for _, name in ipairs(PEERS) do
      for _ = 1, measurement.rounds do
        sample_peer(name)
      end
      if theirs[name] then
        measurement.after(name)
      end
    end
  else
    for _ = 1, measurement.rounds do
      sample_ours()
      for _, name in ipairs(PEERS) do
        sample_peer(name)
      end
    end
  end

  local result = {
    name = measurement.name,
    unit = measurement.unit,
    n = #ours,
    ours = bench.statistics(ours, measurement.worst),
    peers = {},
    goal = measurement.goal,
    worst = measurement.worst,
    with_destroy = bench.statistics(extra, measurement.worst),
  }
  for name, samples in pairs(theirs) do
    result.peers[name] = bench.statistics(samples, measurement.worst)
  end
  return result
end

-- The report -------------------------------------------------------------------------------------

local function figure(value)
  if value == nil then
    return "-"
  end
  return string.format(value >= 100 and "%.0f" or value >= 10 and "%.1f" or "%.2f", value)
end

-- How many times better ours is: what a peer needs over what we need, or for a rate the inverse.
local function ratio(result, peer)
  local ours = (result.with_destroy or result.ours).median
  if ours <= 0 or peer.median <= 0 then
    return "?" -- less than what can be told from the machine's noise
  end
  local factor = result.worst == "low" and ours / peer.median or peer.median / ours
  return string.format("%.1fx", factor)
end

local function met(result)
  if result.worst == "low" then
    return result.ours.median >= result.goal
  end
  return result.ours.median <= result.goal
end

-- A peer's figures: the median, the 99th percentile where the table shows it, how much better we are.
local function peer_cell(result, peer, with_p99)
  if not peer then
    return "-"
  end
  local p99 = with_p99 and peer.p99 ~= peer.median and ", " .. figure(peer.p99) or ""
  return string.format("%s%s (%s)", figure(peer.median), p99, ratio(result, peer))
end

-- The lines of a table with a column for each of `peers`.
local function render_table(results, peers)
  local rows = { { "", "unit", "n", "ours", "p99", "goal", "" } }
  for _, name in ipairs(peers) do
    table.insert(rows[1], name)
  end
  for _, result in ipairs(results) do
    local row = {
      result.name, result.unit, tostring(result.n), figure(result.ours.median), figure(result.ours.p99),
      result.goal and figure(result.goal) or "-", result.goal and (met(result) and "met" or "missed") or "",
    }
    for _, name in ipairs(peers) do
      row[#row + 1] = peer_cell(result, result.peers[name], peers ~= PEERS)
    end
    rows[#rows + 1] = row
    if result.with_destroy then
      rows[#rows + 1] = { "  and destroy", result.unit, tostring(result.with_destroy.n),
        figure(result.with_destroy.median), figure(result.with_destroy.p99), "-", "", "", "", "", "" }
    end
  end
  local widths = {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do
      widths[i] = math.max(widths[i] or 0, #cell)
    end
  end
  local lines = {}
  for _, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      cells[i] = (i <= 2 or i == 7) and cell .. (" "):rep(widths[i] - #cell) or (" "):rep(widths[i] - #cell) .. cell
    end
    lines[#lines + 1] = (table.concat(cells, "  "):gsub("%s+$", ""))
  end
  return lines
end

--- The results as tables for a terminal: those with the usual peers, then those with others.
function bench.render(results, missing)
  local parts, by_columns, egress, lines = { { {}, PEERS } }, {}, false, {}
  for _, result in ipairs(results) do
    local part = result.columns and by_columns[result.columns] or parts[1]
    if result.columns and part == parts[1] then
      part = { {}, result.columns }
      parts[#parts + 1], by_columns[result.columns] = part, part
    end
    table.insert(part[1], result)
    egress = egress or result.name:find("^egress") ~= nil
  end
  for _, part in ipairs(parts) do
    for _, line in ipairs(#part[1] > 0 and render_table(part[1], part[2]) or {}) do
      lines[#lines + 1] = line
    end
    lines[#lines + 1] = #part[1] > 0 and "" or nil
  end
  lines[#lines + 1] = "Medians; in brackets, how many times ours is better. The peers' create includes their destroy, and"
  lines[#lines + 1] = "is compared with ours and destroy. Peers run on the same root file system, as root, by their programs."
  if egress then
    lines[#lines + 1] = "Of the egress process: direct is TLS to the same server without a proxy, mitmproxy a reverse proxy with"
    lines[#lines + 1] = "TLS on both sides; behind a comma their 99th percentile. Client, proxy and server share the machine."
  end
  if #missing > 0 then
    lines[#lines + 1] = "Not installed: " .. table.concat(missing, ", ") .. " (bench --install-peers)."
  end
  return table.concat(lines, "\n") .. "\n"
end

local function as_json(results)
  local cjson = require("cjson").new()
  local list = {}
  for i, result in ipairs(results) do
    list[i] = {
      name = result.name, unit = result.unit, n = result.n, ours = result.ours,
      with_destroy = result.with_destroy, goal = result.goal or cjson.null,
      peers = next(result.peers) and result.peers or setmetatable({}, cjson.empty_object_mt),
    }
  end
  return cjson.encode(list) .. "\n"
end

-- Running ----------------------------------------------------------------------------------------

local function on_path(program)
  for directory in ((os.getenv("PATH") or "") .. ":/usr/sbin"):gmatch("[^:]+") do
    if uv.fs_access(directory .. "/" .. program, "X") then
      return directory .. "/" .. program
    end
  end
end

local function find_peers()
  local found, missing = {}, {}
  for _, list in ipairs({ PEERS, EGRESS }) do
    for _, name in ipairs(list) do
      found[name] = on_path(PROGRAMS[name] or name)
      if not found[name] then
        missing[#missing + 1] = name
      end
    end
  end
  return found, missing
end

-- A root file system for the peers: a copy of what the image's sandboxes start from, taken where
-- the server sees its pool.
local function copy_rootfs(image)
  local sandbox = require("sandbox")
  local pid = assert(sandbox.info()).pid
  local from = ("/proc/%d/root%s/pool/images/%s/root"):format(pid, paths.state(), image)
  local to = bench.directory .. "/rootfs"
  assert(bench.program({ "cp", "-a", from, to }, { limit = 300 }))
  return to
end

local function measure(options, found)
  local sandbox = require("sandbox")
  local image = options.image
  note("preparing: a server of its own, the image %s, a copy of it for the peers", image)
  assert(sandbox.image.build(image))
  local context = {
    sandbox = sandbox,
    -- As many CPUs as the machine has: the peers aren't limited, so neither are we.
    options = { image = image, type = "standard-4" },
    directory = bench.directory,
    rootfs = copy_rootfs(image),
    found = found,
    bench = bench,
  }
  context.peers = require("spec.bench.peers").new(context)
  local results = {}
  local ok, err = pcall(function()
    for _, file in ipairs(FILES) do
      if not options.only or NAMES[options.only] == file then
        local group = require("spec.bench." .. file)(context)
        for _, measurement in ipairs(group) do
          if not options.only or options.only == measurement.name or options.only == file then
            note("%s ...", measurement.name)
            local result = sample(measurement, found)
            if result then
              result.columns = group.peers
              results[#results + 1] = result
            end
          end
        end
        if group.close then
          group.close()
        end
      end
    end
  end)
  context.peers:close()
  if not ok then
    error(err, 0)
  end
  return results
end

local function close_server()
  local sandbox = require("sandbox")
  local ok, err = pcall(function()
    for _, info in ipairs(sandbox.ls() or {}) do
      sandbox.get(info.name):destroy()
    end
    sandbox.client():call("shutdown", {})
    sandbox.client():close()
  end)
  if not ok then
    note("while ending the server: %s", tostring(err))
  end
end

local function parse(args)
  local options, i = { image = "minimal" }, 1
  while i <= #args do
    local word = args[i]
    if word == "--json" then
      options.json = true
    elseif word == "--install-peers" then
      options.install = true
    elseif word == "--only" or word == "--image" then
      i = i + 1
      if not args[i] then
        return nil, word .. " needs a value"
      end
      options[word:sub(3)] = args[i]
    else
      return nil, "unknown option: " .. word
    end
    i = i + 1
  end
  if options.only and not NAMES[options.only] then
    local names = {}
    for name in pairs(NAMES) do
      names[#names + 1] = name
    end
    table.sort(names)
    return nil, ("unknown measurement: %s (one of %s)"):format(options.only, table.concat(names, ", "))
  end
  return options
end

--- `./sandbox.lua bench [--json] [--install-peers] [--only NAME]`. Returns the exit status.
function bench.main(args)
  local options, message = parse(args)
  if not options then
    io.stderr:write("tidepool: bench: ", message, " (EINVAL)\n")
    return 125
  end
  if options.install then
    local ok, why = bootstrap.ensure({ "image", "example", "bench" })
    if not ok then
      io.stderr:write("tidepool: ", why, "\n")
      return 125
    end
  end
  if uv.getuid() ~= 0 then
    io.stderr:write("tidepool: bench needs root (sudo): it starts a server and the peers (EPERM)\n")
    return 125
  end
  bench.directory = assert(uv.fs_mkdtemp("/var/tmp/tidepool-bench-XXXXXX"))
  uv.os_setenv("TIDEPOOL_STATE", bench.directory .. "/state")
  uv.os_setenv("TIDEPOOL_RUN", bench.directory .. "/run")
  local found, missing = find_peers()
  if #missing > 0 then
    note("not installed: %s (bench --install-peers installs them)", table.concat(missing, ", "))
  end
  local ok, results = xpcall(async.run, function(err)
    return type(err) == "string" and err or debug.traceback(tostring(err), 2)
  end, measure, options, found)
  close_server()
  async.run(bench.program, { "rm", "-rf", "--one-file-system", bench.directory .. "/rootfs",
    bench.directory .. "/podman" }, { limit = 120 })
  os.execute("rm -rf --one-file-system '" .. bench.directory .. "'")
  if not ok then
    io.stderr:write("tidepool: bench: ", tostring(results), "\n")
    return 125
  end
  io.write(options.json and as_json(results) or bench.render(results, missing))
  return 0
end

return bench

-- The egress process: what it adds to a connection and a request, how many bytes it moves, what a
-- connection and a hundred policies cost; beside no proxy at all and Debian's mitmproxy.
--
-- Latencies are of 1,000-byte answers over warm connections, by wrk at 1, 64 and 512 connections, in
-- closed loop: at 64 and 512 the machine is full, and they are the queue's. So the goal of 0.3 ms added
-- is for one connection. Bounded: about three minutes.
local scene = require("spec.bench.egress_scene")

local WAYS = { "direct", "mitmproxy" }
local SECONDS = { [1] = 3, [64] = 3, [512] = 6 } -- 512 handshakes take one

-- wrk's own report, in lines that are easy to read again; microseconds.
local REPORT = [[
done = function(summary, latency)
  io.write(("p50=%d p99=%d requests=%d duration=%d errors=%d\n"):format(latency:percentile(50),
    latency:percentile(99), summary.requests, summary.duration, summary.errors.connect + summary.errors.read
    + summary.errors.write + summary.errors.status + summary.errors.timeout))
end
]]

return function(context)
  local bench = context.bench
  if not (context.found.wrk and context.found.nginx) then
    io.stderr:write("the measurements of the egress process need wrk and nginx-light\n")
    return {}
  end
  local it = scene.new(context)
  local script = it.directory .. "/report.lua"
  require("spec.support.web").write(script, REPORT)

  -- One run of wrk: { p50, p99 } in ms, and requests a second.
  local function load(way, connections)
    local output = it:run(way, {
      "wrk", "-t", "1", "-c", tostring(connections), "-d", SECONDS[connections] .. "s", "--timeout", "10s", "-s", script,
      it:url(way, "small"),
    }, 60)
    local p50, p99, requests, duration, errors = output:match("p50=(%d+) p99=(%d+) requests=(%d+) duration=(%d+) errors=(%d+)")
    assert(tonumber(errors) == 0, ("%s, %d connections: %s errors"):format(way, connections, errors))
    return { p50 = p50 / 1000, p99 = p99 / 1000, rate = requests / duration * 1e6 }
  end

  -- Runs that several measurements read: those of one count of connections, taken once, in turns.
  local runs = {}
  local function runs_of(connections)
    if not runs[connections] then
      local taken = { ours = {}, direct = {}, mitmproxy = {} }
      for _ = 1, 3 do
        for way, list in pairs(taken) do
          if it.ports[way] then
            list[#list + 1] = load(way, connections)
          end
        end
      end
      runs[connections] = taken
    end
    return runs[connections]
  end

  local function medians(list, key, less)
    local values = {}
    for i, run in ipairs(list) do
      values[i] = run[key]
    end
    return #values > 0 and bench.statistics(values).median - (less or 0) or nil
  end

  -- The middle run's percentiles; with `base`, what is more than there.
  local function latency(list, base)
    local p50 = medians(list, "p50", base and medians(base, "p50"))
    return p50 and { median = p50, p99 = medians(list, "p99", base and medians(base, "p99")), n = #list }
  end

  local function rate(list)
    local median = medians(list, "rate")
    return median and { median = median, p99 = median, n = #list }
  end

  local function of_runs(name, unit, connections, figure, extra)
    local measurement = {
      name = ("egress_%s_%d"):format(name, connections),
      unit = unit,
      measure = function()
        local taken = runs_of(connections)
        return { ours = figure(taken.ours, taken.direct), peers = {
          direct = name ~= "added" and figure(taken.direct) or nil,
          mitmproxy = figure(taken.mitmproxy, taken.direct),
        } }
      end,
    }
    for key, value in pairs(extra or {}) do
      measurement[key] = value
    end
    return measurement
  end

  local function plain_latency(list)
    return latency(list)
  end

  -- New connections, each with its handshake and one request: ms to the end of the answer.
  local function connect(way)
    local words = { "curl", "-sS", "--no-sessionid", "-H", "Connection: close", "--cacert", it.roots[way] }
    for _ = 1, 50 do
      for _, word in ipairs({ "-o", "/dev/null", "-w", "%{time_total}\\n", it:url(way, "small") }) do
        words[#words + 1] = word
      end
    end
    local samples = {}
    for seconds in it:run(way, words):gmatch("[%d.]+") do
      samples[#samples + 1] = tonumber(seconds) * 1000
    end
    assert(#samples == 50, "curl took " .. #samples .. " samples")
    return bench.statistics(samples)
  end

  -- A large body over one connection: MB a second, and MB a CPU second of the proxy.
  local function transfer(way)
    local pid = it:proxy_pid(way)
    local before = pid and scene.cpu(pid)
    local output = it:run(way, {
      "curl", "-sS", "-o", "/dev/null", "-w", "%{size_download} %{time_total}", "--cacert", it.roots[way],
      it:url(way, way == "mitmproxy" and "medium" or "large"),
    }, 120)
    local size, seconds = output:match("^(%d+) ([%d.]+)$")
    assert(tonumber(size) >= 1e8, "curl got " .. tostring(size) .. " bytes")
    local cpu = pid and math.max(0.01, scene.cpu(pid) - before)
    return size / seconds / 1e6, cpu and size / cpu / 1e6
  end

  local transfers = {}
  local function transfers_of(way)
    if not transfers[way] then
      local wall, core = {}, {}
      for i = 1, way == "mitmproxy" and 2 or 4 do
        wall[i], core[i] = transfer(way)
      end
      transfers[way] = { wall = bench.statistics(wall, "low"), core = core[1] and bench.statistics(core, "low") }
    end
    return transfers[way]
  end

  local function throughput(key, name, goal)
    return {
      name = name, unit = "MB/s", worst = "low", goal = goal,
      measure = function()
        local result = { ours = transfers_of("ours")[key], peers = {} }
        for _, way in ipairs(WAYS) do
          result.peers[way] = it.ports[way] and transfers_of(way)[key] or nil
        end
        return result
      end,
    }
  end

  -- What each of 512 connections costs the proxy: KiB.
  local function memory(way, state)
    local pid = it:proxy_pid(way)
    local before = scene.memory(pid)
    return it:holding(way, 512, state, function()
      local each = (scene.memory(pid) - before) / 512 / 1024
      return { median = each, p99 = each, n = 512 }
    end)
  end

  local function a_connection(state, goal)
    return {
      name = "egress_connection_" .. state, unit = "KiB", goal = goal,
      measure = function()
        return { ours = memory("ours", state), peers = {
          mitmproxy = it.ports.mitmproxy and state == "idle" and memory("mitmproxy", state) or nil,
        } }
      end,
    }
  end

  local function attach(chain)
    return bench.time(function()
      return it.box:egress_set(chain)
    end)
  end

  local list = {
    -- First, since what a process has freed it uses again.
    a_connection("idle", 100),
    a_connection("busy"), -- the worst case: stalled, with all buffers full
    {
      name = "egress_connect", unit = "ms",
      measure = function()
        local peers = {}
        for _, way in ipairs(WAYS) do
          peers[way] = it.ports[way] and connect(way) or nil
        end
        return { ours = connect("ours"), peers = peers }
      end,
    },
    of_runs("added", "ms", 1, latency, { goal = 0.3 }),
    of_runs("latency", "ms", 1, plain_latency),
    of_runs("latency", "ms", 64, plain_latency),
    of_runs("latency", "ms", 512, plain_latency),
    of_runs("requests", "1/s", 1, rate, { worst = "low" }),
    of_runs("requests", "1/s", 64, rate, { worst = "low" }),
    of_runs("requests", "1/s", 512, rate, { worst = "low" }),
    throughput("core", "egress_throughput_core", 500),
    throughput("wall", "egress_throughput"),
    {
      name = "egress_attach_100", unit = "ms",
      measure = function()
        local chain, samples = it:hundred(), {}
        for i = 1, 5 do
          samples[i] = attach(chain)
          attach(it:alone())
        end
        return { ours = bench.statistics(samples), peers = {} }
      end,
    },
    {
      name = "egress_latency_1_of_100", unit = "ms",
      measure = function()
        attach(it:hundred())
        local run = load("ours", 1)
        attach(it:alone())
        return { ours = { median = run.p50, p99 = run.p99, n = 1 }, peers = {} }
      end,
    },
    close = function()
      it:close()
    end,
    peers = WAYS,
  }
  return list
end

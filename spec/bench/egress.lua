-- The egress process: what it adds to a connection and a request, how many bytes it moves, what a
-- connection and a hundred policies cost; beside no proxy at all and Debian's mitmproxy.
--
-- Latencies are of 1,000-byte answers over warm connections, by wrk at 1, 64 and 512 connections, in
-- closed loop: at 64 and 512 the machine is full, and they are the queue's. So the goal of 0.3 ms added
-- is for one connection. Bounded: about three minutes.
local bench = require("tidepool.bench")
local clients = require("spec.bench.egress_clients")
local scene = require("spec.bench.egress_scene")

local WAYS = { "ours", "direct", "mitmproxy" }
local ROUNDS = 3

-- Calls fn(way) for each way that is there: { ours, peers }.
local function each_way(it, fn)
  local result = { peers = {} }
  for _, way in ipairs(WAYS) do
    local value = it.ports[way] and fn(way) or nil
    if way == "ours" then
      result.ours = value
    else
      result.peers[way] = value
    end
  end
  return result
end

-- Runs that several measurements read: taken once, the ways in turns. Returns function(connections).
local function loads(it)
  local taken = {}
  return function(connections)
    if not taken[connections] then
      local runs = { ours = {}, direct = {}, mitmproxy = {} }
      for _ = 1, ROUNDS do
        each_way(it, function(way)
          table.insert(runs[way], clients.load(it, way, connections))
        end)
      end
      taken[connections] = runs
    end
    return taken[connections]
  end
end

local function median_of(runs, key)
  local values = {}
  for i, run in ipairs(runs) do
    values[i] = run[key]
  end
  return bench.statistics(values).median
end

-- The middle run's percentiles.
local function latency(it, runs_of, connections)
  return {
    name = "egress_latency_" .. connections, unit = "ms",
    measure = function()
      local runs = runs_of(connections)
      return each_way(it, function(way)
        return { median = median_of(runs[way], "p50"), p99 = median_of(runs[way], "p99"), n = ROUNDS }
      end)
    end,
  }
end

-- What is more of them than without a proxy.
local function added(it, runs_of, connections, goal)
  return {
    name = "egress_added_" .. connections, unit = "ms", goal = goal,
    measure = function()
      local runs = runs_of(connections)
      local function more(way, key)
        return median_of(runs[way], key) - median_of(runs.direct, key)
      end
      return each_way(it, function(way)
        return way ~= "direct" and { median = more(way, "p50"), p99 = more(way, "p99"), n = ROUNDS } or nil
      end)
    end,
  }
end

local function requests(it, runs_of, connections)
  return {
    name = "egress_requests_" .. connections, unit = "1/s", worst = "low",
    measure = function()
      local runs = runs_of(connections)
      return each_way(it, function(way)
        local rate = median_of(runs[way], "rate")
        return { median = rate, p99 = rate, n = ROUNDS }
      end)
    end,
  }
end

-- Two measurements of the same transfers: by the clock, and by the proxy's CPU seconds.
local function throughput(it)
  local taken = {}
  local function of(way)
    if not taken[way] then
      local wall, core = {}, {}
      for i = 1, way == "mitmproxy" and 2 or 4 do
        wall[i], core[i] = clients.transfer(it, way)
      end
      taken[way] = { wall = bench.statistics(wall, "low"), core = core[1] and bench.statistics(core, "low") }
    end
    return taken[way]
  end
  local function measurement(name, key, goal)
    return {
      name = name, unit = "MB/s", worst = "low", goal = goal,
      measure = function()
        return each_way(it, function(way) return of(way)[key] end)
      end,
    }
  end
  return measurement("egress_throughput_core", "core", 500), measurement("egress_throughput", "wall")
end

local function connection(it, state, goal)
  return {
    name = "egress_connection_" .. state, unit = "KiB", goal = goal,
    measure = function()
      return each_way(it, function(way)
        -- mitmproxy serves no 512 at once that nobody reads.
        local serves = way == "ours" or way == "mitmproxy" and state == "idle"
        return serves and clients.memory(it, way, 512, state) or nil
      end)
    end,
  }
end

local function attach(it, chain)
  return bench.time(function()
    return it.box:egress_set(chain)
  end)
end

local function attach_hundred(it)
  return {
    name = "egress_attach_100", unit = "ms",
    measure = function()
      local chain, samples = it:hundred(), {}
      for i = 1, 5 do
        samples[i] = attach(it, chain)
        attach(it, it:alone())
      end
      return { ours = bench.statistics(samples), peers = {} }
    end,
  }
end

-- The latency with a hundred policies before the one that decides.
local function latency_of_hundred(it)
  return {
    name = "egress_latency_1_of_100", unit = "ms",
    measure = function()
      attach(it, it:hundred())
      local run = clients.load(it, "ours", 1)
      attach(it, it:alone())
      return { ours = { median = run.p50, p99 = run.p99, n = 1 }, peers = {} }
    end,
  }
end

return function(context)
  if not (context.found.wrk and context.found.nginx) then
    io.stderr:write("the measurements of the egress process need wrk and nginx-light\n")
    return {}
  end
  local it = scene.new(context)
  local runs_of = loads(it)
  local by_core, by_clock = throughput(it)
  return {
    -- First, since what a process has freed it uses again.
    connection(it, "idle", 100),
    connection(it, "busy"), -- the worst case: stalled, with all buffers full
    {
      name = "egress_connect", unit = "ms",
      measure = function()
        return each_way(it, function(way) return clients.connect(it, way) end)
      end,
    },
    added(it, runs_of, 1, 0.3),
    latency(it, runs_of, 1),
    latency(it, runs_of, 64),
    latency(it, runs_of, 512),
    requests(it, runs_of, 1),
    requests(it, runs_of, 64),
    requests(it, runs_of, 512),
    by_core,
    by_clock,
    attach_hundred(it),
    latency_of_hundred(it),
    peers = { "direct", "mitmproxy" },
    close = function()
      it:close()
    end,
  }
end

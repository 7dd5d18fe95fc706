-- The clients of the measurements of the egress process: each function is one run of a host program
-- along one way of spec/bench/egress_scene.lua, and returns what it measured.
local bench = require("tidepool.bench")
local web = require("spec.support.web")
local scene = require("spec.bench.egress_scene")

local clients = {}

local SECONDS = { [1] = 3, [64] = 3, [512] = 6 } -- 512 handshakes take one
local HANDSHAKES = 50

-- wrk's own report, in a line that is easy to read again; microseconds.
local REPORT = [[
done = function(summary, latency)
  local errors = summary.errors
  io.write(("p50=%d p99=%d requests=%d duration=%d connect=%d read=%d write=%d status=%d timeout=%d\n"):format(
    latency:percentile(50), latency:percentile(99), summary.requests, summary.duration,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
]]
local LINE = "p50=(%d+) p99=(%d+) requests=(%d+) duration=(%d+) (.*)\n"
local FLAWLESS = "connect=0 read=0 write=0 status=0 timeout=0"

--- Small requests over `connections` warm ones, each sent when the last is answered: { p50, p99 } in
--- ms, and `rate`, requests a second.
function clients.load(it, way, connections)
  local script = web.write(it.directory .. "/report.lua", REPORT)
  local output = it:run(way, {
    "wrk", "-t", "1", "-c", tostring(connections), "-d", SECONDS[connections] .. "s", "--timeout", "10s", "-s", script,
    it:url(way, "small"),
  })
  local p50, p99, requests, duration, errors = output:match(LINE)
  assert(errors == FLAWLESS, ("%s, %d connections: errors: %s"):format(way, connections, errors))
  return { p50 = p50 / 1000, p99 = p99 / 1000, rate = requests / duration * 1e6 }
end

--- New connections, each with its handshake, one request and its end: statistics of ms.
function clients.connect(it, way)
  local words = { "curl", "-sS", "--no-sessionid", "-H", "Connection: close", "--cacert", it.roots[way] }
  for _ = 1, HANDSHAKES do
    for _, word in ipairs({ "-o", "/dev/null", "-w", "%{time_total}\\n", it:url(way, "small") }) do
      words[#words + 1] = word
    end
  end
  local samples = {}
  for seconds in it:run(way, words):gmatch("[%d.]+") do
    samples[#samples + 1] = tonumber(seconds) * 1000
  end
  assert(#samples == HANDSHAKES, "curl took " .. #samples .. " samples")
  return bench.statistics(samples)
end

--- A large body over one connection: MB a second, and MB a CPU second of the proxy (nil without one).
function clients.transfer(it, way)
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

--- What each of `count` held connections costs the proxy, KiB; "idle" or "busy" as of Scene:holding.
function clients.memory(it, way, count, state)
  local pid = it:proxy_pid(way)
  local before = scene.memory(pid)
  return it:holding(way, count, state, function()
    local each = (scene.memory(pid) - before) / count / 1024
    return { median = each, p99 = each, n = count }
  end)
end

return clients

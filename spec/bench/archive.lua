-- A snapshot as an archive: how much content is exported and imported in a second, beside tar piped
-- into zstd on all cores, and back. Ours also takes two digests of every byte, and in a jail.
local uv = require("luv")

-- 200 MB, half of it as random as what is compressed already, half like programs.
local FILL = [[
cd /workspace && head -c 100000000 /dev/urandom >random && mkdir programs && i=0
while [ $i -lt 50 ]; do { echo $i; cat /bin/busybox; } >programs/$i; i=$((i+1)); done; sync
]]
local ROUNDS = 4

return function(context)
  local sandbox, bench = context.sandbox, context.bench
  local box = assert(sandbox.create("archive", context.options))
  assert(assert(box:exec({ "sh", "-ec", FILL }, { user = "root" })).exit_code == 0)
  assert(box:snapshot("full"))
  local file, number = context.directory .. "/archive.tar", 0
  local pool = ("/proc/%d/root%s/pool"):format(assert(sandbox.info()).pid, require("tidepool.paths").state())

  -- The newest snapshot's files, where the server sees them.
  local function root()
    local newest, scan = 0, uv.fs_scandir(pool .. "/snapshots")
    for name in function() return uv.fs_scandir_next(scan) end do
      newest = math.max(newest, tonumber(name))
    end
    return ("%s/snapshots/%d/root"):format(pool, newest)
  end

  local source, bytes = root(), nil
  local function rate(fn)
    local told
    local took = bench.time(function()
      local result, message = fn()
      told = result
      return result, message
    end)
    bytes = bytes or told.bytes
    return bytes / 1e6 / (took / 1e3)
  end

  local function shell(script, ...)
    local argv = { "sh", "-ec", script, "sh", ... }
    return rate(function()
      return assert(bench.program(argv, { limit = 120 }))
    end)
  end

  local function measured(ours, theirs)
    return function()
      local mine, other = {}, {}
      for i = 1, ROUNDS do
        mine[i] = ours()
        other[i] = theirs()
      end
      return { ours = bench.statistics(mine, "low"), peers = { ["tar, zstd -T0"] = bench.statistics(other, "low") } }
    end
  end

  return {
    peers = { "tar, zstd -T0" },
    {
      name = "export_rate", unit = "MB/s", worst = "low",
      measure = measured(function()
        return rate(function()
          return sandbox.snapshot.export("archive@full", file)
        end)
      end, function()
        return shell('tar -C "$1" -cf - . | zstd -q -T0 -3 -c >"$2" && sync -d "$2"', source, file .. ".zst")
      end),
    },
    {
      name = "import_rate", unit = "MB/s", worst = "low",
      measure = measured(function()
        number = number + 1
        local address = "archive@copy-" .. number
        local value = rate(function()
          return sandbox.snapshot.import(file, address)
        end)
        assert(sandbox.snapshot.rm(address))
        return value
      end, function()
        local target = pool .. "/staging/bench"
        local value = shell('mkdir "$2" && zstd -q -dc "$1" | tar -C "$2" -xpf - && sync -f "$2"', file .. ".zst", target)
        assert(bench.program({ "rm", "-rf", target }))
        return value
      end),
    },
    close = function()
      box:destroy()
      sandbox.snapshot.rm("archive@full")
    end,
  }
end

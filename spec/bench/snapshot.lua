-- Snapshots, restores and forks of a small disk and of one of 200,000 files, 5 GB, beside a copy that
-- shares blocks (cp --reflink, on the same pool) and tar piped into zstd; then freezing and waking.

-- 2,000 files of 24 KB, a hundred times: one process writes them.
local FILL = [[
cd /workspace && mkdir one && i=0
while [ $i -lt 2000 ]; do head -c 24000 /dev/urandom >one/$i; i=$((i+1)); done
i=1; while [ $i -lt %d ]; do cp -r one copy-$i; i=$((i+1)); done; sync
]]
local COPIES = tonumber(os.getenv("TIDEPOOL_BENCH_COPIES")) or 100
local PEERS = { "cp --reflink", "tar, zstd -T0" }

-- Where the server sees its pool, and there the files of the sandbox of this name.
local function files_of(context, name)
  local sandbox = context.sandbox
  local pool = ("/proc/%d/root%s/pool"):format(assert(sandbox.info()).pid, require("tidepool.paths").state())
  local id = assert(sandbox.get(name):info()).id
  return pool, ("%s/sandboxes/%d/root"):format(pool, id)
end

-- What the peers need for the same files: to keep them, and to have them back.
local function peers_of(context, name)
  local bench = context.bench
  local pool, root = files_of(context, name)
  local copy, archive = pool .. "/staging/bench", context.directory .. "/snapshot.tar.zst"
  local function program(script, ...)
    return assert(bench.program({ "sh", "-ec", script, "sh", ... }, { limit = 600 }))
  end
  local kept = {
    ["cp --reflink"] = { median = program('cp -a --reflink=always "$1" "$2"', root, copy) },
    ["tar, zstd -T0"] = { median = program('tar -C "$1" -cf - . | zstd -q -T0 -3 -c >"$2"', root, archive) },
  }
  local back = {
    ["cp --reflink"] = { median = program('cp -a --reflink=always "$1" "$1.back"', copy) },
    ["tar, zstd -T0"] = { median = program('mkdir "$2" && zstd -q -dc "$1" | tar -C "$2" -xpf -', archive, copy .. ".tar") },
  }
  program('rm -rf "$1" "$1.back" "$1.tar" "$2"', copy, archive)
  for _, group in ipairs({ kept, back }) do
    for _, one in pairs(group) do
      one.p99 = one.median
    end
  end
  return kept, back
end

-- Samples of one disk, all taken when the first of its measurements is asked for.
local function disk(context, size, rounds)
  local sandbox, bench = context.sandbox, context.bench
  local name, taken = "disk-" .. size, nil
  local function run()
    local box = assert(sandbox.create(name, context.options))
    if size == "big" then
      assert(assert(box:exec(FILL:format(COPIES), { user = "root", timeout = 900 })).exit_code == 0)
    end
    local found = { pause = {}, total = {}, restore = {}, fork = { [1] = {}, [8] = {}, [100] = {} } }
    for i = 1, rounds do
      local info = assert(box:snapshot("s-" .. i))
      found.pause[i], found.total[i] = info.pause * 1000, info.total * 1000
      local copy
      found.restore[i] = bench.time(function()
        copy = assert(sandbox.restore(info.snapshot, name .. "-copy"))
        return copy:exec({ "true" })
      end)
      assert(copy:destroy())
      for _, count in ipairs(i <= 2 and { 1, 8, 100 } or { 1, 8 }) do
        local branches
        table.insert(found.fork[count], bench.time(function()
          branches = box:fork(count)
          return branches
        end))
        sandbox.all((function()
          local tasks = {}
          for n, branch in ipairs(branches) do
            tasks[n] = function() return branch:destroy() end
          end
          return tasks
        end)())
      end
    end
    found.kept, found.back = peers_of(context, name)
    for i = 1, rounds do
      assert(sandbox.snapshot.rm(name .. "@s-" .. i))
    end
    assert(box:destroy())
    return found
  end
  return function()
    taken = taken or run()
    return taken
  end
end

local function row(bench, name, goal, samples, peers)
  return {
    name = name, unit = "ms", goal = goal,
    measure = function()
      return { ours = bench.statistics(samples()), peers = peers and peers() or {} }
    end,
  }
end

local function of_disk(bench, size, samples)
  local function field(...)
    local path = { ... }
    return function()
      local value = samples()
      for _, key in ipairs(path) do
        value = value[key]
      end
      return value
    end
  end
  return {
    row(bench, "snapshot_pause_" .. size, 15, field("pause")),
    row(bench, "snapshot_total_" .. size, nil, field("total"), field("kept")),
    row(bench, "restore_first_exec_" .. size, 50, field("restore"), field("back")),
    row(bench, "fork_1_" .. size, nil, field("fork", 1)),
    row(bench, "fork_8_" .. size, 50, field("fork", 8)),
    row(bench, "fork_100_" .. size, nil, field("fork", 100)),
  }
end

-- Freezing, and from frozen to the end of a first command less what that takes awake.
local function sleep(context)
  local sandbox, bench = context.sandbox, context.bench
  local box
  local function begin()
    box = box or assert(sandbox.create("sleeper", context.options))
    assert(box:exec({ "true" }))
    return box
  end
  local function samples(fn)
    return function()
      begin()
      local list = {}
      for i = 1, 100 do
        list[i] = fn()
      end
      return { ours = bench.statistics(list), peers = {} }
    end
  end
  return {
    { name = "freeze", unit = "ms", measure = samples(function()
      local took = bench.time(function() return box:freeze() end)
      assert(box:wake())
      return took
    end) },
    { name = "wake", unit = "ms", measure = samples(function()
      assert(box:freeze())
      return bench.time(function() return box:wake() end)
    end) },
    { name = "thaw_first_exec", unit = "ms", goal = 3, measure = samples(function()
      assert(box:freeze())
      return bench.time(function() return box:exec({ "true" }) end)
    end) },
  }
end

return function(context)
  local bench, list = context.bench, { peers = PEERS }
  for _, pair in ipairs({ { "small", 10 }, { "big", 5 } }) do
    for _, one in ipairs(of_disk(bench, pair[1], disk(context, pair[1], pair[2]))) do
      list[#list + 1] = one
    end
  end
  for _, one in ipairs(sleep(context)) do
    list[#list + 1] = one
  end
  function list.close()
    for _, info in ipairs(assert(context.sandbox.ls())) do
      if info.name == "sleeper" or info.name:find("^disk%-") then
        context.sandbox.get(info.name):destroy()
      end
    end
    for _, info in ipairs(assert(context.sandbox.snapshot.ls())) do
      if info.sandbox:find("^disk%-") then
        context.sandbox.snapshot.rm(info.snapshot)
      end
    end
  end
  return list
end

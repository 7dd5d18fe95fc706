-- Snapshots, restores and forks of a small disk and of one of 200,000 files, 5 GB, which is filled once a run
-- and deleted after it. Beside: a copy that shares blocks (cp --reflink, on the same pool), tar piped into
-- zstd, and podman's commit and run. TIDEPOOL_BENCH_COPIES=10 makes the large one a tenth of that.
local podman = require("spec.bench.podman")

-- 2,000 files of 24 KB, a hundred times: one process writes them.
local FILL = [[
mkdir -p /workspace && cd /workspace && mkdir one && i=0
while [ $i -lt 2000 ]; do head -c 24000 /dev/urandom >one/$i; i=$((i+1)); done
i=1; while [ $i -lt %d ]; do cp -r one copy-$i; i=$((i+1)); done; sync
]]
local COPIES = tonumber(os.getenv("TIDEPOOL_BENCH_COPIES")) or 100
local CP, TAR, PODMAN = "cp --reflink", "tar, zstd -T0", "podman"
local PEERS = { CP, TAR, PODMAN }
local PEER_ROUNDS = { small = 5, big = 1 }

-- Where the server sees its pool, and there the files of the sandbox of this name, if one is given.
local function files_of(context, name)
  local sandbox = context.sandbox
  local pool = ("/proc/%d/root%s/pool"):format(assert(sandbox.info()).pid, require("tidepool.paths").state())
  if not name then
    return pool
  end
  local id = assert(sandbox.get(name):info()).id
  return pool, ("%s/sandboxes/%d/root"):format(pool, id)
end

-- Waits until the pool has nothing left to delete. Copies that were destroyed go in the background, and the next
-- snapshot would commit what the cleaner has changed so far: 60 ms for 8 forks of the large disk.
local function settle(context)
  local pool = files_of(context)
  assert(context.bench.program({ "sh", "-ec", 'btrfs filesystem sync "$1" && btrfs subvolume sync -s 1 "$1"', "sh", pool }, { limit = 300 }))
end

-- One round of what the peers need for the same files: to keep them, and to have them back.
local function peers_round(context, root, copy, archive, boxes)
  local function program(script, ...)
    return assert(context.bench.program({ "sh", "-ec", script, "sh", ... }, { limit = 900 }))
  end
  local kept = {
    [CP] = program('cp -a --reflink=always "$1" "$2"', root, copy),
    [TAR] = program('tar -C "$1" -cf - . | zstd -q -T0 -3 -c >"$2"', root, archive),
    [PODMAN] = boxes and boxes:keep(),
  }
  local back = {
    [CP] = program('cp -a --reflink=always "$1" "$1.back"', copy),
    [TAR] = program('mkdir "$2" && zstd -q -dc "$1" | tar -C "$2" -xpf -', archive, copy .. ".tar"),
    [PODMAN] = boxes and boxes:back(),
  }
  program('rm -rf "$1" "$1.back" "$1.tar" "$2"', copy, archive)
  if boxes then
    boxes:forget()
  end
  return kept, back
end

-- Their statistics: keeping; having back; both, which is what a fork is to them but to a live copy.
local function peers_of(context, name, size)
  local pool, root = files_of(context, name)
  local boxes, message = podman.start(context)
  if not boxes then
    io.stderr:write("  podman is left out: ", message, "\n")
  end
  local samples = { kept = {}, back = {}, both = {} }
  local function add(group, peer, value)
    samples[group][peer] = samples[group][peer] or {}
    table.insert(samples[group][peer], value)
  end
  local ok, failure = pcall(function()
    if boxes and size == "big" then
      boxes:fill(FILL:format(COPIES))
    end
    for _ = 1, PEER_ROUNDS[size] do
      local kept, back = peers_round(context, root, pool .. "/staging/bench", context.directory .. "/snapshot.tar.zst", boxes)
      for _, peer in ipairs(PEERS) do
        if kept[peer] then
          add("kept", peer, kept[peer])
          add("back", peer, back[peer])
          add("both", peer, peer == CP and kept[peer] or kept[peer] + back[peer])
        end
      end
    end
  end)
  if boxes then
    boxes:close()
  end
  assert(ok, failure)
  for _, group in pairs(samples) do
    for peer, list in pairs(group) do
      group[peer] = context.bench.statistics(list)
    end
  end
  return samples
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
      settle(context)
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
        settle(context)
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
    found.peers = peers_of(context, name, size)
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
    row(bench, "snapshot_total_" .. size, nil, field("total"), field("peers", "kept")),
    row(bench, "restore_first_exec_" .. size, 50, field("restore"), field("peers", "back")),
    row(bench, "fork_1_" .. size, nil, field("fork", 1), field("peers", "both")),
    row(bench, "fork_8_" .. size, 50, field("fork", 8)),
    row(bench, "fork_100_" .. size, nil, field("fork", 100)),
  }
end

return function(context)
  local bench, list = context.bench, { peers = PEERS }
  for _, pair in ipairs({ { "small", 10 }, { "big", 5 } }) do
    for _, one in ipairs(of_disk(bench, pair[1], disk(context, pair[1], pair[2]))) do
      list[#list + 1] = one
    end
  end
  function list.close()
    for _, info in ipairs(assert(context.sandbox.ls())) do
      if info.name:find("^disk%-") then
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

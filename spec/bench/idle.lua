-- Many sandboxes, made and left idle: what each costs the whole machine, kernel and server included
-- (the fall of MemAvailable), and how many are made in a second by four tasks at once.
--
-- 200 of ours in five batches; of each peer twenty (podman eight) a batch, made one after the other
-- by their programs. A batch's fall drowns in what else the machine does, so all stay until the last
-- one is made, and each figure is the mean of all so far. For the same reason they don't take turns.
-- Give it a quiet machine.
local uv = require("luv")

local BATCH, TASKS = 40, 4
local PEER_BATCH = { bwrap = 20, crun = 20, runc = 20, podman = 8 }

local function available()
  local file = assert(io.open("/proc/meminfo"))
  local kib = file:read("*a"):match("MemAvailable:%s*(%d+)")
  file:close()
  return tonumber(kib) * 1024
end

return function(context)
  local sandbox = context.sandbox
  local number, made = 0, {}

  -- The median of a second's readings. The kernel frees what went before (network namespaces above
  -- all) late.
  local function settled()
    sandbox.sleep(0.5)
    local readings = {}
    for i = 1, 11 do
      readings[i] = available()
      sandbox.sleep(0.05)
    end
    return context.bench.statistics(readings).median
  end

  -- Waits until what was removed is given back, at most ten seconds.
  local function calm()
    local before = settled()
    for _ = 1, 10 do
      local now = settled()
      if now - before < 2e6 then
        return
      end
      before = now
    end
  end

  local firsts = {} -- who -> what was available before its first batch, and how many it has made

  -- Makes `count` more by fn; returns bytes each, of all that `who` has made, and how many a second.
  local function batch(who, count, fn)
    collectgarbage()
    if not firsts[who] then
      calm()
      firsts[who] = { available = settled(), count = 0 }
    end
    local first, began = firsts[who], uv.hrtime()
    fn()
    local seconds = (uv.hrtime() - began) / 1e9
    first.count = first.count + count
    return math.max(0, first.available - settled()) / first.count, count / seconds
  end

  local function ours()
    return batch("ours", BATCH, function()
      local tasks = {}
      for i = 1, TASKS do
        tasks[i] = function()
          for _ = 1, BATCH / TASKS do
            number = number + 1
            local name = "idle-" .. number
            assert(sandbox.create(name, context.options))
            made[#made + 1] = name
          end
        end
      end
      sandbox.all(tasks)
    end)
  end

  -- Both figures come from the same batches: sampled once, handed out twice.
  local function shared(sampler)
    local memory, rate = {}, {}
    local function next_of(own, index)
      if #own == 0 then
        local values = { sampler() }
        table.insert(memory, values[1] / 1e6)
        table.insert(rate, values[2])
      end
      return table.remove(index == 1 and memory or rate, 1)
    end
    return function()
      return next_of(memory, 1)
    end, function()
      return next_of(rate, 2)
    end
  end

  local ours_memory, ours_rate = shared(ours)
  local peers_memory, peers_rate, ids = {}, {}, {}
  for _, name in ipairs({ "bwrap", "crun", "runc", "podman" }) do
    ids[name] = {}
    peers_memory[name], peers_rate[name] = shared(function()
      return batch(name, PEER_BATCH[name], function()
        for _ = 1, PEER_BATCH[name] do
          table.insert(ids[name], context.peers:start(name))
        end
      end)
    end)
  end

  local function remove(name)
    if not (name and ids[name][1] or not name and made[1]) then
      return
    elseif name then
      for _, id in ipairs(ids[name]) do
        context.peers:remove(id)
      end
      ids[name], firsts[name] = {}, nil
    else
      for _, made_name in ipairs(made) do
        sandbox.get(made_name):destroy()
      end
      made, firsts.ours = {}, nil
    end
  end

  return {
    {
      name = "idle_memory",
      unit = "MB",
      goal = 1.5,
      rounds = 5,
      burst = 1,
      ours = ours_memory,
      peers = peers_memory,
      after = remove,
    },
    {
      name = "create_rate",
      unit = "1/s",
      worst = "low",
      rounds = 5,
      burst = 1,
      ours = ours_rate,
      peers = peers_rate,
      after = remove,
    },
  }
end

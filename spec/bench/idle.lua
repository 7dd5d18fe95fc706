-- Many sandboxes, made and left idle: what each costs the whole machine, kernel and server included
-- (the fall of MemAvailable), and how many are made in a second by four tasks at once.
--
-- 200 of ours in five batches; of each peer twenty (podman eight) a batch, made one after the other
-- by their programs.
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

  -- Makes `count` by fn and returns bytes each and how many a second.
  local function batch(count, fn)
    collectgarbage()
    sandbox.sleep(1) -- the kernel frees what went before (network namespaces above all) late
    local before, began = available(), uv.hrtime()
    fn()
    local seconds = (uv.hrtime() - began) / 1e9
    sandbox.sleep(0.5) -- what is freed or written late
    return math.max(0, before - available()) / count, count / seconds
  end

  local function ours()
    return batch(BATCH, function()
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
  local peers_memory, peers_rate = {}, {}
  for _, name in ipairs({ "bwrap", "crun", "runc", "podman" }) do
    peers_memory[name], peers_rate[name] = shared(function()
      local ids = {}
      local memory, rate = batch(PEER_BATCH[name], function()
        for i = 1, PEER_BATCH[name] do
          ids[i] = context.peers:start(name)
        end
      end)
      for _, id in ipairs(ids) do
        context.peers:remove(id)
      end
      return memory, rate
    end)
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
    },
    {
      name = "create_rate",
      unit = "1/s",
      worst = "low",
      rounds = 5,
      burst = 1,
      ours = ours_rate,
      peers = peers_rate,
    },
    close = function()
      for _, name in ipairs(made) do
        sandbox.get(name):destroy()
      end
    end,
  }
end

-- Freezing and waking; from frozen to the exit of a first command, beside the same command in the sandbox awake.
return function(context)
  local sandbox, bench = context.sandbox, context.bench
  local box = assert(sandbox.create("sleeper", context.options))

  local function run()
    return box:exec({ "true" })
  end

  local function samples(fn, beside)
    return function()
      assert(run())
      local ours, awake = {}, {}
      for i = 1, 100 do
        ours[i] = fn()
        awake[i] = beside and beside()
      end
      return { ours = bench.statistics(ours), peers = { awake = bench.statistics(awake) } }
    end
  end

  return {
    peers = { "awake" },
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
      return bench.time(run)
    end, function()
      return bench.time(run)
    end) },
    close = function()
      box:destroy()
    end,
  }
end

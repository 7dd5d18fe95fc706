-- A new sandbox, the first `true` in it, and gone again. Ours counts to the exit of `true`, and
-- beside it to the end of destroy, since the peers' one command can't be taken apart.
return function(context)
  local sandbox, bench, number = context.sandbox, context.bench, 0
  local peers = {}
  for _, name in ipairs({ "bwrap", "crun", "runc", "podman" }) do
    peers[name] = function()
      return (assert(bench.program(context.peers:run_argv(name, { "true" }))))
    end
  end
  return {
    {
      name = "create_first_exit",
      unit = "ms",
      goal = 5,
      rounds = 50,
      burst = 4,
      ours = function()
        number = number + 1
        local box
        local first = bench.time(function()
          box = assert(sandbox.create("first-" .. number, context.options))
          local result = assert(box:exec({ "true" }))
          assert(result.exit_code == 0)
          return true
        end)
        local rest = bench.time(function()
          return box:destroy()
        end)
        return first, first + rest
      end,
      peers = peers,
    },
  }
end

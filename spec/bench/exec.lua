-- `true` in a sandbox that runs, from the call to its exit status.
return function(context)
  local box = assert(context.sandbox.create("exec", context.options))
  local peers = {}
  for _, name in ipairs({ "crun", "runc", "podman" }) do
    peers[name] = context.peers:in_running(name, { "true" })
  end
  return {
    {
      name = "exec_true",
      unit = "ms",
      goal = 1,
      rounds = 50,
      burst = 10,
      ours = function()
        return context.bench.time(function()
          local result, message = box:exec({ "true" })
          return result and true, message
        end)
      end,
      peers = peers,
    },
    close = function()
      box:destroy()
    end,
  }
end

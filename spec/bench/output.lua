-- 20 MB of output, to the last byte in the caller's hands.
local SIZE = 20000000
local WRITER = { "dd", "if=/dev/zero", "bs=100000", "count=200" }

return function(context)
  local box, bench = assert(context.sandbox.create("output", context.options)), context.bench
  local function checked(argv)
    local took, size = assert(bench.program(argv))
    assert(size == SIZE, "incomplete output")
    return took
  end
  local peers = {
    bwrap = function()
      return checked(context.peers:run_argv("bwrap", WRITER))
    end,
  }
  for _, name in ipairs({ "crun", "runc", "podman" }) do
    local id
    peers[name] = function()
      id = id or context.peers:start(name)
      return checked(context.peers:exec_argv(name, id, WRITER))
    end
  end
  return {
    {
      name = "output_20mb",
      unit = "ms",
      goal = 100,
      rounds = 10,
      burst = 2,
      ours = function()
        local size = 0
        local took = bench.time(function()
          local result, message = box:exec(WRITER, {
            on_output = function(stream, bytes)
              if stream == "stdout" or stream == 1 then
                size = size + #bytes
              end
            end,
          })
          return result and true, message
        end)
        assert(size == SIZE, "incomplete output: " .. size)
        return took
      end,
      peers = peers,
    },
    close = function()
      box:destroy()
    end,
  }
end

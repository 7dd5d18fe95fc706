-- A small file, written and read back. The peers have no such verb: an exec of cat does it.
local BYTES = ("0123456789abcde\n"):rep(64) -- 1 KiB
local PATH = "/tmp/bench.txt"

return function(context)
  local box, bench = assert(context.sandbox.create("files", context.options)), context.bench
  assert(box:write(PATH, BYTES)) -- for a read that is measured alone
  local writers, readers = {}, {}
  for _, name in ipairs({ "crun", "runc", "podman" }) do
    local id
    local function run(argv, stdin)
      id = id or context.peers:start(name)
      return bench.program(context.peers:exec_argv(name, id, argv), { stdin = stdin, keep = true })
    end
    writers[name] = function()
      return (assert(run({ "sh", "-c", "cat >" .. PATH }, BYTES)))
    end
    readers[name] = function()
      if not id then
        assert(run({ "sh", "-c", "cat >" .. PATH }, BYTES))
      end
      local took, bytes = assert(run({ "cat", PATH }))
      assert(bytes == BYTES, "other bytes came back")
      return took
    end
  end
  return {
    {
      name = "file_write",
      unit = "ms",
      rounds = 40,
      burst = 10,
      ours = function()
        return bench.time(function()
          return box:write(PATH, BYTES)
        end)
      end,
      peers = writers,
    },
    {
      name = "file_read",
      unit = "ms",
      rounds = 40,
      burst = 10,
      ours = function()
        local bytes, message
        local took = bench.time(function()
          bytes, message = box:read(PATH)
          return bytes, message
        end)
        assert(bytes == BYTES, "other bytes came back")
        return took
      end,
      peers = readers,
    },
    close = function()
      box:destroy()
    end,
  }
end

-- The last program of a test run: ends every server that is still there and says what was left on
-- the machine. A process of its own, so that it works whatever state the specs were in.
local client = require("tidepool.client")
local machine = require("spec.support.machine")

local root = assert(os.getenv("TIDEPOOL_TEST_ROOT"))
local left = {}

local function close(server)
  for _, sentence in ipairs(machine.close(client.new({ start = false, state = server.state, run = server.run }))) do
    left[#left + 1] = sentence
  end
end

local shared = os.getenv("TIDEPOOL_RUN")
for _, server in ipairs(machine.servers(function(run) return run:sub(1, #root) == root end)) do
  if server.run ~= shared then
    left[#left + 1] = "a server of a spec file, at " .. server.run
  end
  close(server)
end
for _, sentence in ipairs(machine.leftovers(root, root)) do
  left[#left + 1] = sentence
end
for _, sentence in ipairs(left) do
  print(sentence)
end
os.exit(#left == 0 and 0 or 1)

-- The last program of a test run: ends the shared server and says what was left on the machine.
-- A process of its own, so that it works whatever state the specs were in.
local machine = require("spec.support.machine")
local client = require("tidepool.client").new({ start = false })

local left = machine.close(client)
local root = assert(os.getenv("TIDEPOOL_TEST_ROOT"))
for _, sentence in ipairs(machine.leftovers(root, root)) do
  left[#left + 1] = sentence
end
for _, sentence in ipairs(left) do
  print(sentence)
end
os.exit(#left == 0 and 0 or 1)

-- The first program of a test run: ends what an earlier run on the same state directory left when it was
-- killed, its server, which holds the state, and its sandboxes, with or without one.
local uv = require("luv")
local client = require("tidepool.client")
local machine = require("spec.support.machine")

local state = assert(os.getenv("TIDEPOOL_STATE"))

for _, server in ipairs(machine.servers(function(_, of) return of == state end)) do
  print("an earlier run left a server: " .. server.pid)
  machine.close(client.new({ start = false, state = server.state, run = server.run }))
end
if uv.fs_stat(state .. "/state.db") then
  machine.close(client.new({ state = state, run = os.getenv("TIDEPOOL_RUN") }))
end

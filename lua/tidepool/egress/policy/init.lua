--- Egress policies: loading, options, and the chain that decides. See chain.lua for what a policy means,
-- environment.lua for what its code can name, budget.lua for what it may cost.
--
-- Runs in the egress process, and in the CLI for `policy test`. Never in the server, which is root.
local budget = require("tidepool.egress.policy.budget")
local chain = require("tidepool.egress.policy.chain")
local load_policy = require("tidepool.egress.policy.load")

return {
  load = load_policy.load,
  chain = chain.new,
  watch = budget.watch,
}

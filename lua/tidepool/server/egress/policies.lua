--- The policies of a sandbox: changed while it runs, and told.
--
-- Runs in the server. A change is checked by an egress process, which runs the policies' texts, written
-- down, and only then acknowledged; requests that are in flight finish under the old policies.
local async = require("tidepool.async")
local egress = require("tidepool.server.egress")
local log = require("tidepool.server.log")
local policies = require("tidepool.server.policies")

local egress_policies = {}

--- A chain of what a client sent, checked by an egress process | nil, message, code.
function egress_policies.check(server, given)
  local chain, message, code = policies.chain(given)
  if not chain then
    return nil, message, code
  end
  local list
  list, message, code = policies.resolved(server, chain)
  if not list then
    return nil, message, code
  elseif chain == policies.DEFAULT then
    return chain
  end
  local ok
  ok, message, code = server.egress:call_any("check", { policies = list })
  if not ok then
    return nil, message, code
  end
  return chain
end

-- `change(chain)` gives the new one. One change at a time.
local function change_policies(sandbox, change)
  local own = sandbox.egress
  own.changing = own.changing or async.lock()
  return own.changing:with(function()
    local given, message, code = change(own.policies)
    if not given then
      return nil, message, code
    end
    local chain
    chain, message, code = egress_policies.check(sandbox.server, given)
    if not chain then
      return nil, message, code
    elseif sandbox.destroyed then
      return nil, "sandbox was destroyed: " .. sandbox.name, "ENOSANDBOX"
    end
    local ok
    ok, message, code = sandbox.server.state:set_egress(sandbox.id, { policies = chain, revision = own.revision + 1 })
    if not ok then
      return nil, message, code
    end
    own.policies, own.revision = chain, own.revision + 1
    log.info("egress_changed", { sandbox = sandbox.name, revision = own.revision, policies = egress.names(sandbox) })
    egress.push(sandbox)
    return egress_policies.show(sandbox)
  end)
end

--- Replaces all policies of a sandbox.
function egress_policies.set(sandbox, given)
  return change_policies(sandbox, function()
    return given
  end)
end

--- Adds policies, or changes the options of those that are there.
function egress_policies.add(sandbox, given)
  return change_policies(sandbox, function(chain)
    for _, item in ipairs(given) do
      chain = policies.with(chain, item)
    end
    return chain
  end)
end

--- Removes a policy; without any left, everything is denied.
function egress_policies.remove(sandbox, name)
  return change_policies(sandbox, function(chain)
    return policies.without(chain, name)
  end)
end

--- What a client is told.
function egress_policies.show(sandbox)
  local own = sandbox.egress
  local list = {}
  for i, member in ipairs(own.policies) do
    list[i] = { name = member.name, options = member.options, file = member.text ~= nil }
  end
  local member = own.member
  return {
    name = sandbox.name,
    policies = list,
    revision = own.revision,
    state = own.process and "served" or sandbox.run and "refused" or "stopped",
    problem = own.problem,
    process = own.process and { number = member.number, pid = own.process.pid } or nil,
    mode = own.steering and own.steering.mode or nil,
    counters = sandbox.server.audit:counters(sandbox.id),
  }
end

return egress_policies

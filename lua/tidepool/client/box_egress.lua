--- The methods of a sandbox that say what may leave it: policies, and what they decided.
local async = require("tidepool.async")
local policy = require("tidepool.client.policy")

local box_egress = {}

local WAIT = 25 -- seconds of one request that waits for entries

-- The next entries, or the number to begin at | raises.
local function call(self, query)
  local list, message, code = self.client:call("egress_log", query)
  if not list then
    error(("%s (%s)"):format(message, code), 0)
  end
  return list
end

local function follow(self, query)
  local list, at = {}, 0
  if not query.after then
    local last = call(self, { name = query.name, limit = 1 })
    query.after = last[1] and last[1].seq or 0
  end
  query.wait = WAIT
  return function()
    return async.within(function()
      while at >= #list do
        list, at = call(self, query), 0
        query.after = list[#list] and list[#list].seq or query.after
      end
      at = at + 1
      return list[at]
    end)
  end
end

--- Adds the methods to the class.
function box_egress.extend(Box)
  --- Adds an egress policy, or changes the options of one that is there. Requests in flight end under the old one.
  ---@param name string a policy's name, or a file: "./mine.lua"
  ---@param options? table<string, any>
  ---@return tidepool.EgressInfo?
  ---@return string? message
  ---@return string? code "ENOPOLICY", "EINVAL" (an option, named in the message), "ENOENT"
  function Box:egress(name, options)
    local item, message, code = policy.one(name, options)
    if not item then
      return nil, message, code
    end
    return self.client:call("egress_add", { name = self.name, policies = { item } })
  end

  --- Replaces all egress policies: { "audit_only" }, { { "allow_hosts", hosts = { "example.com" } }, ... }. None
  --- of them denies everything.
  ---@param policies string|(string|table)[]
  ---@return tidepool.EgressInfo?
  ---@return string? message
  ---@return string? code as of egress
  function Box:egress_set(policies)
    local list, message, code = policy.list(policies)
    if not list then
      return nil, message, code
    end
    return self.client:call("egress_set", { name = self.name, policies = list })
  end

  --- Removes an egress policy.
  ---@param name string
  ---@return tidepool.EgressInfo?
  ---@return string? message
  ---@return string? code "ENOPOLICY"
  function Box:egress_rm(name)
    return self.client:call("egress_rm", { name = self.name, policy = name })
  end

  --- The egress policies, who serves them, and how much they decided.
  ---@return tidepool.EgressInfo?
  ---@return string? message
  ---@return string? code
  function Box:egress_show()
    return self.client:call("egress_show", { name = self.name })
  end

  --- What was decided, the oldest first. after: the `seq` of the last one seen, without it the latest ones;
  --- wait: seconds to wait for one when there is none. With `follow`, an iterator over what comes from now on,
  --- or after `after`, which waits for each and raises when it can't go on.
  ---@param options? { after: integer, limit: integer, action: string, wait: number, follow: boolean }
  ---@return tidepool.AuditEntry[]|(fun(): tidepool.AuditEntry)|nil
  ---@return string? message
  ---@return string? code
  function Box:egress_log(options)
    options = options or {}
    local query = { name = self.name, after = options.after, limit = options.limit, action = options.action, wait = options.wait }
    if options.follow then
      return follow(self, query)
    end
    return self.client:call("egress_log", query)
  end
end

return box_egress

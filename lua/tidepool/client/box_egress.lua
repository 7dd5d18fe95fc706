--- The methods of a sandbox that say what may leave it: policies, and what they decided.
local async = require("tidepool.async")
local policy = require("tidepool.client.policy")

local box_egress = {}

local WAIT = 25 -- seconds of one request that waits for entries

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

  --- What was decided, the oldest first. after: the `seq` of the last one seen; wait: seconds to wait for one;
  --- follow: called with each entry from now on, until it returns false or the sandbox is gone.
  ---@param options? { after: integer, limit: integer, action: string, wait: number, follow: fun(entry: tidepool.AuditEntry): boolean? }
  ---@return tidepool.AuditEntry[]?
  ---@return string? message
  ---@return string? code
  function Box:egress_log(options)
    options = options or {}
    local query = { name = self.name, after = options.after, limit = options.limit, action = options.action, wait = options.wait }
    if not options.follow then
      return self.client:call("egress_log", query)
    end
    return async.within(function()
      local list, message, code = self.client:call("egress_log", { name = self.name, limit = 1 })
      query.after = options.after or list and (list[1] and list[1].seq or 0)
      query.wait = WAIT
      while list do
        list, message, code = self.client:call("egress_log", query)
        for _, entry in ipairs(list or {}) do
          query.after = entry.seq
          if options.follow(entry) == false then
            return {}
          end
        end
      end
      return nil, message, code
    end)
  end
end

return box_egress

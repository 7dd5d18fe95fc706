--- The methods of a sandbox about time and branches: snapshots, forks, sleep.
local async = require("tidepool.async")
local random = require("tidepool.random")

local box_branches = {}

-- A label of the sandbox's own snapshots, or any snapshot's address.
local function address_of(self, snapshot)
  return snapshot:find("@", 1, true) and snapshot or self.name .. "@" .. snapshot
end

--- Branches of a sandbox or snapshot, as boxes made by `new(name)`, or what fn made of each. options may be left out.
function box_branches.fork(client, new, source, count, options, fn)
  if type(options) == "function" then
    options, fn = nil, options
  end
  return async.within(function()
    local list, message, code = client:call("fork", {
      source = source, count = count, memory = options and options.memory, key = random.hex(12),
    })
    if not list then
      return nil, message, code
    end
    local outcomes, tasks = {}, {}
    for i, info in ipairs(list) do
      outcomes[i] = { branch = new(info.name) }
      tasks[i] = async.spawn(fn or function() end, outcomes[i].branch, i)
    end
    for i, task in ipairs(tasks) do
      local ok, result = task:join()
      outcomes[i].ok = ok == true
      outcomes[i][ok and "result" or "error"] = result
    end
    if fn then
      return outcomes
    end
    for i, outcome in ipairs(outcomes) do
      outcomes[i] = outcome.branch
    end
    return outcomes
  end)
end

--- Adds the methods to the class; `new(client, name)` makes a box.
function box_branches.extend(Box, new)
  --- Keeps its files as they are in this instant, under NAME@LABEL. A sandbox that runs stands still for
  --- some milliseconds: `pause`, of `total`, in seconds. With memory its processes are kept too, in the same instant.
  ---@param label string 1-63 of [a-z0-9-]
  ---@param options? { labels: table<string, string>?, memory: boolean? }
  ---@return tidepool.SnapshotInfo?
  ---@return string? message
  ---@return string? code "EEXIST", "ETIMEDOUT" (some process can't be stopped), "ENOSPC"; with memory as of hibernate()
  function Box:snapshot(label, options)
    options = options or {}
    return self.client:call("snapshot_create", {
      name = self.name, label = label, labels = options.labels, memory = options.memory,
    })
  end

  --- The snapshots of its name, the oldest first.
  ---@return tidepool.SnapshotInfo[]?
  ---@return string? message
  ---@return string? code
  function Box:snapshots()
    return self.client:call("snapshot_ls", { name = self.name })
  end

  --- Deletes the snapshots of its name but the newest `last`, the newest of each of the last `daily` days that
  --- have one, and those with these labels.
  ---@param rule { last: integer?, daily: integer?, labels: table<string, string>? }
  ---@return string[]? removed their addresses
  ---@return string? message
  ---@return string? code "EINVAL": a rule that keeps nothing
  function Box:keep_snapshots(rule)
    return self.client:call("snapshot_keep", { name = self.name, last = rule.last, daily = rule.daily, labels = rule.labels })
  end

  --- Puts a snapshot's files in the place of its own, which are lost, with its processes; it runs again if it did.
  --- The processes of a snapshot with memory go on, unless `cold`.
  ---@param snapshot string a label of its own, or NAME@LABEL
  ---@param options? { cold: boolean? }
  ---@return tidepool.SandboxInfo?
  ---@return string? message
  ---@return string? code "ENOSNAPSHOT", "ENOSPC"
  function Box:rollback(snapshot, options)
    self:close()
    return self.client:call("rollback", {
      name = self.name, snapshot = address_of(self, snapshot), cold = options and options.cold,
    })
  end

  --- Branches of its files as they are in this instant, each a sandbox of its own. With fn, fn(branch, i) runs
  --- for all of them concurrently and each outcome says what it returned or raised; without, gives the branches.
  --- They stay until they are destroyed; promote() makes one of them the sandbox of this name. With memory its
  --- processes go on in each, by their ids and at their offsets: branch:process(name) finds them.
  ---@param count integer
  ---@param options? { memory: boolean? }
  ---@param fn? fun(branch: tidepool.Box, i: integer): any
  ---@return tidepool.BranchOutcome[]|tidepool.Box[]|nil
  ---@return string? message
  ---@return string? code "ENOSPC", "ETIMEDOUT"; with memory as of hibernate()
  function Box:fork(count, options, fn)
    return box_branches.fork(self.client, function(name)
      return new(self.client, name)
    end, self.name, count, options, fn)
  end

  --- Makes this branch the sandbox of its parent's name, at once; the parent is destroyed, and what runs here goes on.
  ---@return tidepool.Box? self with that name
  ---@return string? message
  ---@return string? code "EINVAL" (no branch), "ENOSANDBOX" (the parent is gone, or another branch took its place)
  function Box:promote()
    return async.within(function()
      local info, message, code = self.client:call("promote", { name = self.name })
      if not info then
        return nil, message, code
      end
      self.name = info.name
      return self
    end)
  end

  --- Makes it stand still: no CPU, all memory kept. Any verb or input wakes it.
  ---@return tidepool.SandboxInfo?
  ---@return string? message
  ---@return string? code "ESTOPPED", "ETIMEDOUT" (some process can't be stopped)
  function Box:freeze()
    return self.client:call("freeze", { name = self.name })
  end

  --- Puts its memory on disk and ends its processes; the next call brings them back as they were.
  ---@return { seconds: number, bytes: integer, connections_reset: integer }?
  ---@return string? message
  ---@return string? code "ENOTSUP" (something can't be captured), "ENOPKG" (no CRIU), "ESTOPPED", "ENOSPC"; it runs on
  function Box:hibernate()
    return self.client:call("hibernate", { name = self.name })
  end

  --- Sees to it that it runs.
  ---@return tidepool.SandboxInfo?
  ---@return string? message
  ---@return string? code
  function Box:wake()
    return self.client:call("wake", { name = self.name })
  end
end

return box_branches

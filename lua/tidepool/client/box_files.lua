--- The file methods of a sandbox: each runs with an agent of the user who asks, kept for a while.
--
-- Runs in the client. What the methods do is in tidepool.client.files and tidepool.client.copy.
local async = require("tidepool.async")
local copy = require("tidepool.client.copy")
local files = require("tidepool.client.files")

local box_files = {}

local IDLE = 30 -- seconds that an agent is kept for the next operation; it costs the sandbox memory

local AGAIN = 10 -- times that an operation is begun

-- Runs body(files) with the kept agent of options.user, or a new one. One that an agent has not heard, which ends when
-- the sandbox goes to sleep or its memory is taken, is asked of the next one.
-- once: body is one operation, "whole" when none of its requests counts before the last.
local function with_agent(box, options, body, once, try)
  return async.within(function()
    local user = tostring(options and options.user or "agent")
    local kept = box.agents[user]
    if kept and (kept.files.closed or kept.users == 0 and not kept.files:alive()) then
      kept = nil
    end
    if not kept then
      local fd, message, code = box:agent(user)
      if not fd then
        return nil, message, code
      end
      local opened
      opened, message, code = files.open(fd)
      if not opened then
        return nil, message, code
      end
      kept = { files = opened, users = 0 }
      box.agents[user] = kept
    end
    if kept.cancel then
      kept.cancel()
      kept.cancel = nil
    end
    kept.users = kept.users + 1
    local results = { xpcall(body, debug.traceback, kept.files) }
    kept.users = kept.users - 1
    if kept.users == 0 then
      kept.cancel = async.after(IDLE, function()
        kept.cancel = nil
        kept.files:close()
      end)
    end
    if not results[1] then
      error(results[2], 0)
    elseif results[2] or not kept.files.unheard then
      return unpack(results, 2, 4)
    end
    local unheard = results[5] == "unheard" or once == "whole" and kept.files.closed
    if unheard and once and (try or 1) < AGAIN then
      return with_agent(box, options, body, once, (try or 1) + 1)
    end
    return unpack(results, 2, 4)
  end)
end

--- Gives a Box its file methods: those of Files, with `user` (name or id, default agent) among the
-- options, upload, download, and close, which ends the agents.
---@param Box table the class
function box_files.extend(Box)
  local with_options = { read = 2, write = 3, append = 3, list = 2, stat = 2, mkdir = 2, remove = 2, rename = 3, chmod = 3, symlink = 3, touch = 3 }
  for name, position in pairs(with_options) do
    Box[name] = function(self, ...)
      local args = { n = select("#", ...), ... }
      return with_agent(self, args[position], function(agent)
        return agent[name](agent, unpack(args, 1, args.n))
      end, name == "write" and type(args[2]) == "string" and "whole" or "single")
    end
  end

  --- Copies a file or tree from the host, as `cp -a` does, to that name or into a directory that is there.
  ---@param from string on the host
  ---@param to string inside
  ---@param options? { user: string, on_progress: fun(result: tidepool.CopyResult, path: string) }
  ---@return tidepool.CopyResult?
  ---@return string? message
  ---@return string? code
  function Box:upload(from, to, options)
    return with_agent(self, options, function(agent)
      return copy.upload(agent, from, to, options)
    end)
  end

  --- Copies a file or tree to the host, the other way round.
  ---@param from string inside
  ---@param to string on the host
  ---@param options? { user: string, on_progress: fun(result: tidepool.CopyResult, path: string) }
  ---@return tidepool.CopyResult?
  ---@return string? message
  ---@return string? code
  function Box:download(from, to, options)
    return with_agent(self, options, function(agent)
      return copy.download(agent, from, to, options)
    end)
  end

  --- Runs fn with a file client; for several operations in a row and for descriptors.
  ---@param fn fun(files: tidepool.Files): ...
  ---@param options? { user: string }
  ---@return ... what fn returns, three values at most
  function Box:files(fn, options)
    return with_agent(self, options, fn)
  end

  --- Ends what this client keeps open. The sandbox goes on.
  function Box:close()
    for user, kept in pairs(self.agents) do
      if kept.cancel then
        kept.cancel()
      end
      kept.files:close()
      self.agents[user] = nil
    end
  end
end

return box_files

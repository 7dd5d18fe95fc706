--- What `require "sandbox"` returns.
--
--   local sandbox = require "sandbox"
--   local box = sandbox.open("agent-42", { image = "debian", type = "basic" })
--   print(box:exec({ "uname", "-a" }).stdout)
--
-- Failure is nil, message, code, so that assert works. Functions may be called anywhere: outside of
-- a task they run the loop until they are done, inside they wait without blocking other tasks.
local async = require("tidepool.async")
local box = require("tidepool.client.box")
local client = require("tidepool.client")

local sandbox = {}

local default

local function get_client()
  default = default or client.new()
  return default
end

--- The process's own client: one connection to the server, made when first needed.
sandbox.client = get_client

local OPTIONS = { "image", "type", "memory", "cpu", "pids", "disk", "env", "labels" }

local function params_of(name, options)
  local params = { name = name }
  for _, key in ipairs(OPTIONS) do
    params[key] = (options or {})[key]
  end
  for key in pairs(options or {}) do
    if params[key] == nil then
      return nil, "unknown option: " .. tostring(key), "EINVAL"
    end
  end
  return params
end

local function make(verb)
  return function(name, options)
    return async.within(function()
      local params, message, code = params_of(name, options)
      if not params then
        return nil, message, code
      end
      local info
      info, message, code = get_client():call(verb, params)
      if not info then
        return nil, message, code
      end
      local made = box.new(get_client(), name)
      made.created = info.created_now
      return made
    end)
  end
end

--- The sandbox of that name, running: made when absent, resumed when there.
-- options: image ("debian"), type ("basic"), memory, disk (bytes), cpu (vCPU), pids, env, labels.
-- They count when it is made; a sandbox that is there keeps its own.
sandbox.open = make("open")

--- A new sandbox; "EEXIST" when the name is taken.
sandbox.create = make("create")

--- The sandbox of that name without starting or making it; its methods say when it isn't there.
function sandbox.get(name)
  return box.new(get_client(), name)
end

--- The sandboxes: a list of info. options: labels.
function sandbox.ls(options)
  return get_client():call("ls", options or {})
end

--- The server: pid, version, directories.
function sandbox.info()
  return get_client():call("info", {})
end

--- Images: build, import, pull, ls, rm. `progress(line)` is told what happens.
sandbox.image = {
  build = function(name, options, progress)
    options = options or {}
    return get_client():call("image_build", { image = name, replace = options.replace }, nil, progress)
  end,
  import = function(file, options, progress)
    options = options or {}
    return get_client():call("image_import", { file = file, image = options.name, replace = options.replace }, nil, progress)
  end,
  pull = function(reference, options, progress)
    options = options or {}
    return get_client():call("image_pull", {
      reference = reference,
      image = options.name,
      replace = options.replace,
      insecure = options.insecure,
    }, nil, progress)
  end,
  ls = function()
    return get_client():call("image_ls", {})
  end,
  rm = function(name)
    return get_client():call("image_rm", { image = name })
  end,
}

--- Runs the functions as concurrent tasks and waits for all; raises the first error.
-- Returns the first result of each, in order.
function sandbox.all(functions)
  return async.within(function()
    local results = async.all(functions)
    for i, result in ipairs(results) do
      results[i] = result[1]
    end
    return results
  end)
end

--- Starts a task; see tidepool.async. task:join() waits for it.
sandbox.spawn = async.spawn

--- Runs fn as a task and the loop until it returns.
sandbox.run = async.within

--- Waits without blocking other tasks.
function sandbox.sleep(seconds)
  return async.within(async.sleep, seconds)
end

return sandbox

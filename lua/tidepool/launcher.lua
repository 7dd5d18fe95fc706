--- The part of ./sandbox.lua VERB before the verb: what must be installed and built for it, and who
-- runs it. Loaded by sandbox.lua's last line, in the client's process, before luv need be there.
local launcher = {}

-- Verbs that look at the machine or build and measure it. They own their options; the others are
-- the command line's (tidepool.cli).
local own = {
  doctor = "tidepool.doctor",
  test = "tidepool.testing",
  bench = "tidepool.bench",
}

-- What a verb needs besides the run-time and build packages; `false`: nothing at all.
local needs = {
  help = false,
  doctor = false,
  version = false,
  run = { "image", "example" },
  image = { "image" },
  test = { "image", "example", "test" },
  bench = { "image" },
  open = { "image" },
  create = { "image" },
}

-- Help is for someone who has nothing yet, so it must not install a compiler first.
local function asks_for_help(arg)
  for _, word in ipairs(arg) do
    if word == "--" then
      return false
    elseif word == "--help" or word == "-h" then
      return true
    end
    -- `run FILE --help` and `exec NAME CMD -h` are for the script and the command.
    if arg[1] == "run" and word ~= "run" and word:sub(1, 1) ~= "-" then
      return false
    end
  end
  return false
end

local function remaining(arg)
  local rest = {}
  for i = 2, #arg do
    rest[#rest + 1] = arg[i]
  end
  return rest
end

local function prepare(arg, groups)
  local bootstrap = require("tidepool.bootstrap")
  local image = arg[1] == "run" -- how a newcomer starts; `open` and `create` build it when they find it missing
  local ok, message = bootstrap.ensure(groups, image and 3 or 2)
  if ok and image then
    ok, message = bootstrap.default_image(3)
  end
  return ok, message
end

--- Runs the verb in `arg`; returns the exit status. 125 is ours, as docker has it.
---@param arg string[]
---@return integer status
function launcher.main(arg)
  local verb = arg[1] or "help"
  if verb == "serve" and arg[2] == "--daemon" then
    -- It outlives the client that starts it, whose files, pipes and sockets it must not hold open.
    -- Before anything of ours opens one.
    require("tidepool.core").fd.close_from(3)
  end
  local groups = needs[verb]
  if groups == nil then
    groups = {}
  end
  if asks_for_help(arg) or verb:sub(1, 1) == "-" then
    return require("tidepool.cli").main(arg)
  end
  if groups then
    local ok, message = prepare(arg, groups)
    if not ok then
      io.stderr:write("tidepool: ", message, "\n")
      return 125
    end
  end
  if own[verb] then
    return require(own[verb]).main(remaining(arg))
  end
  return require("tidepool.cli").main(arg)
end

return launcher

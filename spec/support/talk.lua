--- A client inside a sandbox that says exactly the bytes it is told, and what a spec needs around it.
--
-- spec/support/talk.py does the talking; its file tells what a step may be. Here is its Lua end, and
-- looking for an entry of the egress log, which is written a moment after what it tells of.
local cjson = require("cjson")
local machine = require("spec.support.machine")
local paths = require("tidepool.paths")

local talk = {}

local script

local function program()
  script = script or assert(machine.read(paths.repo() .. "/spec/support/talk.py"))
  return script
end

-- cjson's texts are UTF-8; here each of its characters stands for a byte.
local function pack(bytes)
  return (bytes:gsub("[\128-\255]", function(char)
    local byte = char:byte()
    return string.char(byte < 192 and 194 or 195, byte < 192 and byte or byte - 64)
  end))
end

local function unpack_(text)
  return (text:gsub("([\194\195])([\128-\191])", function(lead, rest)
    return lead == "\194" and rest or string.char(rest:byte() + 64)
  end))
end

--- Connects from inside `box` and follows the steps. config: host, port, tls, steps ... as talk.py says.
-- Returns { text, ended, total, sent, pieces }.
function talk.run(box, config)
  config.port = config.port or (config.tls and 443 or 80)
  for _, step in ipairs(config.steps or {}) do
    step.send = step.send and pack(step.send)
    step.await = type(step.await) == "string" and pack(step.await) or step.await
  end
  local result = assert(box:exec({ "python3", "-c", program() }, { timeout = 120, stdin = cjson.encode(config) }))
  assert(result.exit_code == 0, result.stderr)
  local said = cjson.decode(result.stdout)
  said.text = unpack_(said.text)
  return said
end

--- Sends one text over TLS (or plain, with `tls = false` in config) and reads all that comes back.
function talk.say(box, host, text, config)
  config = config or {}
  config.host, config.steps = host, { { send = text } }
  if config.tls == nil then
    config.tls = true
  end
  return talk.run(box, config)
end

local function matches(entry, wanted)
  for key, value in pairs(wanted) do
    local found = entry[key]
    if key == "reason" or key == "path" then
      if not (found and found:find(value, 1, true)) then
        return false
      end
    elseif found ~= value then
      return false
    end
  end
  return true
end

--- The newest entry of the egress log with these fields (reason and path: texts found in them), waited for | nil.
function talk.entry(box, wanted)
  return machine.eventually(function()
    local list = assert(box:egress_log({ limit = 500 }))
    for i = #list, 1, -1 do
      if matches(list[i], wanted) then
        return list[i]
      end
    end
  end)
end

return talk

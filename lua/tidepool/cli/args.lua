--- Command lines against declared commands: words in, typed values out, no side effects.
--
-- A command is { name, about, params }, its parameters in the shape of tidepool.verbs; one with neither
-- `positional`, `flag` nor `rest` is not offered here. `rest` takes everything after `--`, or from the
-- first word behind the positional ones. Defaults are the server's to fill in. Failure is nil,
-- message, code; the codes are stable:
--   ENOVERB  no such verb        ENOOPT  no such option      ENOARG  something is missing
--   EEXTRA   a word too many     EINVAL  a value that is not of its type
local verbs = require("tidepool.verbs")

local args = {}

local FACTORS = { [""] = 1, b = 1, k = 2 ^ 10, m = 2 ^ 20, g = 2 ^ 30, t = 2 ^ 40 }

--- "512M", "1.5G", "4096", "10kB", "2GiB" in bytes.
function args.bytes(text)
  local number, unit = text:lower():match("^([%d.]+)([bkmgt]?)i?b?$")
  number = tonumber(number)
  if not number then
    return nil
  end
  return math.floor(number * FACTORS[unit])
end

local SECONDS = { [""] = 1, ms = 0.001, s = 1, m = 60, h = 3600, d = 86400 }

--- "10", "1.5s", "500ms", "5m", "1h", "2d" in seconds.
function args.seconds(text)
  local number, unit = text:match("^([%d.]+)(%a*)$")
  number = tonumber(number)
  return number and SECONDS[unit] and number * SECONDS[unit] or nil
end

local TRUE = { ["true"] = true, yes = true, ["1"] = true, on = true }
local FALSE = { ["false"] = true, no = true, ["0"] = true, off = true }

-- Each converter: text -> value | nil. The second field says what was expected.
local TYPES = {
  string = { function(text) return text end, "text" },
  any = { function(text) return text end, "text" },
  list = { function(text) return text end, "text" },
  argv = { function(text) return text end, "text" },
  name = {
    function(text)
      return verbs.valid_name(text) and text or nil
    end,
    "a name (1-63 of a-z, 0-9 and -, not starting with -)"
  },
  offset = { args.bytes, "a number of bytes" },
  integer = {
    function(text)
      return text:match("^-?%d+$") and tonumber(text) or nil
    end,
    "a whole number",
  },
  number = {
    function(text)
      local number = text:match("^-?[%d.]+$") and tonumber(text)
      return number or nil
    end,
    "a number",
  },
  seconds = { args.seconds, "a time such as 30, 1.5s, 500ms, 5m or 1h" },
  bytes = { args.bytes, "a size such as 4096, 512M or 1.5G" },
  octal = {
    function(text)
      return text:match("^0?[0-7]+$") and tonumber(text, 8) or nil
    end,
    "an octal mode such as 644",
  },
  boolean = {
    function(text)
      text = text:lower()
      if TRUE[text] then
        return true
      end
      if FALSE[text] then
        return false
      end
    end,
    "true or false",
  },
}

--- One word as a value of the parameter's type: value | nil, message, "EINVAL".
function args.convert(param, text, label)
  if param.type == "map" then
    local key, value = text:match("^([^=]+)=(.*)$")
    if not key and text ~= "" and not text:find("=", 1, true) and param.inherit then
      key, value = text, os.getenv(text) -- as docker's -e NAME: the value that we have
    end
    if not key or not value then
      return nil, ("%s: expected KEY=VALUE, got %q"):format(label, text), "EINVAL"
    end
    return { key, value }
  end
  local kind = TYPES[param.type] or TYPES.string
  local value = kind[1](text)
  if value == nil then
    return nil, ("%s: expected %s, got %q"):format(label, kind[2], text), "EINVAL"
  end
  if param.values then
    for _, allowed in ipairs(param.values) do
      if allowed == value then
        return value
      end
    end
    local choices = table.concat(param.values, ", ")
    return nil, ("%s: expected one of %s, got %q"):format(label, choices, text), "EINVAL"
  end
  return value
end

--- How many edits turn one word into the other.
function args.distance(a, b)
  local row = {}
  for j = 0, #b do
    row[j] = j
  end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      local best = math.min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
      diagonal, row[j] = row[j], best
    end
  end
  return row[#b]
end

--- The candidate that `word` was probably meant to be, or nil.
function args.nearest(word, candidates)
  local best, best_distance
  for _, candidate in ipairs(candidates) do
    local distance = args.distance(word, candidate)
    if #word > 1 and candidate:sub(1, #word) == word then
      distance = math.min(distance, 1)
    end
    if not best_distance or distance < best_distance then
      best, best_distance = candidate, distance
    end
  end
  if best_distance and best_distance <= math.max(1, math.ceil(#word / 3)) then
    return best
  end
end

local function meant(word, candidates)
  local near = args.nearest(word, candidates)
  return near and (" (did you mean %s?)"):format(near) or ""
end

--- How a parameter is written on the command line.
function args.label(param)
  return param.flag or (param.metavar or param.name:upper())
end

local function index(command)
  local found = { options = {}, positional = {}, spellings = {} }
  for _, param in ipairs(command.params or {}) do
    if param.positional then
      found.positional[param.positional] = param
    elseif param.rest then
      found.rest = param
    elseif param.flag then
      found.options[param.flag] = param
      found.spellings[#found.spellings + 1] = param.flag
      if param.short then
        found.options[param.short] = param
      end
    end
  end
  for _, own in ipairs(args.own) do
    found.options[own.flag] = found.options[own.flag] or own
    found.spellings[#found.spellings + 1] = own.flag
    if own.short then
      found.options[own.short] = found.options[own.short] or own
    end
  end
  return found
end

--- What every command knows.
args.own = {
  { name = "json", type = "boolean", flag = "--json", about = "print one JSON document" },
  { name = "help", type = "boolean", flag = "--help", short = "-h", about = "print this help" },
}

local function store(values, param, value)
  if param.type == "map" then
    values[param.name] = values[param.name] or {}
    values[param.name][value[1]] = value[2]
  elseif param.repeated or param.type == "list" then
    values[param.name] = values[param.name] or {}
    table.insert(values[param.name], value)
  else
    values[param.name] = value
  end
end

-- One option word, possibly several short ones: how many words it took | nil, message, code.
local function take_option(words, at, known, values)
  local options = known.options
  local word = words[at]
  local flag, inline = word:match("^(%-%-[^=]+)=(.*)$")
  flag = flag or word
  local param = options[flag]

  if not param and word:match("^%-[^-]") then
    flag = word:sub(1, 2)
    param = options[flag]
    inline = #word > 2 and word:sub(3) or nil
    if param and param.type == "boolean" and inline then -- -it
      store(values, param, true)
      words[at] = "-" .. inline
      return take_option(words, at, known, values)
    end
  end
  if not param and flag:sub(1, 5) == "--no-" and inline == nil then
    local positive = options["--" .. flag:sub(6)]
    if positive and positive.type == "boolean" then
      store(values, positive, false)
      return 1
    end
  end
  if not param then
    return nil, ("unknown option %s%s"):format(flag, meant(flag, known.spellings)), "ENOOPT"
  end

  if param.type == "boolean" and inline == nil then
    store(values, param, true)
    return 1
  end
  local text = inline or words[at + 1]
  if text == nil then
    return nil, ("option %s needs a value"):format(flag), "ENOARG"
  end
  local value, message, code = args.convert(param, text, "option " .. flag)
  if value == nil then
    return nil, message, code
  end
  store(values, param, value)
  return inline and 1 or 2
end

-- Whether all that is required is there.
local function check_required(command, values)
  for _, param in ipairs(command.params or {}) do
    if param.required and values[param.name] == nil then
      if param.rest then
        return nil, "the command to run is missing; it goes after --", "ENOARG"
      elseif param.positional or param.flag then
        return nil, ("%s is missing"):format(args.label(param)), "ENOARG"
      end
    end
  end
  return values
end

--- Parses the words behind a verb: table of values | nil, message, code.
-- `--help` and `--json` are known to every command and set values.help, values.json.
function args.parse(command, given)
  local words, known = { unpack(given) }, index(command)
  local values, at, taken, literal = {}, 1, 0, false
  local positional, rest = known.positional, known.rest

  while at <= #words do
    local word = words[at]
    local param = positional[taken + 1]
    if not param and positional[taken] and positional[taken].repeated then
      param = positional[taken]
    end
    if rest and rest.dashes == false and taken == #positional then
      values[rest.name] = { unpack(words, at) } -- the script's own, options too
      break
    elseif word == "--" and not literal then
      if rest then
        values[rest.name] = { unpack(words, at + 1) }
        break
      end
      literal = true -- only words from here on
      at = at + 1
    elseif word:sub(1, 1) == "-" and #word > 1 and not literal then
      local count, message, code = take_option(words, at, known, values)
      if not count then
        if values.help then
          return values
        end
        return nil, message, code
      end
      at = at + count
    elseif param then
      taken = math.min(taken + 1, #positional)
      local value, message, code = args.convert(param, word, args.label(param))
      if value == nil then
        return nil, message, code
      end
      store(values, param, value)
      at = at + 1
    elseif rest then
      values[rest.name] = { unpack(words, at) }
      break
    else
      return nil, ("%q is one word too many"):format(word), "EEXTRA"
    end
  end

  if values.help then
    return values
  end
  if rest and values[rest.name] and #values[rest.name] == 0 then
    values[rest.name] = nil
  end
  return check_required(command, values)
end

--- Finds the command that the words start with, longest name first ("image ls" before "image").
-- Returns command, the words behind it | nil, message, "ENOVERB".
function args.find(commands, words)
  for length = math.min(3, #words), 1, -1 do
    local name = table.concat(words, " ", 1, length)
    local command = commands.by_name[name] or commands.by_name[(name:gsub("_", "-"))]
    if command then
      return command, { unpack(words, length + 1) }
    end
  end

  local names, group = {}, {}
  for _, command in ipairs(commands.list) do
    names[#names + 1] = command.name
    local sub = command.name:match("^" .. words[1]:gsub("%p", "%%%0") .. " (.*)$")
    if sub then
      group[#group + 1] = sub
    end
  end
  if #group > 0 then
    if not words[2] or words[2]:sub(1, 1) == "-" then
      return nil, ("%s needs one of: %s"):format(words[1], table.concat(group, ", ")), "ENOVERB"
    end
    return nil, ("unknown verb %q%s"):format(words[1] .. " " .. words[2], meant(words[2], group)), "ENOVERB"
  end
  return nil, ("unknown verb %q%s"):format(words[1], meant(words[1], names)), "ENOVERB"
end

return args

--- What a sandbox holds instead of a secret: a token of the same shape that is worth nothing elsewhere.
--
-- Tools look at a token before they use it (its public prefix, its length, its characters), so those are
-- kept; the rest is random. Where the characters allow it, a mark says to a person what it is.
local uv = require("luv")

local placeholder = {}

-- Prefixes that a service gives to all its tokens, the longer ones first.
local PREFIXES = {
  "github_pat_", "sk-ant-api03-", "sk-proj-", "sk-svcacct-", "sk-ant-", "sk-or-v1-", "sk_live_", "sk_test_", "rk_live_", "pk_live_",
  "glpat-", "glptt-", "gldt-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "xoxb-", "xoxp-", "xoxa-", "xoxs-", "xapp-", "pypi-", "npm_",
  "hf_", "dckr_pat_", "dop_v1_", "shpat_", "SG.", "AKIA", "ASIA", "AIza", "ya29.", "eyJ", "whsec_", "lin_api_", "gsk_", "r8_", "sk-",
}

local RANDOM = 24 -- characters that nobody can guess, at least
local MARK = "TIDEPOOL"
local LONGEST = 255

local UPPER, LOWER, DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "0123456789"

-- Pattern of a token's own characters, what to draw from, and the mark in such characters.
local ALPHABETS = {
  { "^%d+$", DIGITS, "" },
  { "^[%da-f]+$", DIGITS .. "abcdef", "" },
  { "^[%dA-F]+$", DIGITS .. "ABCDEF", "" },
  { "^[2-7A-Z]+$", UPPER .. "234567", MARK },
  { "^[%dA-Z]+$", UPPER .. DIGITS, MARK },
  { "^[%da-z]+$", LOWER .. DIGITS, MARK:lower() },
}
local ANY = { "", UPPER .. LOWER .. DIGITS, MARK }

-- `count` characters of the alphabet, each as likely as the others.
local function draw(alphabet, count)
  local out, limit = {}, 256 - 256 % #alphabet
  while #out < count do
    for byte in assert(uv.random(64)):gmatch(".") do
      local number = byte:byte()
      if number < limit and #out < count then
        local at = number % #alphabet + 1
        out[#out + 1] = alphabet:sub(at, at)
      end
    end
  end
  return table.concat(out)
end

local function prefix_of(value)
  for _, prefix in ipairs(PREFIXES) do
    if value:sub(1, #prefix) == prefix then
      return prefix
    end
  end
  return ""
end

local function alphabet_of(letters)
  for _, row in ipairs(ALPHABETS) do
    if letters:find(row[1]) then
      return row
    end
  end
  return ANY
end

--- A placeholder for the value. Of the value itself it tells the prefix, the length, and of a token with a
--- known prefix or of a UUID where its separators are.
function placeholder.make(value)
  local prefix = prefix_of(value)
  local rest = value:sub(#prefix + 1)
  local is_uuid = rest:find("^%x+%-%x+%-%x+%-%x+%-%x+$") and #rest == 36
  local row = alphabet_of((rest:gsub("[-_.]", "")))
  local length = math.min(math.max(#rest, RANDOM + #row[3]), LONGEST - #prefix)
  local letters = row[3] .. draw(row[2], length - #row[3])
  if prefix ~= "" or is_uuid then
    local _, separators = rest:gsub("[-_.]", "")
    if length == #rest and length - separators - #row[3] >= RANDOM then
      local kept = {}
      for at, char in rest:gmatch("()([-_.])") do
        kept[at] = (is_uuid or at > #row[3]) and char or nil
      end
      local at = 0
      letters = letters:gsub(".", function()
        at = at + 1
        return kept[at] -- the letter itself when there is none
      end)
    end
  end
  return prefix .. letters
end

--- Whether a person's own placeholder will do: true | nil, message.
function placeholder.check(text)
  if #text < 16 or #text > LONGEST then
    return nil, "a placeholder has 16 to 255 characters"
  elseif not text:find("^[%w_.-]+$") then
    return nil, "a placeholder is made of letters, digits, '-', '_' and '.'"
  end
  return true
end

return placeholder

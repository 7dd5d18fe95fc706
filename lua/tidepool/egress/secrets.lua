--- The secrets, as the egress process holds them, and the placeholders that stand for them inside.
--
-- A placeholder is swapped in request headers, for the hosts that its secret permits, and refused anywhere
-- else. What upstreams echo is masked: the values of all secrets, whoever used them.
local digest = require("tidepool.proxy").digest
local scrub = require("tidepool.proxy").scrub
local hosts = require("tidepool.egress.policy.hosts")

local secrets = {}

local Store = {}
Store.__index = Store

function secrets.new()
  return setmetatable({ by_name = {}, retired = {} }, Store)
end

local MOST_SWAPS = 256 -- in one request
local RETIRED = 16 -- former values that are still masked: an upstream may have kept one

-- Both matchers, compiled when they are first needed after a change. Ids are places in `order`.
local function compile(self)
  if self.compiled then
    return
  end
  local values, placeholders = {}, {}
  self.order = {}
  for name, secret in pairs(self.by_name) do
    self.order[#self.order + 1] = name
    values[#values + 1] = { secret.value, #self.order }
    if secret.placeholder then
      placeholders[#placeholders + 1] = { secret.placeholder, #self.order }
    end
  end
  for _, value in ipairs(self.retired) do
    values[#values + 1] = { value, #self.order + 1 } -- the id of none
  end
  self.values = #values > 0 and assert(scrub.new(values, "mask")) or nil
  self.placeholders = #placeholders > 0 and assert(scrub.new(placeholders, "detect")) or nil
  self.compiled = true
end

--- Sets or replaces one: { name, value, placeholder, hosts = globs }.
function Store:set(secret)
  local before = self.by_name[secret.name]
  if before and before.value ~= secret.value then
    table.insert(self.retired, 1, before.value)
    self.retired[RETIRED + 1] = nil
  end
  self.by_name[secret.name] = secret
  self.compiled = false
end

function Store:remove(name)
  local before = self.by_name[name]
  if before then
    table.insert(self.retired, 1, before.value)
    self.retired[RETIRED + 1] = nil
  end
  self.by_name[name] = nil
  self.compiled = false
end

--- Removes all but those of these names.
function Store:keep(names)
  local kept = {}
  for _, name in ipairs(names) do
    kept[name] = true
  end
  local gone = {}
  for name in pairs(self.by_name) do
    gone[#gone + 1] = not kept[name] and name or nil
  end
  for _, name in ipairs(gone) do
    self:remove(name)
  end
end

--- The value | nil, message.
function Store:value(name)
  local secret = self.by_name[name]
  if not secret then
    return nil, "no such secret: " .. tostring(name)
  end
  return secret.value
end

--- What masks all values in a stream, or nil when there are none.
function Store:masks()
  compile(self)
  return self.values
end

--- What finds placeholders in a stream, or nil when there are none.
function Store:detector()
  compile(self)
  return self.placeholders
end

--- A text without the values, for logs and headers.
function Store:redact(text)
  local masks = self:masks()
  return masks and (masks:text(text)) or text
end

--- The name of the secret whose placeholder is in the text, in any of its encodings, or nil.
function Store:find(text)
  local detector = self:detector()
  if not detector then
    return nil
  end
  local _, id = detector:text(text)
  return id and self.order[id]
end

--- The names of the secrets whose values are in a list of { name, value } headers, each once; and whether any
--- value is, former ones too.
function Store:names_in(headers)
  local masks, names, seen, any = self:masks(), {}, {}, false
  for _, header in ipairs(masks and headers or {}) do
    local _, id = masks:text(header[2])
    local name = id and self.order[id]
    any = any or id ~= nil
    if name and not seen[name] then
      seen[name], names[#names + 1] = true, name
    end
  end
  return names, any
end

-- Where a secret may go. A host in the clear needs "http://host".
local function permits(secret, host, tls)
  for _, glob in ipairs(secret.hosts or {}) do
    local plain = glob:match("^http://(.*)$")
    if (tls and not plain and hosts.match(glob, host)) or (not tls and plain and hosts.match(plain, host)) then
      return true
    end
  end
  return false
end

-- In a header it would end it, and what the sandbox has put behind the placeholder would be another.
local function fits_header(value)
  return not value:find("[%z\1-\8\10-\31\127]")
end

local function replace_plain(text, placeholder, value)
  local from, to = text:find(placeholder, 1, true)
  if not from then
    return text
  end
  return text:sub(1, from - 1) .. value .. replace_plain(text:sub(to + 1), placeholder, value)
end

local function replace_basic(text, placeholder, value)
  local scheme, encoded = text:match("^(%s*[Bb][Aa][Ss][Ii][Cc]%s+)([%w+/=_-]+)%s*$")
  local decoded = encoded and digest.unbase64(encoded)
  if not decoded or not decoded:find(placeholder, 1, true) then
    return text
  end
  return scheme .. digest.base64(replace_plain(decoded, placeholder, value))
end

--- Swaps placeholders in a list of { name, value } headers, in place.
-- Returns how many there were | nil, message, name of the secret, when one must not go to this host.
function Store:swap(headers, host, tls)
  local swapped = 0
  for _, header in ipairs(headers) do
    local name = self:find(header[2]) or self:find(header[1])
    while name do
      local secret = self.by_name[name]
      if not permits(secret, host or "", tls) then
        local where = (tls and "" or "http://") .. (host or "an address")
        return nil, ("the placeholder of secret %s may not go to %s"):format(name, where), name
      end
      local before = header[2]
      header[2] = replace_basic(replace_plain(before, secret.placeholder, secret.value), secret.placeholder, secret.value)
      if header[2] == before then
        return nil, ("the placeholder of secret %s is in an encoding that can't be swapped"):format(name), name
      elseif not fits_header(header[2]) then
        return nil, ("secret %s holds a line break or another control character, which no header can"):format(name), name
      end
      swapped = swapped + 1
      if swapped > MOST_SWAPS then -- a value may hold the placeholder of another
        return nil, "too many placeholders in one request", name
      end
      name = self:find(header[2])
    end
  end
  return swapped
end

return secrets

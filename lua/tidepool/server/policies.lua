--- Egress policies, as the server handles them: files found by name, and the chain of a sandbox as data.
--
-- The server reads policies and never runs them: checking and deciding is done in egress processes. A
-- policy of a file elsewhere is read by the client, whose rights count, and comes here as text.
local uv = require("luv")
local cjson = require("cjson")
local paths = require("tidepool.paths")
local read_file = require("tidepool.file").read

local policies = {}

local LONGEST = 256 * 1024 -- bytes of a policy's text, and of one policy's options
local MOST = 256 -- policies of one sandbox

--- What a sandbox has that was given none.
policies.DEFAULT = { { name = "deny_all", options = {} } }

-- Where policies of a name are, those of the state directory first.
local function directories(server)
  return { server.directory .. "/policies", paths.repo() .. "/policies" }
end

local function is_name(name)
  return #name <= 64 and name:find("^[%a_][%w_-]*$") ~= nil
end

--- The text of the policy of that name, and its path | nil, message, "ENOPOLICY".
function policies.text(server, name)
  if is_name(name) then
    for _, directory in ipairs(directories(server)) do
      local path = ("%s/%s.lua"):format(directory, name)
      local text = read_file(path)
      if text and #text <= LONGEST then
        return text, path
      elseif text then
        return nil, ("policy %s is larger than %d bytes: %s"):format(name, LONGEST, path), "EINVAL"
      end
    end
  end
  return nil, "no such policy: " .. name .. " (policy ls lists them)", "ENOPOLICY"
end

-- What a policy says about itself, without running it.
local function about_of(text)
  local about = text:match('\n%s*about%s*=%s*"(.-[^\\])"')
  return about and (about:gsub("\\(.)", "%1"))
end

--- The policies that have names: a list of { name, about, path }.
function policies.list(server)
  local list, seen = {}, {}
  for _, directory in ipairs(directories(server)) do
    local scan = uv.fs_scandir(directory)
    while scan do
      local file = uv.fs_scandir_next(scan)
      if not file then
        break
      end
      local name = file:match("^(.+)%.lua$")
      if name and is_name(name) and not seen[name] then
        seen[name] = true
        local path = directory .. "/" .. file
        list[#list + 1] = { name = name, path = path, about = about_of(read_file(path) or "") }
      end
    end
  end
  table.sort(list, function(a, b)
    return a.name < b.name
  end)
  return list
end

--- One policy, its text too.
function policies.show(server, name)
  local text, path, code = policies.text(server, name)
  if not text then
    return nil, path, code
  end
  return { name = name, path = path, about = about_of(text), text = text }
end

-- The chain --------------------------------------------------------------------------------------

--- Checks what a client sent: { name, text or nil, options } each. Returns a chain to keep | nil, message, code.
function policies.chain(given)
  if #given == 0 then
    return policies.DEFAULT
  elseif #given > MOST then
    return nil, ("%d policies are too many, the limit is %d"):format(#given, MOST), "EINVAL"
  end
  local chain, seen = {}, {}
  for i, item in ipairs(given) do
    if not is_name(item.name) then
      return nil, "not a policy's name: " .. item.name, "EINVAL"
    elseif seen[item.name] then
      return nil, "policy " .. item.name .. " is there twice", "EINVAL"
    elseif item.text and #item.text > LONGEST then
      return nil, ("policy %s is larger than %d bytes"):format(item.name, LONGEST), "EINVAL"
    end
    local options = item.options or {}
    local ok, encoded = pcall(cjson.encode, options)
    if not ok or #encoded > LONGEST then
      return nil, ("policy %s: its options %s"):format(item.name, ok and "are too large" or "can't be stored: " .. tostring(encoded)), "EINVAL"
    end
    seen[item.name] = true
    chain[i] = { name = item.name, text = item.text, options = options }
  end
  return chain
end

local function is_default(chain)
  return #chain == 1 and chain[1].name == "deny_all"
end

--- The chain with one more policy at its end, or with other options and text where it has that one. What
--- denies everything gives way to the first that is added.
function policies.with(chain, item)
  if is_default(chain) then
    return { item }
  end
  local changed, found = {}, false
  for i, member in ipairs(chain) do
    local same = member.name == item.name
    found = found or same
    changed[i] = same and item or member
  end
  if not found then
    changed[#changed + 1] = item
  end
  return changed
end

--- The chain without that policy | nil, message, "ENOPOLICY".
function policies.without(chain, name)
  local changed = {}
  for _, member in ipairs(chain) do
    if member.name ~= name then
      changed[#changed + 1] = member
    end
  end
  if #changed == #chain then
    return nil, "that policy is not attached: " .. name, "ENOPOLICY"
  end
  return #changed > 0 and changed or policies.DEFAULT
end

--- The chain with every text, as an egress process takes it | nil, message, code.
function policies.resolved(server, chain)
  local list = {}
  for i, member in ipairs(chain) do
    local text, message, code = member.text, nil, nil
    if not text then
      text, message, code = policies.text(server, member.name)
    end
    if not text then
      return nil, message, code
    end
    list[i] = { name = member.name, text = text, options = member.options }
  end
  return list
end

return policies

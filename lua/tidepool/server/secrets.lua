--- Secrets at rest and on their way to the egress processes.
--
-- Runs in the server. A value comes in by one verb, is sealed with the key of the state directory before
-- it is acknowledged, and leaves for egress processes only: no verb gives it back, and it is in no log, no
-- error and no argument list. Certificate authorities' keys are sealed the same way.
local uv = require("luv")
local cjson = require("cjson")
local database = require("tidepool.server.database")
local log = require("tidepool.server.log")
local placeholder = require("tidepool.server.placeholder")

local secrets = {}

local Store = {}
Store.__index = Store

local KEY_BYTES = 32
-- Shorter ones can't be masked in what upstreams answer without masking half of it.
local LEAST, MOST = 8, 4096
local COUNT = 240 -- an egress process masks 256 values (core/proxy/scrub.h), of which 16 may be former ones

local function digest()
  return require("tidepool.proxy").digest
end

local function hex(bytes)
  return (bytes:gsub(".", function(char)
    return ("%02x"):format(char:byte())
  end))
end

local function unhex(text)
  return (text:gsub("%x%x", function(pair)
    return string.char(tonumber(pair, 16))
  end))
end

-- The key file -------------------------------------------------------------------------------------

local function write_key(path)
  local key = assert(uv.random(KEY_BYTES))
  local temporary = path .. ".new"
  os.remove(temporary)
  local fd, message, code = uv.fs_open(temporary, "wx", 384) -- 0600
  if not fd then
    return nil, message, code
  end
  local wrote
  wrote, message, code = uv.fs_write(fd, key, 0)
  if wrote then
    wrote, message, code = uv.fs_fsync(fd)
  end
  uv.fs_close(fd)
  if wrote then
    wrote, message, code = uv.fs_rename(temporary, path)
  end
  if not wrote then
    os.remove(temporary)
    return nil, message, code
  end
  return key
end

local function read_key(path)
  local stat, message, code = uv.fs_lstat(path)
  if not stat then
    return nil, message, code
  elseif stat.type ~= "file" or stat.uid ~= uv.getuid() then
    return nil, path .. " must be a file of this user", "EPERM"
  elseif bit.band(stat.mode, 511) ~= 384 then
    return nil, ("%s has mode %03o and must have 600: who else has read it knows every secret"):format(path, bit.band(stat.mode, 511)), "EPERM"
  elseif stat.size ~= KEY_BYTES then
    return nil, ("%s has %d bytes and must have %d"):format(path, stat.size, KEY_BYTES), "EBADMSG"
  end
  local fd
  fd, message, code = uv.fs_open(path, "r", 0)
  if not fd then
    return nil, message, code
  end
  local key
  key, message, code = uv.fs_read(fd, KEY_BYTES, 0)
  uv.fs_close(fd)
  return key, message, code
end

-- The key, made when nothing was sealed with another | nil, message, code.
local function key_of(self)
  if self.key then
    return self.key
  end
  local key, message, code = read_key(self.path)
  if not key and code == "ENOENT" then
    if next(self.by_name) ~= nil then
      return nil, ("%s is gone, and with it every secret: bring it back, or remove all secrets and set them again"):format(self.path), "ENOKEY"
    end
    key, message, code = write_key(self.path)
  end
  self.key = key
  return key, message, code
end

--- Seals bytes for the state directory, as hexadecimal digits. `context` must be the same at unsealing.
function Store:seal(bytes, context)
  local key, message, code = key_of(self)
  if not key then
    return nil, message, code
  end
  return hex(digest().seal(key, bytes, context))
end

--- The bytes | nil, message, code: "EBADMSG" when it was sealed with another key or changed.
function Store:unseal(sealed, context)
  local key, message, code = key_of(self)
  if not key then
    return nil, message, code
  end
  local bytes
  bytes, message, code = digest().unseal(key, unhex(sealed), context)
  if not bytes then
    return nil, ("%s was not sealed with %s: %s"):format(context, self.path, message), code
  end
  return bytes
end

-- The secrets --------------------------------------------------------------------------------------

local function context_of(name)
  return "secret " .. name
end

--- Opens those of a server. What can't be unsealed is listed with the reason and never sent.
-- options: db, of tidepool.server.database; directory; on_change(secret), on_remove(name).
function secrets.open(options)
  local self = setmetatable({
    db = options.db,
    path = options.directory .. "/secret.key",
    on_change = options.on_change,
    on_remove = options.on_remove,
    by_name = {},
  }, Store)
  local rows, message, code = self.db:rows("SELECT name, sealed, placeholder, hosts, created, used FROM secrets")
  if not rows then
    return nil, message, code
  end
  for _, row in ipairs(rows) do
    row.hosts = database.decode(row.hosts) or {}
    self.by_name[row.name] = row
  end
  for _, secret in ipairs(rows) do
    secret.value, secret.problem = self:unseal(secret.sealed, context_of(secret.name))
    secret.sealed = nil
    if secret.problem then
      log.error("secret_unreadable", { secret = secret.name, message = secret.problem })
    end
  end
  return self
end

-- What a client may know.
local function describe(secret)
  return {
    name = secret.name,
    hosts = secret.hosts,
    placeholder = secret.placeholder,
    created = secret.created,
    used = secret.used,
    problem = secret.problem,
  }
end

local function check_hosts(hosts)
  for _, host in ipairs(hosts) do
    local bare = host:gsub("^http://", "")
    if #bare > 253 or not bare:find("^[%w.*:%[%]_-]+$") then
      return nil, "not a host or glob: " .. host, "EINVAL"
    end
  end
  return true
end

-- Two secrets whose placeholders overlap could not be told apart.
local function check_placeholder(self, name, text, value)
  local ok, message = placeholder.check(text)
  if not ok then
    return nil, message, "EINVAL"
  elseif text:find(value, 1, true) or value:find(text, 1, true) then
    return nil, "the placeholder must not hold the secret, nor the secret it", "EINVAL"
  end
  for other, secret in pairs(self.by_name) do
    if other ~= name and (secret.placeholder:find(text, 1, true) or text:find(secret.placeholder, 1, true)) then
      return nil, "the placeholder is too much like that of secret " .. other, "EEXIST"
    end
  end
  return true
end

local function count(map)
  local number = 0
  for _ in pairs(map) do
    number = number + 1
  end
  return number
end

--- Sets one or gives it another value; hosts and placeholder stay when they are not given.
--- params: name, value, hosts, placeholder. Returns what a client may know | nil, message, code.
function Store:set(params)
  local known = self.by_name[params.name]
  if not params.name:find("^[%w][%w_.-]*$") or #params.name > 64 then
    return nil, "a secret's name is 1-64 letters, digits, '-', '_' and '.'", "EINVAL"
  elseif #params.value < LEAST then
    return nil, ("the secret has %d bytes; one of less than %d can't be masked in what upstreams answer"):format(#params.value, LEAST), "EINVAL"
  elseif #params.value > MOST then
    return nil, ("the secret has %d bytes, the limit is %d"):format(#params.value, MOST), "EINVAL"
  end
  if not known and count(self.by_name) >= COUNT then
    return nil, ("there are %d secrets, and more can't be masked"):format(COUNT), "ENOSPC"
  end
  local hosts = params.hosts or known and known.hosts or {}
  local ok, message, code = check_hosts(hosts)
  local text = params.placeholder or known and known.placeholder or placeholder.make(params.value)
  if ok then
    ok, message, code = check_placeholder(self, params.name, text, params.value)
  end
  local sealed
  if ok then
    sealed, message, code = self:seal(params.value, context_of(params.name))
  end
  if not sealed then
    return nil, message, code
  end
  local secret = { name = params.name, value = params.value, hosts = hosts, placeholder = text, created = os.time() }
  ok, message, code = self.db:execute(
    "INSERT OR REPLACE INTO secrets (name, sealed, placeholder, hosts, created) VALUES (?, ?, ?, ?, ?)",
    secret.name, sealed, text, #hosts > 0 and cjson.encode(hosts) or "[]", secret.created)
  if not ok then
    return nil, message, code
  end
  self.by_name[secret.name] = secret
  self.on_change(secret)
  log.info("secret_set", { secret = secret.name, hosts = table.concat(hosts, ",") })
  return describe(secret)
end

--- Removes one: "ENOSECRET" when there is none.
function Store:remove(name)
  if not self.by_name[name] then
    return nil, "no such secret: " .. name, "ENOSECRET"
  end
  local ok, message, code = self.db:execute("DELETE FROM secrets WHERE name = ?", name)
  if not ok then
    return nil, message, code
  end
  self.by_name[name] = nil
  self.on_remove(name)
  log.info("secret_removed", { secret = name })
  return true
end

--- What stands for it inside.
function Store:placeholder(name)
  local secret = self.by_name[name]
  if not secret then
    return nil, "no such secret: " .. name, "ENOSECRET"
  end
  return secret.placeholder
end

--- Notes that egress used it, to the minute.
function Store:mark_used(name, time)
  local secret = self.by_name[name]
  if secret and time - (secret.used or 0) >= 60 then
    secret.used = time
    self.db:execute("UPDATE secrets SET used = ? WHERE name = ?", time, name)
  end
end

--- All of them, without their values.
function Store:list()
  local list = {}
  for _, secret in pairs(self.by_name) do
    list[#list + 1] = describe(secret)
  end
  table.sort(list, function(a, b)
    return a.name < b.name
  end)
  return list
end

--- What an egress process is told: all that can be read, with their values.
function Store:for_egress()
  local list = {}
  for _, secret in pairs(self.by_name) do
    if secret.value then
      list[#list + 1] = secrets.message(secret)
    end
  end
  return list
end

--- The same, for a process that may know others: and the names of all, also of those that can't be read.
function Store:all_for_egress()
  local names = {}
  for name in pairs(self.by_name) do
    names[#names + 1] = name
  end
  return { secrets = self:for_egress(), names = names }
end

--- One secret as an egress process is told it.
function secrets.message(secret)
  return { name = secret.name, value = secret.value, placeholder = secret.placeholder, hosts = secret.hosts }
end

return secrets

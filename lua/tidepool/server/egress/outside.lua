--- What egress processes are told of the host and its settings, since they can open no file: who answers
--- for names, which certificates are trusted, how many processes there are.
--
-- Runs in the server and reads the host's own files only.
local uv = require("luv")
local log = require("tidepool.server.log")
local read_file = require("tidepool.file").read

local outside = {}

local BUNDLES = { "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt" }

--- What TIDEPOOL_EGRESS means: { most } processes, one a { label }, one a sandbox ({ each }) | nil, message,
--- "EINVAL".
function outside.setting(text)
  if text == nil or text == "" or text == "core" then
    return { most = math.max(1, #(uv.cpu_info() or {})) }
  elseif text == "sandbox" then
    return { each = true }
  elseif text:match("^label:.+$") then
    return { label = text:match("^label:(.+)$") }
  end
  local most = text:match("^%d+$") and tonumber(text)
  if most and most >= 1 and most <= 1024 then
    return { most = most }
  end
  return nil, "TIDEPOOL_EGRESS is core, sandbox, label:KEY or a number of 1 to 1024, not " .. text, "EINVAL"
end

--- Addresses of the nameservers in a resolv.conf; the resolver's default when there are none.
function outside.nameservers(text)
  local list = {}
  for line in ((text or "") .. "\n"):gmatch("([^\n]*)\n") do
    local address = line:match("^%s*nameserver%s+(%S+)")
    list[#list + 1] = address and not address:find("%", 1, true) and address or nil
  end
  return #list > 0 and list or { "127.0.0.1" }
end

--- name -> addresses of a hosts file, without what names this host's own loopback.
function outside.hosts(text)
  local map = {}
  for line in ((text or "") .. "\n"):gmatch("([^\n]*)\n") do
    local address, names = line:gsub("#.*", ""):match("^%s*([%x.:]+)%s+(.*)$")
    if address and not address:find("^127%.") and address ~= "::1" and not address:find("^[fF][fFeE]") then
      for name in names:gmatch("%S+") do
        name = name:lower()
        map[name] = map[name] or {}
        table.insert(map[name], address)
      end
    end
  end
  return map
end

-- Certificates that upstreams are checked against: the host's, and those of TIDEPOOL_EGRESS_CA.
local function roots()
  local text
  for _, path in ipairs(BUNDLES) do
    text = text or read_file(path)
  end
  local extra = os.getenv("TIDEPOOL_EGRESS_CA")
  if extra and extra ~= "" then
    local more, message = read_file(extra)
    if not more then
      log.error("egress_ca_unreadable", { message = message })
    end
    text = (text or "") .. "\n" .. (more or "")
  end
  return text or ""
end

-- Addresses of the name servers: those of TIDEPOOL_NAMESERVERS ("ip", "ip:port", with commas between), or the
-- host's.
local function nameservers()
  local list = {}
  for address in (os.getenv("TIDEPOOL_NAMESERVERS") or ""):gmatch("[^,%s]+") do
    list[#list + 1] = address
  end
  return #list > 0 and list or outside.nameservers(read_file("/etc/resolv.conf"))
end

-- The addresses of this host: private to it, whatever range they are from. A confined process can't ask.
local function addresses()
  local list = {}
  for _, entries in pairs(uv.interface_addresses() or {}) do
    for _, entry in ipairs(entries) do
      list[#list + 1] = entry.ip
    end
  end
  table.sort(list)
  return list
end

--- All of it that a process is configured with: roots, nameservers, hosts, and this host's own addresses.
function outside.world()
  return {
    roots = roots(),
    nameservers = nameservers(),
    hosts = outside.hosts(read_file("/etc/hosts")),
    addresses = addresses(),
  }
end

--- A value that changes when one of those files does, or an address of this host.
function outside.stamp()
  local parts = addresses()
  for _, path in ipairs({ "/etc/resolv.conf", "/etc/hosts", os.getenv("TIDEPOOL_EGRESS_CA") or "", unpack(BUNDLES) }) do
    local stat = path ~= "" and uv.fs_stat(path)
    parts[#parts + 1] = stat and ("%d.%d.%d.%d"):format(stat.ino, stat.size, stat.mtime.sec, stat.mtime.nsec) or "-"
  end
  return table.concat(parts, " ")
end

return outside

--- Certificate authorities and server certificates by openssl, good ones and each kind of bad one.
--
-- Real certificates, made by a program that is not ours, so that neither our minting nor our
-- verifying judges itself. Everything is written below a directory of the caller's.
local uv = require("luv")
local async = require("tidepool.async")
local daemon = require("spec.support.daemon")
local read = require("spec.support.machine").read

local certificates = {}

local DAY = 86400

local KEYS = {
  ec = { "ecparam", "-genkey", "-noout", "-name", "prime256v1" },
  p384 = { "ecparam", "-genkey", "-noout", "-name", "secp384r1" },
  rsa = { "genrsa", "2048" },
  weak = { "genrsa", "1024" },
}

local function write(path, text)
  local file = assert(io.open(path, "w"))
  assert(file:write(text))
  assert(file:close())
  return path
end

local function openssl(words)
  local result = async.within(function()
    return assert(async.command({ "openssl", stdout = "pipe", stderr = "pipe", unpack(words) }))
  end)
  if result.code ~= 0 then
    error(("openssl %s: %s"):format(table.concat(words, " "), result.stderr), 2)
  end
  return result.stdout
end

local function address(host)
  return host:match("^%d+%.%d+%.%d+%.%d+$") or host:find(":", 1, true)
end

local function alternatives(hosts)
  local out = {}
  for i, host in ipairs(hosts) do
    out[i] = (address(host) and "IP:" or "DNS:") .. host
  end
  return table.concat(out, ",")
end

-- openssl ca is the one command of OpenSSL 3.0 that sets both dates, and it wants this much.
local CONFIG = [[
[ca]
default_ca = own
[own]
database = %s/index.txt
new_certs_dir = %s
unique_subject = no
policy = any
rand_serial = yes
[any]
commonName = supplied
[req]
distinguished_name = none
[none]
]]

local function new_directory(parent)
  local directory = assert(uv.fs_mkdtemp(parent .. "/ca-XXXXXX"))
  write(directory .. "/index.txt", "")
  write(directory .. "/ca.cnf", CONFIG:format(directory, directory))
  return directory
end

local function extensions(options)
  local lines = { "subjectKeyIdentifier = hash", "authorityKeyIdentifier = keyid" }
  if options.authority then
    table.insert(lines, "basicConstraints = critical,CA:TRUE")
    table.insert(lines, "keyUsage = critical,keyCertSign,cRLSign")
  else
    table.insert(lines, "basicConstraints = CA:FALSE")
    table.insert(lines, "extendedKeyUsage = " .. (options.usage or "serverAuth"))
  end
  if options.hosts and #options.hosts > 0 then
    table.insert(lines, "subjectAltName = " .. alternatives(options.hosts))
  end
  return table.concat(lines, "\n") .. "\n"
end

local function stamp(days)
  return os.date("!%Y%m%d%H%M%SZ", os.time() + days * DAY)
end

-- Makes a key and a certificate for it below `directory`, signed by `issuer` or by itself.
local function issue(directory, issuer, options)
  local base = ("%s/%x"):format(directory, uv.hrtime() % 2 ^ 40)
  local key = write(base .. ".key", openssl({ unpack(KEYS[options.key or "ec"]) }))
  local name = options.name or options.hosts and options.hosts[1] or "none"
  local config = directory .. "/ca.cnf"
  openssl({ "req", "-new", "-config", config, "-key", key, "-subj", "/CN=" .. name, "-out", base .. ".csr" })
  local words = {
    "ca", "-batch", "-notext", "-config", config, "-in", base .. ".csr", "-out", base .. ".pem",
    "-md", options.digest or "sha256", "-keyfile", issuer and issuer.key or key,
    "-startdate", stamp(options.not_before or -1), "-enddate", stamp(options.not_after or options.days or 30),
    "-extfile", write(base .. ".ext", extensions(options)), "-notext",
  }
  for _, word in ipairs(issuer and { "-cert", issuer.cert } or { "-selfsign" }) do
    words[#words + 1] = word
  end
  openssl(words)
  return { directory = directory, key = key, cert = base .. ".pem", pem = read(base .. ".pem") }
end

local Authority = {}
Authority.__index = Authority

--- A root of one's own: { pem, cert, key (files), directory }. options: name, key ("ec", "p384",
-- "rsa", "weak"), not_before, not_after (days from now), directory.
function certificates.ca(options)
  options = options or {}
  local directory = new_directory((daemon.place(options)))
  local self = issue(directory, nil, {
    authority = true, name = options.name or "Test Root", key = options.key,
    not_before = options.not_before, not_after = options.not_after,
  })
  self.chain = {}
  return setmetatable(self, Authority)
end

--- An authority below this one; leaves of it come with the chain that leads here.
function Authority:intermediate(options)
  options = options or {}
  local self_ = issue(self.directory, self, {
    authority = not options.not_a_ca, name = options.name or "Test Intermediate", key = options.key,
    not_before = options.not_before, not_after = options.not_after,
  })
  self_.chain = { self_.pem, unpack(self.chain) }
  return setmetatable(self_, Authority)
end

--- A server's certificate: { cert (file: the leaf and its chain), key (file), pem }. options: hosts
-- (names and addresses), name (the subject's), key, digest, usage, not_before and not_after or days
-- (from now), order ("right", "reversed": the chain the wrong way round, "missing": no chain).
function Authority:leaf(options)
  local leaf = issue(self.directory, self, options)
  local chain = { unpack(self.chain) }
  if options.order == "missing" then
    chain = {}
  elseif options.order == "reversed" then
    for i = 1, math.floor(#chain / 2) do
      chain[i], chain[#chain + 1 - i] = chain[#chain + 1 - i], chain[i]
    end
  end
  leaf.alone = leaf.cert
  leaf.chain_file = #chain > 0 and write(leaf.alone .. ".chain", table.concat(chain)) or nil
  leaf.cert = write(leaf.alone .. ".full", leaf.pem .. table.concat(chain))
  return leaf
end

--- The forms that a client must refuse (`bad`) or accept (`good`), by name: functions from an
-- authority and a host to a leaf of that form.
certificates.bad = {
  expired = function(ca, host) return ca:leaf({ hosts = { host }, not_before = -30, not_after = -1 }) end,
  future = function(ca, host) return ca:leaf({ hosts = { host }, not_before = 2, not_after = 30 }) end,
  wrong_host = function(ca) return ca:leaf({ hosts = { "someone-else.test" } }) end,
  -- Its subject names the host, which has not counted since RFC 6125.
  name_in_subject = function(ca, host) return ca:leaf({ name = host, hosts = { "someone-else.test" } }) end,
  wide_wildcard = function(ca) return ca:leaf({ hosts = { "*" } }) end,
  self_signed = function(ca, host)
    return certificates.self_signed({ hosts = { host }, directory = ca.directory })
  end,
  unknown_issuer = function(ca, host)
    return certificates.ca({ name = "Stranger", directory = ca.directory }):leaf({ hosts = { host } })
  end,
  -- The name of a known issuer, and another key.
  same_name_issuer = function(ca, host)
    return certificates.ca({ directory = ca.directory }):leaf({ hosts = { host } })
  end,
  weak_key = function(ca, host) return ca:leaf({ hosts = { host }, key = "weak" }) end,
  weak_digest = function(ca, host) return ca:leaf({ hosts = { host }, digest = "sha1" }) end,
  client_only = function(ca, host) return ca:leaf({ hosts = { host }, usage = "clientAuth" }) end,
  missing_intermediate = function(ca, host) return ca:intermediate():leaf({ hosts = { host }, order = "missing" }) end,
  issued_by_a_leaf = function(ca, host) return ca:intermediate({ not_a_ca = true }):leaf({ hosts = { host } }) end,
  expired_intermediate = function(ca, host)
    return ca:intermediate({ not_before = -30, not_after = -1 }):leaf({ hosts = { host } })
  end,
}

certificates.good = {
  ec = function(ca, host) return ca:leaf({ hosts = { host } }) end,
  p384 = function(ca, host) return ca:leaf({ hosts = { host }, key = "p384" }) end,
  rsa = function(ca, host) return ca:leaf({ hosts = { host }, key = "rsa" }) end,
  sha384 = function(ca, host) return ca:leaf({ hosts = { host }, digest = "sha384" }) end,
  several_names = function(ca, host) return ca:leaf({ hosts = { "first.test", host, "last.test" } }) end,
  wildcard = function(ca, host) return ca:leaf({ hosts = { (host:gsub("^[^.]+", "*", 1)) } }) end,
  intermediate = function(ca, host) return ca:intermediate():leaf({ hosts = { host } }) end,
  mixed_keys = function(ca, host)
    return ca:intermediate({ key = "rsa" }):intermediate({ key = "p384" }):leaf({ hosts = { host } })
  end,
  misordered = function(ca, host)
    return ca:intermediate():intermediate({ name = "Test Inner" }):leaf({ hosts = { host }, order = "reversed" })
  end,
}

--- A certificate that no one else vouches for.
function certificates.self_signed(options)
  local leaf = issue(new_directory((daemon.place(options))), nil, options)
  leaf.alone = leaf.cert
  return leaf
end

return certificates

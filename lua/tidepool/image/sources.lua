--- The host's own Debian sources, for images that are built on it.
--
-- apt itself is asked, so that every format of sources counts (deb822, one-line, mirror lists) and
-- the archive's own word tells what is Debian: a third party's packages don't get into an image.
local async = require("tidepool.async")

local sources = {}

local KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
local SEPARATOR = "\31"
local FIELDS = { "ORIGIN", "CODENAME", "REPO_URI", "RELEASE", "COMPONENT" }

local function run(argv)
  argv.stdout, argv.stderr = "pipe", "pipe"
  local result, message, code = async.command(argv)
  if not result then
    return nil, message, code
  end
  if result.code ~= 0 then
    return nil, argv[1] .. ": " .. (result.stderr:match("[^\n]+") or "failed"), "EIO"
  end
  return result.stdout
end

--- Turns the lines of `apt-get indextargets` into { codename, lines } for mmdebstrap, or nil when
-- none of them is Debian's. `codename` is the host's, or nil for whatever release comes first.
function sources.parse(text, codename, keyring)
  local lines, seen = {}, {}
  for line in text:gmatch("[^\n]+") do
    local origin, name, uri, release, component =
      line:match("^([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)$")
    if origin == "Debian" and not uri:match("^cdrom:") then
      codename = codename or name:match("^[^-/]+")
      local ours = name == codename or name == codename .. "-updates" or name == codename .. "-security"
      local options = keyring and ("[signed-by=" .. keyring .. "] ") or ""
      local source = string.format("deb %s%s %s %s", options, uri, release, component)
      if ours and not seen[source] then
        seen[source] = true
        lines[#lines + 1] = source
      end
    end
  end
  if #lines == 0 then
    return nil
  end
  return { codename = codename, lines = lines }
end

--- VERSION_CODENAME of os-release's text; nil on a rolling release.
function sources.codename(text)
  return text:match("\nVERSION_CODENAME=\"?([%w.-]+)") or text:match("^VERSION_CODENAME=\"?([%w.-]+)")
end

--- { codename, lines } of this host; runs apt-get update when its lists are gone.
function sources.host(progress)
  local file = io.open("/etc/os-release")
  local codename = file and sources.codename(file:read("*a"))
  if file then
    file:close()
  end
  local probe = io.open(KEYRING)
  if probe then
    probe:close()
  end
  local format = "$(" .. table.concat(FIELDS, ")" .. SEPARATOR .. "$(") .. ")"

  for attempt = 1, 2 do
    local text, message, code = run({ "apt-get", "indextargets", "--format", format, "Created-By: Packages" })
    if not text then
      return nil, message, code
    end
    local found = sources.parse(text, codename, probe and KEYRING)
    if found then
      return found
    end
    if attempt == 1 then
      progress("fetching package lists")
      text, message, code = run({ "apt-get", "update" })
      if not text then
        return nil, message, code
      end
    end
  end
  return nil, "the host's apt has no Debian sources for " .. (codename or "its release"), "ENOENT"
end

--- How this host reaches its mirrors (proxies, time checks, CAs), as apt options.
function sources.acquire(text)
  local options = {}
  for name, value in text:gmatch("([^=\n]+)=([^\n]*)") do
    local wanted = name:match("^Acquire::https?::") or name:match("^Acquire::Check%-")
      or name:match("^Acquire::Retries$") or name:match("^Acquire::Force")
    if wanted and value ~= "" and not name:match("::$") and not value:match("[\"\\]") then
      options[#options + 1] = string.format("%s \"%s\"", name, value)
    end
  end
  return options
end

function sources.host_acquire()
  return sources.acquire(run({ "apt-config", "dump", "--format", "%f=%v%n", "Acquire" }) or "")
end

return sources

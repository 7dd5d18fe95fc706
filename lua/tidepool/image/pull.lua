--- Pulling images from registries: skopeo into a temporary OCI layout, then an import.
--
-- skopeo speaks to strangers, so it runs as the first id of the image's range, which owns nothing
-- but the temporary directory, seen as /tmp in a mount namespace of its own.
local uv = require("luv")
local async = require("tidepool.async")
local import = require("tidepool.image.import")
local worker = require("tidepool.image.worker")

-- $1 is the temporary directory, the rest a command.
local INSIDE = "mount --bind \"$1\" /tmp && shift && cd /tmp && exec \"$@\""

local FAILURES = { -- in skopeo's words -> code, what to say
  { "manifest unknown", "ENOENT", "no such image or tag" },
  { "name unknown", "ENOENT", "no such image" },
  { "repository name not known", "ENOENT", "no such image" },
  { "reading manifest .- not found", "ENOENT", "no such image or tag" },
  { "no image found in manifest list", "ENOEXEC", "no image for this machine" },
  { "no image found in image index", "ENOEXEC", "no image for this machine" },
  { "server gave HTTP response to HTTPS client", "EPROTO", "the registry speaks no TLS (--insecure allows that)" },
  { "x509: ", "EPROTO", "the registry's certificate is not trusted (--insecure allows that)" },
  { "unauthorized", "EACCES", "the registry refuses without credentials" },
  { "denied", "EACCES", "the registry refuses" },
  { "connection refused", "ECONNREFUSED", "no registry answers there" },
  { "no such host", "EHOSTUNREACH", "the registry's name is unknown" },
  { "server misbehaving", "EHOSTUNREACH", "the registry's name can't be resolved" },
  { "network is unreachable", "ENETUNREACH", "no network" },
  { "i/o timeout", "ETIMEDOUT", "the registry does not answer" },
  { "no space left on device", "ENOSPC", "disk full" },
  { "invalid reference format", "EINVAL", "not a reference" },
}

--- What skopeo's last words mean: message, code.
local function explain(reference, stderr)
  local said = stderr:match("level=fatal msg=\"(.-)\"\n") or stderr:match("([^\n]+)\n*$") or "no message"
  said = said:gsub("\\\"", "\""):sub(1, 400)
  for _, failure in ipairs(FAILURES) do
    if said:find(failure[1]) then
      return string.format("%s: %s (%s)", reference, failure[3], said), failure[2]
    end
  end
  return reference .. ": " .. said, "EPULL"
end

local function home_file(name)
  local home = os.getenv("HOME")
  return home and (home .. name)
end

--- Copies the user's registry credentials into `work`, for the range's id to read.
local function lend_credentials(work, id)
  local candidates = { os.getenv("REGISTRY_AUTH_FILE") or "", "/run/containers/0/auth.json",
    home_file("/.config/containers/auth.json") or "", home_file("/.docker/config.json") or "" }
  for _, path in ipairs(candidates) do
    if path ~= "" and uv.fs_stat(path) then
      local copy = work .. "/auth.json"
      if uv.fs_copyfile(path, copy) and uv.fs_chmod(copy, tonumber("600", 8)) and uv.fs_chown(copy, id, id) then
        return "/tmp/auth.json"
      end
    end
  end
end

local function skopeo(reference, options, work)
  local id = tostring(options.range.base)
  local command = {
    "unshare", "--mount", "--ipc", "--propagation", "private",
    "sh", "-c", INSIDE, "pull", work,
    "setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--no-new-privs",
    "--bounding-set=-all", "--inh-caps=-all", "--pdeathsig", "KILL",
    "skopeo", "--override-os", "linux", "--command-timeout", "60m", "copy",
    stdout = "pipe",
    stderr = "pipe",
    env = worker.environment({ HOME = "/tmp", TMPDIR = "/tmp", XDG_RUNTIME_DIR = false, REGISTRY_AUTH_FILE = false }),
    on_line = function(line)
      local blob = line:match("^Copying blob sha256:(%x+)") or line:match("^Copying blob (%x+)")
      if blob then
        options.progress("downloading layer " .. blob:sub(1, 12))
      elseif line:match("^%u%l+ing ") then
        options.progress((line:gsub("^%u", string.lower):gsub("sha256:(%x%x%x%x%x%x%x%x%x%x%x%x)%x*", "%1")))
      end
    end,
  }
  local credentials = lend_credentials(work, options.range.base)
  if credentials then
    command[#command + 1] = "--src-authfile=" .. credentials
  end
  if options.insecure then
    command[#command + 1] = "--src-tls-verify=false"
  end
  command[#command + 1] = "docker://" .. reference
  command[#command + 1] = "oci:/tmp/layout:image"
  return command
end

--- Pulls an image. See image/init.lua for options and result.
local function pull(reference, options)
  reference = reference:gsub("^docker://", "")
  if #reference > 512 or not reference:match("^[%w%[][%w%.%-_/:@%[%]]*$") then
    return nil, "not a reference: " .. reference:sub(1, 80), "EINVAL"
  end
  if not worker.has("skopeo") then
    return nil, "skopeo is not installed (apt-get install skopeo)", "ENOPKG"
  end
  local meta, message, code = worker.with_directory(options, function(work)
    local download = work .. "/download"
    assert(uv.fs_mkdir(download, tonumber("700", 8)))
    assert(uv.fs_chown(download, options.range.base, options.range.base))
    options.progress("asking for " .. reference)
    local result, why, name = async.command(skopeo(reference, options, download))
    if not result then
      return nil, why, name
    end
    if result.code ~= 0 or result.signal ~= 0 then
      return nil, explain(reference, result.stderr)
    end
    local layout = uv.fs_lstat(download .. "/layout")
    if not layout or layout.type ~= "directory" then
      return nil, "skopeo left no image", "EPULL"
    end
    return import(download .. "/layout", options)
  end)
  if not meta then
    return nil, message, code
  end
  meta.source = reference
  return meta
end

return pull

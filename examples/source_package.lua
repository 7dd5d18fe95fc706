--- Fetches the upstream tarball of a Debian source package to the host, for the examples.
--
-- The host's own mirrors are used, in an apt state of its own below a temporary directory: no list,
-- cache or configuration of the machine is touched, and nothing is unpacked here.
local uv = require("luv")
local async = require("tidepool.async")
local sources = require("tidepool.image.sources")

local function apt(directory, words, progress)
  local command = {
    "apt-get",
    "-o", "Dir::State=" .. directory .. "/state",
    "-o", "Dir::State::Lists=" .. directory .. "/lists",
    "-o", "Dir::Cache=" .. directory .. "/cache",
    "-o", "Dir::Etc::SourceList=" .. directory .. "/sources.list",
    "-o", "Dir::Etc::SourceParts=/dev/null",
    "-o", "APT::Sandbox::User=root",
    stdout = "pipe",
    stderr = "pipe",
    cwd = directory,
    on_line = progress,
  }
  for _, word in ipairs(words) do
    command[#command + 1] = word
  end
  local result, message, code = async.command(command)
  if not result then
    return nil, message, code
  elseif result.code ~= 0 then
    return nil, "apt-get: " .. (result.stderr:match("[^\n]+") or "failed"), "EIO"
  end
  return true
end

local function fetch(package, directory, progress)
  local host, message, code = sources.host(progress)
  if not host then
    return nil, message, code
  end
  for _, name in ipairs({ "state", "lists", "lists/partial", "cache", "cache/archives", "cache/archives/partial" }) do
    assert(uv.fs_mkdir(directory .. "/" .. name, 448))
  end
  local list = assert(io.open(directory .. "/sources.list", "w"))
  for _, line in ipairs(host.lines) do
    list:write((line:gsub("^deb ", "deb-src ")), "\n")
  end
  list:close()

  local ok
  ok, message, code = apt(directory, { "update" }, progress)
  if ok then
    ok, message, code = apt(directory, { "source", "--download-only", package }, progress)
  end
  if not ok then
    return nil, message, code
  end
  for name in uv.fs_scandir_next, assert(uv.fs_scandir(directory)) do
    if name:match("%.orig%.tar%.%w+$") then
      return directory .. "/" .. name, name
    end
  end
  return nil, package .. " has no upstream tarball", "ENOENT"
end

--- with_source("bzip2", progress, function(path, name) ... end): fetches, calls, cleans up.
return function(package, progress, body)
  local directory = assert(uv.fs_mkdtemp("/var/tmp/tidepool-source-XXXXXX"))
  local path, name = async.within(fetch, package, directory, progress)
  local ok, result = pcall(function()
    return body(assert(path, name), name)
  end)
  os.execute("rm -rf '" .. directory .. "'")
  if not ok then
    error(result, 0)
  end
  return result
end

--- Output that outlives its process: before a sandbox stops, init's rings are written to files.
--
-- <state>/logs/<sandbox id>/: index.json and one file a process, holding the attach frames just as
-- init sent them, so that a client reads a file as it reads a socket. The next stop replaces them.
local uv = require("luv")
local async = require("tidepool.async")
local cjson = require("cjson")
local core = require("tidepool.core")
local log = require("tidepool.server.log")

local spill = {}

local function directory(sandbox)
  return ("%s/logs/%d"):format(sandbox.server.directory, sandbox.id)
end

local function write_file(path, text)
  local file, message = io.open(path, "w")
  if not file then
    return nil, message, "EIO"
  end
  file:write(text)
  file:close()
  return true
end

-- Copies what an attach socket gives to a file, to its end.
local function drain(fd, file, limit)
  local poller = assert(async.poller(fd:number()))
  local total = 0
  while total < limit do
    local bytes, message, code = core.fd.read(fd, 65536)
    if code == "EAGAIN" then
      if not poller:readable(5) then
        break
      end
    elseif not bytes or bytes == "" then
      break
    else
      file:write(bytes)
      total = total + #bytes
    end
    if message and code ~= "EAGAIN" then
      break
    end
  end
  poller:close()
end

local function save_one(sandbox, path, process)
  local ours, theirs = core.fd.pair()
  if not ours then
    return nil, theirs
  end
  local reply, message = sandbox.link:request("attach", { id = process.id, offset = 0 }, { theirs }, 5)
  theirs:close()
  if not reply then
    ours:close()
    return nil, message
  end
  local file
  file, message = io.open(("%s/%d.log"):format(path, process.id), "w")
  if file then
    drain(ours, file, 64 * 2 ^ 20)
    file:close()
  end
  ours:close()
  return file ~= nil, message
end

local function empty(path)
  local scan = uv.fs_scandir(path)
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then
      break
    end
    uv.fs_unlink(path .. "/" .. name)
  end
end

--- Writes the output of the sandbox's named processes down. Called before it stops; failure is
-- logged, not fatal.
function spill.save(sandbox)
  local path = directory(sandbox)
  local named = sandbox.processes.by_name
  uv.fs_mkdir(sandbox.server.directory .. "/logs", 448)
  uv.fs_mkdir(path, 448)
  empty(path)
  local index = {}
  local processes = require("tidepool.server.processes")
  processes.refresh(sandbox) -- how much output each has
  for name, process in pairs(named) do
    local ok, message = save_one(sandbox, path, process)
    if ok then
      index[name] = processes.describe(process)
    else
      log.warn("spill_failed", { sandbox = sandbox.name, process = name, message = message })
    end
  end
  write_file(path .. "/index.json", cjson.encode(index))
end

--- The saved processes by name.
function spill.index(sandbox)
  local file = io.open(directory(sandbox) .. "/index.json")
  if not file then
    return {}
  end
  local ok, index = pcall(cjson.decode, file:read("*a"))
  file:close()
  return ok and index or {}
end

--- A saved process's output as a read-only descriptor of attach frames, and its description.
function spill.open(sandbox, name)
  local entry = spill.index(sandbox)[name]
  if not entry then
    return nil, ("no such process in %s: %s"):format(sandbox.name, name), "ENOPROCESS"
  end
  local fd, message, code = core.fd.open(("%s/%d.log"):format(directory(sandbox), entry.id), "r")
  if not fd then
    return nil, message, code
  end
  return fd, entry
end

function spill.remove(sandbox)
  local path = directory(sandbox)
  empty(path)
  uv.fs_rmdir(path)
end

return spill

--- cp between host and sandbox: trees, links, modes, times, holes, files of any size.
--
-- Runs in the client with the client's rights; the sandbox's side works through tidepool.client.files.
-- Where things go is as with docker cp: into a directory that is there, else to that name, and
-- "DIRECTORY/." means its contents. Links are copied as links; devices, FIFOs and sockets are skipped
-- and named in the result. What is written belongs to who writes: the caller on the host, the agent's
-- user inside.
--
-- A download must not let the sandbox choose where on the host it goes: each directory is a
-- descriptor, each name one entry below it that is never followed (core.copy). setuid and setgid
-- bits don't come out.
local bit = require("bit")
local uv = require("luv")
local core = require("tidepool.core")
local async = require("tidepool.async")

local copy = {}

local STEP = 8 * 1024 * 1024 -- bytes between two turns of the loop
local OWNER = 448 -- 0700: what a directory needs while we fill it

local function new_result(options)
  local result = { files = 0, directories = 0, links = 0, bytes = 0, skipped = {} }
  local report = options and options.on_progress
  local function progress(bytes, path)
    result.bytes = result.bytes + bytes
    if report then
      report(result, path)
    end
  end
  return result, progress
end

-- "dir/", "dir/." and "name" apart: the path without the ending, whether contents are meant, whether
-- it must be a directory (so a link there is followed).
local function parse(path)
  local trimmed = path:gsub("/+$", "")
  local contents = trimmed:match("/%.$") ~= nil or trimmed == "."
  if contents and trimmed ~= "." then
    trimmed = trimmed:gsub("/%.$", ""):gsub("/+$", "")
  end
  if trimmed == "" then
    return path:sub(1, 1) == "/" and "/" or ".", true, true
  end
  return trimmed, contents, contents or path:sub(-1) == "/"
end

local function basename(path)
  local name = path:match("([^/]*)$")
  return name
end

local function join(directory, name)
  return directory:sub(-1) == "/" and directory .. name or directory .. "/" .. name
end

local function is_absent(code)
  return code == "ENOENT"
end

-- Upload ---------------------------------------------------------------------------------------

local upload_entry

local function seconds(stat_time)
  return stat_time.sec + stat_time.nsec / 1e9
end

local function upload_file(job, from, stat, to)
  local fd, message, code = core.fd.open(from, "rnb")
  if not fd then
    return nil, message, code
  end
  if core.fd.kind(fd) ~= "file" then -- it was swapped since we looked
    fd:close()
    return nil, from .. ": not a regular file any more", "ESTALE"
  end
  local written
  written, message, code = job.files:write(to, fd, {
    mode = bit.band(stat.mode, 0xfff),
    mtime = seconds(stat.mtime),
    on_progress = function(bytes)
      job.progress(bytes, from)
    end,
  })
  fd:close()
  if not written then
    return nil, message:find(to, 1, true) and message or to .. ": " .. message, code
  end
  job.result.files = job.result.files + 1
  job.progress(0, from)
  return true
end

local function upload_link(job, from, to)
  local target, message, code = uv.fs_readlink(from)
  if not target then
    return nil, message, code
  end
  local made
  made, message, code = job.files:symlink(target, to)
  if not made and code == "EEXIST" and job.files:remove(to) then
    made, message, code = job.files:symlink(target, to)
  end
  if not made then
    return nil, message, code
  end
  job.result.links = job.result.links + 1
  return true
end

local function upload_directory(job, from, stat, to, follow)
  local made, message, code = job.files:mkdir(to, { mode = bit.bor(bit.band(stat.mode, 0xfff), OWNER) })
  if not made and code == "EEXIST" then
    local there = job.files:stat(to, { follow = follow == true })
    if not there or there.kind ~= "directory" then
      return nil, to .. ": something that is not a directory is in the way", "ENOTDIR"
    end
  elseif not made then
    return nil, message, code
  end
  local names = {}
  local scan
  scan, message, code = uv.fs_scandir(from)
  if not scan then
    return nil, message, code
  end
  for name in uv.fs_scandir_next, scan do
    names[#names + 1] = name
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local ok
    ok, message, code = upload_entry(job, join(from, name), join(to, name), not made)
    if not ok then
      return nil, message, code
    end
  end
  if made then
    local mode = bit.band(stat.mode, 0xfff)
    local ok = true
    if bit.bor(mode, OWNER) ~= mode then
      ok, message, code = job.files:chmod(to, mode)
    end
    if ok then
      ok, message, code = job.files:touch(to, seconds(stat.mtime))
    end
    if not ok then
      return nil, message, code
    end
  end
  job.result.directories = job.result.directories + 1
  return true
end

-- `merging`: `to` may hold something already. A link there is replaced, not written through.
function upload_entry(job, from, to, merging)
  local stat, message, code = uv.fs_lstat(from)
  if not stat then
    return nil, message, code
  end
  if stat.type == "link" then
    return upload_link(job, from, to)
  elseif stat.type == "directory" then
    return upload_directory(job, from, stat, to)
  elseif stat.type ~= "file" then
    table.insert(job.result.skipped, from)
    return true
  end
  if merging then
    local there = job.files:stat(to, { follow = false })
    if there and there.kind == "link" then
      job.files:remove(to)
    end
  end
  return upload_file(job, from, stat, to)
end

--- Copies a file or tree of the host into the sandbox. options.on_progress(result, path).
-- Returns { files, directories, links, bytes, skipped } | nil, message, code. What was copied before a
-- failure stays.
function copy.upload(files, from, to, options)
  local source, contents, follow = parse(from)
  local stat, message, code = (follow and uv.fs_stat or uv.fs_lstat)(source)
  if not stat then
    return nil, message, code
  end
  if follow and stat.type ~= "directory" then
    return nil, from .. ": not a directory", "ENOTDIR"
  end
  local target, _, must_be_directory = parse(to)
  local there, complaint, why = files:stat(target)
  if not there and not is_absent(why) then
    return nil, complaint, why
  end
  if there and there.kind == "directory" and not contents then
    local name = basename(source)
    if name == "" or name == "." or name == ".." then
      name = basename(assert(uv.fs_realpath(source)))
    end
    target = join(target, name)
  elseif there and there.kind ~= "directory" and (stat.type == "directory" or must_be_directory) then
    return nil, target .. ": not a directory", "ENOTDIR"
  elseif not there and must_be_directory and stat.type ~= "directory" then
    return nil, target .. ": no such directory", "ENOENT"
  end

  local result, progress = new_result(options)
  local job = { files = files, result = result, progress = progress }
  local ok
  if stat.type == "directory" then
    ok, message, code = upload_directory(job, source, stat, target, true)
  else
    ok, message, code = upload_entry(job, source, target, false)
  end
  if not ok then
    return nil, message, code
  end
  return result
end

-- Download -------------------------------------------------------------------------------------

-- Data of one descriptor into another, holes left out: count | nil, message, code.
local function copy_data(job, input, output, size, path)
  local from = 0
  while from < size do
    local start, stop, code = core.copy.extent(input, from)
    if start == nil then
      return nil, stop, code
    elseif start == false then
      break
    end
    stop = math.min(stop, size)
    while start < stop do
      local count, message, failed = core.copy.range(input, start, output, start, math.min(STEP, stop - start))
      if not count then
        return nil, message, failed
      elseif count == 0 then
        return size
      end
      start = start + count
      job.progress(count, path)
      if count == STEP then
        async.sleep(0)
      end
    end
    from = stop
  end
  return size
end

local serial = 0

-- A name for a file that isn't whole yet, in the directory where it will be.
local function temporary(name)
  serial = serial + 1
  return (".%s.%d.%d.tidepool"):format(name:sub(1, 100), uv.os_getpid(), serial)
end

local function download_file(job, from, directory, name)
  local input, stat, code = job.files:open(from)
  if not input then
    return nil, stat, code
  end
  if stat.size >= 2 ^ 53 then -- beyond what offsets in Lua hold, and any disk
    input:close()
    return nil, from .. ": file too large", "EFBIG"
  end
  local partial = temporary(name)
  local output, message
  output, message, code = core.copy.open(directory, partial, "wx", 384)
  if not output then
    input:close()
    return nil, message, code
  end
  local size, ok
  size, message, code = copy_data(job, input, output, stat.size, from)
  input:close()
  if size then
    ok, message, code = core.copy.finish(output, bit.band(stat.mode, 0x1ff), stat.mtime, size)
  end
  output:close()
  if ok then
    ok, message, code = core.copy.rename(directory, partial, name)
  end
  if not ok then
    core.copy.unlink(directory, partial)
    return nil, message, code
  end
  job.result.files = job.result.files + 1
  job.progress(0, from)
  return true
end

local function download_link(job, target, directory, name)
  local made, message, code = core.copy.symlink(directory, name, target)
  if not made and code == "EEXIST" and core.copy.unlink(directory, name) then
    made, message, code = core.copy.symlink(directory, name, target)
  end
  if not made then
    return nil, message, code
  end
  job.result.links = job.result.links + 1
  return true
end

-- Open directories on the way from the root of the download to where we are. at(names) -> fd.
local function descent(root)
  local open = {} -- { name, fd }
  local self = {}
  function self.at(names)
    local depth = 0
    while open[depth + 1] and names[depth + 1] == open[depth + 1][1] do
      depth = depth + 1
    end
    for i = #open, depth + 1, -1 do
      open[i][2]:close()
      open[i] = nil
    end
    for i = depth + 1, #names do
      local fd, message, code = core.copy.open(i > 1 and open[i - 1][2] or root, names[i], "rd")
      if not fd then
        return nil, message, code
      end
      open[i] = { names[i], fd }
    end
    return #names > 0 and open[#names][2] or root
  end
  function self.close()
    self.at({})
  end
  return self
end

local function split(path)
  local names = {}
  for name in (path .. "/"):gmatch("([^/]*)/") do
    names[#names + 1] = name
  end
  local last = table.remove(names)
  return names, last
end

local function download_entry(job, base, entry, way, finish)
  local names, name = split(entry.path)
  local directory, message, code = way.at(names)
  if not directory then
    return nil, message, code
  end
  if entry.kind == "directory" then
    local made
    made, message, code = core.copy.mkdir(directory, name, OWNER)
    if not made and code ~= "EEXIST" then
      return nil, message, code
    end
    if made then
      finish[#finish + 1] = { entry = entry, names = { unpack(names) } }
      finish[#finish].names[#names + 1] = name
    else
      local there = core.copy.stat(directory, name)
      if not there or there.kind ~= "directory" then
        return nil, entry.path .. ": something that is not a directory is in the way", "ENOTDIR"
      end
    end
    job.result.directories = job.result.directories + 1
    return true
  elseif entry.kind == "link" then
    return download_link(job, entry.target or "", directory, name)
  elseif entry.kind == "file" then
    return download_file(job, join(base, entry.path), directory, name)
  end
  table.insert(job.result.skipped, join(base, entry.path))
  return true
end

local function download_tree(job, from, stat, root, made)
  local entries, message, code = job.files:list(from, { recursive = true })
  if not entries then
    return nil, message, code
  end
  local way, finish = descent(root), {}
  for _, entry in ipairs(entries) do
    local ok
    ok, message, code = download_entry(job, from, entry, way, finish)
    if not ok then
      way.close()
      return nil, ("%s: %s"):format(entry.path, message), code
    end
  end
  -- Modes and times last, children before parents: filling a directory changes its time.
  for i = #finish, 1, -1 do
    local fd = way.at(finish[i].names)
    if fd then
      core.copy.finish(fd, bit.band(finish[i].entry.mode, 0x1ff), finish[i].entry.mtime)
    end
  end
  way.close()
  if made then
    core.copy.finish(root, bit.band(stat.mode, 0x1ff), stat.mtime)
  end
  job.result.directories = job.result.directories + 1
  return true
end

-- The directory of the host that gets the entry, the entry's name, and what is there already. The
-- caller's own path may lead through links; only what the sandbox named may not.
local function place(to, name, kind, contents)
  local target, _, must_be_directory = parse(to)
  local there = uv.fs_stat(target)
  if there and there.type == "directory" then
    if contents or not name then
      return target, nil
    end
    return target, name
  end
  if there and (kind == "directory" or must_be_directory) then
    return nil, target .. ": not a directory", "ENOTDIR"
  elseif not there and must_be_directory and kind ~= "directory" then
    return nil, target .. ": no such directory", "ENOENT"
  end
  if there and there.type == "file" then
    target = assert(uv.fs_realpath(target)) -- a link to a file: the file
  end
  local parent = target:match("^(.*)/[^/]*$")
  return parent == "" and "/" or parent or ".", basename(target), there
end

-- Into something that is not a file: /dev/stdout, a FIFO, a terminal.
local function download_stream(job, from, target)
  local input, stat, code = job.files:open(from)
  if not input then
    return nil, stat, code
  end
  local output, message
  if target == "/dev/stdout" then -- may be a socket, which can't be opened by that name
    output, message, code = core.fd.duplicate(1)
  else
    output, message, code = core.fd.open(target, "w")
  end
  local offset = 0
  while output do
    local bytes
    bytes, message, code = core.copy.read(input, offset, 1048576)
    if not bytes or bytes == "" then
      break
    end
    local ok
    ok, message, code = require("tidepool.terminal").write_all(output:number(), bytes)
    if not ok then
      break
    end
    offset = offset + #bytes
    job.progress(#bytes, from)
  end
  input:close()
  if output then
    output:close()
  end
  if code then
    return nil, message, code
  end
  job.result.files = 1
  return true
end

--- Copies a file or tree of the sandbox to the host; as upload, the other way round.
function copy.download(files, from, to, options)
  local source, contents, follow = parse(from)
  local stat, message, code = files:stat(source, { follow = follow })
  if not stat then
    return nil, message, code
  end
  if follow and stat.kind ~= "directory" then
    return nil, from .. ": not a directory", "ENOTDIR"
  end
  local result, progress = new_result(options)
  local job = { files = files, result = result, progress = progress }

  local wanted = basename(source)
  if wanted == "" or wanted == "." or wanted == ".." then
    wanted = nil
  end
  local parent, name, there = place(to, wanted, stat.kind, contents)
  if not parent then
    return nil, name, there
  end
  local ok
  if there and there.type ~= "file" and stat.kind == "file" then
    ok, message, code = download_stream(job, source, parse(to))
    if not ok then
      return nil, message, code
    end
    return result
  end
  local directory
  directory, message, code = core.fd.open(parent, "rd")
  if not directory then
    return nil, message, code
  end
  if stat.kind == "directory" then
    local root, made = directory, false
    if name then
      made = core.copy.mkdir(directory, name, OWNER)
      root, message, code = core.copy.open(directory, name, "rd")
      directory:close()
    end
    if not root then
      return nil, message, code
    end
    ok, message, code = download_tree(job, source, stat, root, made)
    root:close()
  else
    if stat.kind == "link" then
      ok, message, code = download_link(job, stat.target or "", directory, name)
    elseif stat.kind == "file" then
      ok, message, code = download_file(job, source, directory, name)
    else
      ok, message, code = nil, source .. ": neither file, directory nor link", "EINVAL"
    end
    directory:close()
  end
  if not ok then
    return nil, message, code
  end
  return result
end

return copy

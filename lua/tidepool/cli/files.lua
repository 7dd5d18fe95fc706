--- cp and the file verbs: work on the files of a sandbox as one of its users.
local format = require("tidepool.cli.format")

local NAME = { name = "name", type = "name", positional = 1, required = true, about = "the sandbox" }
local USER = { name = "user", type = "string", flag = "--user", short = "-u", about = "user name or id", default = "agent" }

local function path(position, about)
  return { name = "path", type = "string", positional = position or 2, required = true, about = about or "a path inside; relative ones start at /workspace" }
end

-- Runs body(files) as the user that was asked for and tells of its failure.
local function with_files(context, values, body)
  local client = context:connect()
  local box = require("tidepool.client.box").new(client, values.name)
  local result, message, code = box:files(body, { user = values.user })
  box:close()
  if result == nil then
    return context:fail(message, code)
  end
  return result
end

-- A verb whose whole result is that it worked.
local function quiet(call)
  return function(context, values)
    return with_files(context, values, function(files)
      local ok, message, code = call(files, values)
      if not ok then
        return nil, message, code
      end
      return context.json and context:result({ ok = true }) or 0
    end)
  end
end

local function read(context, values)
  return with_files(context, values, function(files)
    if context.json then
      local bytes, message, code = files:read(values.path, { offset = values.offset, limit = values.limit })
      if not bytes then
        return nil, message, code
      end
      return context:result(format.bytes({ path = values.path, size = #bytes }, { content = bytes }))
    end
    local offset, left = values.offset or 0, values.limit or math.huge
    local fd, message, code = files:open(values.path)
    if not fd then
      return nil, message, code
    end
    local core, terminal = require("tidepool.core"), require("tidepool.terminal")
    while left > 0 do
      local bytes
      bytes, message, code = core.copy.read(fd, offset, math.min(left, 1048576))
      if not bytes or bytes == "" then
        break
      end
      local ok
      ok, message, code = terminal.write_all(1, bytes)
      if not ok then
        break
      end
      offset, left = offset + #bytes, left - #bytes
    end
    fd:close()
    if code then
      return nil, message, code
    end
    return 0
  end)
end

local function write(context, values)
  return with_files(context, values, function(files)
    local source = values.content or 0 -- standard input
    local stat, message, code = files:write(values.path, source, {
      mode = values.mode,
      append = values.append,
      exclusive = values.exclusive,
    })
    if not stat then
      return nil, message, code
    end
    return context.json and context:result(stat) or 0
  end)
end

local function named(entry)
  return entry.path .. (entry.target and " -> " .. entry.target or "")
end

local function show_entries(entries)
  return format.table({
    { "MODE", function(row) return format.mode(row.mode, row.kind) end },
    { "UID", "uid" },
    { "GID", "gid" },
    { "SIZE", function(row) return ("%.0f"):format(row.size) end },
    { "MODIFIED", function(row) return os.date("!%Y-%m-%d %H:%M:%SZ", math.floor(row.mtime)) end },
    { "PATH", named },
  }, entries)
end

local function list(context, values)
  return with_files(context, values, function(files)
    local entries, message, code = files:list(values.path or "/workspace", { recursive = values.recursive })
    if not entries then
      return nil, message, code
    end
    return context:result(format.array(entries), show_entries)
  end)
end

local function stat(context, values)
  return with_files(context, values, function(files)
    local found, message, code = files:stat(values.path, { follow = values.follow == true })
    if not found then
      return nil, message, code
    end
    found.path = values.path
    return context:result(found, function()
      return show_entries({ found })
    end)
  end)
end

-- "box:/path" apart: name, path; a host path has no name. "./a:b" and "/a:b" are host paths.
local function split(text)
  local name, rest = text:match("^([a-z0-9][a-z0-9-]*):(.*)$")
  if name and #name <= 63 then
    return name, rest == "" and "/workspace" or rest
  end
  return nil, text
end

-- A line that is written over while it runs, when someone is there to see it.
local function progress_line(context)
  local uv = require("luv")
  if context.json or uv.guess_handle(2) ~= "tty" then
    return nil, function() end
  end
  local last = 0
  return function(result)
    local now = uv.hrtime() / 1e9
    if now - last > 0.1 then
      last = now
      io.stderr:write(("\r\27[K%d files, %s"):format(result.files, format.size(result.bytes)))
    end
  end, function()
    io.stderr:write("\r\27[K")
  end
end

local function cp(context, values)
  local from_box, from = split(values.source)
  local to_box, to = split(values.target)
  if (from_box == nil) == (to_box == nil) then
    return context:fail("cp: one side must be NAME:PATH, the other a path of the host", "EINVAL")
  end
  values.name = from_box or to_box
  local copy = require("tidepool.client.copy")
  local on_progress, finish = progress_line(context)
  return with_files(context, values, function(files)
    local work = from_box and copy.download or copy.upload
    local result, message, code = work(files, from, to, { on_progress = on_progress })
    finish()
    if not result then
      return nil, message, code
    end
    for _, skipped in ipairs(result.skipped) do
      context:note("tidepool: skipped, neither file, directory nor link: " .. format.clean(skipped))
    end
    format.array(result.skipped)
    return context.json and context:result(result) or 0
  end)
end

local function command(fields)
  fields.group = "file"
  fields.wakes = true
  table.insert(fields.params, USER)
  return fields
end

local ERRORS = { "ENOSANDBOX", "ENOENT", "EACCES", "EBADUSER" }

return {
  command({
    name = "cp",
    about = "Copy files and trees between host and sandbox: NAME:PATH is inside.",
    details = [[
Into a directory that is there, else to that name; SRC/. means the contents of SRC. Links stay
links, modes, times and holes are kept, and what is written belongs to who writes it.]],
    params = {
      { name = "source", metavar = "SRC", type = "string", positional = 1, required = true, about = "what to copy" },
      { name = "target", metavar = "DST", type = "string", positional = 2, required = true, about = "where to" },
    },
    result = "files, directories, links, bytes, skipped",
    errors = { "ENOSANDBOX", "ENOENT", "EACCES", "ENOTDIR", "ENOSPC" },
    run = cp,
    example = "cp src agent-42:/workspace/src",
  }),
  command({
    name = "read",
    about = "Write a file of the sandbox to standard output.",
    params = {
      NAME,
      path(),
      { name = "offset", type = "bytes", flag = "--offset", about = "start here" },
      { name = "limit", type = "bytes", flag = "--limit", about = "at most so much" },
    },
    result = "path, size, content, encoding (utf-8 or base64)",
    errors = ERRORS,
    run = read,
    example = "read agent-42 /workspace/a.txt",
  }),
  command({
    name = "write",
    about = "Write standard input to a file of the sandbox, atomically.",
    params = {
      NAME,
      path(),
      { name = "content", type = "string", flag = "--content", about = "this text instead of standard input" },
      { name = "mode", type = "octal", flag = "--mode", about = "permissions" },
      { name = "append", type = "boolean", flag = "--append", short = "-a", about = "add to the end" },
      { name = "exclusive", type = "boolean", flag = "--exclusive", about = "fail when it is there" },
    },
    result = "what stat says then",
    errors = { "EEXIST", "ENOSPC", unpack(ERRORS) },
    run = write,
    example = "write agent-42 /workspace/a.txt --mode 644 < a.txt",
  }),
  command({
    name = "list",
    about = "List a directory of the sandbox.",
    params = {
      NAME,
      { name = "path", type = "string", positional = 2, about = "the directory", default = "/workspace" },
      { name = "recursive", type = "boolean", flag = "--recursive", short = "-R", about = "and all below" },
    },
    result = "list of path, kind, mode, uid, gid, size, mtime, target",
    errors = ERRORS,
    run = list,
    example = "list agent-42 /workspace",
  }),
  command({
    name = "stat",
    about = "Tell about a file of the sandbox.",
    params = { NAME, path(), { name = "follow", type = "boolean", flag = "--follow", short = "-L", about = "what a link points to" } },
    result = "path, kind, mode, uid, gid, size, mtime, target",
    errors = ERRORS,
    run = stat,
    example = "stat agent-42 /etc/passwd",
  }),
  command({
    name = "mkdir",
    about = "Make a directory in the sandbox.",
    params = {
      NAME,
      path(),
      { name = "parents", type = "boolean", flag = "--parents", short = "-p", about = "also those above; fine when it is there" },
      { name = "mode", type = "octal", flag = "--mode", about = "permissions" },
    },
    errors = { "EEXIST", unpack(ERRORS) },
    run = quiet(function(files, values)
      return files:mkdir(values.path, { parents = values.parents, mode = values.mode })
    end),
    example = "mkdir -p agent-42 /workspace/a/b",
  }),
  command({
    name = "remove",
    about = "Remove a file or directory of the sandbox.",
    params = { NAME, path(), { name = "recursive", type = "boolean", flag = "--recursive", short = "-r", about = "and all below" } },
    errors = { "ENOTEMPTY", unpack(ERRORS) },
    run = quiet(function(files, values)
      return files:remove(values.path, { recursive = values.recursive })
    end),
    example = "remove -r agent-42 /workspace/build",
  }),
  command({
    name = "rename",
    about = "Rename a file or directory of the sandbox.",
    params = {
      NAME,
      { name = "from", type = "string", positional = 2, required = true, about = "what" },
      { name = "to", type = "string", positional = 3, required = true, about = "its new path" },
    },
    errors = ERRORS,
    run = quiet(function(files, values)
      return files:rename(values.from, values.to)
    end),
    example = "rename agent-42 a.txt b.txt",
  }),
  command({
    name = "chmod",
    about = "Set the permissions of a file of the sandbox.",
    params = { NAME, { name = "mode", type = "octal", positional = 2, required = true, about = "octal, such as 755" }, path(3) },
    errors = ERRORS,
    run = quiet(function(files, values)
      return files:chmod(values.path, values.mode)
    end),
    example = "chmod agent-42 755 run.sh",
  }),
}

--- The programs that make an image: the confined unpacker, pipelines, temporary directories.
-- Runs in the server; nothing here reads what came from an archive but the unpacker's own words.
local uv = require("luv")
local async = require("tidepool.async")
local progress = require("tidepool.image.progress")

local worker = {}

--- A function that closes the descriptor once, however often it is called.
local function closer(fd)
  return function()
    if fd then
      uv.fs_close(fd)
      fd = nil
    end
  end
end

--- Runs `producer` with its output as the input of `consumer`; both as for async.command.
-- Returns both results, or nil, message, code when one can't be started.
function worker.pipeline(producer, consumer)
  local ends, message, code = uv.pipe({}, {})
  if not ends then
    return nil, message, code
  end
  local close_read, close_write = closer(ends.read), closer(ends.write)
  producer.stdout, producer.on_start = ends.write, close_write
  consumer.stdin, consumer.on_start = ends.read, close_read

  local writing = async.spawn(function()
    local result, why, name = async.command(producer)
    close_write()
    return result, why, name
  end)
  local consumed
  consumed, message, code = async.command(consumer)
  close_read()
  local _, produced, why, name = writing:join()
  if not produced then
    return nil, why, name
  end
  if not consumed then
    return nil, message, code
  end
  return produced, consumed
end

--- How a command ended, for a message.
function worker.ending(result)
  if result.signal ~= 0 then
    return "signal " .. result.signal
  end
  return "status " .. result.code
end

--- What tidepool-unpack or tidepool-pack said on standard error, as message, code.
function worker.failure(result, program)
  local code, message = result.stderr:match("(E%u+): ([^\n]*)")
  if code then
    return message, code
  end
  return (program or "tidepool-unpack") .. " ended with " .. worker.ending(result), "EIO"
end

--- The command that unpacks into options.target (or `target`); `arguments` name the layers.
function worker.unpack_command(options, arguments, target)
  local command = {
    options.tools .. "/tidepool-unpack",
    "--target", target or options.target,
    "--uid-base", tostring(options.range.base),
    "--count", tostring(options.range.count),
    stdout = "pipe",
    stderr = "pipe",
    on_line = progress.reader("unpacking", options.progress),
  }
  for _, argument in ipairs(arguments) do
    command[#command + 1] = argument
  end
  return command
end

--- { bytes, entries, skipped } of a finished tidepool-unpack, or nil, message, code.
function worker.unpacked(result)
  local bytes, entries, skipped = result.stdout:match("done (%d+) (%d+) (%d+)\n")
  if result.code ~= 0 or result.signal ~= 0 or not bytes then
    return nil, worker.failure(result)
  end
  return { bytes = tonumber(bytes), entries = tonumber(entries), skipped = tonumber(skipped) }
end

--- Unpacks, with `arguments` that name the layers. Returns as worker.unpacked.
function worker.unpack(options, arguments, target)
  local result, message, code = async.command(worker.unpack_command(options, arguments, target))
  if not result then
    return nil, message, code
  end
  return worker.unpacked(result)
end

local function remove(path)
  return async.command({ "rm", "-rf", "--one-file-system", "--", path, stderr = "pipe" })
end

--- Runs fn(directory) with a fresh private directory at options.work, removed afterwards.
function worker.with_directory(options, fn)
  remove(options.work)
  local made, message, code = uv.fs_mkdir(options.work, tonumber("700", 8))
  if not made then
    return nil, message, code
  end
  local results = { xpcall(fn, debug.traceback, options.work) }
  remove(options.work)
  if not results[1] then
    error(results[2], 0)
  end
  return unpack(results, 2, 4)
end

--- The environment as a list of "K=V", with `changes` (a value or false to leave it out).
function worker.environment(changes)
  local list = {}
  for name, value in pairs(uv.os_environ()) do
    if changes[name] == nil then
      list[#list + 1] = name .. "=" .. value
    end
  end
  for name, value in pairs(changes) do
    if value then
      list[#list + 1] = name .. "=" .. value
    end
  end
  return list
end

--- Whether a program is on the PATH.
function worker.has(program)
  for directory in (os.getenv("PATH") or "/usr/sbin:/usr/bin:/sbin:/bin"):gmatch("[^:]+") do
    if uv.fs_access(directory .. "/" .. program, "X") then
      return true
    end
  end
  return false
end

return worker

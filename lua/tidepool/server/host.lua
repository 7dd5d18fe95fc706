--- Facts about the host that identify a process over a server's life.
local host = {}

local function read(path)
  local file = io.open(path)
  if not file then
    return nil
  end
  local text = file:read("*a")
  file:close()
  return text
end

local boot_id

--- This boot's id, from the kernel.
function host.boot_id()
  boot_id = boot_id or (read("/proc/sys/kernel/random/boot_id") or ""):match("%S+")
  return boot_id
end

--- When the process started, in clock ticks since boot (field 22 of /proc/PID/stat), or nil.
function host.start_time(pid)
  local stat = read("/proc/" .. pid .. "/stat")
  if not stat then
    return nil
  end
  -- The command name may hold spaces and brackets: count fields after the last one.
  local rest = stat:match("^.*%) (.*)$")
  local field = 3
  for value in rest:gmatch("%S+") do
    if field == 22 then
      return tonumber(value)
    end
    field = field + 1
  end
end

host.read = read

return host

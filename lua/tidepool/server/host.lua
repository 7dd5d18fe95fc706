--- Facts about the host that identify a process over a server's life.
local read_file = require("tidepool.file").read

local host = {}

local boot_id

--- This boot's id, from the kernel.
function host.boot_id()
  boot_id = boot_id or (read_file("/proc/sys/kernel/random/boot_id") or ""):match("%S+")
  return boot_id
end

--- When the process started, in clock ticks since boot (field 22 of /proc/PID/stat), or nil.
function host.start_time(pid)
  local stat = read_file("/proc/" .. pid .. "/stat")
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

return host

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

local machine

--- What processes here may have come to rely on: { kernel = its release, cpu = the processor's features }.
function host.machine()
  machine = machine or {
    kernel = (read_file("/proc/sys/kernel/osrelease") or ""):match("%S+"),
    cpu = (read_file("/proc/cpuinfo") or ""):match("\n[Ff][le]a%a+%s*:%s*([^\n]*)") or "", -- "flags", "Features"
  }
  return machine
end

--- Whether processes of that machine can go on here: true | nil, message, "ENOTSUP".
function host.can_run(other)
  local have = {}
  for flag in host.machine().cpu:gmatch("%S+") do
    have[flag] = true
  end
  for flag in (other and other.cpu or ""):gmatch("%S+") do
    if not have[flag] then
      return nil, ("its processes were captured on a processor with %s, which this one lacks"):format(flag), "ENOTSUP"
    end
  end
  return true
end

return host

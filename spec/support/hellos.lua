-- The ClientHellos of the TLS clients that are here, as they send them.
local hellos = {}

--- By the client's name: the bytes it sends first to reach `host`.
function hellos.capture(host)
  local found = {}
  local pipe = assert(io.popen("timeout 60 /usr/bin/python3 spec/support/servers/hellos.py " .. host .. " </dev/null"))
  for name, hex in pipe:read("*a"):gmatch("(%S+) (%x+)\n") do
    found[name] = hex:gsub("%x%x", function(byte)
      return string.char(tonumber(byte, 16))
    end)
  end
  pipe:close()
  return found
end

return hellos

--- A step hook for specs: TIDEPOOL_STEP=name makes the server kill itself when it gets there, as a power
--- cut between two writes would. Unset, it does nothing.
local uv = require("luv")

local deadly = os.getenv("TIDEPOOL_STEP")

return function(name)
  if name == deadly then
    uv.kill(uv.os_getpid(), "sigkill")
  end
end

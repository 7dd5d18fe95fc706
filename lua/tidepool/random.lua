--- Names that nobody else picks, from the kernel's random numbers.
local uv = require("luv")

local random = {}

--- `count` random bytes as lower-case hexadecimal digits.
function random.hex(count)
  return (assert(uv.random(count)):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end))
end

return random

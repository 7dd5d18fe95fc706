--- A `pairs` that never ends early. The first thing that each of our processes loads.
--
-- LuaJIT as Debian 12 has it (2.1.0-beta3 of March 2022) goes over tables by an instruction of its own,
-- and when the compiler gives up on such a loop, it patches the loop so that it ends after one entry, or
-- before the first, each time from then on (LuaJIT issue 827). Seen here after some sixty requests: the
-- egress process handed its policies empty events. Other versions lose entries more rarely (issue 1510).
--
-- The instruction is taken only where the iterator is `next` itself. Ours is a Lua function: the first run
-- of a loop turns it into a plain one, which compiles as well. `for k, v in next, t` is not to be written.
local next = next

local function following(t, key)
  return next(t, key)
end

--- As the one it replaces, which heeds no metamethod either.
function pairs(t) -- luacheck: ignore 121
  if type(t) ~= "table" then
    error(("bad argument #1 to 'pairs' (table expected, got %s)"):format(type(t)), 2)
  end
  return following, t, nil
end

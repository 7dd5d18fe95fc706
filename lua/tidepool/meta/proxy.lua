---@meta tidepool.proxy
-- The C module of the egress process, for editors and for the reference: shapes, units, errors.
-- A failure is `nil, message, code`, code being the errno's name; a wrong argument type raises.

---@class tidepool.proxy
local proxy = {}

return proxy

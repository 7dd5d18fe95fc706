--- Small files of the host, whole. Needs nothing but LuaJIT: the launcher uses it before luv is there.
local file = {}

--- The bytes of a file | nil, message when it can't be read.
---@param path string
---@return string? bytes
---@return string? message
function file.read(path)
  local handle, message = io.open(path, "rb")
  if not handle then
    return nil, message
  end
  local bytes = handle:read("*a")
  handle:close()
  return bytes
end

return file

--- Small files and directories of the host, whole. Loads with nothing but LuaJIT: the launcher reads files
--- before luv is there.
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

--- The names in a directory, in no order; none when it can't be read.
---@param path string
---@return string[] names
function file.names(path)
  local uv = require("luv")
  local list, scan = {}, uv.fs_scandir(path)
  while scan do
    local name = uv.fs_scandir_next(scan)
    if not name then
      break
    end
    list[#list + 1] = name
  end
  return list
end

return file

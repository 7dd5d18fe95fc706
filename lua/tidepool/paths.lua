--- Where things are: the checkout, the build, the state of a server, its sockets.
--
-- Everything is a function, not a constant, because specs and embedders change the environment
-- after this module was loaded. Needs nothing but LuaJIT: the launcher uses it before any package
-- is installed.
local paths = {}

local own = debug.getinfo(1, "S").source:gsub("^@", "")
local repo = own:match("^(.*)/lua/tidepool/[^/]*$") or "."

--- Makes a path absolute without touching the file system; `.` components at the front go.
function paths.absolute(path)
  if path:sub(1, 1) == "/" then
    return path
  end
  local here = os.getenv("PWD")
  local ok, uv = pcall(require, "luv")
  if ok then
    here = uv.cwd() or here
  end
  path = path:gsub("^%./+", "")
  if path == "." or path == "" then
    return here
  end
  return here .. "/" .. path
end

repo = paths.absolute(repo)

--- The checkout that holds sandbox.lua.
function paths.repo()
  return repo
end

function paths.launcher()
  return repo .. "/sandbox.lua"
end

--- The build directory; TIDEPOOL_BUILD overrides.
function paths.build()
  return paths.absolute(os.getenv("TIDEPOOL_BUILD") or (repo .. "/.build"))
end

--- A program of ours: "tidepool-spawner", "tidepool-init", "tidepool-unpack".
function paths.tool(name)
  return paths.build() .. "/" .. name
end

--- What a server keeps over reboots; TIDEPOOL_STATE overrides.
function paths.state()
  return paths.absolute(os.getenv("TIDEPOOL_STATE") or "/var/lib/tidepool")
end

--- What goes with the boot: sockets, locks; TIDEPOOL_RUN overrides.
function paths.run()
  return paths.absolute(os.getenv("TIDEPOOL_RUN") or "/run/tidepool")
end

--- The socket that clients connect to.
function paths.socket()
  return paths.run() .. "/server.sock"
end

return paths

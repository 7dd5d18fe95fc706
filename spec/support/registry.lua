--- A registry on loopback, Debian's docker-registry, for specs that pull.
local uv = require("luv")
local daemon = require("spec.support.daemon")
local support = require("spec.support")
local tar = require("spec.support.tar")

local registry = {}

--- Starts one that ends with the spec file; nil when docker-registry isn't installed.
-- Returns a function from "name:tag" to a reference of it.
function registry.start()
  local root = support.scratch()
  local port = daemon.free_port()
  tar.write(root .. "/config.yml", ([[
version: 0.1
log: { level: error }
storage: { filesystem: { rootdirectory: %s/data } }
http: { addr: "127.0.0.1:%d" }
]]):format(root, port))
  local handle
  handle = uv.spawn("docker-registry", { args = { "serve", root .. "/config.yml" } }, function()
    handle:close()
  end)
  if not handle then
    return nil
  end
  support.defer(function()
    if not handle:is_closing() then
      handle:kill("sigkill")
    end
  end)
  assert(support.eventually(function()
    return support.run({ "curl", "-sf", ("http://127.0.0.1:%d/v2/"):format(port) }).code == 0
  end), "the registry does not answer")
  return function(rest)
    return ("127.0.0.1:%d/%s"):format(port, rest)
  end
end

return registry

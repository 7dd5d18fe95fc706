--- The egress process: the only way out of the sandboxes that belong to it.
--
-- Started by the server as root with three descriptors: 3 the channel to it, 4 a listening socket for later
-- servers, 5 the page in which the watchdog leaves who ran too long. It loads all that it will ever need,
-- is told its configuration, and then gives up everything else: files, other processes, privileges
-- (core/proxy/confine.h). What it holds are the secrets, the sandboxes' CAs and the policies' states.
local repo = arg[0]:match("^(.*)/lua/tidepool/egress/main%.lua$")
if repo then -- its environment is nearly empty
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s"):format(repo, repo, package.path)
  package.cpath = ("%s/?.so;%s"):format(os.getenv("TIDEPOOL_BUILD") or repo .. "/.build", package.cpath)
end
require("tidepool.core").fd.close_from(6) -- what a server had open by chance is none of ours
require("tidepool.iteration")
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local proxy = require("tidepool.proxy")
local service = require("tidepool.egress.service")

local CHANNEL, LISTENER, PAGE = 3, 4, 5
local TOO_LONG = 1 -- second that a policy may run without a break

async.on_error = function(err)
  io.stderr:write("egress: ", tostring(err), "\n")
end

async.run(function()
  uv.new_signal():start("sigpipe", function() end)
  uv.new_signal():start("sigint", function() end) -- a Ctrl-C at the server's terminal is not for us
  assert(proxy.watchdog.start({ seconds = TOO_LONG, fd = PAGE }))
  service.start(core.channel.wrap(core.fd.own(CHANNEL)), core.fd.own(LISTENER))
  async.event():wait()
end)

--- CRIU's questions: at some of its stages it runs a hook (core/criu/hook.c), which asks us by a socket and
-- waits for the answer.
--
-- Runs in the server. The socket is in a directory that only root enters.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local log = require("tidepool.server.log")
local transport = require("tidepool.transport")

local hook = {}

--- The environment of a CRIU that is to ask at `path`.
function hook.environment(path)
  return { "TIDEPOOL_CRIU_HOOK=" .. path, "PATH=" .. (os.getenv("PATH") or "/usr/sbin:/usr/bin:/sbin:/bin") }
end

-- One question: the bytes of the answer, and why it is no.
local function answer(text, ask)
  local stage, pid = text:match("^(%S+) (%d+)$")
  if not stage then
    return "no", "a stage that can't be read", "EPROTO"
  end
  local ok, agreed, message, code = xpcall(ask, debug.traceback, stage, tonumber(pid))
  if not ok then
    log.error("task_failed", { message = agreed })
    return "no", "its answer failed", "EIO"
  elseif not agreed then
    return "no", message, code
  end
  return "ok" .. (type(agreed) == "string" and agreed or "")
end

--- Answers at `path` by ask(stage, pid of init on the host), which returns true, or a plan's bytes for the hook
--- to carry out inside, | nil, message, code. Returns a function that ends it, which returns why the last
--- question was answered by no: message, code, if one was | nil, message, code.
function hook.listen(path, ask)
  local listener, message, code = core.channel.listen(path)
  if not listener then
    return nil, message, code
  end
  local open, refused, refused_code = {}, nil, nil
  local watching = assert(async.watch(listener:number(), "r", function()
    local channel = core.channel.accept(listener)
    if not channel then
      return
    end
    local peer
    peer = transport.open(channel, {
      on_message = function(text, fds)
        transport.close_all(fds)
        async.spawn(function()
          local bytes, why, name = answer(text, ask)
          if why then
            refused, refused_code = why, name
          end
          peer:send(bytes)
        end)
        return true
      end,
    })
    open[#open + 1] = peer
  end))
  watching:start()
  return function()
    watching:close()
    listener:close()
    for _, peer in ipairs(open) do
      peer:close()
    end
    uv.fs_unlink(path)
    return refused, refused_code
  end
end

return hook

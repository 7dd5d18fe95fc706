--- A process with the manners of an egress process and none of its work, for specs of the pool: what
--- happens when one ends, hangs or is found again must not hang on what TLS and HTTP do meanwhile.
--
-- Started by the pool as the real one is: 3 the channel, 4 the listening socket, 5 the watchdog's page.
local async = require("tidepool.async")
local core = require("tidepool.core")
local rpc = require("tidepool.rpc")
local transport = require("tidepool.transport")

local guests, server = {}, nil
local made = 0
local kept -- what nothing else refers to

local handlers = {}

function handlers.configure(params)
  assert(params.roots and #params.nameservers > 0 and params.limits.memory > 0)
  return true
end

function handlers.make_ca(params)
  made = made + 1
  local text = (params.name .. made):gsub("%W", "")
  return { cert = ("-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n"):format(text), key = "key\0" .. made }
end

-- A policy's text says what becomes of it.
function handlers.check(params)
  for _, policy in ipairs(params.policies) do
    if policy.text == "wrong" then
      return nil, "policy " .. policy.name .. ": wrong", "EINVAL"
    elseif policy.text == "die" then
      os.exit(7)
    elseif policy.text == "hang" then
      while true do end
    end
  end
  return true
end

function handlers.attach(params, fds)
  assert(#fds == #params.handles)
  local own = {}
  for i, fd in ipairs(fds) do
    own[i] = assert(core.fd.duplicate(fd))
  end
  guests[params.id] = { params = params, fds = own }
  return true
end

function handlers.detach(params)
  local guest = guests[params.id]
  guests[params.id] = nil
  transport.close_all(guest and guest.fds)
  return true
end

function handlers.policies(params)
  local guest = guests[params.id]
  guest.params.policies, guest.params.revision = params.policies, params.revision
  return true
end

function handlers.ping()
  return true
end

function handlers.secret()
  return true
end
handlers.secret_remove = handlers.secret

-- What a sandbox was attached with may have it tell nonsense.
function handlers.inventory()
  local list = {}
  for id, guest in pairs(guests) do
    if guest.params.nonsense then
      return guest.params.nonsense
    end
    list[#list + 1] = { id = id, revision = guest.params.revision }
  end
  return list
end

function handlers.handles(params)
  local guest, copies = guests[params.id], {}
  for i, fd in ipairs(guest.fds) do
    copies[i] = assert(core.fd.duplicate(fd))
  end
  return guest.params.handles, nil, nil, copies
end

--- What it was told of a sandbox.
function handlers.told(params)
  return guests[params.id] and guests[params.id].params
end

--- Asks the server something.
function handlers.ask(params)
  local result, message, code = server:call(params.method, params.params)
  return { result = result, message = type(message) == "string" and message or nil, code = code }
end

local function serve(channel)
  server = rpc.connection(channel, {
    on_request = function(_, method, params, fds)
      return handlers[method](params or {}, fds)
    end,
  })
end

async.run(function()
  local listener = core.fd.own(4)
  serve(core.channel.wrap(core.fd.own(3)))
  local watch = assert(async.watch(listener:number(), "r", function()
    local channel = core.channel.accept(listener)
    if channel then
      serve(channel)
    end
  end))
  watch:start()
  kept = watch
  async.event():wait()
end)
return kept

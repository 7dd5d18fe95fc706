--- The sandboxes of a server (root) by name: made, opened, found.
local adoption = require("tidepool.server.sandbox.adoption")
local egress = require("tidepool.server.egress")
local egress_policies = require("tidepool.server.egress.policies")
local hibernation = require("tidepool.server.memory.sleep")
local keep = require("tidepool.server.memory.keep")
local log = require("tidepool.server.log")
local memory = require("tidepool.server.memory")
local random = require("tidepool.random")
local sandbox = require("tidepool.server.sandbox")
local step = require("tidepool.server.step")
local verbs = require("tidepool.verbs")

local sandboxes = { adopt = adoption.adopt }

local function resolve_limits(params)
  local of_type = verbs.types[params.type]
  return {
    type = params.type,
    cpu = params.cpu or of_type.cpu,
    memory = params.memory or of_type.memory,
    disk = params.disk or of_type.disk,
    pids = params.pids,
    env = params.env or {},
    labels = params.labels or {},
  }
end

--- Makes a sandbox and starts it: all or nothing. wanted: name, image, spec, policies (a checked chain),
-- files(id), which makes its files and returns their path | nil, message, code; of one that begins with
-- another's files also parent, the snapshot that they continue, branch_of, and names, of its egress; of one that
-- continues its processes memory, the directory of their dump, of, whose they were, and ca.
-- The name is free, and taken from here on.
function sandboxes.make(server, wanted)
  local created, kept = os.time(), { policies = wanted.policies, revision = 1 }
  local id, message, code = server.state:add_sandbox(wanted.name, wanted.image, wanted.spec, created, kept, wanted)
  if not id then
    return nil, message, code
  end
  local self = sandbox.new(server, {
    id = id, name = wanted.name, image = wanted.image, spec = wanted.spec, created = created, state = "creating",
    egress = kept, parent = wanted.parent, branch_of = wanted.branch_of,
  })
  server.sandboxes[wanted.name] = self
  step("sandbox_recorded")

  return self.lock:with(function()
    local ok
    if wanted.names then
      server.state:add_names(id, wanted.names)
    end
    ok, message, code = wanted.files(id)
    step("files_made")
    if ok and wanted.memory then
      egress.inherit(self, wanted.ca)
      ok, message, code = keep.share(wanted.memory, memory.directory(self), { of = wanted.of })
      if ok then
        ok, message, code = hibernation.wake(self)
      end
    elseif ok then
      ok, message, code = self:start()
    end
    if ok then
      log.info("sandbox_created", { sandbox = self.name, id = id, image = wanted.image })
      return self
    end
    log.error("create_failed", { sandbox = self.name, message = message, code = code })
    self:unmake_surely()
    return nil, message, code
  end)
end

--- Makes and starts a new sandbox. "EEXIST" when the name is taken, "ENOIMAGE".
-- A request whose key made the sandbox that is there is the same one, sent again over a new connection.
function sandboxes.create(server, params)
  local taken = server.sandboxes[params.name]
  if taken and (not params.key or taken.spec.key ~= params.key) then
    return nil, "sandbox exists: " .. params.name, "EEXIST"
  elseif taken then
    local awake, message, code = taken:wake()
    return awake and taken, message, code
  end
  local chain, why, why_code = egress_policies.check(server, params.egress or {})
  if not chain then
    return nil, "create " .. params.name .. ": " .. why, why_code
  elseif server.sandboxes[params.name] then
    return sandboxes.create(server, params) -- somebody else made it while that was checked
  end
  local image = server.images[params.image]
  if not image then
    return nil, "no such image: " .. params.image .. " (image ls lists them, image build makes one)", "ENOIMAGE"
  end
  local room, message, code = server.storage:room()
  if not room then
    return nil, "create " .. params.name .. ": " .. message, code
  end
  local spec = resolve_limits(params)
  spec.machine_id, spec.key = random.hex(16), params.key
  local self
  self, message, code = sandboxes.make(server, {
    name = params.name, image = params.image, spec = spec, policies = chain,
    files = function(id)
      return server.storage:create(id, params.image)
    end,
  })
  if not self then
    return nil, "create " .. params.name .. ": " .. message, code
  end
  return self
end

--- The sandbox of that name, running: started when it is stopped, made when absent.
-- Returns it and whether it was made.
function sandboxes.open(server, params)
  local self = server.sandboxes[params.name]
  if not self then
    local made, message, code = sandboxes.create(server, params)
    if made or code ~= "EEXIST" then
      return made, made and true or message, code
    end
    self = server.sandboxes[params.name] -- somebody else made it meanwhile
  end
  local ok, message, code = self:wake(params.cold)
  if not ok then
    return nil, message, code
  end
  return self, false
end

return sandboxes

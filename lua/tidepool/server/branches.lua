--- Branches: sandboxes that begin with the files of another, or of a snapshot, and may take its name.
--
-- Runs in the server. A branch is a sandbox of its own: name, id, machine-id, hostname, cgroup, id range,
-- certificate authority, and a bill from its own start; only its files, limits and policies are copies. One that
-- continues its parent's processes trusts what they hold in memory: its parent's authority.
local uv = require("luv")
local async = require("tidepool.async")
local cjson = require("cjson")
local egress = require("tidepool.server.egress")
local keep = require("tidepool.server.memory.keep")
local log = require("tidepool.server.log")
local name_of = require("tidepool.server.sandbox").name_of
local random = require("tidepool.random")
local sandboxes = require("tidepool.server.sandboxes")
local snapshots = require("tidepool.server.snapshots")
local step = require("tidepool.server.step")

local branches = {}

local NAME = 63 -- characters

-- What a new sandbox takes over of a source: { image, spec, egress }.
local function inherit(source, key)
  local spec = cjson.decode(cjson.encode(source.spec)) -- a copy
  spec.machine_id, spec.key = random.hex(16), key
  return spec
end

local function make(server, name, source, key)
  return sandboxes.make(server, {
    name = name,
    image = source.image,
    spec = inherit(source, key),
    policies = source.policies,
    names = source.names,
    parent = source.parent,
    branch_of = source.branch_of,
    memory = source.memory,
    of = source.of,
    ca = source.ca,
    files = function(id)
      return server.storage:clone(id, source.place)
    end,
  })
end

-- with_memory: with its processes, which it has.
local function of_snapshot(server, record, with_memory)
  local living = server.sandboxes[record.sandbox]
  local kept = record.egress or {}
  return {
    memory = with_memory and keep.of_snapshot(server, record.id) or nil,
    of = record.sandbox .. "@" .. record.label,
    ca = with_memory and egress.kept_ca(server, kept, record.sandbox_id) or nil,
    place = record.place,
    image = record.image,
    spec = record.spec,
    policies = kept.policies,
    names = kept.names or server.state:names(record.sandbox_id),
    parent = record.id,
    branch_of = living and living.id or nil,
    name = record.sandbox,
  }
end

--- A sandbox made again by a request whose key it has: the request was sent again.
local function made_before(server, name, key)
  local taken = server.sandboxes[name]
  return taken and key and taken.spec.key == key and taken or nil
end

-- Whether the memory of a snapshot that has one is wanted, and can be restored here: it | nil, message, code.
local function wanted_memory(server, record, cold)
  if not record.memory or cold then
    return false
  end
  local ok, message, code = keep.check(keep.of_snapshot(server, record.id))
  if not ok then
    return nil, message .. " (--cold takes its files only)", code
  end
  return true
end

--- Makes a sandbox of a snapshot and starts it; the processes of one with memory go on in it. "EEXIST": the name is
-- taken. params: snapshot, name, cold (its files only), key.
function branches.restore(server, params)
  local record, message, code = server.snapshots:get(params.snapshot)
  if not record then
    return nil, message, code
  end
  local before = made_before(server, params.name, params.key)
  if before then
    return before
  elseif server.sandboxes[params.name] then
    return nil, ("sandbox exists: %s (`rollback %s %s` puts the snapshot in its place)"):format(
      params.name, params.name, params.snapshot), "EEXIST"
  end
  local made, with_memory
  made, message, code = server.storage:room()
  if made then
    with_memory, message, code = wanted_memory(server, record, params.cold)
    made = with_memory ~= nil
  end
  if made then
    made, message, code = make(server, params.name, of_snapshot(server, record, with_memory), params.key)
    if not made and with_memory then
      message = message .. " (--cold takes its files only)"
    end
  end
  if not made then
    return nil, ("restore %s as %s: %s"):format(params.snapshot, params.name, message), code
  end
  return made
end

--- Puts a snapshot's files in the place of a sandbox's. One that ran is started again; the processes of a snapshot
-- with memory go on in it, unless `cold`. `key`: of the request.
function branches.rollback(sandbox, address, cold, key)
  local server = sandbox.server
  local record, message, code = server.snapshots:get(address)
  if not record then
    return nil, message, code
  end
  local ok, with_memory
  with_memory, message, code = wanted_memory(server, record, cold)
  if with_memory ~= nil then
    ok, message, code = sandbox:rollback(record.id, {
      files = function(root)
        return server.storage:clone(root, record.place)
      end,
      memory = with_memory and function(root)
        local changes = { of = address, root = root }
        return keep.share(keep.of_snapshot(server, record.id), keep.pending(sandbox), changes)
      end or nil,
    }, key)
  end
  if not ok then
    return nil, ("rollback %s to %s: %s"):format(sandbox.name, address, message), code
  end
  return sandbox
end

-- NAME-1, NAME-2 ...: the first that nobody has. `taken`: by this same request.
local function next_name(server, base, taken)
  local number = 0
  repeat
    number = number + 1
    local ending = "-" .. number
    local name = base:sub(1, NAME - #ending) .. ending
    if not server.sandboxes[name] and not taken[name] then
      taken[name] = true
      return name
    end
  until number > 1e6
end

-- What an earlier try of this request has made, by their number.
local function earlier(server, key, count)
  local found = {}
  for _, sandbox in pairs(key and server.sandboxes or {}) do
    for i = 1, count do
      if sandbox.spec.key == key .. "/" .. i then
        found[i] = sandbox
      end
    end
  end
  return found
end

-- How many are made at a time: memory is read and written for each, and files are only shared.
local function width(source, count)
  return source.memory and math.min(count, uv.available_parallelism()) or count
end

-- All at once; one that fails unmakes the others.
local function make_all(server, source, params)
  local taken, tasks, names = {}, {}, {}
  local made = earlier(server, params.key, params.count)
  local failure, turn = nil, 0
  for i = 1, params.count do
    names[i] = made[i] and made[i].name or next_name(server, source.name, taken)
  end
  local function make_next()
    while turn < params.count and not failure do
      turn = turn + 1
      local i = turn
      if not made[i] then
        local key = params.key and params.key .. "/" .. i
        local one, message, code = make(server, names[i], source, key)
        made[i] = one
        failure = failure or not one and { message, code } or nil
      end
    end
  end
  for i = 1, width(source, params.count) do
    tasks[i] = make_next
  end
  async.all(tasks)
  if failure then
    for _, one in pairs(made) do
      one:destroy()
    end
    return nil, unpack(failure)
  end
  local list = {}
  for i, one in ipairs(made) do
    list[i] = one:info(false)
    list[i].connections_reset = source.memory and one.connections_reset or nil
  end
  return list
end

-- The files of a sandbox in one instant, and its memory in a directory if that is given: their place | nil,
-- message, code.
local function stage_files(sandbox, directory)
  local storage, stage = sandbox.server.storage, nil
  if sandbox.destroyed then
    return nil, "sandbox was destroyed: " .. sandbox.name, "ENOSANDBOX"
  elseif not directory then
    return storage:stage_snapshot(sandbox.root, snapshots.group(sandbox), sandbox.state == "stopped")
  end
  local took, message, code = sandbox:capture(directory, function()
    local why, why_code
    stage, why, why_code = storage:stage_snapshot(sandbox.root)
    return stage and true, why, why_code
  end)
  if not took and stage then
    storage:abort(stage)
  end
  return took and stage, message, code
end

-- Of a sandbox's files in one instant, and its memory, which nobody needs once the branches have them.
local function fork_sandbox(sandbox, params)
  local server = sandbox.server
  local directory = params.memory and keep.staging(server) or nil
  local stage, message, code = sandbox.lock:with(stage_files, sandbox, directory)
  if not stage then
    return nil, message, code
  end
  step("fork_staged")
  local list
  list, message, code = make_all(server, {
    place = stage,
    image = sandbox.image,
    spec = sandbox.spec,
    policies = sandbox.egress.policies,
    names = server.state:names(sandbox.id),
    parent = sandbox.parent,
    branch_of = sandbox.id,
    name = sandbox.name,
    memory = directory,
    of = sandbox.name,
    ca = directory and egress.trust(sandbox) and sandbox.egress.ca or nil,
  }, params)
  step("forked")
  if directory then
    keep.remove(directory)
  end
  async.spawn(server.storage.abort, server.storage, stage)
  return list, message, code
end

local function fork_snapshot(server, record, params)
  local with_memory, message, code = wanted_memory(server, record, not params.memory)
  if with_memory == nil then
    return nil, message, code
  elseif params.memory and not with_memory then
    return nil, "the snapshot has no memory: it was taken without --memory", "EINVAL"
  end
  return make_all(server, of_snapshot(server, record, with_memory), params)
end

--- Makes `count` branches of a sandbox or a snapshot: a list of info | nil, message, code, with none made.
-- params: source, "NAME" or "NAME@LABEL"; count; memory, whether its processes go on in each; key.
function branches.fork(server, params)
  local list, message, code = server.storage:room()
  if list then
    if params.source:find("@", 1, true) then
      local record
      record, message, code = server.snapshots:get(params.source)
      list = record and true
      if record then
        list, message, code = fork_snapshot(server, record, params)
      end
    else
      local sandbox = server.sandboxes[params.source]
      if not sandbox then
        return nil, "no such sandbox: " .. params.source, "ENOSANDBOX"
      end
      list, message, code = fork_sandbox(sandbox, params)
    end
  end
  if not list then
    return nil, ("fork %s: %s"):format(params.source, message), code
  end
  return list
end

-- Both locks, the older sandbox's first, so that two who want the same two don't wait for each other.
local function with_both(one, other, fn)
  if not other then
    return one.lock:with(fn)
  elseif other.id < one.id then
    one, other = other, one
  end
  return one.lock:with(function()
    return other.lock:with(fn)
  end)
end

-- The sandbox that a branch may replace, and the name it may take | nil, message, code.
local function replaced_by(branch)
  local server = branch.server
  if not branch.branch_of then
    return nil, branch.name .. " is no branch of a sandbox", "EINVAL"
  end
  local name = name_of(server, branch.branch_of)
  if not name then
    return nil, ("the sandbox that %s is a branch of is gone, or another branch took its place"):format(branch.name), "ENOSANDBOX"
  end
  return name, server.sandboxes[name]
end

-- Takes the name `name`; the sandbox that has it, `old`, is destroyed. One step in the database: a server
-- that is killed leaves the one or the other. Called with both locks held.
local function take_name(branch, name, old, key)
  local server, former = branch.server, branch.name
  local ok, message, code = server.state:replace_sandbox(old and old.id, branch.id, name, key)
  if not ok then
    return nil, message, code
  end
  server.sandboxes[former], server.sandboxes[name] = nil, branch
  branch.name, branch.branch_of = name, nil
  log.info("sandbox_promoted", { sandbox = name, id = branch.id, former = former })
  step("name_taken")
  if old then
    server.state.db:sync() -- a power cut must not bring back the name of one whose files are gone
    old.name = "~" .. old.id
    old:end_run(0, "another branch took its place")
    old:unmake_surely()
  end
  return true
end

--- The branch that an earlier try of the request of this key has promoted, if it has.
function branches.promoted_before(server, key)
  local before = server.state.requests:find(key)
  local name = before and before.promoted and name_of(server, before.promoted)
  return name and server.sandboxes[name]
end

--- Makes a branch the sandbox of its parent's name, at once: that one is destroyed, and the branch goes on
-- as it is, its processes too. `key`: of the request.
function branches.promote(branch, key)
  local name, parent, code = replaced_by(branch)
  if not name then
    return nil, "promote: " .. parent, code
  end
  local ok, message
  ok, message, code = with_both(branch, parent, function()
    local now, other, why = replaced_by(branch) -- meanwhile it may have been destroyed or replaced
    if branch.destroyed then
      return nil, "sandbox was destroyed: " .. branch.name, "ENOSANDBOX"
    elseif not now then
      return nil, other, why
    end
    return take_name(branch, now, other, key)
  end)
  if not ok then
    return nil, "promote: " .. message, code
  end
  return branch
end

return branches

--- Taking over the egress processes that an earlier server left. These are methods of a pool (pool.lua).
local async = require("tidepool.async")
local log = require("tidepool.server.log")
local member = require("tidepool.server.egress.member")
local process = require("tidepool.server.egress.process")

local adoption = {}

-- By id, and nothing but what it should be: it may be somebody else's by now, and must not keep us from starting.
local function inventory_of(list)
  local inventory, count = {}, 0
  for _, entry in ipairs(type(list) == "table" and list or {}) do
    if type(entry) == "table" and type(entry.id) == "number" and entry.id == entry.id then
      count = count + (inventory[entry.id] and 0 or 1)
      inventory[entry.id] = { revision = type(entry.revision) == "number" and entry.revision or 0 }
    end
  end
  return inventory, count
end

-- One may end at any moment of this: then member.lost has seen to it.
local function adopt_one(pool, row)
  local one = member.add(pool, row.number, row.key)
  local adopted, message = process.adopt(member.options(pool, one), row)
  one.process = adopted
  local list, count
  if adopted then
    list, message = adopted:call("inventory", {})
  end
  if list and not adopted.dead then
    one.inventory, count = inventory_of(list)
    pool.owner.adopted(one)
  end
  if list and not adopted.dead then
    one.ready:set(true)
    async.spawn(adopted.call, adopted, "configure", member.configuration()) -- the host may have changed meanwhile
    log.info("egress_adopted", { number = row.number, egress_pid = row.pid, sandboxes = count })
    return
  end
  log.warn("egress_not_adopted", { number = row.number, message = message })
  if one.process then
    adopted:finish()
  end
  if pool.members[row.number] == one then
    pool.members[row.number] = nil
    member.forget(pool, row.number, row.base)
  end
end

--- Takes over what an earlier server left. member.inventory: id -> { revision } of what each serves.
-- Returns true | nil, message, code.
function adoption.adopt(pool)
  local rows, message, code = pool.server.state.db:rows("SELECT number, pid, start_time, boot_id, base, key FROM egress_processes")
  if not rows then
    return nil, message, code
  end
  for _, row in ipairs(rows) do
    adopt_one(pool, row)
  end
  return true
end

--- The member that has served a sandbox all along, if any, and what it knows of it.
function adoption.holder(pool, id)
  for _, one in pairs(pool.members) do
    if one.inventory and one.inventory[id] then
      return one, one.inventory[id]
    end
  end
end

--- After the sandboxes were adopted: nobody is served that does not run.
function adoption.reconcile(pool)
  for _, one in pairs(pool.members) do
    for id in pairs(one.inventory or {}) do
      if not one.sandboxes[id] then
        async.spawn(one.process.call, one.process, "detach", { id = id })
      end
    end
    one.inventory = nil
    if next(one.sandboxes) == nil then
      pool:end_idle(one)
    end
  end
  pool.reserve:fill()
end

return adoption

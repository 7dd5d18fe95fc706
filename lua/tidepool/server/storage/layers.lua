--- Layers of the overlay driver: directories that places refer to, and share.
--
-- Runs in the server. A place's file `chain` says of what its files consist: its own upper layer, if it is
-- writable, and the layers below, the topmost first. layers/N is one, layers/N.w the work directory that
-- an upper one needs. A layer below is never written to. What no chain names is deleted; the counts
-- are kept in memory, and made anew from the chains at the start.
local uv = require("luv")
local async = require("tidepool.async")
local names = require("tidepool.file").names
local random = require("tidepool.random")
local read_file = require("tidepool.file").read

local layers = {}

--- The most layers that a mount may have: the kernel's limit is 500, and their names must fit into a page.
layers.MOST = 400

--- Seconds until a layer that nobody refers to at the start is deleted.
layers.PATIENCE = 30

local GAP = 1000 -- numbers left to what spawners of an earlier server may still make
local PAGE = 4000 -- bytes of mount options, and some to spare
local OPTIONS = "redirect_dir=on,index=off,metacopy=off,xino=off"

--- A new chain over others' layers: { uuid, taken, upper, lower = list }.
function layers.chain(lower, upper)
  local seconds, micros = uv.gettimeofday()
  return { uuid = random.hex(16), taken = ("%d%06d000"):format(seconds, micros), lower = lower, upper = upper }
end

--- The text of its file.
function layers.encode(chain)
  return ("uuid %s\ntaken %s\nupper %s\nlower %s\n"):format(chain.uuid, chain.taken, chain.upper or "-",
    #chain.lower > 0 and table.concat(chain.lower, ":") or "-")
end

--- The chain of a place | nil, message, "ENOENT" or "EIO".
function layers.read(place)
  local text = read_file(place .. "/chain")
  if not text then
    return nil, "no such files: " .. place, "ENOENT"
  end
  local uuid, taken, upper, lower = text:match("^uuid (%x+)\ntaken (%d+)\nupper (%S+)\nlower (%S+)\n$")
  if not uuid then
    return nil, "damaged: " .. place .. "/chain", "EIO"
  end
  local chain = { uuid = uuid, taken = taken, upper = upper ~= "-" and upper or nil, lower = {} }
  for layer in lower:gmatch("[^:]+") do
    chain.lower[#chain.lower + 1] = layer ~= "-" and layer or nil
  end
  return chain
end

--- All layers of a chain, the topmost first.
function layers.all(chain)
  local list = { chain.upper }
  for _, layer in ipairs(chain.lower) do
    list[#list + 1] = layer
  end
  return list
end

--- What a mount of it is told, with names relative to the layers' directory | nil, message, "EMLINK".
function layers.options(chain)
  local text = OPTIONS .. ",lowerdir=" .. table.concat(chain.lower, ":")
  if chain.upper then
    text = ("%s,upperdir=%s,workdir=%s.w"):format(text, chain.upper, chain.upper)
  end
  if #chain.lower > layers.MOST or #text > PAGE then
    return nil, ("the files are %d snapshots deep, and overlayfs takes %d"):format(#chain.lower, layers.MOST), "EMLINK"
  end
  return text
end

--- Where a layer is.
function layers.path(self, layer)
  return self:join("layers", layer)
end

--- A name for a new one.
function layers.name(self)
  self.last_layer = self.last_layer + 1
  return ("%d"):format(self.last_layer)
end

--- Counts a chain's layers once more.
function layers.hold(self, chain)
  self.counted[chain.uuid] = (self.counted[chain.uuid] or 0) + 1
  for _, layer in ipairs(layers.all(chain)) do
    self.layers[layer] = (self.layers[layer] or 0) + 1
  end
end

-- One `rm` at a time, for as long as there is something.
local function remove_all(self)
  while #self.unused > 0 do
    local command = { "rm", "-rf", "--one-file-system", "--" }
    for _ = 1, math.min(#self.unused, 64) do
      local path = layers.path(self, table.remove(self.unused))
      command[#command + 1], command[#command + 2] = path, path .. ".w"
    end
    async.command(command)
  end
  self.removing = false
end

--- Deletes layers that nobody counts, in the background; what fails is found at the next start.
function layers.remove(self, list)
  for _, layer in ipairs(list) do
    self.unused[#self.unused + 1] = layer
  end
  if not self.removing and #self.unused > 0 then
    self.removing = true
    async.spawn(remove_all, self)
  end
end

--- Counts a chain's layers once less, and deletes those that nobody counts any more. Of a chain that was never
-- counted, since a spawner of an earlier server wrote it after we had looked, only the upper layer is its own.
function layers.release(self, chain)
  if not self.counted[chain.uuid] then
    layers.remove(self, { not self.layers[chain.upper or ""] and chain.upper or nil })
    return
  end
  local times = self.counted[chain.uuid] - 1
  self.counted[chain.uuid] = times > 0 and times or nil
  local unused = {}
  for _, layer in ipairs(layers.all(chain)) do
    self.layers[layer] = self.layers[layer] - 1
    if self.layers[layer] == 0 then
      self.layers[layer] = nil
      unused[#unused + 1] = layer
    end
  end
  layers.remove(self, unused)
end

-- Calls fn(place) for all there are, three levels deep where a kind has groups of them.
local function each_place(self, fn)
  for _, kind in ipairs({ "images", "sandboxes", "staging", "snapshots", "trash" }) do
    for _, name in ipairs(names(self:join(kind))) do
      fn(self:join(kind, name))
    end
  end
  for _, kind in ipairs({ "warm", "imports" }) do
    for _, group in ipairs(names(self:join(kind))) do
      for _, name in ipairs(names(self:join(kind, group))) do
        fn(self:join(kind, group, name))
      end
    end
  end
end

-- Deletes those of a set of layers that are neither counted nor named by any place by now.
local function remove_unknown(self, unknown)
  each_place(self, function(place)
    for _, layer in ipairs(layers.all(layers.read(place) or { lower = {} })) do
      unknown[layer] = nil
    end
  end)
  local list = {}
  for layer in pairs(unknown) do
    list[#list + 1] = not self.layers[layer] and layer or nil
  end
  layers.remove(self, list)
end

--- Counts what all places refer to. Other layers are deleted a while later: a spawner of an earlier server may
-- still be making the place that needs one.
function layers.scan(self)
  self.layers, self.counted, self.unused, self.last_layer = {}, {}, {}, 0
  each_place(self, function(place)
    local chain = layers.read(place)
    if chain then
      layers.hold(self, chain)
    end
  end)
  local unknown = {}
  for _, name in ipairs(names(self:join("layers"))) do
    local layer = name:match("^%d+")
    self.last_layer = math.max(self.last_layer, tonumber(layer) or 0)
    if layer and not self.layers[layer] then
      unknown[layer] = true
    end
  end
  self.last_layer = self.last_layer + GAP
  if next(unknown) then
    async.after(layers.PATIENCE, function()
      if not self.closed then
        remove_unknown(self, unknown)
      end
    end)
  end
end

return layers

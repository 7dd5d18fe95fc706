--- Roots made ahead: a create renames one of them. Without any it copies the image, and is only slower.
--
-- Runs in the server; they are made in the background, one after the other.
local async = require("tidepool.async")
local random = require("tidepool.random")
local trash = require("tidepool.server.storage.trash")

local warm = {}

local methods = { names = { "refill" } }
warm.methods = methods

-- What a first command reads. Subvolumes share blocks but no cached pages, so that it would wait for
-- the disk: 3 ms of a create to its first exit. About 2.5 MB a root, those that it has.
local triplets = { x64 = "x86_64-linux-gnu", arm64 = "aarch64-linux-gnu" }
local triplet = triplets[jit.arch] or "unknown"
local hot = {
  "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1",
  "/lib/" .. triplet .. "/libc.so.6", "/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname",
  "/etc/resolv.conf", "/bin/sh", "/bin/true", "/bin/busybox", "/usr/bin/env",
}

--- A place made ahead from an image, the caller's from now on; nil: there is none.
function warm.take(self, image)
  return table.remove(self.warm[image] or {})
end

--- Deletes those made from what an image was.
function warm.drop(self, image)
  local list = self.warm[image] or {}
  self.warm[image] = nil
  for _, place in ipairs(list) do
    trash.discard(self, place)
  end
end

local function refill_one(self, image, generation)
  local parent = self:join("warm", image)
  local place = parent .. "/" .. random.hex(6)
  local ok = self.spawners:execute({ { "ensure", parent, 448 } })
    and self.driver.prepare(self, self:image_place(image), place, hot)
  if ok and self.warm[image] == generation then
    generation[#generation + 1] = place
  elseif ok then
    trash.discard(self, place) -- the image was replaced meanwhile
  end
  return ok
end

--- Makes roots ahead for an image, in the background.
function methods.refill(self, image)
  if self.refilling[image] or self.closed then
    return
  end
  self.refilling[image] = true
  self.warm[image] = self.warm[image] or {}
  async.spawn(function()
    while not self.closed do
      local generation = self.warm[image] or {}
      self.warm[image] = generation
      if #generation >= self.warm_count or not refill_one(self, image, generation) then
        break
      end
    end
    self.refilling[image] = nil
  end)
end

return warm

--- Images in storage: staged, sealed, given their name by a rename.
--
-- Runs in the server.
local uv = require("luv")
local names = require("tidepool.file").names
local trash = require("tidepool.server.storage.trash")
local warm = require("tidepool.server.storage.warm")

local images = {}

local methods = { names = { "stage_image", "commit_image", "abort_image", "remove_image", "images" } }
images.methods = methods

--- A new, writable root for an image to be: { path =, id =, place = } | nil, message, code.
function methods.stage_image(self, name)
  local place = self:staging_place(name)
  local ok, message, code = self.driver.make(self, place)
  if not ok then
    return nil, message, code
  end
  local view
  view, message, code = self:view(place)
  if not view then
    self:abort(place)
    return nil, message, code
  end
  return { path = view.path, id = place:match("[^/]+$"), place = place, close = view.close }
end

--- Seals a staged image and gives it its name at once. "EEXIST" when one has it, unless `replace`.
function methods.commit_image(self, stage, name, replace)
  local target = self:image_place(name)
  stage.close()
  local plan = self.driver.seal(self, stage.place)
  local old
  if replace and uv.fs_stat(target) then
    old = trash.place(self)
    plan[#plan + 1] = { "rename", target, old }
  end
  plan[#plan + 1] = { "rename", stage.place, target }
  local ok, message, code = self.spawners:execute(plan)
  if not ok then
    return nil, message, code
  end
  if old then
    trash.empty(self, old)
  end
  warm.drop(self, name)
  return true
end

--- Deletes what was staged.
function methods.abort_image(self, stage)
  stage.close()
  return self:abort(stage.place)
end

--- Deletes an image. Sandboxes that were made from it keep their files.
function methods.remove_image(self, name)
  local ok, message, code = trash.discard(self, self:image_place(name))
  if not ok then
    return nil, message, code
  end
  warm.drop(self, name)
  return true
end

--- Names of the images, sorted.
function methods.images(self)
  local list = names(self:join("images"))
  table.sort(list)
  return list
end

return images

--- Importing images: an archive's layers in order, each digest checked (image/archive.lua).
local archive = require("tidepool.image.archive")

--- Imports the image at `path`. See image/init.lua for options and result.
local function import(path, options)
  return archive.with(path, options, function(store)
    local found, message, code = archive.read(store, options)
    if not found then
      return nil, message, code
    elseif found.parent then
      return nil, "the archive holds the changes to a snapshot: `snapshot import` where that one is", "EINVAL"
    end
    options.progress(string.format("unpacking %d layers", #found.layers))
    local unpacked
    unpacked, message, code = archive.apply(store, found, options, true)
    if not unpacked then
      return nil, message, code
    end
    local config = found.config
    return {
      env = config.env,
      cmd = #config.cmd > 0 and config.cmd or nil,
      cwd = config.cwd,
      user = config.user,
      bytes = unpacked.bytes,
      entries = unpacked.entries,
      skipped = unpacked.skipped,
      source = path,
      created = os.time(),
    }
  end)
end

return import

--- Images: a root file system in a directory that the caller stages and commits.
--
--   image.build(kind, options)      "debian", "minimal"
--   image.import(path, options)     an OCI layout or docker-archive, as a directory or a tar
--   image.pull(reference, options)  from a registry
--   image.export, image.archive     writing trees as an OCI layout, and reading archives in steps
--
-- options of the first three: `target` an empty directory (a subvolume), `range` { base, count } of
-- host ids that nobody else uses meanwhile, `tools` the build directory, `work` a path that is made, used for
-- temporary files and removed, `progress(line)`; for pull also `insecure`, to do without TLS.
--
-- They return { env, cmd, cwd, user, bytes, entries, source, created } or nil, message, code. They
-- wait as tasks do; all that parses or copies is done by other processes. After a failure the
-- target holds rubbish, which the caller deletes.
local image = {}

image.build = require("tidepool.image.build")
image.import = require("tidepool.image.import")
image.pull = require("tidepool.image.pull")
image.export = require("tidepool.image.export")
image.archive = require("tidepool.image.archive")

return image

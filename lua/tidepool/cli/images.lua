--- image build, import, pull, ls, rm.
local format = require("tidepool.cli.format")

local function show_list(list)
  return format.table({
    { "NAME", "name" },
    { "SIZE", function(row) return format.size(row.bytes) end },
    { "CREATED", function(row) return format.ago(row.created) end },
    { "SOURCE", "source" },
  }, list)
end

-- Making one takes a while: its progress goes to standard error as it comes.
local function make(context, values, command)
  local client = context:connect()
  local params = require("tidepool.cli.commands").params(command, values)
  if params.file then
    params.file = require("tidepool.paths").absolute(params.file) -- the server stands elsewhere
  end
  local image, message, code = client:call(command.verb, params, nil, function(line)
    context:note(format.clean(line))
  end)
  if not image then
    return context:fail(message, code)
  end
  return context:result(image, function()
    return (image.name or values.image or "done") .. "\n"
  end)
end

return {
  { name = "image build", run = make },
  { name = "image import", run = make },
  { name = "image pull", run = make },
  {
    name = "image ls",
    run = function(context, values, command)
      local list, message, code = context:call(command, values)
      if not list then
        return context:fail(message, code)
      end
      return context:result(format.array(list), show_list)
    end,
  },
}

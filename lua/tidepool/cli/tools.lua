--- Verbs of the client's own: run, serve, doctor, test, bench, version.
local function fail_usage(context, message)
  return context:fail(message, "ENOENT")
end

-- A script with `sandbox` at hand; `arg` is what a Lua program expects.
local function run_file(context, values)
  local chunk, message = loadfile(values.file)
  if not chunk then
    return fail_usage(context, message)
  end
  local words = values.args or {}
  words[0] = values.file
  local saved = _G.arg
  _G.arg = words -- luacheck: ignore 122
  local ok, err = xpcall(chunk, function(err)
    return type(err) == "string" and debug.traceback(err, 2) or err
  end, unpack(words))
  _G.arg = saved -- luacheck: ignore 122
  io.stdout:flush()
  if not ok then
    return context:fail(("%s: %s"):format(values.file, tostring(err)), "ESCRIPT", 1)
  end
  return type(err) == "number" and err or 0
end

local function serve(context, values)
  local server = require("tidepool.server.main")
  local ok, message, code = server.serve({ foreground = not values.daemon })
  if not ok then
    return context:fail(message, code, code == "EALREADY" and require("tidepool.client").ALREADY or nil)
  end
  return 0
end

local function version(context)
  local number = require("tidepool.cli").VERSION
  return context:result({ version = number }, function()
    return "tidepool " .. number .. "\n"
  end)
end

-- These own their options: the launcher hands them the words as they are.
local function elsewhere(module)
  return function(context)
    return context:fail("start it as ./sandbox.lua " .. module, "EINVAL")
  end
end

return {
  {
    name = "serve",
    group = "server",
    about = "Run the server in the foreground. Verbs start one by themselves.",
    outside = true,
    params = { { name = "daemon", type = "boolean", flag = "--daemon", about = "log to the state directory" } },
    errors = { "EALREADY" },
    run = serve,
    example = "serve",
  },
  {
    name = "run",
    group = "tool",
    about = "Run a Lua script that can require \"sandbox\".",
    outside = true,
    params = {
      { name = "file", type = "string", positional = 1, required = true, about = "the script" },
      { name = "args", type = "argv", rest = true, dashes = false, about = "what the script finds in arg" },
    },
    run = run_file,
    example = "run examples/01_first_light.lua",
  },
  {
    name = "doctor",
    group = "tool",
    about = "List what the host offers, what each lack costs and what to do.",
    run = elsewhere("doctor"),
    example = "doctor",
  },
  {
    name = "test",
    group = "tool",
    about = "Build with warnings as errors, lint, and run the specs.",
    params = { { name = "pattern", type = "string", positional = 1, about = "only specs whose path or text holds it" } },
    run = elsewhere("test"),
    example = "test",
  },
  {
    name = "bench",
    group = "tool",
    about = "Measure side by side with bwrap, crun, runc and podman.",
    params = {
      { name = "only", type = "string", flag = "--only", about = "one measurement" },
      { name = "image", type = "string", flag = "--image", about = "image to measure with, minimal or debian", default = "minimal" },
      { name = "install_peers", type = "boolean", flag = "--install-peers", about = "install what is missing of the peers" },
    },
    run = elsewhere("bench"),
    example = "bench --json",
  },
  { name = "version", group = "tool", about = "Print the version.", outside = true, run = version, example = "version" },
}

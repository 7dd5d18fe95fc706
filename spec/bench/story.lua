-- The story that the field tells: a machine for a JavaScript project. From scratch that is boot, git clone and
-- npm install; else it is restored from a snapshot of the result. Both to the exit of a first command in it.
--
-- The clone is from a git server on loopback that wants a token, the packages come from the registry in npm's
-- own configuration, each through a policy, as in examples 04 and 05.
local uv = require("luv")
local async = require("tidepool.async")

local HOST, REPOSITORY = "git.test", "me/project"
local NAME = "story"
local SCRATCH, RESTORES = 2, 20 -- rounds
local WORKS = { "sh", "-c", "test -x /workspace/project/node_modules/.bin/webpack" }

-- What a web project of some size asks for: about 700 packages.
local PACKAGE = [[{
  "name": "project", "version": "1.0.0", "private": true,
  "dependencies": { "express": "^4.18.0", "lodash": "^4.17.0", "react": "^18.2.0", "react-dom": "^18.2.0" },
  "devDependencies": { "eslint": "^8.57.0", "jest": "^29.7.0", "typescript": "^5.4.0", "webpack": "^5.90.0", "webpack-cli": "^5.1.0" }
}
]]
local INSTALL = [[
set -e
git clone -q https://%s/%s.git project
cd project
npm install --no-audit --no-fund --no-progress --loglevel=error --registry '%s' >&2
]]

local function output_of(argv)
  local result = async.command({ stdout = "pipe", stderr = "pipe", unpack(argv) })
  return result and result.code == 0 and result.stdout:gsub("%s+$", "") or nil
end

-- The registry of npm's configuration: its URL, its host, and "address:port" where that is a mirror in one's
-- own network, which no policy reaches unless it names it. Raises why there is none.
local function registry()
  local url = output_of({ "npm", "config", "get", "registry" })
  local scheme, host, port = (url or ""):match("^(https?)://([^/:]+):?(%d*)")
  if not host then
    error("npm isn't installed here", 0)
  elseif not output_of({ "curl", "-sS", "--max-time", "20", "-o", "/dev/null", url }) then
    error("npm's registry can't be reached from here", 0)
  end
  local found = uv.getaddrinfo(host, nil, { family = "inet", socktype = "stream" })
  local address = found and found[1] and found[1].addr
  local private = address and require("tidepool.proxy").resolver.classify(address) ~= "public"
  port = port ~= "" and port or scheme == "https" and "443" or "80"
  return { url = url, host = host, port = port, to = private and { [host] = address .. ":" .. port } or nil }
end

-- The git server, with the project in it.
local function git_server(directory, defer)
  local token = ("%x"):rep(4):format(math.random(2 ^ 30), math.random(2 ^ 30), math.random(2 ^ 30), math.random(2 ^ 30))
  local place = directory .. "/story"
  assert(uv.fs_mkdir(place, 448))
  local ca = require("spec.support.certificates").ca({ directory = place })
  local server = require("spec.support.git_server").start({
    token = token, directory = place, defer = defer, leaf = ca:leaf({ hosts = { HOST } }),
  })
  server:repository(REPOSITORY, { ["package.json"] = PACKAGE, ["index.js"] = 'require("express")().listen(3000)\n' })
  return server, ca, token
end

-- Policies that let a sandbox clone the project and install what it needs.
local function policies(server, ca, packages)
  return {
    { "github", token = "story-token", repositories = { REPOSITORY }, access = "read", host = HOST, api_host = "api." .. HOST,
      to = { [HOST] = "127.0.0.1:" .. server.port }, ca = ca.pem },
    { "package_registries", hosts = { packages.host }, ports = { packages.port }, to = packages.to },
  }
end

-- { restore = { ms }, scratch = { ms } }; raises why it can't be told here.
local function tell(context, defer)
  local sandbox, bench = context.sandbox, context.bench
  local packages = registry()
  if not context.found.nginx or not output_of({ "sh", "-c", "command -v fcgiwrap" }) then
    error("nginx and fcgiwrap, which serve git, aren't installed here", 0)
  end
  local server, ca, token = git_server(context.directory, defer)
  assert(sandbox.image.build("debian"))
  assert(sandbox.secret.set("story-token", token, { hosts = { HOST } }))
  defer(function() sandbox.secret.rm("story-token") end)
  local options = { image = "debian", type = context.options.type, egress = policies(server, ca, packages) }

  local times, box = { scratch = {}, restore = {} }, nil
  local function works(one)
    assert(assert(one:exec(WORKS)).exit_code == 0, "the project isn't there")
    return true
  end
  defer(function()
    sandbox.snapshot.rm(NAME .. "@installed")
    return box and box:destroy()
  end)
  for i = 1, SCRATCH do
    times.scratch[i] = bench.time(function()
      box = assert(sandbox.create(NAME, options))
      local result = assert(box:exec({ "sh", "-c", INSTALL:format(HOST, REPOSITORY, packages.url) },
        { cwd = "/workspace", timeout = 600 }))
      assert(result.exit_code == 0, result.stderr)
      return works(box)
    end)
    if i < SCRATCH then
      assert(box:destroy())
    end
  end
  assert(box:snapshot("installed"))
  for i = 1, RESTORES do
    local copy
    times.restore[i] = bench.time(function()
      copy = assert(sandbox.restore(NAME .. "@installed", NAME .. "-copy"))
      return works(copy)
    end)
    assert(copy:destroy())
  end
  return times
end

return function(context)
  local bench, times, endings = context.bench, nil, {}
  local function told()
    times = times or tell(context, function(fn) table.insert(endings, 1, fn) end)
    return times
  end
  return {
    peers = { "from scratch" },
    { name = "story_restore", unit = "ms", goal = 50, measure = function()
      return { ours = bench.statistics(told().restore), peers = { ["from scratch"] = bench.statistics(told().scratch) } }
    end },
    { name = "story_ratio", unit = "x", goal = 100, worst = "low", measure = function()
      local scratch, ratios = bench.statistics(told().scratch).median, {}
      for i, restore in ipairs(told().restore) do
        ratios[i] = scratch / restore
      end
      return { ours = bench.statistics(ratios, "low"), peers = {} }
    end },
    close = function()
      for _, fn in ipairs(endings) do
        fn()
      end
    end,
  }
end

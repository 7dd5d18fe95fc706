--- A git server over HTTPS that demands a token: git's own http-backend behind nginx and fcgiwrap.
--
-- On loopback, with one bare repository a name. A token is accepted as Bearer or as the password of
-- Basic; all else is answered as git hosts do, 401 with WWW-Authenticate. Needs no busted.
local uv = require("luv")
local async = require("tidepool.async")
local daemon = require("spec.support.daemon")
local web = require("spec.support.web")

local git_server = {}

local BACKENDS = { "/usr/lib/git-core/git-http-backend", "/usr/libexec/git-core/git-http-backend" }

local function backend()
  for _, path in ipairs(BACKENDS) do
    if uv.fs_access(path, "X") then
      return path
    end
  end
  error("git has no http-backend here")
end

local function base64(bytes)
  local out = async.within(function()
    return assert(async.command({ "sh", "-c", 'printf %s "$1" | base64 -w0', "sh", bytes, stdout = "pipe" }))
  end)
  return out.stdout
end

local function run(argv)
  argv.stdout, argv.stderr = "pipe", "pipe"
  local result = async.within(function()
    return assert(async.command(argv))
  end)
  assert(result.code == 0, table.concat(argv, " ") .. ": " .. result.stderr)
  return result.stdout
end

local ACCESS = [[
  map_hash_bucket_size 512;
  map $http_authorization $who {
    default "";
    "Bearer %s" "someone";
    "token %s" "someone";
    "Basic %s" "someone";
    "Basic %s" "someone";
  }
]]

local LOCATION = [[
    location / {
      if ($who = "") {
        add_header WWW-Authenticate 'Basic realm="git"' always;
        return 401;
      }
      include /etc/nginx/fastcgi_params;
      fastcgi_param SCRIPT_FILENAME %s;
      fastcgi_param GIT_PROJECT_ROOT %s;
      fastcgi_param GIT_HTTP_EXPORT_ALL 1;
      fastcgi_param PATH_INFO $uri;
      fastcgi_param REMOTE_USER $who;
      fastcgi_param HTTP_GIT_PROTOCOL $http_git_protocol;
      fastcgi_pass unix:%s;
    }
]]

local Server = {}
Server.__index = Server

--- A bare repository "owner/name.git" with one commit in it: `files`, by name.
function Server:repository(name, files)
  local bare, work = self.repositories .. "/" .. name .. ".git", self.directory .. "/work-" .. name:gsub("/", "-")
  run({ "git", "init", "-q", "--bare", "-b", "main", bare })
  run({ "git", "-C", bare, "config", "http.receivepack", "true" })
  run({ "git", "init", "-q", "-b", "main", work })
  for path, bytes in pairs(files or { ["README"] = "a repository\n" }) do
    web.write(work .. "/" .. path, bytes)
  end
  run({ "git", "-C", work, "add", "." })
  run({ "git", "-C", work, "-c", "user.name=Someone", "-c", "user.email=someone@example.test", "commit", "-q",
    "-m", "first" })
  run({ "git", "-C", work, "push", "-q", bare, "main" })
  return bare
end

--- The subjects of a repository's commits on main, newest first: what the server really has.
function Server:commits(name)
  local lines = {}
  local out = run({ "git", "-C", self.repositories .. "/" .. name .. ".git", "log", "--format=%s", "main" })
  for line in out:gmatch("[^\n]+") do
    lines[#lines + 1] = line
  end
  return lines
end

--- Starts one. options: token, user ("x-access-token"), leaf (of certificates), directory, defer.
-- Returns { port, repository, commits, web (the nginx) }.
function git_server.start(options)
  local place, defer = daemon.place(options)
  local directory = assert(uv.fs_mkdtemp(place .. "/git-XXXXXX"))
  local repositories, socket = directory .. "/repositories", directory .. "/fcgi"
  assert(uv.fs_mkdir(repositories, 448))
  daemon.start({
    "fcgiwrap", "-s", "unix:" .. socket, ready = "^()", directory = directory, defer = defer,
    env = { "PATH=" .. os.getenv("PATH"), "HOME=" .. directory },
  })
  assert(require("spec.support.machine").eventually(function() return uv.fs_stat(socket) end), "no fcgiwrap")
  local token = options.token
  local nginx = web.nginx({
    directory = directory, defer = defer, leaf = options.leaf,
    http = ACCESS:format(token, token, base64((options.user or "x-access-token") .. ":" .. token), base64("git:" .. token)),
    locations = LOCATION:format(backend(), repositories, socket),
  })
  return setmetatable({
    directory = directory, repositories = repositories, web = nginx, port = nginx.port,
  }, Server)
end

return git_server

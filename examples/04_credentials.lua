-- Credentials: git works inside, the token stays outside.
--
--   sudo ./sandbox.lua run examples/04_credentials.lua
--
-- A git server on loopback, over HTTPS, gives nothing without a token. A sandbox clones from it and
-- pushes to it and never holds that token: the egress process adds it, by a policy. Then the policy
-- is changed while the sandbox runs, and pushing is over.
local uv = require "luv"
local sandbox = require "sandbox"
local certificates = require "spec.support.certificates"
local git_server = require "spec.support.git_server"

local HOST, REPOSITORY = "git.test", "me/project"

local endings = {}
local function defer(fn)
  table.insert(endings, 1, fn)
end

local function check(about, ok, ...)
  if not ok then
    error(about .. ": " .. tostring((...)), 0)
  end
  print(("    %s"):format(about))
  return ok, ...
end

local function say(...)
  print(("\n==> " .. string.format(...)))
end

local function random_token()
  return "ghp_" .. (uv.random(18):gsub(".", function(char)
    return ("%02x"):format(char:byte())
  end))
end

-- The outside world: a certificate authority that only this policy trusts, and a git server that
-- wants the token for everything. Its host name exists nowhere but in the policy.
local function start_server(token)
  local directory = assert(uv.fs_mkdtemp("/var/tmp/tidepool-credentials-XXXXXX"))
  defer(function() os.execute("rm -rf '" .. directory .. "'") end)
  local ca = certificates.ca({ directory = directory })
  local server = git_server.start({
    token = token, directory = directory, defer = defer, leaf = ca:leaf({ hosts = { HOST } }),
  })
  server:repository(REPOSITORY, { README = "version 1\n" })
  return server, ca
end

-- Runs a line of shell inside; its outcome, and all its output as one text.
local function inside(box, line)
  local result = assert(box:exec({ "sh", "-c", line }, { timeout = 60 }))
  return result.exit_code == 0, (result.stdout .. result.stderr):gsub("%s+$", "")
end

-- The files, environments and arguments inside that hold one of the texts, looked for from outside,
-- because asking inside would bring it in.
local function search(box, texts, directory)
  local list = directory .. "/patterns"
  local patterns = assert(io.open(list, "w"))
  patterns:write(table.concat(texts, "\n"), "\n")
  patterns:close()
  local found = io.popen(([[
    cd /proc/%d/root && grep -rlF --devices=skip --exclude-dir=proc --exclude-dir=sys -f '%s' . 2>/dev/null
    cd proc && grep -lF -f '%s' [0-9]*/environ [0-9]*/cmdline 2>/dev/null]]):format(assert(box:info()).pid, list, list))
  local text = found:read("*a")
  found:close()
  return text
end

-- The token as it would stand in a file, and as git sends it: behind "x-access-token:", in base64.
local function forms(token)
  local pipe = io.popen("printf %s 'x-access-token:" .. token .. "' | base64 -w0")
  local base64 = pipe:read("*a")
  pipe:close()
  return { token, base64:sub(21, -5) }
end

local function policy(server, ca, access)
  return {
    "github",
    token = "git-token", repositories = { REPOSITORY }, access = access, host = HOST, api_host = "api." .. HOST,
    -- A real host needs neither line: its address comes from DNS and its certificate from a known CA.
    to = { [HOST] = "127.0.0.1:" .. server.port },
    ca = ca.pem,
  }
end

local function tour()
  local token = random_token()
  say("A git server that wants a token, on loopback")
  local server, ca = start_server(token)
  print("    " .. #server:commits(REPOSITORY) .. " commit in " .. REPOSITORY)

  -- A secret has a name and the hosts that may ever see it. It is sealed on disk, and given to the
  -- egress process alone.
  say("The secret, and a sandbox whose only way out is the policy `github`")
  assert(sandbox.secret.set("git-token", token, { hosts = { HOST } }))
  defer(function() sandbox.secret.rm("git-token") end)
  local box = assert(sandbox.open("credentials-tour", {
    image = "debian",
    labels = { example = "04" },
    egress = { policy(server, ca, "write") },
  }))
  defer(function() box:destroy() end)

  say("git clone, inside, with no token")
  check("cloned", inside(box, ("git clone -q https://%s/%s.git /workspace/project"):format(HOST, REPOSITORY)))
  check("has the file", inside(box, "grep -q 'version 1' /workspace/project/README"))

  say("git push")
  check("pushed", inside(box, [[
    cd /workspace/project && git config user.name Agent && git config user.email agent@example.test &&
    echo version 2 >README && git commit -qam 'by an agent' && git push -q origin main]]))
  check("the server has it", server:commits(REPOSITORY)[1] == "by an agent")

  say("Is the token anywhere inside?")
  check("looking for `version 2` finds it", search(box, { "version 2" }, server.directory):find("README", 1, true))
  local found = search(box, forms(token), server.directory)
  check("the token is in no file, environment or argument", found == "", found)

  -- The other hosts of the world do not even have an address.
  say("Anything else?")
  local ok, output = inside(box, "curl -sS https://example.org/")
  check("no other host: " .. output, not ok, output)
  ok, output = inside(box, ("git clone -q https://%s/someone/else.git /tmp/else"):format(HOST))
  check("no other repository", not ok, output)

  say("The policy changes while the sandbox runs: reading only")
  assert(box:egress_set({ policy(server, ca, "read") }))
  ok, output = inside(box, "cd /workspace/project && git commit -q --allow-empty -m 'one more' && git push origin main")
  check("push is refused", not ok, output)
  print("    " .. output:gsub("\n", "\n    "))
  check("the server did not get it", server:commits(REPOSITORY)[1] == "by an agent")
  check("fetch still works", inside(box, "cd /workspace/project && git fetch -q origin main"))

  say("What the log says")
  for _, entry in ipairs(assert(box:egress_log({ action = "deny" }))) do
    print(("    deny  %s%s  %s"):format(entry.host or "", entry.path or "", entry.reason or ""))
  end
end

local ok, message = xpcall(tour, function(err)
  return type(err) == "string" and err or debug.traceback(tostring(err), 2)
end)
for _, fn in ipairs(endings) do
  fn()
end
print(ok and "\ncredentials: cloned and pushed with no token inside, then pushing was turned off" or "\ncredentials: FAILED: " .. message)
os.exit(ok and 0 or 1)

-- GitHub, or a GitHub Enterprise Server, for the named repositories: git over HTTPS with its large files,
-- the REST API, downloads. The token goes into requests that were understood and allowed, never into
-- the sandbox. What is not understood is denied, because the token may be able to do it.
--
-- Writing means contents, issues, pull requests, releases. Administration (visibility, keys, hooks,
-- secrets, collaborators, forks) stays out of reach whatever the token can: it would open the
-- repository to whoever asks.

local READS = { GET = true, HEAD = true }

-- Below /repos/OWNER/NAME, where a change would be administration.
local ADMINISTRATION = {
  [""] = true, autolinks = true, collaborators = true, environments = true, forks = true, generate = true, hooks = true,
  interaction_limits = true, invitations = true, keys = true, pages = true, properties = true, rulesets = true,
  transfer = true, topics = true, ["automated-security-fixes"] = true, ["vulnerability-alerts"] = true,
  ["private-vulnerability-reporting"] = true, ["interaction-limits"] = true, lfs = true,
}

-- What tells nothing of a repository.
local HARMLESS = { ["/rate_limit"] = true, ["/meta"] = true, ["/versions"] = true, ["/zen"] = true }

-- On the web host, what is a file to download: /OWNER/NAME/ARCHIVE/...
local DOWNLOADS = { archive = true, raw = true, tarball = true, zipball = true, releases = true }

local LARGEST_BATCH = 1048576

-- The path's segments and its query; nil when two servers could read the path in two ways.
local function parse(target)
  local path, query = target:match("^([^?]*)%??(.*)$")
  local small = path:lower()
  if path:sub(1, 1) ~= "/" or path:find("//", 1, true) or path:find("[\\;]") then
    return nil
  end
  for _, encoded in ipairs({ "%2f", "%5c", "%25", "%00", "%3b" }) do
    if small:find(encoded, 1, true) then
      return nil
    end
  end
  -- What needs no encoding has one for nobody but us: "%6beys" is "keys" to the server.
  for digits in small:gmatch("%%(%x%x)") do
    if string.char(tonumber(digits, 16)):find("[%w%-._~]") then
      return nil
    end
  end
  local segments = {}
  for segment in path:gmatch("[^/]+") do
    if segment == "." or segment == ".." then
      return nil
    end
    segments[#segments + 1] = segment
  end
  return segments, query, path
end

local function tail_of(segments, from)
  return table.concat(segments, "/", from)
end

local function pattern_of(glob)
  return "^" .. glob:lower():gsub("[%^%$%(%)%%%.%[%]%+%-%?]", "%%%0"):gsub("%*", "[^/]*") .. "$"
end

local function is_named(options, owner, name)
  if not owner or not name or owner:find("[^%w%-_]") or name:find("[^%w._%-]") then
    return false
  end
  local repository = (owner .. "/" .. name):lower()
  for _, glob in ipairs(options.repositories) do
    if repository:find(pattern_of(glob)) then
      return true
    end
  end
  return false
end

local function changes(event, options, authorization)
  return upstream(event, options, {
    authorization = authorization or false,
    cookie = false,
    ["x-http-method-override"] = false, -- a POST that is a DELETE
  })
end

local function basic(options)
  return "Basic " .. base64("x-access-token:" .. secret(options.token))
end

local function bearer(options)
  return "Bearer " .. secret(options.token)
end

-- Lets the request through with the token, or says why not. `writes` is whether it changes anything.
local function grant(event, options, owner, name, writes, authorization)
  if not is_named(options, owner, name) then
    if options.public and not writes and owner and name then
      return allow(changes(event, options)) -- as anyone could, without the token
    end
    return deny(("%s/%s is not among the repositories"):format(tostring(owner), tostring(name)))
  elseif writes and options.access ~= "write" then
    return deny(("the policy lets %s/%s be read, not written"):format(owner, name))
  end
  return allow(changes(event, options, authorization(options)))
end

-- git's own paths below /OWNER/NAME(.git): the service, whether it writes. nil when it's none of them.
local function git_service(event, tail, query)
  if tail == "info/refs" and READS[event.method] then
    local service = query:match("^service=(git%-[%a-]+)$")
    if service == "git-upload-pack" or service == "git-receive-pack" then
      return service, service == "git-receive-pack"
    end
  elseif (tail == "git-upload-pack" or tail == "git-receive-pack") and event.method == "POST" then
    return tail, tail == "git-receive-pack"
  end
end

-- The same for large files. Whether a batch is an upload is said in its body alone, once: of two that differ,
-- or differ in case, servers take the one or the other.
local function large_files(event, tail)
  if tail == "info/lfs/objects/batch" and event.method == "POST" then
    local text = event.body or ""
    local batch = json.decode(text)
    local operation = type(batch) == "table" and batch.operation
    local _, count = text:lower():gsub("\"operation\"", "")
    local is_clear = count == 1 and not text:find("\\u", 1, true)
    return operation == "download" or operation == "upload", operation ~= "download" or not is_clear
  elseif tail:find("^info/lfs/locks") then
    return true, not READS[event.method]
  end
end

local function on_web(event, options, segments, query)
  local owner, name, third = segments[1], segments[2], segments[3]
  local tail = tail_of(segments, 3)
  local plain = name and name:gsub("%.git$", "")
  local known, writes = git_service(event, tail, query)
  if not known then
    known, writes = large_files(event, tail)
  end
  if known then
    return grant(event, options, owner, plain, writes, basic)
  elseif third and DOWNLOADS[third] and READS[event.method] then
    return grant(event, options, owner, name, false, bearer)
  end
  return deny("neither git nor a download")
end

-- The name of a part of the API as a lenient router would read it: in any case, with a format behind it.
local function part_of(segments, at)
  return segments[at] and segments[at]:lower():match("^[^.]*")
end

local function is_administration(segments, from)
  local area, part = part_of(segments, from) or "", part_of(segments, from + 1)
  if area == "actions" then
    return part == "secrets" or part == "variables" or part == "permissions" or part == "runners" or part == "oidc"
  elseif area == "branches" then
    return tail_of(segments, from):lower():find("/protection", 1, true) ~= nil or part_of(segments, #segments) == "rename"
  elseif area == "dependabot" or area == "codespaces" then
    return part == "secrets"
  end
  return ADMINISTRATION[area] or false
end

local function on_api(event, options, segments, path)
  local writes = not READS[event.method]
  if segments[1] == "repos" and segments[3] then
    if writes and is_administration(segments, 4) then
      return deny("administration of a repository is not allowed by this policy")
    end
    return grant(event, options, segments[2], segments[3], writes, bearer)
  elseif segments[1] == "graphql" and not segments[2] then
    if options.graphql then
      return allow(changes(event, options, bearer(options)))
    end
    return deny("GraphQL can't be limited to repositories: graphql=true allows all that the token can do")
  elseif not writes and HARMLESS[path] then
    return allow(changes(event, options, bearer(options)))
  end
  for _, also in ipairs(options.also or {}) do
    if not writes and path == also then
      return allow(changes(event, options, bearer(options)))
    end
  end
  return deny("not a path of a named repository")
end

-- Served for one repository by its path, read only, from hosts of their own.
local function on_raw(event, options, segments)
  if not READS[event.method] then
    return deny("downloads are read")
  end
  local first = segments[1] == "media" and 2 or 1
  return grant(event, options, segments[first], segments[first + 1], false, bearer)
end

-- Where downloads are redirected to. The address is signed, so the token has no business there.
local function on_storage(event, options)
  if not READS[event.method] then
    return deny("downloads are read")
  end
  return allow(changes(event, options))
end

local function on_codeload(event, options, segments)
  if not READS[event.method] then
    return deny("downloads are read")
  end
  return grant(event, options, segments[1], segments[2], false, function() end)
end

local function on_uploads(event, options, segments)
  if segments[1] ~= "repos" or segments[4] ~= "releases" then
    return deny("not an asset of a release")
  end
  return grant(event, options, segments[2], segments[3], true, bearer)
end

-- On an Enterprise Server the API is a path of the same host.
local function on_both(event, options, segments, query, path)
  if segments[1] == "api" and segments[2] == "v3" then
    return on_api(event, options, { unpack(segments, 3) }, path:sub(#"/api/v3" + 1))
  elseif segments[1] == "api" and segments[2] == "graphql" then
    return on_api(event, options, { unpack(segments, 2) }, path)
  elseif segments[1] == "api" and segments[2] == "uploads" then
    return on_uploads(event, options, { unpack(segments, 3) })
  end
  return on_web(event, options, segments, query)
end

local function handler(decide)
  return {
    connect = function(event, options)
      if event.port and event.port ~= options.port then
        return deny("only at port " .. options.port)
      end
      return allow { to = options.to and options.to[event.host], private = options.private or nil, ca = options.ca }
    end,
    request = function(event, options)
      if not event.tls then
        return deny("only over TLS: the token would be sent in the clear")
      end
      local segments, query, path = parse(event.path)
      if not segments then
        return deny("the path is ambiguous")
      end
      return decide(event, options, segments, query, path)
    end,
    body = function(event)
      local path = event.path
      return path and path:match("^[^?]*"):sub(-23) == "/info/lfs/objects/batch" and LARGEST_BATCH or nil
    end,
  }
end

local ROOT = { repositories = "me/x,Org/*-docs", token = "github" }
local WRITE = { repositories = "me/x", access = "write" }
local SECRETS = { github = "ghp_0123456789" }
local BASIC = "Basic eC1hY2Nlc3MtdG9rZW46Z2hwXzAxMjM0NTY3ODk="
local BEARER = "Bearer ghp_0123456789"

local function case(sentence, options, host, method, path, expect, more)
  local event = { host = host, method = method, path = path }
  for key, value in pairs(more or {}) do
    event[key] = value
  end
  return { sentence, options = options, secrets = SECRETS, event = event, expect = expect }
end

local function refuses(path)
  return case("refuses " .. path, WRITE, "github.com", "GET", path, "deny")
end

return policy {
  name = "github",
  about = "Named GitHub repositories over git and the API, read or write, with a token the sandbox never holds.",
  options = {
    repositories = { type = "string_list", required = true, least = 1, about = "\"owner/name\"; * stands for a part of a name" },
    access = { type = "enum", values = { "read", "write" }, default = "read", about = "whether they may be changed" },
    token = { type = "secret", default = "github", about = "the secret that holds the token" },
    public = { type = "boolean", default = false, about = "other repositories may be read, without the token" },
    graphql = { type = "boolean", default = false, about = "allow GraphQL, which reaches all that the token can" },
    also = { type = "string_list", about = "further paths of the API to read, such as /user" },
    host = { type = "host", default = "github.com", about = "another host: a GitHub Enterprise Server" },
    api_host = { type = "host", about = "the API's host, where it is neither api.github.com nor below /api of the host" },
    port = { type = "integer", default = 443, least = 1, most = 65535, about = "the port of the hosts" },
    to = { type = "map", about = "host to \"address:port\": where to connect for it" },
    private = { type = "boolean", about = "the hosts may have private addresses" },
    ca = { type = "pem", about = "more roots that the hosts' certificates may have" },
  },

  hosts = function(options)
    if options.host ~= "github.com" then
      local handlers = { [options.host] = handler(options.api_host and on_web or on_both) }
      if options.api_host and options.api_host ~= options.host then
        handlers[options.api_host] = handler(function(event, given, segments, _, path)
          return on_api(event, given, segments, path)
        end)
      end
      return handlers
    end
    return {
      ["github.com"] = handler(on_web),
      [options.api_host or "api.github.com"] = handler(function(event, given, segments, _, path)
        return on_api(event, given, segments, path)
      end),
      ["uploads.github.com"] = handler(on_uploads),
      ["codeload.github.com"] = handler(on_codeload),
      ["raw.githubusercontent.com"] = handler(on_raw),
      ["media.githubusercontent.com"] = handler(on_raw),
      ["objects.githubusercontent.com"] = handler(on_storage),
      ["release-assets.githubusercontent.com"] = handler(on_storage),
    }
  end,

  cases = {
    case("a clone gets the token", ROOT, "github.com", "GET", "/me/x.git/info/refs?service=git-upload-pack",
      { action = "allow", headers = { authorization = BASIC } }),
    case("and its pack", ROOT, "github.com", "POST", "/me/x/git-upload-pack", { action = "allow", headers = { authorization = BASIC } }),
    case("names are the same in any case", ROOT, "github.com", "POST", "/ME/X.git/git-upload-pack", "allow"),
    case("a glob names several", ROOT, "github.com", "POST", "/org/user-docs/git-upload-pack", "allow"),
    case("but not all", ROOT, "github.com", "POST", "/org/source/git-upload-pack", "deny"),
    case("the token replaces what the sandbox sent", ROOT, "github.com", "GET", "/me/x/info/refs?service=git-upload-pack",
      { action = "allow", headers = { authorization = BASIC, cookie = false } }, { headers = { authorization = "Basic eDp5" } }),
    case("another repository is denied, by name", ROOT, "github.com", "GET", "/you/y/info/refs?service=git-upload-pack",
      { action = "deny", reason = "you/y is not among" }),
    case("a push needs access=write", ROOT, "github.com", "GET", "/me/x/info/refs?service=git-receive-pack",
      { action = "deny", reason = "read, not written" }),
    case("also its pack", ROOT, "github.com", "POST", "/me/x/git-receive-pack", "deny"),
    case("and has it then", WRITE, "github.com", "POST", "/me/x/git-receive-pack", { action = "allow", headers = { authorization = BASIC } }),
    case("two services at once are denied", WRITE, "github.com", "GET",
      "/me/x/info/refs?service=git-upload-pack&service=git-receive-pack", "deny"),
    case("the dumb protocol is denied", WRITE, "github.com", "GET", "/me/x/objects/info/packs", "deny"),
    case("large files are read", ROOT, "github.com", "POST", "/me/x.git/info/lfs/objects/batch", "allow",
      { body = "{\"operation\":\"download\"}" }),
    case("and not written", ROOT, "github.com", "POST", "/me/x.git/info/lfs/objects/batch", "deny", { body = "{\"operation\":\"upload\"}" }),
    case("unless allowed", WRITE, "github.com", "POST", "/me/x.git/info/lfs/objects/batch", "allow", { body = "{\"operation\":\"upload\"}" }),
    case("nor in two ways", ROOT, "github.com", "POST", "/me/x.git/info/lfs/objects/batch", "deny",
      { body = "{\"operation\":\"download\",\"Operation\":\"upload\"}" }),
    case("nor under another spelling", ROOT, "github.com", "POST", "/me/x.git/info/lfs/objects/batch", "deny",
      { body = "{\"operation\":\"download\",\"op\\u0065ration\":\"upload\"}" }),
    case("a batch of nonsense is denied", WRITE, "github.com", "POST", "/me/x.git/info/lfs/objects/batch", "deny", { body = "[" }),
    case("a release is downloaded", ROOT, "github.com", "GET", "/me/x/releases/download/v1/a.tar.gz",
      { action = "allow", headers = { authorization = BEARER } }),
    case("an archive comes from its own host", ROOT, "codeload.github.com", "GET", "/me/x/tar.gz/refs/heads/main",
      { action = "allow", headers = { authorization = false } }),
    case("a file too", ROOT, "raw.githubusercontent.com", "GET", "/me/x/main/README.md", "allow"),
    case("of a named repository", ROOT, "raw.githubusercontent.com", "GET", "/you/x/main/README.md", "deny"),
    case("storage gets no token", ROOT, "objects.githubusercontent.com", "GET", "/x?sig=1", { action = "allow", headers = { authorization = false } }),
    case("the API reads", ROOT, "api.github.com", "GET", "/repos/me/x/pulls?state=all", { action = "allow", headers = { authorization = BEARER } }),
    case("the API writes", WRITE, "api.github.com", "POST", "/repos/me/x/pulls",
      { action = "allow", headers = { authorization = BEARER, ["x-http-method-override"] = false } }),
    case("the API does not write where it may read", ROOT, "api.github.com", "POST", "/repos/me/x/pulls", "deny"),
    case("another's repository is denied at the API", WRITE, "api.github.com", "GET", "/repos/you/x", "deny"),
    case("deleting is administration", WRITE, "api.github.com", "DELETE", "/repos/me/x", { action = "deny", reason = "administration" }),
    case("so is making it public", WRITE, "api.github.com", "PATCH", "/repos/me/x/", "deny"),
    case("so is a deploy key", WRITE, "api.github.com", "POST", "/repos/me/x/keys", "deny"),
    case("also when it is written otherwise", WRITE, "api.github.com", "POST", "/repos/me/x/%6beys", { action = "deny", reason = "ambiguous" }),
    case("or in capitals", WRITE, "api.github.com", "POST", "/repos/me/x/Hooks", { action = "deny", reason = "administration" }),
    case("or with a format", WRITE, "api.github.com", "POST", "/repos/me/x/keys.json", { action = "deny", reason = "administration" }),
    case("a space in a name is no trick", WRITE, "api.github.com", "DELETE", "/repos/me/x/labels/to%20do", "allow"),
    case("so are the secrets of actions", WRITE, "api.github.com", "PUT", "/repos/me/x/actions/secrets/A", "deny"),
    case("so is the protection of a branch", WRITE, "api.github.com", "DELETE", "/repos/me/x/branches/main/protection", "deny"),
    case("starting a workflow is not", WRITE, "api.github.com", "POST", "/repos/me/x/actions/workflows/1/dispatches", "allow"),
    case("repositories by number are denied", WRITE, "api.github.com", "GET", "/repositories/1", "deny"),
    case("GraphQL is denied", WRITE, "api.github.com", "POST", "/graphql", { action = "deny", reason = "graphql=true" }),
    case("GraphQL is allowed when asked for", { repositories = "me/x", graphql = true }, "api.github.com", "POST", "/graphql", "allow"),
    case("the user is denied", ROOT, "api.github.com", "GET", "/user", "deny"),
    case("the user may be allowed", { repositories = "me/x", also = "/user" }, "api.github.com", "GET", "/user", "allow"),
    case("but not to be changed", { repositories = "me/x", also = "/user" }, "api.github.com", "PATCH", "/user", "deny"),
    case("an asset is uploaded", WRITE, "uploads.github.com", "POST", "/repos/me/x/releases/1/assets?name=a", "allow"),
    case("public repositories get no token", { repositories = "me/x", public = true }, "github.com", "POST", "/you/y/git-upload-pack",
      { action = "allow", headers = { authorization = false } }),
    case("and are only read", { repositories = "*/*-x", access = "write", public = true }, "github.com", "POST", "/you/y/git-receive-pack", "deny"),
    case("no token in the clear", ROOT, "github.com", "POST", "/me/x/git-upload-pack", "deny", { protocol = "http" }),
    case("an Enterprise Server has all at one host", { repositories = "me/x", host = "ghe.example" }, "ghe.example", "GET",
      "/api/v3/repos/me/x/issues", { action = "allow", headers = { authorization = BEARER } }),
    case("and git too", { repositories = "me/x", host = "ghe.example" }, "ghe.example", "POST", "/me/x.git/git-upload-pack",
      { action = "allow", headers = { authorization = BASIC } }),
    case("github.com is not reached then", { repositories = "me/x", host = "ghe.example" }, "github.com", "POST", "/me/x.git/git-upload-pack", "deny"),
    case("connects where it is told", { repositories = "me/x", to = "github.com:127.0.0.1:8443", private = true }, "github.com", "POST",
      "/me/x/git-upload-pack", { action = "allow", to = "127.0.0.1:8443", private = true }),
    refuses("/me/x/../../you/y/git-upload-pack"), refuses("/me/x/%2e%2e/y/info/refs?service=git-upload-pack"),
    refuses("/me/x%2Fy/info/refs?service=git-upload-pack"), refuses("//me/x/info/refs?service=git-upload-pack"),
    refuses("/me//x/info/refs?service=git-upload-pack"), refuses("/me/x/./info/refs?service=git-upload-pack"),
    refuses("/me\\x/info/refs?service=git-upload-pack"), refuses("/me/x/%252e%252e/info/refs?service=git-upload-pack"),
    refuses("/me/x;a/info/refs?service=git-upload-pack"), refuses("/m%65/x/info/refs?service=git-upload-pack"),
    { "other ports are shut", options = ROOT, hook = "connect", event = { host = "github.com", port = 22, protocol = "tcp" }, expect = "deny" },
    { "the port may be another", options = { repositories = "me/x", port = 8443 }, hook = "connect", event = { host = "github.com", port = 8443 },
      expect = "allow" },
    { "its hosts resolve", options = ROOT, hook = "resolve", event = { host = "api.github.com" }, expect = "allow" },
    { "others do not", options = ROOT, hook = "resolve", event = { host = "gist.github.com" }, expect = "deny" },
    { "a token that is missing is a deny that names it", options = ROOT, event = { host = "github.com", method = "POST", path = "/me/x/git-upload-pack" },
      expect = { action = "deny", reason = "secret \"github\" is not there" } },
  },
}

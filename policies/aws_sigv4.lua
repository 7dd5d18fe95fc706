-- Signs requests to AWS (and to what speaks its Signature Version 4: MinIO, R2) anew, so that the sandbox
-- works with dummy keys: AWS_ACCESS_KEY_ID=dummy, AWS_SECRET_ACCESS_KEY=dummy. Region and service come
-- from the dummy signature, unless the options set them; they are not trusted, since a signature for
-- another service than the host's is refused by AWS.
--
-- Services that hand out credentials would put a secret into the sandbox. So `services` has to name
-- what may be used, and of sts only GetCallerIdentity passes. Think before naming iam, sso,
-- cognito-identity or ecr.
--
-- The canonical request is AWS's: each byte of the path that is not unreserved is encoded, twice for all
-- services but S3 (once by the client, once here), with dot segments resolved there; a query is sorted
-- by its encoded names; headers are trimmed. Signatures of single chunks can't be made anew without
-- reading them, and presigned URLs hold one that outlives the request: both are refused.

local EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
local UNSIGNED = { ["UNSIGNED-PAYLOAD"] = true, ["STREAMING-UNSIGNED-PAYLOAD-TRAILER"] = true }

-- What the proxy or the connection may change on the way is not signed, though the client signed it.
local UNSTABLE = {
  authorization = true, connection = true, expect = true, te = true, trailer = true, ["transfer-encoding"] = true,
  upgrade = true, ["user-agent"] = true, ["accept-encoding"] = true, ["keep-alive"] = true, ["x-amzn-trace-id"] = true,
  ["x-amz-security-token"] = true, ["x-amz-date"] = true, via = true, range = true, ["if-range"] = true,
}

local function encoded(byte)
  return ("%%%02X"):format(byte:byte())
end

local function encode(text)
  return (text:gsub("[^%w%-._~]", encoded))
end

local function decode(text)
  return (text:gsub("%%(%x%x)", function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

-- Dot segments resolved, slashes merged.
local function resolve_path(path)
  local kept = {}
  for segment in path:gmatch("[^/]+") do
    if segment == ".." then
      table.remove(kept)
    elseif segment ~= "." then
      kept[#kept + 1] = segment
    end
  end
  local resolved = "/" .. table.concat(kept, "/")
  return path:sub(-1) == "/" and #kept > 0 and resolved .. "/" or resolved
end

local function canonical_path(path, service)
  if service:sub(1, 2) == "s3" then
    path = decode(path)
  else
    path = resolve_path(path)
  end
  return (path:gsub("[^%w%-._~/]", encoded))
end

local function canonical_query(query)
  local pairs_of = {}
  for part in query:gmatch("[^&]+") do
    local name, value = part:match("^([^=]*)=?(.*)$")
    pairs_of[#pairs_of + 1] = { encode(decode(name)), encode(decode(value)) }
  end
  table.sort(pairs_of, function(a, b)
    if a[1] ~= b[1] then
      return a[1] < b[1]
    end
    return a[2] < b[2]
  end)
  for i, pair in ipairs(pairs_of) do
    pairs_of[i] = pair[1] .. "=" .. pair[2]
  end
  return table.concat(pairs_of, "&")
end

local function trimmed(value)
  return (value:gsub("^%s+", ""):gsub("%s+$", ""):gsub("%s+", " "))
end

-- Seconds since 1970 as 20150830T123600Z: from days to a date in a calendar that begins in March.
local function timestamp(seconds)
  local days, rest = math.floor(seconds / 86400), math.floor(seconds % 86400)
  days = days + 719468
  local era = math.floor(days / 146097)
  local of_era = days - era * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local shifted = math.floor((5 * of_year + 2) / 153)
  local day = of_year - math.floor((153 * shifted + 2) / 5) + 1
  local month = shifted < 10 and shifted + 3 or shifted - 9
  year = year + era * 400 + (month <= 2 and 1 or 0)
  return ("%04d%02d%02dT%02d%02d%02dZ"):format(year, month, day, math.floor(rest / 3600), math.floor(rest / 60) % 60, rest % 60)
end

-- What the client signed, with its dummy key: region, service, set of headers | nil, why not.
local function scope_of(event)
  local header = event.headers.authorization
  if not header then
    if event.path:find("[?&][Xx]%-[Aa]mz%-") or event.path:find("[?&]AWSAccessKeyId=") then
      return nil, "presigned URLs can't be signed anew"
    end
    return nil, "the request is not signed: give the client dummy keys"
  elseif header:sub(1, 17) ~= "AWS4-HMAC-SHA256 " then
    return nil, "only Signature Version 4 with AWS4-HMAC-SHA256 can be signed anew"
  end
  local region, service = header:match("Credential=[^/,]+/%d+/([%w%-]+)/([%w%-]+)/aws4_request")
  local names = header:match("SignedHeaders=([%w%-_;]+)")
  if not region or not names then
    return nil, "its Authorization has no scope"
  end
  local signed = {}
  for name in names:gmatch("[^;]+") do
    signed[name:lower()] = true
  end
  return region, service, signed
end

-- The hash of the body as it goes into the signature | nil, why not.
local function payload_of(event, options)
  local given = event.headers["x-amz-content-sha256"]
  if given then
    if UNSIGNED[given] or given:match("^%x+$") and #given == 64 then
      return given
    elseif given:sub(1, 10) == "STREAMING-" then
      return nil, "a stream whose chunks are signed can't be signed anew: turn off payload signing in the client"
    end
    return nil, "its x-amz-content-sha256 is not understood"
  elseif event.body then
    return sha256_hex(event.body)
  end
  local length = event.headers["content-length"]
  if event.headers["transfer-encoding"] or (length and length ~= "0") then
    return nil, ("the body is more than %d bytes and brings no hash"):format(options.largest)
  end
  return EMPTY
end

-- Names and values of what is signed: list of names, map.
local function headers_of(event, signed, own)
  local values = { host = event.headers.host or event.host }
  for name, value in pairs(event.headers) do
    local wanted = signed[name] or name == "content-type" or name:sub(1, 6) == "x-amz-"
    if wanted and not UNSTABLE[name] then
      values[name] = value
    end
  end
  for name, value in pairs(own) do
    values[name] = value
  end
  local names = {}
  for name in pairs(values) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names, values
end

local function signing_key(key, date, region, service)
  return hmac(hmac(hmac(hmac("AWS4" .. key, date), region), service), "aws4_request")
end

local function sign(event, options, region, service, signed, payload)
  local path, query = event.path:match("^([^?]*)%??(.*)$")
  local time = timestamp(now())
  local date = time:sub(1, 8)
  local own = { ["x-amz-date"] = time, ["x-amz-security-token"] = options.session_token and secret(options.session_token) or nil }
  local names, values = headers_of(event, signed, own)
  local lines = {}
  for i, name in ipairs(names) do
    lines[i] = name .. ":" .. trimmed(values[name]) .. "\n"
  end
  local signed_names = table.concat(names, ";")
  local canonical = table.concat({
    event.method, canonical_path(path, service), canonical_query(query), table.concat(lines), signed_names, payload,
  }, "\n")
  local scope = table.concat({ date, region, service, "aws4_request" }, "/")
  local text = table.concat({ "AWS4-HMAC-SHA256", time, scope, sha256_hex(canonical) }, "\n")
  local signature = hmac_hex(signing_key(secret(options.secret_key), date, region, service), text)

  local headers = {
    authorization = ("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s"):format(
      options.access_key_id or secret(options.access_key), scope, signed_names, signature
    ),
    ["x-amz-date"] = time,
    ["x-amz-security-token"] = own["x-amz-security-token"] or false,
  }
  -- Several headers of a name came to us as one value, and are signed as one; so they are sent as one.
  for _, name in ipairs(names) do
    if values[name]:find(",", 1, true) and name ~= "host" then
      headers[name] = values[name]
    end
  end
  return headers
end

-- Of the service that hands out credentials, only the question who one is.
local function is_identity_question(event)
  local _, query = event.path:match("^([^?]*)%??(.*)$")
  local actions = 0
  for _, text in ipairs({ query, event.body or "" }) do
    for action in ("&" .. text):gmatch("&[Aa][Cc][Tt][Ii][Oo][Nn]=([^&]*)") do
      if action ~= "GetCallerIdentity" then
        return false
      end
      actions = actions + 1
    end
    if text:find("%%[46]%x") or text:find("%%[57][0-9Aa]") then
      return false -- a letter that is encoded is there to be missed
    end
  end
  return actions == 1 and event.headers["x-amz-target"] == nil
end

local function request(event, options)
  local region, service, signed = scope_of(event)
  if not region then
    return deny(service)
  end
  region, service = options.region or region, options.service or service
  if not options.services:has(service) then
    return deny(("service %s is not on the list"):format(service))
  elseif not options.regions:has(region) then
    return deny(("region %s is not on the list"):format(region))
  elseif options.read_only and event.method ~= "GET" and event.method ~= "HEAD" then
    return deny("only GET and HEAD are allowed", 405)
  elseif service == "sts" and not is_identity_question(event) then
    return deny("of sts only GetCallerIdentity is allowed: the rest hands out credentials")
  elseif not event.tls and not options.plain then
    return deny("only over TLS")
  end
  local payload, why = payload_of(event, options)
  if not payload then
    return deny(why)
  end
  return allow(upstream(event, options, sign(event, options, region, service, signed, payload)))
end

-- AWS's own test suite for Signature Version 4: method, path, headers, body, signature. Where a header
-- comes several times there, it is one here, as the proxy hands it over.
local VECTORS = {
  { "GET", "/", {}, nil, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31" },
  { "POST", "/", {}, nil, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b" },
  { "GET", "/example/..", {}, nil, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31" },
  { "GET", "/example1/example2/../..", {}, nil, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31" },
  { "GET", "/./", {}, nil, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31" },
  { "GET", "//", {}, nil, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31" },
  { "GET", "/./example", {}, nil, "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5" },
  { "GET", "//example//", {}, nil, "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84" },
  { "GET", "/example space/", {}, nil, "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741" },
  { "GET", "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", {}, nil,
    "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f" },
  { "GET", "/\225\136\180", {}, nil, "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85" },
  { "GET", "/?Param1=value1", {}, nil, "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb" },
  { "POST", "/?Param1=value1", {}, nil, "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11" },
  { "GET", "/?Param2=value2&Param1=value1", {}, nil, "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500" },
  { "GET", "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1", {}, nil,
    "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac" },
  { "GET", "/?\225\136\180=bar", {}, nil, "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04" },
  { "GET", "/?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    .. "=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", {}, nil,
    "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197" },
  { "GET", "/", { ["my-header1"] = "value2,value2,value1" }, nil, "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea" },
  { "GET", "/", { ["my-header1"] = "value4,value1,value3,value2" }, nil,
    "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01" },
  { "GET", "/", { ["my-header1"] = "value1\n  value2\n     value3" }, nil,
    "cfd34249e4b1c8d6b91ef74165d41a32e5fab3306300901bb65a51a73575eefd" },
  { "GET", "/", { ["my-header1"] = " value1", ["my-header2"] = " \"a   b   c\"" }, nil,
    "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736" },
  { "POST", "/", { ["my-header1"] = "value1" }, nil, "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c" },
  { "POST", "/", { ["my-header1"] = "VALUE1" }, nil, "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d" },
  { "POST", "/", {
    ["content-type"] = "application/x-www-form-urlencoded", ["content-length"] = "13",
    ["x-amz-content-sha256"] = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
  }, "Param1=value1", "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b" },
}

-- AWS's published examples for S3, each with its own key, date and hash of the body.
local S3_VECTORS = {
  { "PUT", "/test$file.text", {
    date = "Fri, 24 May 2013 00:00:00 GMT", ["x-amz-storage-class"] = "REDUCED_REDUNDANCY",
    ["x-amz-content-sha256"] = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
  }, nil, "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd" },
  { "GET", "/?lifecycle", { ["x-amz-content-sha256"] = EMPTY }, nil, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543" },
  { "GET", "/?max-keys=2&prefix=J", { ["x-amz-content-sha256"] = EMPTY }, nil,
    "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7" },
}

local HOST = "example.amazonaws.com"
local BUCKET = "examplebucket.s3.amazonaws.com"
local SECRETS = { aws_access_key_id = "AKIDEXAMPLE", aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY" }
local S3_SECRETS = { aws_access_key_id = "AKIAIOSFODNN7EXAMPLE", aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" }
local NOW, S3_NOW = 1440938160, 1369353600 -- 2015-08-30T12:36:00Z, 2013-05-24T00:00:00Z

-- The names of the headers that a client signs, sorted, as they stand in Authorization.
local function names_of(headers)
  local names = {}
  for name in pairs(headers) do
    names[#names + 1] = name
  end
  table.sort(names)
  return table.concat(names, ";")
end

-- A request as a client with dummy keys sends it, at another time than NOW.
local function signed(host, service, method, path, headers, body)
  local own = { host = host, ["x-amz-date"] = "20200101T000000Z" }
  for name, value in pairs(headers or {}) do
    own[name] = value
  end
  own.authorization = ("AWS4-HMAC-SHA256 Credential=dummy/20200101/us-east-1/%s/aws4_request, SignedHeaders=%s, Signature=0000"):format(
    service, names_of(own)
  )
  return { host = host, method = method, path = path, headers = own, body = body }
end

local function case(sentence, event, expect, options)
  local given = { services = "service,s3,sts" }
  for name, value in pairs(options or {}) do
    given[name] = value
  end
  return { sentence, options = given, secrets = SECRETS, now = NOW, event = event, expect = expect }
end

local function refuses(sentence, event, reason)
  return case(sentence, event, { action = "deny", reason = reason })
end

local function authorization(key, date, service, names, signature)
  return ("AWS4-HMAC-SHA256 Credential=%s/%s/us-east-1/%s/aws4_request, SignedHeaders=%s, Signature=%s"):format(
    key, date, service, names, signature
  )
end

-- With dummy keys in, what AWS's vectors say must come out.
local function vector_case(sentence, vector, host, service, key, date)
  local event = signed(host, service, vector[1], vector[2], vector[3], vector[4])
  local names = event.headers.authorization:match("SignedHeaders=([^,]+)")
  return case(sentence, event, {
    action = "allow",
    headers = {
      authorization = authorization(key, date:sub(1, 8), service, names, vector[5]),
      ["x-amz-date"] = date,
      ["x-amz-security-token"] = false,
    },
  })
end

local function cases()
  local list = {}
  for i, vector in ipairs(VECTORS) do
    list[#list + 1] = vector_case("signs as AWS's suite does, " .. i, vector, HOST, "service", "AKIDEXAMPLE", "20150830T123600Z")
  end
  for i, vector in ipairs(S3_VECTORS) do
    local made = vector_case("signs as AWS's examples for S3 do, " .. i, vector, BUCKET, "s3", "AKIAIOSFODNN7EXAMPLE", "20130524T000000Z")
    made.secrets, made.now = S3_SECRETS, S3_NOW
    list[#list + 1] = made
  end
  return list
end

local TOKEN = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"

local function more(list)
  local function add(made)
    list[#list + 1] = made
  end
  local function with(headers, ...)
    local event = signed(HOST, "service", ...)
    for name, value in pairs(headers) do
      event.headers[name] = value or nil
    end
    return event
  end
  local temporary = case("signs with a session token", signed(HOST, "service", "GET", "/", { ["x-amz-security-token"] = "dummy" }), {
    action = "allow",
    headers = {
      authorization = authorization("AKIDEXAMPLE", "20150830", "service", "host;x-amz-date;x-amz-security-token",
        "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"),
      ["x-amz-security-token"] = TOKEN,
    },
  }, { session_token = "session" })
  temporary.secrets = {
    session = TOKEN, aws_access_key_id = SECRETS.aws_access_key_id, aws_secret_access_key = SECRETS.aws_secret_access_key,
  }
  add(temporary)
  add(case("hashes the body where the client sent no hash", signed(HOST, "service", "POST", "/", {}, "x"), "allow"))
  add(case("passes a body that is not signed", signed(HOST, "s3", "PUT", "/k", { ["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD" }), "allow"))
  add(case("and one with a checksum behind it", signed(HOST, "s3", "PUT", "/k", {
    ["x-amz-content-sha256"] = "STREAMING-UNSIGNED-PAYLOAD-TRAILER", ["x-amz-trailer"] = "x-amz-checksum-crc32",
  }), "allow"))
  add(case("signs no header that may change on the way", signed(HOST, "service", "GET", "/", { range = "bytes=0-9", ["user-agent"] = "x" }), {
    action = "allow", headers = { authorization = authorization("AKIDEXAMPLE", "20150830", "service", "host;x-amz-date", VECTORS[1][5]) },
  }))
  add(case("takes the key's id as an option", signed(HOST, "service", "GET", "/"), {
    action = "allow", headers = { authorization = authorization("AKIDOTHER", "20150830", "service", "host;x-amz-date", VECTORS[1][5]) },
  }, { access_key_id = "AKIDOTHER" }))
  add(refuses("refuses signed chunks", signed(HOST, "s3", "PUT", "/k", {
    ["x-amz-content-sha256"] = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
  }), "chunks are signed"))
  add(refuses("refuses a hash that is none", signed(HOST, "s3", "PUT", "/k", { ["x-amz-content-sha256"] = "abc" }), "not understood"))
  add(refuses("refuses a large body without a hash", signed(HOST, "service", "POST", "/", { ["content-length"] = "9999999" }), "brings no hash"))
  add(refuses("refuses presigned URLs", { host = HOST, path = "/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=0" }, "presigned"))
  add(refuses("refuses what is not signed", { host = HOST }, "dummy keys"))
  add(refuses("refuses Version 2", with({ authorization = "AWS a:b" }, "GET", "/"), "Version 4"))
  add(refuses("refuses asymmetric signatures", with({ authorization = "AWS4-ECDSA-P256-SHA256 Credential=a" }, "GET", "/"), "Version 4"))
  add(refuses("refuses a scope that is none", with({ authorization = "AWS4-HMAC-SHA256 Credential=a" }, "GET", "/"), "no scope"))
  add(refuses("refuses a service that is not listed", signed(HOST, "iam", "GET", "/"), "service iam"))
  add(refuses("refuses plain HTTP", (function()
    local event = signed(HOST, "service", "GET", "/")
    event.protocol = "http"
    return event
  end)(), "only over TLS"))
  add(case("refuses a region that is not listed", signed(HOST, "service", "GET", "/"), { action = "deny", reason = "region us%-east%-1" },
    { regions = "eu-*" }))
  add(case("only reads where asked", signed(HOST, "s3", "PUT", "/"), { action = "deny", status = 405 }, { read_only = true }))
  add(case("signs for a region of its own", signed(HOST, "service", "GET", "/"), {
    action = "allow", headers = { ["x-amz-date"] = "20150830T123600Z" },
  }, { region = "eu-west-1", regions = "eu-west-1" }))
  local form = { ["content-type"] = "application/x-www-form-urlencoded" }
  add(case("asks sts who it is", signed(HOST, "sts", "POST", "/", form, "Action=GetCallerIdentity&Version=2011-06-15"), "allow"))
  add(refuses("gets no credentials of sts", signed(HOST, "sts", "POST", "/", form, "Action=GetSessionToken"), "hands out credentials"))
  add(refuses("nor by two actions", signed(HOST, "sts", "POST", "/?Action=AssumeRole", form, "Action=GetCallerIdentity"), "hands out"))
  add(refuses("nor by an encoded one", signed(HOST, "sts", "POST", "/", form, "Action=GetCallerIdentity&%41ction=AssumeRole"), "hands out"))
  add({ "other hosts are someone else's", options = { services = "*" }, event = { host = "example.com" }, expect = "deny" })
  add({ "the hosts resolve", options = { services = "*" }, hook = "resolve", event = { host = BUCKET }, expect = "allow" })
  add({ "services are required", expect = { refused = "option services is required" } })
  return list
end

return policy {
  name = "aws_sigv4",
  about = "Sign requests to the named AWS services anew, so that the sandbox works with dummy keys.",
  options = {
    services = { type = "glob_list", required = true, least = 1, about = "services that may be used: s3, dynamodb; * stands for any part" },
    regions = { type = "glob_list", default = { "*" }, about = "regions that may be used" },
    hosts = { type = "host_list", default = { "*.amazonaws.com" }, about = "hosts whose requests are signed" },
    ports = { type = "port_list", default = { "443" }, about = "ports to reach them at" },
    access_key = { type = "secret", default = "aws_access_key_id", about = "the secret with the access key's id" },
    access_key_id = { type = "string", least = 1, most = 128, about = "or the id itself, since it is no secret" },
    secret_key = { type = "secret", default = "aws_secret_access_key", about = "the secret with the secret access key" },
    session_token = { type = "secret", about = "the secret with the session token, for temporary keys" },
    region = { type = "string", about = "the region to sign for, whatever the client says" },
    service = { type = "string", about = "the service to sign for, whatever the client says" },
    read_only = { type = "boolean", default = false, about = "only GET and HEAD" },
    largest = { type = "bytes", default = 8388608, least = 0, most = 16777216, about = "the largest body that is hashed here" },
    plain = { type = "boolean", default = false, about = "also over HTTP without TLS" },
    to = { type = "map", about = "host to \"address:port\": where to connect for it" },
    private = { type = "boolean", about = "the hosts may have private addresses" },
    ca = { type = "pem", about = "more roots that the hosts' certificates may have" },
  },

  hosts = function(options)
    local handler = {
      connect = function(event)
        if not options.ports:has(event.port) then
          return deny("port is not on the list")
        end
        return allow(upstream(event, options))
      end,
      request = request,
      body = function(event)
        local headers = event.headers or {}
        local service = headers.authorization and headers.authorization:match("Credential=[^/,]+/%d+/[%w%-]+/([%w%-]+)/")
        local needed = not headers["x-amz-content-sha256"] or (options.service or service) == "sts"
        return needed and options.largest or nil
      end,
    }
    local handlers = {}
    for _, host in ipairs(options.hosts) do
      handlers[host] = handler
    end
    return handlers
  end,

  cases = more(cases()),
}

-- A model's endpoint that speaks OpenAI's API, or one shaped like it: the key is put in here, only the
-- listed models are asked, and a sandbox has so many requests and tokens.
--
-- The model is read from the body, so a body that two parsers could read differently is denied. Tokens
-- are counted from the usage that the endpoint tells at the end of its answer; a stream that tells none
-- is counted by its bytes, which is more than it was. The budget is looked at before a request, so the
-- requests that are in flight when it runs out still end.

local TAIL = 65536
local BYTES_A_TOKEN = 4 -- of text; less than that is rare in any language
local STREAM_BYTES_A_TOKEN = 40 -- an event around each token

-- How many keys read as "model", whatever their case, there are in the value and all below it.
local function count_models(value)
  local count = 0
  for key, field in pairs(value) do
    if type(key) == "string" and key:lower() == "model" then
      count = count + 1
    end
    if type(field) == "table" then
      count = count + count_models(field)
    end
  end
  return count
end

-- The model that the body names: model, body | nil, why not. A key that is there twice, in another case
-- or with an escape is one that some parsers see and others don't.
local function model_of(text)
  local body = json.decode(text)
  if type(body) ~= "table" then
    return nil, "the body is no JSON object"
  end
  local written = 0
  for _ in text:lower():gmatch("\"model\"%s*:") do
    written = written + 1
  end
  for key in pairs(body) do
    if type(key) == "string" and key ~= "model" and key:lower() == "model" then
      return nil, "the body's model is ambiguous"
    end
  end
  if written ~= count_models(body) or text:find("[^\\]\\u00[46]%x") then
    return nil, "the body's model is ambiguous"
  elseif type(body.model) ~= "string" then
    return nil, "the body names no model"
  end
  return body.model, body
end

-- The counts of this period.
local function counts(options)
  local time = now()
  if not state.since or (options.period and time - state.since >= options.period) then
    state.since, state.requests, state.tokens = time, 0, 0
  end
  return state
end

local function spent(options)
  local have = counts(options)
  if options.requests and have.requests >= options.requests then
    return ("the budget of %d requests is spent"):format(options.requests)
  elseif options.tokens and have.tokens >= options.tokens then
    return ("the budget of %d tokens is spent"):format(options.tokens)
  end
end

local function key_header(options)
  local key = secret(options.key)
  local headers = { authorization = false, ["x-api-key"] = false, ["api-key"] = false, ["accept-encoding"] = "identity", cookie = false }
  if options.header == "authorization" then
    headers.authorization = "Bearer " .. key
  else
    headers[options.header] = key
  end
  return headers
end

-- What follows the prefix, if it is an endpoint on the list.
local function endpoint_of(event, options)
  local path = event.path:match("^[^?]*")
  if path:find("%", 1, true) or path:find("//", 1, true) or path:find("/.", 1, true) or path:find("\\", 1, true) then
    return nil
  elseif path:sub(1, #options.prefix) ~= options.prefix then
    return nil
  end
  local rest = path:sub(#options.prefix + 1)
  return options.endpoints:has(rest) and rest or nil
end

local function check_model(event, options)
  if not event.body then
    return nil, ("the body is more than %d bytes"):format(options.largest)
  end
  local model, body = model_of(event.body)
  if not model then
    return nil, body
  elseif not options.models:has(model) then
    return nil, ("model %s is not on the list"):format(model:sub(1, 80))
  end
  return true
end

local function request(event, options)
  if not event.tls and not options.plain then
    return deny("the key would be sent in the clear: plain=true allows that")
  end
  local endpoint = endpoint_of(event, options)
  if not endpoint then
    return deny("not an endpoint on the list")
  elseif event.method == "GET" or event.method == "HEAD" then
    return allow(upstream(event, options, key_header(options)))
  elseif event.method ~= "POST" then
    return deny("method is not allowed", 405)
  end
  local why = spent(options)
  if why then
    return deny(why, 429)
  end
  local ok, problem = check_model(event, options)
  if not ok then
    return deny(problem)
  end
  local have = counts(options)
  have.requests = have.requests + 1
  return allow(upstream(event, options, key_header(options)))
end

local function number(value)
  return type(value) == "number" and value >= 0 and value or 0
end

-- Tokens by the last usage told in the tail; nil when there is none. A model can't write one itself:
-- inside its text the quotes are escaped.
local function told(tail)
  local usage
  for text in tail:gmatch("\"usage\"%s*:%s*(%b{})") do
    usage = json.decode(text) or usage
  end
  if type(usage) ~= "table" then
    return nil
  end
  local total = number(usage.total_tokens)
  if total == 0 then
    total = number(usage.prompt_tokens) + number(usage.completion_tokens) + number(usage.input_tokens) + number(usage.output_tokens)
      + number(usage.cache_creation_input_tokens) + number(usage.cache_read_input_tokens)
  end
  return total > 0 and total or nil
end

local function estimated(event, tail)
  local received = number(event.bytes_received)
  local stream = tail:find("\ndata:", 1, true) or tail:sub(1, 5) == "data:"
  return math.ceil(number(event.bytes_sent) / BYTES_A_TOKEN + received / (stream and STREAM_BYTES_A_TOKEN or BYTES_A_TOKEN))
end

-- After the answer: what it cost.
local function account(event, options)
  if event.action == "deny" or event.method ~= "POST" or not event.status or event.status >= 400 then
    return
  end
  local tail = event.tail or ""
  local have = counts(options)
  have.tokens = have.tokens + (told(tail) or estimated(event, tail))
end

local OPTIONS = { host = "api.example", models = "small-*,tiny" }
local SECRETS = { openai = "sk-0123456789" }

local function chat(body, expect, more)
  local event = { host = "api.example", method = "POST", path = "/v1/chat/completions", body = body }
  for key, value in pairs(more or {}) do
    event[key] = value
  end
  return { event = event, expect = expect }
end

local function case(sentence, step, options)
  step[1], step.options, step.secrets = sentence, options or OPTIONS, SECRETS
  return step
end

local function answer(tail, tokens, more)
  local event = { host = "api.example", method = "POST", path = "/v1/chat/completions", action = "allow", status = 200, tail = tail }
  for key, value in pairs(more or {}) do
    event[key] = value
  end
  return { hook = "log", event = event, expect = { state = { tokens = tokens } } }
end

local ASK = "{\"model\":\"tiny\",\"messages\":[]}"

return policy {
  name = "openai_compatible",
  about = "Ask the listed models of one endpoint, with a key the sandbox never holds and a budget.",
  options = {
    host = { type = "host", required = true, about = "the endpoint's host" },
    key = { type = "secret", default = "openai", about = "the secret that holds the key" },
    header = { type = "enum", values = { "authorization", "x-api-key", "api-key" }, default = "authorization", about = "where the key goes" },
    models = { type = "glob_list", default = { "*" }, about = "models that may be asked; * stands for any part" },
    prefix = { type = "string", default = "/v1/", about = "what the endpoints' paths begin with" },
    endpoints = {
      type = "glob_list",
      default = { "chat/completions", "completions", "responses", "embeddings", "messages", "messages/count_tokens", "models", "models/*" },
      about = "paths behind the prefix",
    },
    requests = { type = "integer", least = 0, about = "requests a sandbox may make" },
    tokens = { type = "integer", least = 0, about = "tokens a sandbox may use, in and out" },
    period = { type = "seconds", least = 1, about = "how often the budget starts anew; else never" },
    largest = { type = "bytes", default = 8388608, least = 1, most = 8388608, about = "the largest request body" },
    port = { type = "integer", default = 443, least = 1, most = 65535, about = "the endpoint's port" },
    plain = { type = "boolean", default = false, about = "send the key over HTTP without TLS too" },
    to = { type = "map", about = "host to \"address:port\": where to connect for it" },
    private = { type = "boolean", about = "the host may have a private address" },
    ca = { type = "pem", about = "more roots that the host's certificate may have" },
  },

  hosts = function(options)
    return {
      [options.host] = {
        connect = function(event)
          if event.port and event.port ~= options.port then
            return deny("only at port " .. options.port)
          end
          return allow(upstream(event, options))
        end,
        request = request,
        log = account,
        body = options.largest,
        tail = options.tokens and TAIL or nil,
      },
    }
  end,

  cases = {
    case("puts the key in", chat(ASK, { action = "allow", headers = {
      authorization = "Bearer sk-0123456789", ["x-api-key"] = false, ["accept-encoding"] = "identity",
    } })),
    case("in another header where asked", chat(ASK, { action = "allow", headers = { ["x-api-key"] = "sk-0123456789", authorization = false } }),
      { host = "api.example", header = "x-api-key" }),
    case("a glob lists models", chat("{\"model\":\"small-2\"}", "allow")),
    case("others are denied, by name", chat("{\"model\":\"large\"}", { action = "deny", reason = "model large" })),
    case("a glob is no pattern", chat("{\"model\":\"smallx2\"}", "deny")),
    case("no model is denied", chat("{}", { action = "deny", reason = "no model" })),
    case("a body that is not JSON is denied", chat("model=tiny", { action = "deny", reason = "no JSON" })),
    case("so is a model that is there twice", chat("{\"model\":\"large\",\"model\":\"tiny\"}", { action = "deny", reason = "ambiguous" })),
    case("or in two cases", chat("{\"model\":\"tiny\",\"MODEL\":\"large\"}", { action = "deny", reason = "ambiguous" })),
    case("or once with an escape", chat("{\"model\":\"large\",\"mod\\u0065l\":\"tiny\"}", { action = "deny", reason = "ambiguous" })),
    case("a tool may have a parameter of that name", chat("{\"model\":\"tiny\",\"tools\":[{\"properties\":{\"model\":{}}}]}", "allow")),
    case("a text may speak of it", chat("{\"model\":\"tiny\",\"messages\":[{\"content\":\"{\\\"model\\\": \\\"large\\\"}\"}]}", "allow")),
    case("models are listed", { event = { host = "api.example", path = "/v1/models" }, expect = "allow" }),
    case("other endpoints are denied", { event = { host = "api.example", method = "POST", path = "/v1/files" }, expect = "deny" }),
    case("also by a detour", { event = { host = "api.example", path = "/v1/models/../files" }, expect = "deny" }),
    case("or an encoded one", { event = { host = "api.example", path = "/v1/models/%2e%2e/files" }, expect = "deny" }),
    case("nothing is deleted", { event = { host = "api.example", method = "DELETE", path = "/v1/models/x" }, expect = { action = "deny", status = 405 } }),
    case("no key in the clear", chat(ASK, { action = "deny", reason = "plain=true" }, { protocol = "http" })),
    case("requests are counted", { steps = {
      chat(ASK, { action = "allow", state = { requests = 1 } }), chat(ASK, "allow"),
      chat(ASK, { action = "deny", status = 429, reason = "2 requests" }),
    } }, { host = "api.example", requests = 2 }),
    case("a request that is denied is not", { steps = {
      chat("{}", "deny"), chat(ASK, "allow"), chat(ASK, { action = "deny", status = 429 }),
    } }, { host = "api.example", requests = 1 }),
    case("tokens are counted as they are told", { steps = {
      chat(ASK, "allow"),
      answer("\"content\":\"\\\"usage\\\": {\\\"total_tokens\\\":1}\"},\"usage\": {\"total_tokens\": 70, \"details\": {\"x\": 1}}}", 70),
      answer("data: {\"usage\":null}\n\ndata: {\"usage\":{\"input_tokens\":10,\"output_tokens\":20}}\n\ndata: [DONE]\n", 100),
      chat(ASK, { action = "deny", status = 429, reason = "100 tokens" }),
    } }, { host = "api.example", tokens = 100 }),
    case("tokens that are not told are estimated", { steps = {
      answer("data: {}\n\ndata: [DONE]\n", 125, { bytes_sent = 100, bytes_received = 4000 }),
    } }, { host = "api.example", tokens = 100 }),
    case("an answer that failed costs nothing", { steps = {
      chat(ASK, "allow"), answer("\"usage\":{\"total_tokens\":9}", 0, { status = 500 }),
    } }, { host = "api.example", tokens = 100 }),
    { "the budget starts anew with each period", options = { host = "api.example", requests = 1, period = "1h" }, secrets = SECRETS,
      now = 1700003600, state = { since = 1700000000, requests = 1, tokens = 5 }, steps = { chat(ASK, { action = "allow", state = { requests = 1 } }) } },
    { "and not before", options = { host = "api.example", requests = 1, period = "1h" }, secrets = SECRETS,
      now = 1700003599, state = { since = 1700000000, requests = 1, tokens = 5 }, steps = { chat(ASK, "deny") } },
    case("the host resolves", { hook = "resolve", event = { host = "api.example" }, expect = "allow" }),
    case("other ports are shut", { hook = "connect", event = { host = "api.example", port = 8080, protocol = "http" }, expect = "deny" }),
    { "a key that is missing is a deny", options = OPTIONS, event = { host = "api.example", path = "/v1/models" },
      expect = { action = "deny", reason = "secret \"openai\"" } },
    { "a body that was too large to read is a deny", options = OPTIONS, secrets = SECRETS,
      event = { host = "api.example", method = "POST", path = "/v1/responses" }, expect = { action = "deny", reason = "more than" } },
  },
}

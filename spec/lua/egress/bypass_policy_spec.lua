-- Policies that are broken or hostile, in a real egress process, led by what a sandbox asks: each is a recorded
-- deny, nothing of them gets further than their own sandbox, and both are served again.
local machine = require("spec.support.machine")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local POLICY = [==[
local counter = 0
local deeds = {}

function deeds.fine() return nil end
function deeds.error_nil() error(nil) end
function deeds.error_table() error({ action = "allow" }) end
function deeds.error_deep() pcall(error, "x") error("oh\r\nX-Evil: 1", 0) end
function deeds.loop() while true do end end
function deeds.loop_caught() while true do pcall(function() while true do end end) end end
function deeds.recursion() local function down(n) return 1 + down(n + 1) end return down(1) end
function deeds.recursion_caught() local function down() pcall(down) down() end down() end
function deeds.rep() return ("x"):rep(1e9) end
function deeds.rep_text() return ("x"):rep("1000000000") end
function deeds.rep_nan() while true do local _ = ("x"):rep(0/0) end end
function deeds.rep_often() local t = {} for i = 1, 1e6 do t[i] = ("x"):rep(1e6 + i) end end
function deeds.double() local s = "x" while true do s = s .. s end end
function deeds.table() local t = {} for i = 1, 1e9 do t[i] = { i } end end
function deeds.unpack() return unpack({}, 1, 1e9) end
function deeds.concat() local t = {} for i = 1, 1000 do t[i] = ("x"):rep(1e6) end return table.concat(t) end
function deeds.gsub() local s = ("x"):rep(1e6) return s:gsub("x", function() return s end) end
function deeds.sort() local t = {} for i = 1, 1e4 do t[i] = i end table.sort(t, function() return true end) while true do end end
function deeds.format() return ("%999999d"):format(1) end
function deeds.json() local t = {} t[1] = t return json.encode(t) end
function deeds.forged() return { action = "allow", changes = {} } end
function deeds.truth() return true end
function deeds.text() return "allow" end
function deeds.no_such_secret() return allow { headers = { authorization = secret "not there" } } end
function deeds.header_line() return allow { headers = { ["x-a"] = "b\r\nX-Evil: 1" } } end
function deeds.header_name() return allow { headers = { ["x-a: b\r\nX-Evil"] = "1" } } end
function deeds.header_length() return allow { headers = { ["content-length"] = "5" } } end
function deeds.header_coding() return allow { headers = { ["Transfer-Encoding"] = "chunked" } } end
function deeds.path_line() return allow { path = "/ HTTP/1.1\r\nX-Evil: 1" } end
function deeds.path_other() return allow { path = "https://elsewhere.test/" } end
function deeds.redirect_line() return redirect("evil.test\r\nX-Evil: 1") end
function deeds.respond_line() return respond(200, { ["x-a"] = "b\r\nX-Evil: 1" }, "") end
function deeds.respond_status() return respond(101, {}, "") end
function deeds.redirect_own() return redirect("127.0.0.1:@PORT@", { to = nil }) end
function deeds.redirect_metadata() return redirect("169.254.169.254") end
function deeds.redirect_zero() return redirect("0.0.0.0:@PORT@") end
function deeds.fetch_own() local got, why = fetch { url = "http://127.0.0.1:@PORT@/" } return deny(got and "evil" or "it said " .. why) end
function deeds.fetch_line() local got, why = fetch { url = "http://a.test/", to = 1 } return deny(got and "evil" or "it said " .. why) end
function deeds.fetch_header() local got, why = fetch { url = "http://evil.test/", headers = { a = "b\r\nX-Evil: 1" } } return deny(got and "evil" or "it said " .. why) end
function deeds.fetch_method() local got, why = fetch { url = "http://evil.test/", method = "GET / HTTP/1.1\r\nX-Evil: 1\r\n" } return deny(got and "evil" or "it said " .. why) end
function deeds.fetch_length() local got, why = fetch { url = "http://evil.test/", headers = { ["Content-Length"] = "9" } } return deny(got and "evil" or "it said " .. why) end
function deeds.fetch_often() for _ = 1, 100 do fetch { url = "http://127.0.0.1:1/" } end end
function deeds.log_often() for i = 1, 1e6 do log("x" .. i) end end
function deeds.state_large() state.x = ("x"):rep(1e5) return allow() end
function deeds.state_cycle() state.x = state return allow() end
function deeds.state_function() state.x = function() end return allow() end
function deeds.escape()
  for _, name in ipairs { "getfenv", "setfenv", "getmetatable", "setmetatable", "rawget", "rawset", "rawequal", "load", "loadstring", "loadfile",
    "dofile", "require", "module", "package", "io", "os", "debug", "ffi", "jit", "coroutine", "collectgarbage", "newproxy", "_G", "_ENV", "print", "gcinfo" } do
    local ok, value = pcall(function() return _ENV or name end)
    if ok and value ~= name then return deny("evil " .. name) end
  end
  if getfenv or setfenv or getmetatable or setmetatable or rawset or load or loadstring or require or io or os or debug or ffi or jit
    or coroutine or collectgarbage or newproxy or _G or package or string.dump then
    return deny("evil")
  end
  return deny("no way out")
end
function deeds.poison()
  string.sub, table.concat, math.floor, bit.band = nil, nil, nil, nil
  json.encode, json.null = nil, nil
  return deny("poisoned itself")
end
function deeds.poisoned() return deny(("abc"):sub(1, 1) == "a" and "methods are whole" or "evil") end
function deeds.pattern() return ("a"):rep(10000):find((".-"):rep(30) .. "b") end

return policy {
  name = "hostile",
  about = "Does what its name says.",
  options = { to = { type = "string", required = true } },
  connect = function(_, options) return allow { to = options.to } end,
  request = function(event, options)
    counter = counter + 1
    state.count = (state.count or 0) + 1
    local deed = event.path:match("^/deed/(%w*_?%w*_?%w*)$")
    local done = deed and deeds[deed] and deeds[deed](event)
    if deed == "fine" or not deed then
      return allow { to = options.to, headers = { ["x-count"] = counter .. " " .. state.count } }
    end
    return done
  end,
}
]==]

local evil, other, server

lazy_setup(function()
  support.needs_root()
  support.image("debian")
  server = web.echo()
  local text = POLICY:gsub("@PORT@", tostring(server.port))
  local chain = { { name = "hostile", text = text, options = { to = "127.0.0.1:" .. server.port } } }
  evil = support.sandbox({ image = "debian", egress = chain })
  other = support.sandbox({ image = "debian", egress = chain })
end)

local function ask(box, path)
  local result = assert(box:exec({ "curl", "-sS", "-i", "-m", "120", "http://evil.test" .. path }, { timeout = 200 }))
  return result.stdout .. result.stderr
end

local function pid()
  return assert(evil:egress_show()).process.pid
end

local function memory()
  return tonumber(machine.read("/proc/" .. pid() .. "/status"):match("VmRSS:%s*(%d+)")) / 1024
end

local BUDGET, FAILED = "exceeded its", "policy hostile failed"

-- Deed, what the client is told.
local DEEDS = {
  { "log_often", BUDGET }, -- at first, since it fills the log
  { "error_nil", FAILED }, { "error_table", FAILED }, { "error_deep", "oh" },
  { "loop", BUDGET }, { "loop_caught", BUDGET }, { "recursion", "stack overflow" }, { "recursion_caught", BUDGET },
  { "rep", "more than" }, { "rep_text", "more than" }, { "rep_nan", BUDGET }, { "rep_often", BUDGET }, { "table", BUDGET }, { "unpack", FAILED },
  { "concat", BUDGET }, { "gsub", BUDGET }, { "sort", "invalid order" }, { "format", FAILED }, { "json", FAILED },
  { "forged", "must return a verdict" }, { "truth", "must return a verdict" }, { "text", "must return a verdict" },
  { "no_such_secret", "is not there" },
  { "header_line", "control character" }, { "header_name", "not the name of a header" }, { "header_length", "frames the message" },
  { "header_coding", "frames the message" }, { "path_line", "path must" }, { "path_other", "path must" },
  { "redirect_line", "redirect needs" }, { "respond_line", "control character" }, { "respond_status", "status must" },
  { "redirect_own", "which is loopback" }, { "redirect_metadata", "which is metadata" }, { "redirect_zero", "which is unspecified" },
  { "fetch_own", "which is loopback" }, { "fetch_line", "not understood" }, { "fetch_header", "control character" },
  { "fetch_method", "method" }, { "fetch_length", "header" }, { "fetch_often", BUDGET },
  { "state_large", "can't be kept" }, { "state_cycle", "can't be kept" }, { "state_function", "can't be kept" },
  { "escape", "no way out" }, { "poison", "poisoned itself" }, { "poisoned", "methods are whole" },
}

describe("a hostile policy", function()
  local answers, before, after = {}, nil, nil

  lazy_setup(function()
    local names = {}
    for i, row in ipairs(DEEDS) do
      names[i] = row[1]
    end
    before = pid()
    local script = "for deed in $1; do curl -sS -i -m 120 http://evil.test/deed/$deed 2>&1; echo ==$deed==; done"
    local result = assert(evil:exec({ "sh", "-c", script, "sh", table.concat(names, " ") }, { timeout = 200 }))
    after = pid()
    for answer, name in result.stdout:gmatch("(.-)==([%w_]+)==\n") do
      answers[name] = answer
    end
  end)

  for _, row in ipairs(DEEDS) do
    it("is a deny that is written down: " .. row[1], function()
      local answer = answers[row[1]]
      assert.matches("^HTTP/1.1 403 ", answer)
      assert(answer:find(row[2], 1, true), answer)
      assert(not answer:find("\nX-Evil", 1, true), answer)
      assert(talk.entry(evil, { action = "deny", hook = "request", path = "/deed/" .. row[1] }))
    end)
  end

  it("has sent nothing on, leaves nothing large behind, and lets its sandbox be served again", function()
    assert.equal(before, after)
    assert.same({}, server.requests())
    assert.is_true(memory() < 500, memory() .. " MiB")
    assert.matches("^HTTP/1.1 200 ", ask(evil, "/deed/fine"))
  end)

  it("leaves a line for what it fetches, too", function()
    assert(talk.entry(evil, { action = "deny", hook = "fetch", host = "127.0.0.1", port = server.port, reason = "loopback" }))
    assert(talk.entry(evil, { action = "deny", hook = "fetch", host = "127.0.0.1", port = 1 }).count > 1)
  end)

  it("shares neither its variables nor its state with the same policy of another sandbox", function()
    assert.matches('"x%-count", "1 1"', ask(other, "/echo"))
    assert.matches('"x%-count", "2 2"', ask(other, "/echo"))
    assert.matches('"x%-count", "%d%d+ %d+"', ask(evil, "/echo"))
  end)

  local function is_served_again()
    return machine.eventually(function()
      return ask(evil, "/deed/fine"):find("200 ", 1, true) and ask(other, "/deed/fine"):find("200 ", 1, true)
    end)
  end

  it("that does not come back ends the process, by name, and another serves both in a moment", function()
    local runaway = pid()
    assert(not ask(evil, "/deed/pattern"):find("200 ", 1, true))
    assert(talk.entry(evil, { action = "deny", policy = "hostile", reason = "exceeded its time inside one call" }))
    assert(is_served_again())
    assert.not_equal(runaway, pid())
  end)

  -- On a slow machine it is the time that ends it.
  it("that takes all memory with few instructions is a deny all the same", function()
    assert(not ask(evil, "/deed/double"):find("200 ", 1, true))
    assert(talk.entry(evil, { action = "deny", policy = "hostile", reason = "exceeded its" }))
    assert(is_served_again())
    assert.is_true(memory() < 500, memory() .. " MiB")
  end)

  it("can't be bytecode", function()
    local _, message = other:egress_set({ { name = "hostile", text = string.dump(function() end), options = {} } })
    assert.is_string(message)
    assert.matches("^HTTP/1.1 200 ", ask(other, "/deed/fine"))
  end)
end)

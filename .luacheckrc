-- Lint for everything that is Lua; `./sandbox.lua test` runs it.
std = "luajit"
max_line_length = 180 -- a row of a table of data is easier to read unbroken
max_string_line_length = false
exclude_files = { ".build" }
ignore = {
  "212/_.*", -- an argument that an interface asks for
  "213", -- a loop variable that only counts
  "241", -- a table that is only kept, so that what is in it is not collected
  "311/message", "311/code", -- the rest of a triple whose first value was all that mattered
}
-- All that a policy can name: lua/tidepool/egress/policy/environment.lua.
local function library(...)
  local fields = {}
  for _, name in ipairs({ ... }) do
    fields[name] = {}
  end
  return { fields = fields }
end
stds.policies = {
  read_globals = {
    "policy", "allow", "deny", "passthrough", "redirect", "respond", "secret", "log", "fetch", "now", "match", "upstream",
    "base64", "unbase64", "hex", "sha256", "sha256_hex", "hmac", "hmac_sha256", "hmac_hex",
    "assert", "error", "ipairs", "next", "pairs", "pcall", "select", "tonumber", "tostring", "type", "unpack",
    json = library("encode", "decode", "null"),
    string = library(
      "byte", "char", "find", "format", "gmatch", "gsub", "len", "lower", "match", "rep", "reverse", "sub", "upper"
    ),
    table = library("concat", "insert", "maxn", "remove", "sort"),
    math = { other_fields = true },
    bit = { other_fields = true },
    state = { read_only = false, other_fields = true },
  },
}
files["sandbox.lua"] = { globals = { "_" } } -- the shell's half of the file
files["spec"] = { std = "luajit+busted" }
files["policies"] = { std = "policies" }
files["lua/tidepool/meta"] = { ignore = { "212" } } -- declarations for the editor, without bodies
files["lua/tidepool/meta/policy.lua"] = { ignore = { "111", "112", "121", "122", "131" } } -- globals are what it declares

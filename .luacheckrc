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
files["sandbox.lua"] = { globals = { "_" } } -- the shell's half of the file
files["spec"] = { std = "luajit+busted" }
files["policies"] = { globals = { "policy", "allow", "deny", "secret" } }
files["lua/tidepool/meta"] = { ignore = { "212" } } -- declarations for the editor, without bodies

--- Looks for a text wherever a sandbox, or a process of the host, may have it: from outside, as root, since
-- asking inside would bring it in.
--
-- A text is looked for as it is, in base64 at its three alignments, percent-encoded and as hexadecimal
-- digits. Each hit is a sentence: where, and in which form.
local uv = require("luv")
local async = require("tidepool.async")
local machine = require("spec.support.machine")

local search = {}

local PIECE = 4 * 2 ^ 20 -- bytes of memory looked at in one go

local function base64(bytes)
  return async.within(function()
    return assert(async.command({ "sh", "-c", "printf %s \"$1\" | base64 -w0", "sh", bytes, stdout = "pipe" })).stdout
  end)
end

-- What of the base64 of `text` stays the same whatever stands around it, `before` bytes behind a group's begin.
local function aligned(text, before)
  local encoded = base64(("x"):rep(before) .. text):gsub("=", "")
  local loose = (before + #text) % 3
  return encoded:sub(before == 0 and 1 or before + 2, loose == 0 and -1 or -2)
end

--- The forms of a text, or of several: a list of { name, bytes }.
function search.forms(text)
  if type(text) == "table" then
    local all = {}
    for _, one in ipairs(text) do
      for _, form in ipairs(search.forms(one)) do
        all[#all + 1] = form
      end
    end
    return all
  end
  local function each(format)
    return (text:gsub(".", function(char)
      return format:format(char:byte())
    end))
  end
  local forms = {
    { "plain", text }, { "percent-encoded", each("%%%02x") }, { "percent-encoded", each("%%%02X") }, { "hexadecimal", each("%02x") },
  }
  for before = 0, 2 do
    local found = aligned(text, before)
    forms[#forms + 1] = { "base64 +" .. before, found }
    if found:find("[+/]") then
      forms[#forms + 1] = { "base64url +" .. before, (found:gsub("+", "-"):gsub("/", "_")) }
    end
  end
  return forms
end

--- The forms of a text that are in some bytes: their names.
function search.bytes(bytes, text)
  local found = {}
  for _, form in ipairs(search.forms(text)) do
    if bytes:find(form[2], 1, true) then
      found[#found + 1] = form[1]
    end
  end
  return found
end

-- Files below `directory`, all file systems that are mounted there but what the kernel makes up.
local function grep(directory, forms, found, without)
  local list = os.tmpname()
  local file = assert(io.open(list, "w"))
  for _, form in ipairs(forms) do
    file:write(form[2], "\n")
  end
  file:close()
  local result = async.within(function()
    return assert(async.command({
      "sh", "-c", "cd \"$1\" && LC_ALL=C exec grep -rlF --devices=skip --exclude-dir=proc --exclude-dir=sys \"--exclude=$3\" -f \"$2\" . 2>/dev/null",
      "sh", directory, list, without or "", stdout = "pipe",
    }))
  end)
  os.remove(list)
  for path in result.stdout:gmatch("[^\n]+") do
    found[#found + 1] = "file " .. path
  end
end

--- The files below a directory that hold a text, those of the name `without` left out.
function search.files(directory, text, without)
  local found = {}
  grep(directory, search.forms(text), found, without)
  return found
end

local function look(pid, what, bytes, forms, found)
  for _, form in ipairs(forms) do
    if bytes:find(form[2], 1, true) then
      found[#found + 1] = ("%s of %d (%s), %s"):format(what, pid, (machine.read(("/proc/%d/comm"):format(pid)) or "gone"):gsub("\n", ""), form[1])
    end
  end
end

local function memory(pid, forms, found)
  local mem = uv.fs_open(("/proc/%d/mem"):format(pid), "r", 0)
  local looked = 0
  for from, to, mode in ((mem and machine.read(("/proc/%d/maps"):format(pid))) or ""):gmatch("(%x+)%-(%x+) (%S+)[^\n]*") do
    local at, last, kept = tonumber(from, 16), tonumber(to, 16), ""
    while mode:sub(1, 1) == "r" and at < last do
      local bytes = uv.fs_read(mem, math.min(PIECE, last - at), at)
      if not bytes or #bytes == 0 then
        break -- vvar and its like
      end
      look(pid, "memory", kept .. bytes, forms, found)
      kept, at, looked = bytes:sub(-8192), at + #bytes, looked + #bytes
    end
  end
  if mem then
    uv.fs_close(mem)
  end
  return looked
end

--- Where a process has a text: environment, arguments, memory. Second result: bytes of memory looked at.
function search.process(pid, text)
  local found, forms = {}, search.forms(text)
  for _, name in ipairs({ "environ", "cmdline" }) do
    look(pid, name, machine.read(("/proc/%d/%s"):format(pid, name)) or "", forms, found)
  end
  return found, memory(pid, forms, found)
end

--- Where a running sandbox has a text: its files, and every process of it with its init.
function search.sandbox(box, text)
  local pid = assert(assert(box:info()).pid)
  local found = search.files(("/proc/%d/root"):format(pid), text)
  for _, each in ipairs(machine.processes_in((machine.cgroup_of(box):gsub("/init$", "")))) do
    for _, hit in ipairs((search.process(each, text))) do
      found[#found + 1] = hit
    end
  end
  return found
end

return search

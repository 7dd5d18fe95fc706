--- Building images: "debian" by mmdebstrap of the host's release, "minimal" from busybox.
--
-- A build runs the packages' own scripts as root in a chroot, in mount and pid namespaces that go
-- with it, or with the server; it hands a tar to the confined unpacker, so that ids and attributes
-- come out as anywhere.
local uv = require("luv")
local async = require("tidepool.async")
local sources = require("tidepool.image.sources")
local worker = require("tidepool.image.worker")

local kinds = {}

-- What an agent expects of a machine. npm brings 25,000 small files (8 s of 37, 110 MB of 640), and
-- yet is what agents try first in a JavaScript tree.
local PACKAGES = {
  "bash", "bzip2", "ca-certificates", "coreutils", "curl", "diffutils", "file", "g++", "gcc", "git",
  "less", "libc6-dev", "make", "nano", "nodejs", "npm", "patch", "procps", "python3", "python3-venv",
  "sudo", "unzip", "xz-utils", "zstd",
}

-- Written into the image for good: its own apt and dpkg leave out the same.
local DPKG = {
  "path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
  "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/man/*",
  "path-exclude=/usr/share/locale/*", "path-include=/usr/share/locale/locale.alias",
  "force-unsafe-io",
}

-- How the host reaches its mirrors is no business of the image.
local FORGET = "printf 'Acquire::Languages \"none\";\\n' > \"$1/etc/apt/apt.conf.d/99mmdebstrap\""

local function mmdebstrap(found, work)
  local command = {
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
    "mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar",
    "--include=" .. table.concat(PACKAGES, ","),
    "--aptopt=Acquire::Languages \"none\"",
    "--customize-hook=" .. FORGET,
    stderr = "pipe",
    env = worker.environment({ TMPDIR = work, LC_ALL = "C.UTF-8", DEBIAN_FRONTEND = "noninteractive" }),
  }
  for _, option in ipairs(DPKG) do
    command[#command + 1] = "--dpkgopt=" .. option
  end
  for _, option in ipairs(sources.host_acquire()) do
    command[#command + 1] = "--aptopt=" .. option
  end
  command[#command + 1] = found.codename
  command[#command + 1] = "-"
  for _, line in ipairs(found.lines) do
    command[#command + 1] = line
  end
  return command
end

local STEPS = { -- mmdebstrap's words, as a user would say them
  ["running apt-get update"] = "fetching package lists",
  ["downloading packages"] = "downloading the base system",
  ["extracting archives"] = "extracting the base system",
  ["installing essential packages"] = "configuring the base system",
  ["downloading apt"] = "downloading packages",
  ["installing remaining packages"] = "installing " .. #PACKAGES .. " packages and what they need",
  ["creating tarball"] = "copying the result into the image",
}

local function show_steps(progress)
  return function(line)
    for words, step in pairs(STEPS) do
      if line:find("^I: ") and line:find(words, 1, true) then
        progress(step)
      end
    end
  end
end

-- The first complaint is the cause; those after it are its consequences.
local function first_error(text)
  return text:match("^E: ([^\r\n]*)") or text:match("\nE: ([^\r\n]*)") or text:match("([^\n]+)\n*$") or "no message"
end

--- Runs `producer` (a tar on its output) into the target and finishes it.
local function fill(options, producer, what)
  local produced, consumed, code = worker.pipeline(producer,
    worker.unpack_command(options, { "--finish", "--stdin" }))
  if not produced then
    return nil, consumed, code
  end
  local unpacked, message, why = worker.unpacked(consumed)
  if not unpacked and why ~= "EBADMSG" then
    return nil, message, why -- the producer merely lost its reader; EBADMSG is a tar that was cut
  end
  if produced.code ~= 0 or produced.signal ~= 0 then
    return nil, what .. ": " .. first_error(produced.stderr) .. " (" .. worker.ending(produced) .. ")", "EBUILD"
  end
  return unpacked, message, why
end

function kinds.debian(options)
  if not worker.has("mmdebstrap") then
    return nil, "mmdebstrap is not installed (apt-get install mmdebstrap)", "ENOPKG"
  end
  local found, message, code = sources.host(options.progress)
  if not found then
    return nil, message, code
  end
  local unpacked
  unpacked, message, code = worker.with_directory(options, function(work)
    local command = mmdebstrap(found, work)
    command.on_line = show_steps(options.progress)
    return fill(options, command, "mmdebstrap")
  end)
  if not unpacked then
    return nil, message, code
  end
  return unpacked, "Debian " .. found.codename .. ", built", { "/bin/bash" }
end

--- A busybox that needs no libraries: the installed one, or nil, message, code.
local function busybox()
  for _, path in ipairs({ "/bin/busybox", "/usr/bin/busybox" }) do
    local file = io.open(path, "rb")
    if file then
      local text = file:read("*a")
      file:close()
      if not text:find("/ld-linux", 1, true) and not text:find("/ld-musl", 1, true) then
        return path
      end
    end
  end
  return nil, "a static busybox is not installed (apt-get install busybox-static)", "ENOPKG"
end

local function make_tree(tree, program)
  local listed, message, code = async.command({ program, "--list-full", stdout = "pipe", stderr = "pipe" })
  if not listed then
    return nil, message, code
  end
  for _, name in ipairs({ "", "/bin", "/sbin", "/usr", "/usr/bin", "/usr/sbin", "/etc", "/var", "/var/tmp" }) do
    assert(uv.fs_mkdir(tree .. name, tonumber("755", 8)))
  end
  assert(uv.fs_chmod(tree .. "/var/tmp", tonumber("1777", 8)))
  assert(uv.fs_copyfile(program, tree .. "/bin/busybox"))
  for path in listed.stdout:gmatch("[^\n]+") do
    if path:match("^[%w/_.%[-]+$") and path ~= "bin/busybox" then
      uv.fs_symlink("/bin/busybox", tree .. "/" .. path) -- an unknown directory only lacks its links
    end
  end
  return true
end

function kinds.minimal(options)
  local program, message, code = busybox()
  if not program then
    return nil, message, code
  end
  local unpacked
  unpacked, message, code = worker.with_directory(options, function(work)
    local tree = work .. "/tree"
    local made, why, name = make_tree(tree, program)
    if not made then
      return nil, why, name
    end
    return fill(options, {
      "tar", "-C", tree, "--owner=0", "--group=0", "--numeric-owner", "-cf", "-", ".",
      stderr = "pipe",
    }, "tar")
  end)
  if not unpacked then
    return nil, message, code
  end
  return unpacked, "busybox", { "/bin/sh" }
end

--- Builds an image of a kind that we know. See image/init.lua for options and result.
local function build(kind, options)
  if not kinds[kind] then
    return nil, "no such kind of image: " .. kind .. " (there are: debian, minimal)", "EINVAL"
  end
  local unpacked, source, cmd = kinds[kind](options)
  if not unpacked then
    return nil, source, cmd
  end
  return {
    env = { "LANG=C.UTF-8" },
    cmd = cmd,
    cwd = "/workspace",
    user = "agent",
    bytes = unpacked.bytes,
    entries = unpacked.entries,
    source = source,
    created = os.time(),
  }
end

return build

--- Which driver holds a state directory's files, and why.
--
-- Runs in the server and in `doctor`, which has nothing but LuaJIT. What is there already decides; then
-- TIDEPOOL_STORAGE, which is auto, pool, btrfs or overlay; then what the machine can.
local ffi = require("ffi")
local read_file = require("tidepool.file").read

ffi.cdef("int access(const char *path, int mode);")

local choice = {}

--- What they are, for people.
choice.about = {
  pool = "a btrfs pool in an image file",
  btrfs = "btrfs in place, on the state directory's own file system",
  overlay = "overlayfs on the state directory's file system",
}

local function exists(path)
  return ffi.C.access(path, 0) == 0
end

local function on_path(program)
  for directory in ((os.getenv("PATH") or "") .. ":/usr/sbin:/sbin:/usr/bin:/bin"):gmatch("[^:]+") do
    if exists(directory .. "/" .. program) then
      return true
    end
  end
  return false
end

local function release()
  return (read_file("/proc/sys/kernel/osrelease") or ""):match("^%S*")
end

--- Whether the kernel has a file system or module, or would load it: "in the kernel", "a module", or nil.
function choice.module(name, filesystem)
  if filesystem and ("\n" .. (read_file("/proc/filesystems") or "")):find("%s" .. filesystem .. "\n") then
    return "in the kernel"
  elseif exists("/sys/module/" .. name) then
    return "in the kernel"
  end
  for _, index in ipairs({ "modules.builtin", "modules.dep" }) do
    if (read_file("/lib/modules/" .. release() .. "/" .. index) or ""):find("/" .. name .. "%.ko") then
      return index == "modules.dep" and "a module" or "in the kernel"
    end
  end
end

local function no_pool()
  if not choice.module("btrfs", "btrfs") then
    return "this kernel has no btrfs"
  elseif not exists("/dev/loop-control") and choice.module("loop") ~= "a module" then
    return "there are no loop devices"
  elseif not on_path("mkfs.btrfs") then
    return "mkfs.btrfs is missing (package btrfs-progs)"
  end
end

local function no_overlay()
  local major, minor = release():match("^(%d+)%.(%d+)")
  if not choice.module("overlay", "overlay") then
    return "this kernel has no overlayfs"
  elseif tonumber(major or 0) * 1000 + tonumber(minor or 0) < 5019 then
    return "overlayfs can map ids since Linux 5.19 only"
  end
end

-- What an earlier server has made there.
local function held(state)
  if exists(state .. "/pool.img") then
    return "pool"
  elseif read_file(state .. "/pool/storage") then
    return (read_file(state .. "/pool/storage"):gsub("%s+$", ""))
  end
end

--- The driver of a state directory that is on btrfs or not: its name, and the reason for a person |
-- nil, message, code. `setting`: what TIDEPOOL_STORAGE says, if anything.
function choice.pick(state, on_btrfs, setting)
  setting = setting and setting ~= "" and setting or "auto"
  if setting ~= "auto" and not choice.about[setting] then
    return nil, "TIDEPOOL_STORAGE is auto, pool, btrfs or overlay, not " .. setting, "EINVAL"
  end
  local there = held(state)
  if there and not choice.about[there] then
    return nil, ("%s/pool is of another version of Tidepool: its storage is %q"):format(state, there), "EINVAL"
  elseif there then
    return there, "the state directory holds it already"
      .. ((setting == "auto" or setting == there) and "" or ", so TIDEPOOL_STORAGE=" .. setting .. " is not followed")
  end
  local lacks = {
    pool = no_pool(),
    btrfs = not on_btrfs and "the state directory is on another file system" or nil,
    overlay = no_overlay(),
  }
  if setting ~= "auto" then
    if lacks[setting] then
      return nil, ("TIDEPOOL_STORAGE=%s: %s"):format(setting, lacks[setting]), "ENOTSUP"
    end
    return setting, "TIDEPOOL_STORAGE says so"
  elseif on_btrfs then
    return "btrfs", "the state directory is on btrfs"
  elseif not lacks.pool then
    return "pool", "the default"
  elseif not lacks.overlay then
    return "overlay", "no btrfs pool: " .. lacks.pool
  end
  return nil, ("no storage for sandboxes: no btrfs pool, since %s, and no overlayfs, since %s"):format(
    lacks.pool, lacks.overlay), "ENOTSUP"
end

return choice

-- What becomes of a pool that is too small, full, damaged, or in somebody else's hands.
local cjson = require("cjson")
local support = require("spec.support")
local uv = require("luv")

local MiB = 1048576

local function sh(script, ...)
  local result = support.run({ "sh", "-ec", script, "sh", ... })
  assert.equal(0, result.code, result.stderr)
  return result.stdout
end

-- A server whose pool has 320 MiB.
local function small(setting)
  support.needs_root()
  uv.os_setenv("TIDEPOOL_STORAGE", "pool")
  uv.os_setenv("TIDEPOOL_POOL_SIZE", setting or "320M")
  local server = support.server()
  local info, message, code = server.client:call("info", {})
  uv.os_unsetenv("TIDEPOOL_STORAGE")
  uv.os_unsetenv("TIDEPOOL_POOL_SIZE")
  return server, info, message, code
end

local function box_of(server, name)
  assert(server.client:call("create", { name = name, image = "minimal" }))
  return require("tidepool.client.box").new(server.client, name)
end

local function offline(server, ...)
  return support.cli({ ... }, { env = {
    "TIDEPOOL_STATE=" .. server.state, "TIDEPOOL_RUN=" .. server.run, "PATH=" .. os.getenv("PATH"),
    "TIDEPOOL_BUILD=" .. require("tidepool.paths").build(),
  } })
end

-- Ends the server, and with the last sandbox the loop.
local function stop(server)
  assert.same({}, server:close())
  assert.truthy(support.eventually(function()
    return require("tidepool.server.storage.pool_care").attached(server.state .. "/pool.img") == nil
  end))
end

describe("a pool", function()
  it("has the size that was asked for, and says what sizes are", function()
    local server, info = small()
    assert.equal(320 * MiB, uv.fs_stat(server.state .. "/pool.img").size)
    assert.equal(320 * MiB, info.storage.size)
    assert.is_true(info.storage.used > 0 and info.storage.used < 64 * MiB)
    assert.is_true(info.storage.free > 100 * MiB and info.storage.free < 320 * MiB)
    for _, setting in ipairs({ "large", "1M" }) do
      local _, refused, message, code = small(setting)
      assert.is_nil(refused)
      assert.equal("ENOSERVER", code)
      assert.matches("TIDEPOOL_POOL_SIZE is a size such as 20G, of 192 MiB at least, not " .. setting, message, 1, true)
    end
  end)

  it("that is full says so, runs on, deletes, and grows while it is in use", function()
    local server = small()
    local client = server.client
    assert(client:call("image_build", { image = "minimal" }))
    local hog, other = box_of(server, "hog"), box_of(server, "other")
    -- Without writing it, which would take longer.
    local fill = "for size in 16m 1m; do i=0; while fallocate -l $size $size$i; do i=$((i+1)); done; done"
    local filled = assert(hog:exec(fill))
    assert.matches("No space left on device", filled.stderr, 1, true)
    assert.equal("running\n", assert(other:exec("echo running")).stdout)
    assert.equal("running", hog:info().state)
    local made, message, code = client:call("create", { name = "third", image = "minimal" })
    assert.is_nil(made)
    assert.equal("ENOSPC", code)
    assert.matches("the pool is full, of 320 MiB", message, 1, true)
    assert.matches("storage grow", message, 1, true)
    assert.equal("ENOSPC", select(3, other:snapshot("none")))

    assert.equal("EINVAL", select(3, client:call("storage_grow", { size = 200 * MiB })))
    local _, why, large = client:call("storage_grow", { size = 2 ^ 50 })
    assert.equal("ENOSPC", large)
    assert.matches("can hold a pool of", why, 1, true)
    assert.same({ before = 320 * MiB, size = 512 * MiB }, assert(client:call("storage_grow", { size = 512 * MiB })))
    assert.same({ before = 512 * MiB, size = 512 * MiB }, assert(client:call("storage_grow", { size = 512 * MiB })))
    assert.equal(512 * MiB, client:call("info", {}).storage.size)
    assert.equal(0, assert(other:exec("head -c 5m /dev/zero >fits && sync")).exit_code)
    local third = box_of(server, "third")
    assert.equal("in a larger pool\n", assert(third:exec("echo in a larger pool")).stdout)

    assert(hog:exec(fill))
    assert.equal("ENOSPC", select(3, client:call("create", { name = "fourth", image = "minimal" })))
    assert(hog:destroy())
    assert.truthy(support.eventually(function()
      return (client:call("create", { name = "fourth", image = "minimal" }))
    end))
    local shown = offline(server, "storage", "grow", "--size", "576M")
    assert.equal("the pool has 576 MiB, before 512 MiB\n", shown.stdout, shown.stderr)
  end)

  it("is searched for damage while it is in use, and what is damaged is found", function()
    local server = small()
    local client = server.client
    assert(client:call("image_build", { image = "minimal" }))
    local box = box_of(server, "box")
    assert(box:exec("i=0; while [ $i -lt 20000 ]; do echo tidepool-$i-was-here; i=$((i+1)); done >file; sync"))
    local sound = assert(client:call("storage_check", {}))
    assert.equal(0, sound.errors)
    assert.is_true(sound.bytes > MiB)
    assert.matches("no damage was found", offline(server, "storage", "check").stdout, 1, true)

    local hurt = support.run({ "python3", "-c", [[
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 0) as image:
    at = image.find(b"tidepool-10000-was-here")
    if at < 0: sys.exit("not found")
    image[at:at + 8] = b"damaged!"
    image.flush()
]], server.state .. "/pool.img" })
    assert.equal(0, hurt.code, hurt.stderr)
    local found = assert(client:call("storage_check", {}))
    assert.is_true(found.errors > 0)
    assert.is_true((found.damage.csum or 0) > 0)
    local told = offline(server, "storage", "check", "--json")
    assert.equal(1, told.code)
    assert.equal(found.errors, cjson.decode(told.stdout).errors)
    assert.equal("on\n", assert(box:exec("echo on")).stdout)
  end)

  -- What is done to a pool that no server has mounted yet, since older btrfs-progs know no simple quotas.
  local damages = {
    ["its superblock"] = { 'dd if=/dev/zero of="$1" bs=4096 seek=16 count=1 conv=notrunc status=none', "its superblock is damaged" },
    ["a tree"] = { [=[
      root=$(btrfs inspect-internal dump-super "$1" | sed -n 's/^root[[:space:]][[:space:]]*//p')
      at=$(btrfs-map-logical -l "$root" "$1" | sed -n 's/.*physical \([0-9]*\).*/\1/p' | head -n 1)
      dd if=/dev/zero of="$1" bs=4096 seek=$((at / 4096)) count=4 conv=notrunc status=none]=], "its trees are damaged" },
  }
  for what, case in pairs(damages) do
    it("with damage to " .. what .. " is not written to, and the server says what is wrong", function()
      support.needs_root()
      local directory = support.scratch()
      local state = { state = directory .. "/state", run = directory .. "/run" }
      local image = state.state .. "/pool.img"
      assert(uv.fs_mkdir(state.state, 448))
      sh('truncate -s 256M "$1"; mkfs.btrfs -q -m single "$1"', image)
      sh(case[1], image)
      local before = sh('sha256sum "$1"', image)
      local info, message, code = require("tidepool.client").new(state):call("info", {})
      assert.is_nil(info)
      assert.equal("ENOSERVER", code)
      assert.matches(image .. " is kept as it is: " .. case[2], message, 1, true)
      assert.matches("rescue=all", message, 1, true)
      local check = offline(state, "storage", "check")
      assert.equal(1, check.code, check.stderr)
      assert.matches("there is damage", check.stdout, 1, true)
      assert.equal(before, sh('sha256sum "$1"', image))
    end)
  end

  it("that somebody has attached in another way is refused until it is let go of", function()
    local server = small()
    local image = server.state .. "/pool.img"
    stop(server)
    local loop = support.run({ "losetup", "--read-only", "--find", "--show", image })
    if loop.code ~= 0 then
      pending("no loop device: " .. loop.stderr)
    end
    local device = loop.stdout:gsub("%s+$", "")
    local info, message = server.client:call("info", {})
    local check = offline(server, "storage", "check")
    support.run({ "losetup", "--detach", device })
    assert.is_nil(info)
    assert.matches("is attached to " .. device .. " by somebody else, read-only or in part", message, 1, true)
    assert.equal(125, check.code)
    assert.matches("(EBUSY)", check.stderr, 1, true)
    assert.truthy(support.eventually(function()
      return (server.client:call("info", {}))
    end))
  end)
end)

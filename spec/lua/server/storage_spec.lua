-- Storage: a real btrfs pool over a real loop device.
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local spawner = require("tidepool.server.spawner")
local storage = require("tidepool.server.storage")
local support = require("spec.support")

local MiB = 1048576

local function task(fn)
  return function()
    async.run(fn)
  end
end

local function write(path, text)
  local file, message = io.open(path, "w")
  if not file then
    return nil, message
  end
  local ok, why = file:write(text)
  file:close()
  return ok, why
end

-- Writes and flushes, so that a quota has its say: true or nil, message.
local function write_through(path, bytes)
  local result = support.run({ "dd", "if=/dev/urandom", "of=" .. path, "bs=1M", "count=" .. bytes / MiB, "conv=fsync", "status=none" })
  return result.code == 0, result.stderr
end

local function loops(image)
  local found = {}
  for _, name in ipairs(support.names("/sys/block")) do
    local backing = support.read("/sys/block/" .. name .. "/loop/backing_file")
    if backing and backing:gsub("\n", "") == image then
      found[#found + 1] = name
    end
  end
  return found
end

describe("storage", function()
  local state, pool, s

  local function root(id)
    return assert(s:view(s:sandbox_place(id))).path
  end

  local function create(id, image)
    assert(s:create(id, image))
    return root(id)
  end

  lazy_setup(task(function()
    state = support.scratch()
    pool = assert(spawner.start(2))
    s = assert(storage.open({ state = state, spawners = pool, size = 2048 * MiB }))
    local stage = assert(s:stage_image("tiny"))
    assert(write(stage.path .. "/file", "from the image"))
    assert(s:commit_image(stage, "tiny"))
  end))

  lazy_teardown(task(function()
    s:close()
    pool:close()
  end))

  it("is a sparse image of its own, mounted for root alone and nowhere on the host", task(function()
    if s.kind ~= "pool" then
      return pending("the state directory is on btrfs itself")
    end
    local stat = uv.fs_stat(s.image)
    assert.equal(2048 * MiB, stat.size)
    assert.is_true(stat.blocks * 512 < 200 * MiB)
    assert.equal(448, uv.fs_stat(state .. "/pool").mode % 512)
    assert.is_nil(support.read("/proc/1/mountinfo"):find(state, 1, true))
    local line = support.read("/proc/self/mountinfo"):match("[^\n]*" .. state:gsub("%-", "%%-") .. "/pool [^\n]*")
    for _, flag in ipairs({ "nosuid", "nodev", "noatime" }) do
      assert.truthy(line:find(flag, 1, true), flag)
    end
    local loop = loops(s.image)
    assert.equal(1, #loop)
    assert.equal("1\n", support.read("/sys/block/" .. loop[1] .. "/loop/dio"))
    assert.equal("1\n", support.read("/sys/block/" .. loop[1] .. "/loop/autoclear"))
  end))

  it("makes roots that are written to apart from their image", task(function()
    local one, two = create(101, "tiny"), create(102, "tiny")
    assert(write(one .. "/file", "changed"))
    assert.equal("from the image", support.read(two .. "/file"))
    assert.equal("from the image", support.read(s:view(s:image_place("tiny")).path .. "/file"))
    assert.is_nil(write(s:view(s:image_place("tiny")).path .. "/file", "x"))
    assert(s:delete(101))
    assert(s:delete(102))
    assert.is_nil(uv.fs_stat(one))
  end))

  it("says what is not there, or there already", task(function()
    assert.equal("ENOENT", select(3, s:create(103, "nothing")))
    assert.equal("ENOENT", select(3, s:delete(103)))
    assert.is_nil(uv.fs_stat(state .. "/pool/sandboxes/103"))
    assert(s:create(104, "tiny"))
    assert.equal("EEXIST", select(3, s:create(104, "tiny")))
    assert.equal("from the image", support.read(root(104) .. "/file"))
    assert(s:delete(104))
    assert.equal("ENOENT", select(3, s:remove_image("nothing")))
  end))

  it("keeps roots ready, so that a create is a rename", task(function()
    s:refill("tiny")
    assert.truthy(support.eventually(function()
      return #s.warm.tiny == storage.WARM
    end))
    local ready = s.warm.tiny[storage.WARM]
    local inode = uv.fs_stat(ready).ino
    assert(s:create(105, "tiny"))
    assert.equal(inode, uv.fs_stat(state .. "/pool/sandboxes/105").ino)
    assert.truthy(support.eventually(function()
      return #s.warm.tiny == storage.WARM
    end))
    assert(s:delete(105))
  end))

  it("makes roots without any that are ready, too", task(function()
    s.warm_count = 0
    while #s.warm.tiny > 0 do
      local id = 150 + #s.warm.tiny
      assert(s:create(id, "tiny"))
      assert(s:delete(id))
    end
    assert.equal("from the image", support.read(create(150, "tiny") .. "/file"))
    assert.same({}, support.names(state .. "/pool/warm/tiny"))
    assert(s:delete(150))
    s.warm_count = storage.WARM
  end))

  it("makes many at once", task(function()
    local tasks = {}
    for i = 1, 30 do
      tasks[i] = function()
        assert.equal("from the image", support.read(create(200 + i, "tiny") .. "/file"))
      end
    end
    async.all(tasks)
    for i = 1, 30 do
      assert(s:delete(200 + i))
    end
    assert.truthy(support.eventually(function()
      return #support.names(state .. "/pool/trash") == 0
    end))
    assert.same({}, support.names(state .. "/pool/sandboxes"))
  end))

  it("replaces an image only when asked, at once, and new roots are of the new one", task(function()
    local stage = assert(s:stage_image("swap"))
    assert(write(stage.path .. "/file", "old"))
    assert(s:commit_image(stage, "swap"))
    assert(s:create(106, "swap"))
    assert.truthy(support.eventually(function()
      return #s.warm.swap == storage.WARM
    end))
    stage = assert(s:stage_image("swap"))
    assert(write(stage.path .. "/file", "new"))
    assert.equal("EEXIST", select(3, s:commit_image(stage, "swap")))
    assert(s:commit_image(stage, "swap", true))
    assert(s:create(107, "swap"))
    assert.equal("old", support.read(root(106) .. "/file"))
    assert.equal("new", support.read(root(107) .. "/file"))
    assert.same({ "swap", "tiny" }, s:images())
    assert(s:remove_image("swap"))
    assert.equal("new", support.read(root(107) .. "/file"))
    assert.equal("ENOENT", select(3, s:create(108, "swap")))
    assert(s:delete(106))
    assert(s:delete(107))
    assert.same({ "tiny" }, s:images())
  end))

  it("never shows a staged image, and drops it when told", task(function()
    local stage = assert(s:stage_image("half"))
    assert(write(stage.path .. "/file", "half"))
    assert.same({ "tiny" }, s:images())
    assert(s:abort_image(stage))
    assert.is_nil(uv.fs_stat(stage.path))
    assert.same({}, support.names(state .. "/pool/staging"))
  end))

  it("takes snapshots that don't change", task(function()
    local files = create(109, "tiny")
    assert(write(files .. "/file", "then"))
    assert(s:snapshot(109, "keep"))
    local path = assert(s:view(s:snapshot_place("keep"))).path
    assert(write(files .. "/file", "now"))
    assert.equal("then", support.read(path .. "/file"))
    assert.is_nil(write(path .. "/file", "x"))
    assert.equal("EEXIST", select(3, s:snapshot(109, "keep")))
    assert(s:remove_snapshot("keep"))
    assert(s:delete(109))
  end))

  -- How many transactions the pool's file system has committed.
  local function commits()
    for _, name in ipairs(support.names("/sys/fs/btrfs")) do
      for _, device in ipairs(support.names("/sys/fs/btrfs/" .. name .. "/devices")) do
        local backing = support.read(("/sys/fs/btrfs/%s/devices/%s/loop/backing_file"):format(name, device))
        if backing and backing:gsub("\n", "") == s.image then
          return tonumber((support.read("/sys/fs/btrfs/" .. name .. "/commit_stats") or ""):match("commits (%d+)"))
        end
      end
    end
  end

  it("makes copies that are asked for at once together, and tells each what it failed of", task(function()
    create(120, "tiny")
    local outcomes, tasks, before = {}, {}, commits()
    for i = 1, 70 do
      tasks[i] = function()
        outcomes[i] = { s:clone(120 + i, s:sandbox_place(120)) }
      end
    end
    async.all(tasks)
    local after = commits()
    for i = 1, 70 do
      assert.is_true(outcomes[i][1], outcomes[i][2])
      assert.equal("from the image", support.read(root(120 + i) .. "/file"))
      assert(write(root(120 + i) .. "/file", "mine " .. i))
    end
    assert.equal("mine 7", support.read(root(127) .. "/file"))
    assert.equal("from the image", support.read(root(120) .. "/file"))
    if before then
      assert.is_true(after - before < 70, ("%d commits for 70 copies"):format(after - before))
    end

    assert(s:delete(121))
    assert(s:delete(122))
    async.all({ unpack(tasks, 1, 3) })
    assert.is_true(outcomes[1][1], outcomes[1][2])
    assert.is_true(outcomes[2][1], outcomes[2][2])
    assert.equal("EEXIST", outcomes[3][3])
    assert.equal("mine 3", support.read(root(123) .. "/file"))
    for i = 0, 70 do
      assert(s:delete(120 + i))
    end
  end))

  it("limits and counts what a sandbox adds", task(function()
    local files = create(110, "tiny")
    if not s.quota then
      assert.equal("ENOTSUP", select(3, s:limit(110, MiB)))
      assert.equal("ENOTSUP", select(3, s:usage(110)))
      return pending("needs simple quotas: " .. s.unenforced[1])
    end
    assert(s:limit(110, 16 * MiB))
    assert.is_true(write_through(files .. "/fits", 8 * MiB))
    assert(pool:execute({ { "sync", state .. "/pool" } })) -- what is counted is what a transaction has taken
    local used = assert(s:usage(110))
    assert.is_true(used >= 8 * MiB and used < 10 * MiB, tostring(used))
    local ok, message = write_through(files .. "/too-much", 32 * MiB)
    assert.is_false(ok)
    assert.truthy(message:find("quota"), message)
    assert.is_true(assert(s:usage(110)) <= 16 * MiB)
    assert(s:limit(110, nil))
    assert.is_true(write_through(files .. "/fits-now", 24 * MiB))
    assert(s:delete(110))
  end))

  it("finds the loop that is there instead of attaching the image twice", task(function()
    if s.kind ~= "pool" then
      return pending("the state directory is on btrfs itself")
    end
    local second = state .. "/second"
    local answer = assert(pool:execute({ { "mkdir", second, 448 }, { "pool", s.image, second } }))
    assert.same({}, answer.values)
    assert.equal(1, #loops(s.image))
    assert.equal("from the image", support.read(second .. "/images/tiny/root/file"))
    assert(pool:execute({ { "umount", second }, { "rmdir", second } }))
  end))

  it("leaks no descriptor in the spawners", task(function()
    for i = 1, 2 do
      assert(support.eventually(function()
        return support.fd_count(pool.members[i].pid) <= 16 -- half of them programs and maps made ahead, see steer.h
      end))
    end
  end))

  it("refuses names that lead elsewhere", task(function()
    for _, name in ipairs({ "../x", "a/b" }) do
      local answer, message = pool:execute({ { "subvolume", state .. "/pool/staging", name } })
      assert.is_nil(answer)
      assert.truthy(message:find("subvolume name"), message)
    end
  end))

  it("removes at the start what an earlier server left half-made, and keeps the rest", task(function()
    local kept, unknown = create(111, "tiny"), create(112, "tiny")
    local stage = assert(s:stage_image("half"))
    assert(pool:execute({ { "mkdir", state .. "/pool/trash/left", 448 }, { "subvolume", state .. "/pool/trash/left", "root" } }))
    assert(pool:execute({ { "mkdir", state .. "/pool/staging/no-root-yet", 448 } }))
    assert.truthy(support.eventually(function()
      return #s.warm.tiny == storage.WARM
    end))
    s:close()
    s = assert(storage.open({ state = state, spawners = pool }))
    s:reconcile({ 111 })
    assert.truthy(uv.fs_stat(kept))
    assert.is_nil(uv.fs_stat(unknown))
    assert.is_nil(uv.fs_stat(stage.path))
    assert.truthy(support.eventually(function()
      return #support.names(state .. "/pool/trash") == 0
    end))
    for _, name in ipairs({ "staging", "warm" }) do
      assert.same({}, support.names(state .. "/pool/" .. name))
    end
    assert.equal("from the image", support.read(create(113, "tiny") .. "/file"))
    assert(s:delete(111))
    assert(s:delete(113))
  end))

  it("is found again after its server was killed, whether a mount of it lives on or not", task(function()
    if s.kind ~= "pool" then
      return pending("the state directory is on btrfs itself")
    end
    local own = support.scratch()
    local program = ([[
      require("luv")
      local async = require("tidepool.async")
      async.run(function()
        local pool = assert(require("tidepool.server.spawner").start(1))
        local s = assert(require("tidepool.server.storage").open({ state = %q, spawners = pool, size = 1 * 2^30 }))
        if #s:images() == 0 then
          local stage = assert(s:stage_image("kept"))
          assert(s:commit_image(stage, "kept"))
        end
        io.stdout:write("ready ", table.concat(s:images(), ","), "\n")
        io.stdout:flush()
        async.sleep(600)
      end)
    ]]):format(own)
    local function serve()
      local started, line = async.event(), async.event()
      local ended = async.spawn(function()
        return async.command({ "luajit", "-e", program, stdout = "pipe", on_start = function(pid)
          started:set(pid)
        end, on_line = function(text)
          line:set(text)
        end })
      end)
      local pid = started:wait(60)
      assert.equal("ready kept", line:wait(60))
      return pid, ended
    end

    local pid, ended = serve()
    local holder = core.fd.open(("/proc/%d/root%s/pool"):format(pid, own), "rd") -- as a sandbox's mount would
    assert.truthy(holder)
    local loop = loops(own .. "/pool.img")
    uv.kill(pid, 9)
    ended:join()
    async.sleep(0.1)
    assert.same(loop, loops(own .. "/pool.img"))
    pid, ended = serve()
    assert.same(loop, loops(own .. "/pool.img"))
    holder:close()
    uv.kill(pid, 9)
    ended:join()
    assert.truthy(support.eventually(function()
      return #loops(own .. "/pool.img") == 0
    end))
    pid, ended = serve()
    assert.equal(1, #loops(own .. "/pool.img"))
    uv.kill(pid, 9)
    ended:join()
    assert.truthy(support.eventually(function()
      return #loops(own .. "/pool.img") == 0
    end))
  end))

  it("says what is wrong with a pool that is none", task(function()
    local broken = support.scratch()
    if uv.fs_statfs(broken).type == 0x9123683E then
      return pending("the state directory is on btrfs itself")
    end
    assert(write(broken .. "/pool.img", ("no file system"):rep(10000)))
    local opened, message = storage.open({ state = broken, spawners = pool })
    assert.is_nil(opened)
    assert.truthy(message:find("^open the pool: plan step 2: mount /dev/loop"), message)
    assert.matches("damaged, or of a newer kernel", message, 1, true)
    assert.truthy(support.eventually(function()
      return #loops(broken .. "/pool.img") == 0
    end))
    assert.equal("ENOENT", select(3, storage.open({ state = "/no/such/state", spawners = pool })))
  end))
end)

describe("core.namespace", function()
  it("gives this process mounts of its own once, and keeps them", function()
    assert.is_true(core.namespace.unshare_mount())
    local own = uv.fs_readlink("/proc/self/ns/mnt")
    assert.is_true(core.namespace.unshare_mount())
    assert.equal(own, uv.fs_readlink("/proc/self/ns/mnt"))
    assert.are_not.equal(own, uv.fs_readlink("/proc/1/ns/mnt"))
  end)
end)

-- Id ranges: one a sandbox, never twice on a host.
local uv = require("luv")
local ids = require("tidepool.server.ids")
local support = require("spec.support")

describe("id ranges", function()
  local shared, states
  local first_id = ids.FIRST

  before_each(function()
    ids.FIRST = 0x60000000 -- no sandbox of the machine's runs there
    shared = support.scratch()
    states = { support.scratch(), support.scratch() }
  end)

  after_each(function()
    ids.FIRST = first_id
  end)

  local function open(i, in_use)
    return assert(ids.open({ state = states[i], in_use = in_use, directory = shared }))
  end

  it("are 65,536 ids apart and above those of the host", function()
    local allocator = open(1)
    local one, two = allocator:allocate(), allocator:allocate()
    assert.is_true(one >= 0x10000000)
    assert.equal(0, one % 65536)
    assert.is_true(math.abs(one - two) >= 65536)
  end)

  it("are never given twice, whatever number of servers", function()
    local seen = {}
    local first, second = open(1), open(2)
    for _ = 1, 200 do
      for _, allocator in ipairs({ first, second }) do
        local base = assert(allocator:allocate())
        assert.is_nil(seen[base])
        seen[base] = true
      end
    end
  end)

  it("are used again after release, the latest last", function()
    local allocator = open(1)
    local base = allocator:allocate()
    allocator:release(base)
    for _ = 1, ids.BLOCK - 1 do
      assert.are_not.equal(base, allocator:allocate())
    end
    assert.equal(base, allocator:allocate())
    allocator:release(12345) -- not ours: nothing happens
  end)

  it("survive a restart of the server", function()
    local before = open(1)
    local used = { before:allocate(), before:allocate() }
    local after = open(1, used)
    local blocks = 0
    for _ in pairs(after.blocks) do
      blocks = blocks + 1
    end
    assert.equal(1, blocks)
    for _ = 1, ids.BLOCK - 2 do
      local base = after:allocate()
      assert.are_not.equal(used[1], base)
      assert.are_not.equal(used[2], base)
    end
    assert.is_nil(after.blocks[1])
    after:allocate()
    assert.is_true(after.blocks[1])
  end)

  it("of state directories that are gone are given to others", function()
    local first = open(1)
    local base = first:allocate()
    assert(uv.fs_rmdir(states[1]))
    assert.equal(base, open(2):allocate())
  end)

  it("of a state directory made anew in the same place are not taken over by it unseen", function()
    local first = open(1)
    first:allocate()
    local path = states[1]
    assert(uv.fs_rename(path, path .. "-moved"))
    assert(uv.fs_mkdir(path, 448))
    local again = open(1)
    assert.are_not.equal(first.owner, again.owner)
  end)

  it("end some day, with a reason", function()
    local saved = ids.BLOCKS
    ids.BLOCKS = 1
    local allocator = open(1)
    for _ = 1, ids.BLOCK do
      assert(allocator:allocate())
    end
    local base, message, code = allocator:allocate()
    ids.BLOCKS = saved
    assert.is_nil(base)
    assert.equal("EUSERS", code)
    assert.truthy(message:find("no id range"))
  end)

  it("need a state directory", function()
    assert.equal("ENOENT", select(3, ids.open({ state = "/nowhere", directory = shared })))
  end)
end)

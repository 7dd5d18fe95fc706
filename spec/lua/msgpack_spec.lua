local mpack = require("mpack")
local msgpack = require("tidepool.msgpack")

local function memory()
  for line in io.lines("/proc/self/status") do
    local size = line:match("VmSize:%s+(%d+)")
    if size then
      return tonumber(size)
    end
  end
end

describe("msgpack from outside", function()
  it("is decoded when it is whole", function()
    local values = {
      0, 127, -1, -32, 200, 70000, 2 ^ 40, -200, -70000, -(2 ^ 40), 1.5, true, false, "", "short",
      ("x"):rep(40), ("x"):rep(300), ("x"):rep(70000), { 1, { 2, { "three" } } }, { a = 1, b = { c = "d" } },
      { 0, 7, "exec", { name = "box", argv = { "sh", "-c", "true" }, env = { A = "1" } } },
    }
    local many = {}
    for i = 1, 70000 do
      many[i] = i
    end
    values[#values + 1] = many
    for _, value in ipairs(values) do
      local ok, decoded = msgpack.decode(mpack.pack(value))
      assert.is_true(ok)
      assert.same(value, decoded)
    end
  end)

  it("is refused when it is cut anywhere, or something follows", function()
    local bytes = mpack.pack({ 0, 7, "exec", { name = ("n"):rep(50), argv = { "a", 1.5, 70000 }, tty = false } })
    for length = 0, #bytes - 1 do
      assert.is_false((msgpack.decode(bytes:sub(1, length))))
    end
    assert.is_false((msgpack.decode(bytes .. "\192")))
  end)

  it("is refused when it claims more than came, at no cost", function()
    local before = memory()
    for _ = 1, 1000 do
      for _, bytes in ipairs({
        "\219\255\255\255\255x", "\198\255\255\255\255", "\221\255\255\255\255", "\223\255\255\255\255",
        "\219\0\255\255\255abc", "\217", "\218\1", "\147\1\219\1\0\0\0", ("\145"):rep(1000) .. "\192",
        "\193", "\199\1\5x", "\201\255\255\255\255\5x", "",
      }) do
        assert.is_false((msgpack.decode(bytes)))
      end
    end
    assert.is_true(memory() - before < 65536)
  end)
end)

local names = require("tidepool.egress.names")

describe("the private addresses of names", function()
  it("are not those that a process before may have given to others", function()
    local starts = {}
    for _ = 1, 20 do
      local again = names.new({ { 1, "a.example" } }, true)
      assert.equal(1, (again:give("a.example")))
      local index = again:give("b.example")
      assert.is_true(index > 1 and index <= 65535)
      starts[index] = true
    end
    assert.is_truthy(next(starts, next(starts)))
    assert.equal(2, (names.new({ { 1, "a.example" } }):give("b.example")))
  end)

  it("stay the same for a name, and lead back to it, over IPv4 and IPv6", function()
    local table_of = names.new()
    local first = table_of:give("a.example")
    local second = table_of:give("b.example")
    assert.equal(first, (table_of:give("a.example")))
    assert.not_equal(first, second)
    assert.equal("198.18.0.1", names.v4(first))
    assert.equal("fd74:6964:6501::2", names.v6(second))
    assert.equal("a.example", table_of:at("198.18.0.1"))
    assert.equal("b.example", table_of:at("fd74:6964:6501::2"))
  end)

  it("are told apart from every other address", function()
    local table_of = names.new()
    table_of:give("a.example")
    for _, address in ipairs({ "198.18.0.2", "198.17.255.255", "8.8.8.8", "fd74:6964:6500::2", "::1", "fd74:6964:6501::1:1" }) do
      assert.is_nil(table_of:at(address), address)
    end
    assert.is_true(names.is_pool("198.19.255.255"))
    assert.is_false(names.is_pool("198.20.0.0"))
    assert.is_false(names.is_pool("8.8.8.8"))
  end)

  it("are told once each to who keeps them, and come back from there", function()
    local before = names.new()
    before:give("a.example")
    before:give("b.example")
    before:give("a.example")
    local fresh = before:take_fresh()
    assert.same({ { 1, "a.example" }, { 2, "b.example" } }, fresh)
    assert.same({}, before:take_fresh())

    local after = names.new(fresh)
    assert.equal("b.example", after:at("198.18.0.2"))
    assert.equal(3, (after:give("c.example")))
    assert.equal(1, (after:give("a.example")))
  end)

  it("are taken from the name that was not asked for the longest when none is left", function()
    local table_of = names.new()
    for i = 1, 50000 do
      table_of:give("host" .. i)
    end
    table_of:give("host1")
    local index = table_of:give("one-more")
    assert.equal(2, index)
    assert.equal("one-more", table_of:at(names.v4(2)))
    assert.equal("host1", table_of:at(names.v4(1)))
    assert.equal("198.18.195.80", names.v4(50000))
    assert.equal("host50000", table_of:at(names.v6(50000)))
    local order = {}
    for i = 1, 4 do
      order[i] = (table_of:give("another" .. i))
    end
    assert.same({ 3, 4, 5, 6 }, order)
  end)

  it("cost the same when none is left", function()
    local table_of = names.new()
    for i = 1, 50000 do
      table_of:give("host" .. i)
    end
    local began = os.clock()
    for i = 1, 1000 do
      table_of:give("more" .. i)
    end
    assert.is_true(os.clock() - began < 1)
  end)
end)

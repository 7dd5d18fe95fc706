local bench = require("tidepool.bench")
local support = require("spec.support")

describe("bench", function()
  it("takes the median and the nearest-rank 99th percentile", function()
    local samples = {}
    for i = 1, 200 do
      samples[i] = 201 - i
    end
    assert.same({ median = 100.5, p99 = 198, n = 200 }, bench.statistics(samples))
    assert.same({ median = 100.5, p99 = 3, n = 200 }, bench.statistics(samples, "low"))
    assert.same({ median = 7, p99 = 7, n = 1 }, bench.statistics({ 7 }))
    assert.is_nil(bench.statistics({}))
  end)

  it("says which measurements there are when asked for another", function()
    local result = support.cli({ "bench", "--only", "nosuch" })
    assert.equal(125, result.code)
    for _, name in ipairs({ "create_first_exit", "exec_true", "output_20mb", "file_write", "file_read", "idle_memory", "create_rate",
      "egress_connect", "egress_added_1", "egress_throughput_core" }) do
      assert.matches(name, result.stderr, 1, true)
    end
  end)

  it("measures side by side and reports it as JSON", function()
    support.needs_root()
    local result = support.cli({ "bench", "--json", "--only", "file_read" })
    assert.equal(0, result.code, result.stderr)
    local list = require("cjson").decode(result.stdout)
    assert.equal(1, #list)
    assert.equal("file_read", list[1].name)
    assert.equal("ms", list[1].unit)
    assert.is_true(list[1].ours.median > 0 and list[1].ours.p99 >= list[1].ours.median)
    assert.equal("table", type(list[1].peers))
  end)
end)

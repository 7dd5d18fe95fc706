-- Bodies far larger than any buffer, and peers that are slow: the egress process holds no more of them than it
-- holds of any.
local outside = require("spec.support.outside")
local support = require("spec.support")
local talk = require("spec.support.talk")
local web = require("spec.support.web")

local MB = 1048576
local SIZE = 256 * MB

describe("a large body", function()
  local world, box

  setup(function()
    world = outside.new()
    world:serve("echo.test", function(leaf) return web.echo({ leaf = leaf }) end)
    world:serve("plain.test", function() return web.echo() end, false)
    box = world:sandbox()
    assert(box:exec("truncate -s " .. SIZE .. " /tmp/large"))
    -- The first connection of each kind makes what later ones use again.
    assert(box:exec("curl -sS -T /tmp/large https://echo.test/sink; curl -sS -o /dev/null https://echo.test/bytes?size=1000000"))
  end)

  -- The most memory, in KiB, that the egress process has resident while fn runs inside: the line of shell `line`.
  local function peak_of(line)
    local pid = assert(box:egress_show()).process.pid
    local function resident()
      return tonumber(support.read("/proc/" .. pid .. "/status"):match("VmRSS:%s+(%d+)"))
    end
    local most, before = 0, resident()
    local process = assert(box:start({ "sh", "-c", line .. " >/tmp/told 2>&1" }))
    support.eventually(function()
      most = math.max(most, resident())
      return process:wait(0.02)
    end, 200)
    return most - before, assert(box:exec("cat /tmp/told")).stdout
  end

  for _, scheme in ipairs({ "https://echo", "http://plain" }) do
    it("comes down in constant memory over " .. scheme:match("^%w+"), function()
      local grown, told = peak_of(("curl -sS -o /dev/null -w '%%{http_code} %%{size_download}' '%s.test/bytes?size=%d'"):format(scheme, SIZE))
      assert.equal("200 " .. SIZE, told)
      assert.is_true(grown < 2048, grown .. " KiB more")
    end)

    it("goes up in constant memory over " .. scheme:match("^%w+"), function()
      for _, framing in ipairs({ "", "-H 'Transfer-Encoding: chunked'" }) do
        local grown, told = peak_of(("curl -sS %s -T /tmp/large '%s.test/sink'"):format(framing, scheme))
        assert.matches('"size": ' .. SIZE .. ",", told)
        assert.is_true(grown < 2048, grown .. " KiB more")
      end
      local entry = talk.entry(box, { method = "PUT", bytes_sent = SIZE, path = "/sink" })
      assert.equal(200, entry.status)
    end)
  end

  it("waits for a client that reads slowly", function()
    local grown = peak_of("timeout 2 curl -sS --limit-rate 100k -o /dev/null https://echo.test/bytes?size=" .. SIZE)
    assert.is_true(grown < 2048, grown .. " KiB more")
    local entry = talk.entry(box, { path = "/bytes", action = "error", reason = "the client has gone" })
    -- What sockets hold, and no more.
    assert.is_true(entry.bytes_received < 24 * MB, entry.bytes_received)
  end)

  it("waits for an upstream that reads slowly", function()
    local grown, told = peak_of("curl -sS --max-time 2 -w '%{size_upload}' -T /tmp/large https://echo.test/sink?rate=100000")
    assert.is_true(grown < 2048, grown .. " KiB more")
    assert.is_true(tonumber(told:match("(%d+)$")) < 24 * MB, told)
  end)

  it("goes both ways for many clients at once", function()
    local result = assert(box:exec([[
      seq 12 | xargs -P 12 -I{} sh -c 'curl -sS "https://echo.test/bytes?size=3000000" | sha256sum;
        head -c 3000000 /tmp/large | curl -sS -T - "https://echo.test/sink"']]))
    local _, down = result.stdout:gsub("3f373df6c0a5a6c30b2e54e392d4914341a43be89d43bacde82bd48506cba305  %-", "")
    local _, up = result.stdout:gsub('"size": 3000000,', "")
    assert.same({ 12, 12 }, { down, up })
  end)
end)

-- What identifies a process over a server's life: this boot, and when it started.
local support = require("spec.support")
local async = require("tidepool.async")
local host = require("tidepool.server.host")
local uv = require("luv")

describe("the host", function()
  it("has one id a boot", function()
    assert.equal(support.read("/proc/sys/kernel/random/boot_id"):match("%S+"), host.boot_id())
    assert.equal(host.boot_id(), host.boot_id())
  end)

  it("knows when a process started, whatever its name is, and nothing of one that is not there", function()
    local directory = support.scratch()
    local odd = directory .. "/a) S 1 (b"
    assert(uv.fs_copyfile("/bin/sleep", odd))
    assert(uv.fs_chmod(odd, 493))
    async.run(function()
      local pid
      local task = async.spawn(async.command, {
        odd, "1000",
        on_start = function(started)
          pid = started
        end,
      })
      local started = host.start_time(pid)
      local uptime = tonumber(support.read("/proc/uptime"):match("%S+"))
      assert.is_true(math.abs(started / 100 - uptime) < 60)
      assert.equal(started, host.start_time(pid))
      assert(uv.kill(pid, "sigkill"))
      task:join()
      assert.is_nil(host.start_time(pid))
    end)
  end)
end)

-- The system call filter, from inside a sandbox, as root there: a real probe of real calls.
local async = require("tidepool.async")
local core = require("tidepool.core")
local containers = require("spec.support.container")
local support = require("spec.support")

local EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97

describe("the filter", function()
  it("is the same bytes each time, whole instructions, and no descriptor stays open", function()
    local before = support.fd_count()
    local filter = assert(core.seccomp.filter())
    assert.equal(0, #filter % 8)
    assert.is_true(#filter / 8 < 4096)
    for _ = 1, 5 do
      assert.equal(filter, core.seccomp.filter())
    end
    assert.equal(before, support.fd_count())
  end)

  describe("inside", function()
    local told = {}

    lazy_setup(function()
      async.run(function()
        local root = assert(containers.root())
        local compiled = support.run({ "cc", "-static", "-O1", "-o", root .. "/bin/probe", "spec/support/probe.c" })
        assert.equal(0, compiled.code, compiled.stderr)
        local box = assert(containers.start({ root = root }))
        local result = assert(box:run({ "/bin/probe" }))
        assert.equal(0, result.code, result.stderr)
        for name, code in result.stdout:gmatch("(%S+) (%d+)\n") do
          told[name] = tonumber(code)
        end
        assert(box:run("cp /bin/probe /workspace/setuid && chmod 4755 /workspace/setuid"))
        told.setuid = assert(box:run({ "/workspace/setuid", "identity" }, { user = "agent" })).stdout
        box:stop()
      end)
    end)

    local function answers(code, names)
      for _, name in ipairs(names) do
        if told[name] or not name:find("^i386") and not name:find("^x32") then
          assert.equal(code, told[name], name)
        end
      end
    end

    it("lets a build do what it does", function()
      answers(0, { "clone", "unshare_files", "socket_inet", "socket_unix", "socket_netlink", "personality_ask",
        "personality_norandomize", "trace", "i386_getpid", "i386_socket_unix" })
    end)

    it("lets a setuid program work within the sandbox's own ids, as sudo needs", function()
      assert.equal("1000 0\n", told.setuid)
    end)

    it("refuses new namespaces and entering others", function()
      answers(EPERM, { "clone_user", "clone_net", "clone_mount", "unshare_user", "unshare_time", "setns",
        "i386_unshare_user", "i386_clone_user", "i386_setns" })
    end)

    it("answers clone3 as an old kernel would, since its flags can't be seen", function()
      answers(ENOSYS, { "clone3", "i386_clone3" })
    end)

    it("refuses every way to mount", function()
      answers(EPERM, { "mount", "umount2", "pivot_root", "fsopen", "open_tree", "move_mount", "mount_setattr", "i386_mount" })
      answers(ENOSYS, { "listmount" })
    end)

    it("refuses what concerns the kernel as a whole", function()
      answers(EPERM, { "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "init_module", "kexec_load",
        "open_by_handle_at", "reboot", "swapon", "syslog", "clock_settime", "personality_odd" })
      answers(ENOSYS, { "io_uring_setup", "i386_io_uring_setup" })
    end)

    it("refuses nested subvolumes, and typing into another's terminal", function()
      answers(EPERM, { "subvolume", "subvolume_v2", "snapshot", "snapshot_v2", "ioctl_high_bits", "tiocsti", "tioclinux",
        "i386_subvolume" })
    end)

    it("leaves reflinks of btrfs's own calls, and nothing that seals a root or tells of the pool", function()
      answers(EPERM, { "subvolume_flags", "subvolume_seal", "set_received", "start_sync", "sync", "device_info",
        "file_system_info" })
      for _, name in ipairs({ "reflink", "reflink_range", "dedupe" }) do
        assert.are_not.equal(EPERM, told[name], name) -- the kernel's own answer to nonsense
      end
    end)

    it("refuses line disciplines, which are old kernel code", function()
      answers(EPERM, { "line_discipline" })
    end)

    it("keeps init's resource limits from root, whose user id it has", function()
      answers(0, { "limits_own" })
      answers(EPERM, { "limits_of_init", "i386_limits_of_init" })
    end)

    it("refuses sockets that lead past the network namespace", function()
      answers(EAFNOSUPPORT, { "socket_vsock", "socket_alg", "i386_socket_vsock", "i386_socketcall_vsock" })
    end)

    it("has no asynchronous I/O that counts against a table of the whole host", function()
      answers(ENOSYS, { "io_setup" })
    end)

    it("knows no x32", function()
      answers(ENOSYS, { "x32_getpid" })
    end)
  end)
end)

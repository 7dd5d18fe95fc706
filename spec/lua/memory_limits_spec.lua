-- The odd things that processes hold when a sandbox is to hibernate: each comes back, or is refused with the
-- process and the reason, and then nothing has happened to the sandbox.
local uv = require("luv")
local support = require("spec.support")

local COME_BACK = {
  "stopped", "fifo_with_waiting_reader", "two_thousand_descriptors", "three_hundred_processes", "zombie",
  "sessions_and_groups", "file_in_renamed_directory", "file_in_deleted_directory", "deleted_working_directory",
  "replaced_file", "chroot", "filter_of_its_own", "sealed_memory_file", "locks", "descriptors_in_flight", "system_v",
  "unix_datagrams", "netlink", "packet_socket", "signal_descriptor", "event_descriptor",
  "process_descriptor", "terminal_of_its_own", "process_of_another_user",
}
local AS_ROOT = { chroot = true, packet_socket = true }

local REFUSED = {
  traced = "process %d+ %(python3%) is traced by process %d+",
  starting_for_ever = "process %d+ %(python3%) waits for a program that it starts",
  first_thread_gone = "process %d+ %(python3%) goes on in other threads than its first",
  directory_of_proc = "process %d+ %(python3%) holds a directory of /proc open",
  landlock_rules = "process %d+ %(python3%) holds Landlock rules",
  secret_memory = "process %d+ %(python3%) uses secret memory",
  message_queue = "there is a POSIX message queue, /queue,",
  unread_netlink = "process %d+ %(python3%) has not read an answer from its netlink socket",
  unix_connection_not_accepted = "process %d+ %(python3%) has a unix connection that is not accepted yet",
  eleven_hundred_pipes = "process %d+ %(python3%) has one of more than 1,024 pipes",
  unix_name_deleted = "process %d+ %(python3%) has a unix socket whose name was deleted",
}

describe("what a sandbox holds when it is to hibernate", function()
  local server

  setup(function()
    support.needs_root()
    server = support.shared()
    support.image("debian")
  end)

  local it = support.needing(it, support.needs_criu)

  local function sandbox()
    local box = server:sandbox({ image = "debian", cpu = 2, memory = 3 * 2 ^ 30 })
    assert(box:write("/workspace/held.py", assert(support.read("spec/support/held.py"))))
    return box
  end

  -- Starts the process and waits until it holds the thing; nil when this kernel has no such thing.
  local function hold(box, name)
    local process = assert(box:start({ "python3", "/workspace/held.py", name, "/workspace/" .. name }, {
      name = name, stdin = true, user = AS_ROOT[name] and "root" or nil }))
    assert(process:attach({ input = true }))
    local said = assert(process:expect("ready\n", { timeout = 60 }) or process:expect("lacking [^\n]*\n", { timeout = 5 }),
      name .. " is not held: " .. assert(process:logs({ follow = false })).text)
    return said:find("^ready") and process or nil
  end

  local function check(box, name)
    local process = box:process(name)
    assert(process:attach({ input = true, offset = -1 }))
    assert(process:write("check\n"))
    return assert(process:expect(name .. ": [^\n]*%.\n", { timeout = 60 })):match(name .. ": [^\n]*")
  end

  it("comes back with it", function()
    local box = sandbox()
    for _, name in ipairs(COME_BACK) do
      assert(hold(box, name), name)
    end
    assert(box:hibernate())
    assert.equal("running", assert(box:wake()).state)
    local wrong = {}
    for _, name in ipairs(COME_BACK) do
      local found = check(box, name)
      wrong[#wrong + 1] = found ~= name .. ": well." and found or nil
    end
    assert.same({}, wrong)
  end)

  it("does not keep it from sleeping while it starts one program after the other", function()
    local box = sandbox()
    assert(hold(box, "programs_being_started"))
    for _ = 1, 3 do
      assert(box:hibernate())
      assert(box:wake())
    end
    assert.equal("programs_being_started: well.", check(box, "programs_being_started"))
  end)

  local shared
  for name, reason in pairs(REFUSED) do
    it("is refused for it, by name, and goes on as if nothing was asked: " .. name:gsub("_", " "), function()
      local box = shared or sandbox()
      shared = nil -- of use to the next one only if all goes well
      local process = hold(box, name)
      if not process then
        shared = box
        return pending("needs a kernel with it: " .. name)
      end
      local before = assert(box:info())
      local took, message, code = box:hibernate()
      assert.same({ nil, "ENOTSUP" }, { took, code })
      assert.matches(reason, message)
      assert.matches("can't be captured", message)
      local after = assert(box:info())
      assert.same({ "running", before.pid, before.processes }, { after.state, after.pid, after.processes })
      assert.equal(name .. ": well.", check(box, name))
      assert(process:kill(0))
      assert.is_nil(uv.fs_stat(("%s/memory/%d"):format(server.state, after.id)))
      shared = box
    end)
  end

  it("sleeps once that is gone", function()
    local box = shared or sandbox()
    assert(box:hibernate())
    assert(box:wake())
    assert.equal("ok\n", assert(box:exec("echo ok")).stdout)
  end)
end)

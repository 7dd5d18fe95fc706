-- Steering: no way out of a sandbox but the sockets that we hold, and everything of its own left alone.
-- The same sentences for both ways, core.steer's "bpf" and "tproxy".
local uv = require("luv")
local async = require("tidepool.async")
local core = require("tidepool.core")
local cgroup = require("tidepool.server.cgroup")
local container = require("tidepool.server.container")
local containers = require("spec.support.container")
local steer = require("spec.support.steer")
local steering = require("tidepool.server.steering")
local support = require("spec.support")

local function task(fn)
  return function()
    async.run(fn)
  end
end

-- Whether a kind of descriptor is among those of this process.
local function held(kind)
  local count = 0
  for _, number in ipairs(support.names("/proc/self/fd")) do
    local info = support.read("/proc/self/fdinfo/" .. number) or ""
    count = count + (info:find(kind, 1, true) and 1 or 0)
  end
  return count
end

local function client_root()
  local root = containers.root()
  return root and steer.client(root).code == 0 and root
end

local function possible(mode)
  if mode == "bpf" then
    return core.steer.probe()
  end
  return support.run({ "sh", "-c", "command -v nft nsenter" }).code == 0
end

for _, mode in ipairs({ "bpf", "tproxy" }) do
  describe("steering by " .. mode, function()
    local box, root, stop_serving

    lazy_setup(task(function()
      root = possible(mode) and client_root()
      if not root then
        return
      end
      box = assert(containers.start({ root = root, steer = mode }))
      assert(steering.open(box.steering))
      stop_serving = steer.serve(box.steering)
    end))

    lazy_teardown(task(function()
      if box then
        stop_serving()
        box:stop()
      end
    end))

    -- What the client inside says to these words.
    local function try(words, user)
      if not box then
        pending("needs busybox, a C compiler and " .. (mode == "bpf" and "bpf" or "nftables"))
      end
      local result = assert(box:run("/bin/steer " .. words, { user = user }))
      return (result.stdout:gsub("\n$", "")) .. result.stderr
    end

    it("takes a TCP connection to any address and port, and knows where it was meant to go", task(function()
      for _, where in ipairs({ "8.8.8.8 443", "1.2.3.4 1", "10.200.0.1 53", "169.254.169.254 80", "192.0.2.1 61080",
        "192.168.1.1 65535", "198.18.0.1 22", "255.255.255.254 5", "10.200.0.3 61080" }) do
        assert.equal("ok " .. where, try("tcp " .. where, "agent"))
      end
      for _, where in ipairs({ "2001:db8::1 443", "fd74:6964:6500::1 53", "fd74:6964:6500:1::2 80", "::2 80", "100::1 61080",
        "fd74:6964:6501::7 22", "64:ff9b::808:808 80", "1::1 80" }) do
        assert.equal("ok " .. where, try("tcp " .. where, "agent"))
      end
    end))

    it("takes an IPv4 connection that a program writes as IPv6", task(function()
      assert.equal("ok 8.8.8.8 443", try("tcp ::ffff:8.8.8.8 443"))
    end))

    it("takes connections with early data, of several paths, and from an address that isn't the sandbox's", task(function()
      assert.equal("ok 8.8.8.8 443", try("fast 8.8.8.8 443"))
      local paths = try("mptcp 8.8.8.8 443")
      assert.truthy(paths == "ok 8.8.8.8 443" or paths == "EPROTONOSUPPORT", paths)
      assert.equal("ok 8.8.8.8 443", try("tcp 8.8.8.8 443 9.9.9.9"))
    end))

    it("takes a DNS question to any server, and the answer comes from there", task(function()
      assert.equal("ok answer from 10.200.0.1", try("udp 10.200.0.1 53"))
      assert.equal("ok answer from 8.8.8.8", try("udp 8.8.8.8 53", "agent"))
      assert.equal("ok answer from 2001:db8::53", try("udp 2001:db8::53 53"))
    end))

    it("refuses every other datagram at once", task(function()
      for _, where in ipairs({ "8.8.8.8 443", "8.8.8.8 123", "10.200.0.1 5353", "2001:db8::1 443", "192.0.2.1 61080" }) do
        assert.equal("ECONNREFUSED", try("udp " .. where))
      end
    end))

    it("lets no ping through, nor does the sandbox's own kernel answer it", task(function()
      for _, where in ipairs({ "8.8.8.8", "10.200.0.1", "2001:db8::1" }) do
        assert.equal("EAGAIN", try("ping " .. where))
      end
    end))

    it("leaves the sandbox's own services alone", task(function()
      for _, way in ipairs({ "127.0.0.1 127.0.0.1", "127.9.9.9 127.9.9.9", "0.0.0.0 127.0.0.1", "0.0.0.0 0.0.0.0",
        "0.0.0.0 10.200.0.2", "10.200.0.2 10.200.0.2", "::1 ::1", ":: ::1", ":: ::", ":: fd74:6964:6500::2", ":: 127.0.0.1",
        ":: 10.200.0.2", "fd74:6964:6500::2 fd74:6964:6500::2" }) do
        for _, port in ipairs({ 80, 53, 443, 8080 }) do
          assert.equal("ok inside", try(("self %s %d"):format(way, port)), way .. " " .. port)
        end
      end
      assert.equal("ECONNREFUSED", try("tcp 127.0.0.1 81"))
      assert.equal("ECONNREFUSED", try("udp 127.0.0.1 53"))
      assert.equal("ok", try("bind udp 127.0.0.53 53"))
      assert.equal("ok", try("bind udp 0.0.0.0 53 shared"))
    end))

    it("has one port of its own, and only outside of the ephemeral ones", task(function()
      assert.equal("EADDRINUSE", try("bind tcp 0.0.0.0 61080 shared"))
      assert.equal("EADDRINUSE", try("bind tcp :: 61080"))
      assert.equal("ok", try("bind tcp 127.0.0.1 61080"))
      local range = box:run("cat /proc/sys/net/ipv4/ip_local_port_range").stdout
      assert.is_true(tonumber(range:match("%d+%s+(%d+)")) < 61080)
    end))

    it("goes before a program inside that listens on the address that is meant", task(function()
      assert.equal("ok 8.8.8.8 80", try("self 0.0.0.0 8.8.8.8 80"))
      assert.equal("ok 8.8.8.8 81", try("self 8.8.8.8 8.8.8.8 81"))
      assert.equal("EADDRINUSE", try("bind tcp 192.0.2.1 61080 transparent"))
    end))

    it("lets a server inside have a port to which there are connections outside", task(function()
      assert.equal("ok 8.8.8.8 80", try("tcp 8.8.8.8 80"))
      assert.equal("ok", try("bind tcp 0.0.0.0 80 shared"))
    end))

    it("answers packets that are made by hand as it does others, and other protocols never", task(function()
      assert.equal("ok", try("raw 8.8.8.8 443")) -- the listener's SYN and ACK
      for _, protocol in ipairs({ 1, 2, 41, 47, 50, 132, 253 }) do
        local told = try("raw 8.8.8.8 0 " .. protocol)
        assert.truthy(told == "EAGAIN" or told == "EPERM", protocol .. " " .. told)
      end
    end))

    it("refuses at once while it is shut, resets who waits, and serves again when it is opened", task(function()
      try("tcp 8.8.8.8 443")
      assert(core.steer.shut(box.steering.map, box.steering, mode))
      assert(steering.shut(box.steering)) -- twice
      for _, where in ipairs({ "tcp 8.8.8.8 443", "tcp 2001:db8::1 443", "udp 10.200.0.1 53", "udp 2001:db8::1 53", "tcp 10.200.0.1 53" }) do
        assert.equal("ECONNREFUSED", try(where), where)
      end
      assert.equal("ok inside", try("self 0.0.0.0 127.0.0.1 80"))
      assert(core.steer.open(box.steering.map, box.steering, mode))
      assert(steering.open(box.steering))
      assert.equal("ok 8.8.8.8 443", try("tcp 8.8.8.8 443"))
      assert.equal("ok answer from 10.200.0.1", try("udp 10.200.0.1 53"))

      stop_serving()
      async.sleep(0.05)
      local told
      async.spawn(function()
        told = try("tcp 8.8.8.8 443")
      end)
      assert.is_true(support.eventually(function() -- the kernel has taken the connection, nobody else has
        return support.read("/proc/" .. box.pid .. "/net/tcp"):find(" 08080808:01BB 01 ", 1, true) ~= nil
      end))
      assert.is_nil(told)
      assert(steering.shut(box.steering))
      assert.is_true(support.eventually(function()
        return told ~= nil
      end))
      assert.equal("ECONNRESET", told)
      assert(steering.open(box.steering))
      stop_serving = steer.serve(box.steering)
    end))
  end)

  -- Root inside has no power over its network today. Who had it, all of it, would win nothing.
  describe("steering by " .. mode .. ", against all powers over the namespace,", function()
    local root, box, stop_serving

    lazy_setup(task(function()
      root = possible(mode) and client_root()
    end))

    -- A sandbox of its own for each, since each is broken afterwards.
    before_each(task(function()
      if root then
        box = assert(containers.start({ root = root, steer = mode }))
        stop_serving = steer.serve(box.steering)
        assert(steering.open(box.steering))
      end
    end))

    after_each(task(function()
      if root then
        stop_serving()
        box:stop()
      end
    end))

    local function try(words)
      if not root then
        pending("needs busybox, a C compiler and " .. (mode == "bpf" and "bpf" or "nftables"))
      end
      return (box:run("/bin/steer " .. words).stdout:gsub("\n", ""))
    end

    -- As the host's root, in the sandbox's network namespace alone.
    local function abuse(line)
      if root then
        return support.run({ "nsenter", "--net=/proc/" .. box.pid .. "/ns/net", "sh", "-c", line })
      end
    end

    local tries = { "tcp 8.8.8.8 443", "tcp 2001:db8::1 443", "udp 8.8.8.8 53", "udp 8.8.8.8 4000", "ping 8.8.8.8" }
    local served = { "ok 8.8.8.8 443", "ok 2001:db8::1 443", "ok answer from 8.8.8.8" }

    for what, commands in pairs({
      ["routes removed"] = { "ip route flush table local", "ip -6 route flush table local" },
      ["lo taken down"] = { "ip link set lo down" },
      ["cards in the place of lo"] = { "ip link add v0 type veth peer name v1", "ip addr add 8.8.8.1/24 dev v0", "ip link set v0 up",
        "ip link set v1 up", "ip route add default via 8.8.8.2", "ip route del local default table local" },
      ["cards before lo"] = { "ip link add v0 type veth peer name v1", "ip addr add 8.8.8.1/24 dev v0", "ip link set v0 up",
        "ip link set v1 up", "ip rule add pref 0 table 100", "ip route add default dev v0 table 100" },
      ["an address outside taken as its own"] = { "ip addr add 8.8.8.8/32 dev lo", "ip addr add 2001:db8::1/128 dev lo" },
      ["rules of its own"] = { "ip rule add pref 0 blackhole", "ip -6 rule add pref 0 blackhole" },
    }) do
      it("nobody else is reached with " .. what, task(function()
        for _, command in ipairs(commands) do
          local done = abuse(command)
          assert.equal(0, done and done.code or 0, command .. ": " .. (done and done.stderr or ""))
        end
        for i, words in ipairs(tries) do
          local told = try(words)
          assert.truthy(told:find("^E%u+$") or told == served[i], words .. ": " .. told)
        end
      end))
    end

    it("destroyed listeners are refusals, and back when opened again", task(function()
      for _, where in ipairs({ "192.0.2.1 61080", "100::1 61080" }) do
        assert.equal("EPERM", try("destroy " .. where))
        local told = abuse(root .. "/bin/steer destroy " .. where).stdout
        if told == "EOPNOTSUPP\n" then
          pending("needs a kernel with CONFIG_INET_DIAG_DESTROY")
        end
        assert.equal("ok\n", told)
      end
      assert.equal("ECONNREFUSED", try("tcp 8.8.8.8 443"))
      assert.equal("ECONNREFUSED", try("tcp 2001:db8::1 443"))
      assert.equal("ECONNREFUSED", try("self 192.0.2.1 8.8.8.8 61081"))
      assert(steering.shut(box.steering))
      assert(steering.open(box.steering))
      assert.equal("ok 8.8.8.8 443", try("tcp 8.8.8.8 443"))
      assert.equal("ok 2001:db8::1 443", try("tcp 2001:db8::1 443"))
    end))

    it("root inside has none of them", task(function()
      if not root then
        pending("needs busybox")
      end
      for _, line in ipairs({ "ip link add v0 type veth peer name v1", "ip addr add 8.8.8.8/32 dev lo", "ip link set lo down",
        "ip route add default dev lo", "unshare -n true", "nsenter -t 1 -n true", "echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_all" }) do
        assert.are_not.equal(0, box:run(line).code, line)
      end
    end))
  end)
end

describe("a sandbox's steering", function()
  local host, root

  lazy_setup(task(function()
    host = containers.host()
    root = containers.root()
  end))

  local function start(mode)
    local spec = containers.spec(host, { root = root, steer = mode })
    local made, message, code = container.start(host.pool, spec)
    return made, made and spec or message, code
  end

  local function stop(made, spec)
    assert(cgroup.kill(host.cgroups, spec.cgroup))
    assert(async.readable(made.pidfd:number(), 60))
    made.pidfd:close()
    assert(cgroup.remove(host.cgroups, spec.cgroup))
  end

  it("goes, map and program and sockets, with its last holder", task(function()
    if not core.steer.probe() then
      pending("needs bpf")
    end
    local before, links, maps = support.fd_count(), held("link_type"), held("map_type")
    for _ = 1, 50 do
      local made, spec = assert(start("bpf"))
      assert(steering.open(made.steering))
      assert.equal(links + 1, held("link_type"))
      assert.equal(maps + 1, held("map_type"))
      steering.close(made.steering)
      stop(made, spec)
    end
    assert.equal(before, support.fd_count())
  end))

  it("is collected when it is forgotten", task(function()
    local before = support.fd_count()
    for _ = 1, 10 do
      local made, spec = assert(start())
      stop(made, spec)
    end
    collectgarbage()
    collectgarbage()
    assert.equal(before, support.fd_count())
  end))

  it("is made anew for one that runs and whose sockets nobody holds", task(function()
    for _, mode in ipairs({ "bpf", "tproxy" }) do
      if possible(mode) then
        local with_client = assert(client_root())
        local box = assert(containers.start({ root = with_client, steer = mode }))
        assert(steering.open(box.steering))
        steering.close(box.steering)
        assert.equal("ECONNREFUSED\n", box:run("/bin/steer tcp 8.8.8.8 443").stdout)
        for _ = 1, 2 do
          box.steering = assert(container.resteer(box.host.pool, box.pid, mode))
          assert.equal("ECONNREFUSED\n", box:run("/bin/steer tcp 8.8.8.8 443").stdout)
          assert(steering.open(box.steering))
          local stop_serving = steer.serve(box.steering)
          assert.equal("ok 8.8.8.8 443\n", box:run("/bin/steer tcp 8.8.8.8 443").stdout)
          assert.equal("ok answer from 8.8.8.8\n", box:run("/bin/steer udp 8.8.8.8 53").stdout)
          stop_serving()
          steering.close(box.steering)
        end
        box:stop()
      end
    end
  end))

  it("is undone with the sandbox where its rules can't be put in", task(function()
    local before, path = support.fd_count(), os.getenv("PATH")
    uv.os_setenv("PATH", "/no/such/directory")
    local made, message, code = start("tproxy")
    uv.os_setenv("PATH", path)
    assert.is_nil(made)
    assert.equal("ENOENT", code)
    assert.truthy(message:find("steering", 1, true), message)
    assert.same({}, cgroup.names(host.cgroups))
    assert.equal(before, support.fd_count())
  end))

  it("does without IPv6 where the machine does", task(function()
    local made, spec = assert(start("bpf"))
    steering.close(made.steering)
    local net = "--net=/proc/" .. made.pid .. "/ns/net"
    assert.equal(0, support.run({ "nsenter", net, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6" }).code)
    local again = assert(container.resteer(host.pool, made.pid, "bpf"))
    assert.truthy(again.tcp4 and again.udp4 and again.map and again.link)
    assert.is_nil(again.tcp6)
    assert.is_nil(again.udp6)
    assert(steering.open(again))
    assert(steering.shut(again))
    steering.close(again)
    stop(made, spec)
  end))

  it("says why it can't be made or opened", task(function()
    assert.equal("ESRCH", select(3, container.resteer(host.pool, 4194303)))
    local made, spec = assert(start("bpf"))
    local pipe, other = assert(core.fd.pair())
    assert.equal("EBADF", select(3, core.steer.open(2 ^ 20, made.steering)))
    assert.equal("EINVAL", select(3, core.steer.open(pipe, made.steering)))
    assert.equal("EINVAL", select(3, core.steer.shut(pipe, made.steering)))
    assert.has_error(function()
      core.steer.open(nil, made.steering)
    end)
    assert.has_error(function()
      core.steer.open(made.steering.map, made.steering, "magic")
    end)
    pipe:close()
    other:close()
    steering.close(made.steering)
    assert.has_error(function()
      steering.open(made.steering)
    end)
    stop(made, spec)
    assert.equal("EINVAL", select(3, host.pool:execute({ { "steer", 12, 15, 0 } })))
    assert.equal("EINVAL", select(3, host.pool:execute({ { "steer", 4, 15, 0 } })))
  end))
end)

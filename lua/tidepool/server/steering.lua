--- Steering: what leads a sandbox's connections to an egress process, from the server's side (root).
--
-- The plan step `steer` makes it in the sandbox's network namespace (core/steer.h) and gives descriptors:
-- four sockets, which an egress process serves, and in mode "bpf" a sockmap and the link that keeps the
-- program attached. It is made shut: connections are refused until `open`. Whoever holds a socket keeps
-- the namespace alive, so a sandbox that has ended must have its steering closed.
local async = require("tidepool.async")
local core = require("tidepool.core")

local steering = {}

local names = { "tcp4", "tcp6", "udp4", "udp6", "map", "link" }
local modes = { bpf = 0, tproxy = 1 }

--- What the sandbox's resolver asks. Nobody has this address, so the question is steered.
steering.nameserver = "10.200.0.1"

local chosen

--- "bpf", or "tproxy" where the kernel refuses bpf or TIDEPOOL_STEER says so.
function steering.mode()
  local wanted = os.getenv("TIDEPOOL_STEER")
  if wanted and modes[wanted] then
    return wanted
  end
  chosen = chosen or core.steer.probe() and "bpf" or "tproxy"
  return chosen
end

--- The plan's step: slots from `first` on get the descriptors; `namespace` is the slot of a pidfd, or an
-- empty one for the plan's own child.
function steering.step(first, namespace, mode)
  return { "steer", first, namespace, modes[mode] }
end

--- What the answer to a plan with one such step holds, { tcp4, tcp6, udp4, udp6, map, link, mode }: those
-- that there are. A system without IPv6 lacks two.
function steering.take(answer, mode)
  local made, bits, at = { mode = mode }, answer.values[1], 1
  for i, name in ipairs(names) do
    if bit.band(bits, bit.lshift(1, i - 1)) ~= 0 then
      made[name], at = answer.fds[at], at + 1
    end
  end
  return made
end

--- Connections reach the sockets from now on: true | nil, message, code. Twice is harmless.
function steering.open(made)
  return core.steer.open(made.map, made, made.mode)
end

--- Connections are refused from now on, and those that nobody has accepted are reset.
function steering.shut(made)
  return core.steer.shut(made.map, made, made.mode)
end

--- Lets go of it. When nobody else holds any of it, nothing is left of it.
function steering.close(made)
  for _, name in ipairs(names) do
    if made[name] then
      made[name]:close()
    end
  end
end

-- What mode "tproxy" needs beside the sockets. A rule that finds no transparent socket for a packet hands
-- it on: it belongs to a connection that a program inside began from some other address, and is accepted
-- further down, or it would begin one, and is refused. Anything else goes nowhere.
local rules = [[
table inet tidepool
delete table inet tidepool
table inet tidepool {
  chain prerouting {
    type filter hook prerouting priority mangle; policy drop;
    ip daddr { 127.0.0.0/8, 10.200.0.2 } accept
    ip6 daddr { ::1, fd74:6964:6500::2 } accept
    meta nfproto ipv4 meta l4proto tcp tproxy ip to 192.0.2.1:61080 accept
    meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [100::1]:61080 accept
    meta nfproto ipv4 udp dport 53 tproxy ip to 192.0.2.1:53 accept
    meta nfproto ipv6 udp dport 53 tproxy ip6 to [100::1]:53 accept
    tcp flags & (syn | ack) == syn reject with tcp reset
    meta l4proto tcp accept
    meta l4proto udp reject
  }
}
]]

--- Puts the rules into the network namespace of a process, before anything of the sandbox's runs there.
-- true | nil, message, code: "ENOENT" without the program.
function steering.rule(pid)
  local result, message, code = async.command({
    "nsenter", "--net=/proc/" .. pid .. "/ns/net", "nft", rules, stderr = "pipe",
  })
  if not result then
    return nil, "steering by nft: " .. message, code
  elseif result.code == 127 then
    return nil, "steering without bpf needs nft (apt-get install nftables)", "ENOENT"
  elseif result.code ~= 0 then
    return nil, "steering by nft: " .. result.stderr:match("^(.-)%s*$"), "EIO"
  end
  return true
end

--- Steers a sandbox that runs, anew: for one whose sockets nobody holds any more. `pidfd` is its init's.
-- { tcp4 = ... }, shut, as container.start gives it | nil, message, code
function steering.renew(pool, pidfd, pid, mode)
  mode = mode or steering.mode()
  local answer, message, code = pool:execute({ steering.step(1, 0, mode) }, { pidfd })
  if not answer then
    return nil, message, code
  end
  local made = steering.take(answer, mode)
  if mode == "tproxy" then
    local ok
    ok, message, code = steering.rule(pid)
    if not ok then
      steering.close(made)
      return nil, message, code
    end
  end
  return made
end

return steering

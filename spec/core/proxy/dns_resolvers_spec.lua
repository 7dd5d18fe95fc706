-- The answers as the resolvers of glibc, musl and c-ares understand them, each in a
-- namespace where the only name server is ours.
local paths = require("tidepool.paths")

local MUSL = [[
#include <netdb.h>
#include <arpa/inet.h>
#include <stdio.h>
int main(int argc, char **argv) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
  char text[64];
  int code = argc > 1 ? getaddrinfo(argv[1], NULL, &hints, &list) : 0;
  if (code)
    return puts(gai_strerror(code)), 1;
  for (; list; list = list->ai_next)
    getnameinfo(list->ai_addr, list->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST), puts(text);
}
]]

local directory

-- Runs a shell command beside the name server; returns what it printed.
local function with_names(command)
  local script = ([[
    set -e
    cd '%s'
    ip link set lo up
    echo 'nameserver 127.0.0.1' > $D/resolv.conf
    echo 'hosts: dns' > $D/nsswitch.conf
    mount --bind $D/resolv.conf /etc/resolv.conf
    mount --bind $D/nsswitch.conf /etc/nsswitch.conf
    luajit spec/support/servers/names.lua > $D/log 2>&1 &
    for i in $(seq 1000); do grep -q ready $D/log && break; sleep 0.05; done
    set +e
    ( %s ) 2>&1
    kill $!
  ]]):format(paths.repo(), command)
  local file = assert(io.open(directory .. "/script", "w"))
  file:write(script)
  file:close()
  local pipe = assert(io.popen(("D=%s timeout 60 unshare -nmpf --kill-child sh %s/script </dev/null"):format(directory, directory)))
  local output = pipe:read("*a")
  pipe:close()
  return output
end

local function log()
  local file = assert(io.open(directory .. "/log"))
  local text = file:read("*a")
  file:close()
  return text
end

describe("DNS answers are understood by", function()
  setup(function()
    local pipe = io.popen("mktemp -d")
    directory = pipe:read("*l")
    pipe:close()
  end)

  teardown(function()
    os.execute("rm -rf --one-file-system " .. directory)
  end)

  it("glibc, which comes by TCP for what is long", function()
    local output = with_names("RES_OPTIONS=edns0 getent ahosts one.example; getent ahosts many.example | grep -c STREAM; getent hosts 198.18.0.1; "
      .. "getent ahosts none.example; echo status $?")
    assert.matches("198%.18%.0%.1%s+STREAM", output)
    assert.matches("fd74:6964:6501::1%s+STREAM", output)
    assert.matches("\n32\n", output)
    assert.matches("198%.18%.0%.1%s+one%.example", output)
    assert.matches("status 2\n$", output)
    assert.is_truthy(log():find("tcp\tmany.example\tA", 1, true))
    assert.matches("udp\tone%.example\tA\t1200\n", log())
  end)

  it("musl, which makes do with what fits a datagram", function()
    local file = assert(io.open(directory .. "/names.c", "w"))
    file:write(MUSL)
    file:close()
    assert.equal(0, os.execute(("musl-gcc -o %s/names %s/names.c"):format(directory, directory)))
    local output = with_names("$D/names one.example; $D/names many.example | grep -c 198.18.1; $D/names none.example")
    assert.matches("198%.18%.0%.1\n", output)
    assert.matches("fd74:6964:6501::1\n", output)
    assert.matches("\n%d%d\n", output)
    assert.matches("Name does not resolve\n$", output)
  end)

  it("c-ares, as node has it", function()
    local output = with_names([[node -e '
      const dns = require("dns");
      dns.resolve4("one.example", (e, a) => console.log("A", a));
      dns.resolve6("one.example", (e, a) => console.log("AAAA", a));
      dns.resolve4("many.example", (e, a) => console.log("many", a.length));
      dns.reverse("198.18.0.1", (e, a) => console.log("PTR", a));
      dns.resolve4("none.example", (e) => console.log("none", e.code));
      dns.resolveMx("one.example", (e) => console.log("MX", e.code));']])
    assert.matches("A %[ '198%.18%.0%.1' %]", output)
    assert.matches("AAAA %[ 'fd74:6964:6501::1' %]", output)
    assert.matches("many 32", output)
    assert.matches("PTR %[ 'one%.example' %]", output)
    assert.matches("none ENOTFOUND", output)
    assert.matches("MX ENODATA", output)
  end)
end)

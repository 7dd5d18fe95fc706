"""Floods the proxy from inside a sandbox. Runs there by `python3 -c`, with one argument, a JSON object: deeds,
and how much (count). Prints JSON: what came of each, and how long it took."""
import itertools
import json
import resource
import select
import socket
import ssl
import struct
import sys
import time

C = json.loads(sys.argv[1])
COUNT = C["count"]
PLACE = ("198.51.100.77", 80)
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (HARD, HARD))


def opened(count, first):
    """Connections that have said as much as `first`, all at once; it may be one for each."""
    first = itertools.repeat(first) if isinstance(first, bytes) else first
    connections, alive = [], 0
    for _ in range(count):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(PLACE)
        try:
            connection.send(next(first))  # at once, since who is silent is taken for another protocol
            alive += 1
        except OSError:
            pass
        connections.append(connection)
    open_ones, ended_ones = connections, None
    while ended_ones != []:  # until no more of them end: a busy proxy takes its time
        time.sleep(C.get("hold", 1))
        ended_ones = [connection for connection in open_ones if has_ended(connection)]
        open_ones = [connection for connection in open_ones if connection not in set(ended_ones)]
    return {"alive": alive, "held": len(open_ones)}


def has_ended(connection):
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def connects():
    """One after the other, each closed at once."""
    made = 0
    for _ in range(COUNT):
        with socket.socket() as connection:
            connection.settimeout(5)
            try:
                connection.connect(PLACE)
                made += 1
            except OSError:
                pass
    return made


def half_open():
    return opened(COUNT, b"GET / HTTP/1.1\r\nHost: 198.51.100.77\r\n")


def slow_heads():
    return opened(COUNT, b"GET / HTTP/1.1\r\nHost: 198.51.100.77\r\nX-Slow: " + b"x" * 60000)


def half_tls():
    return opened(COUNT, b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + b"x" * 8000)


def hellos():
    """Whole TLS hellos, each for another name, so that each needs a certificate of its own."""
    out = ssl.MemoryBIO()
    try:
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="0000000000.test").do_handshake()
    except ssl.SSLWantReadError:
        pass
    data = out.read()
    names = (data.replace(b"0000000000", b"%010d" % i) for i in range(COUNT))
    return opened(COUNT, names)


def queries():
    """Names that are all different."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setblocking(False)
    server.connect(("10.200.0.1", 53))
    answered = 0
    for i in range(COUNT):
        name = b"\x0a%010d\x07example\0" % i
        try:
            server.send(struct.pack("!6H", i & 0xFFFF, 0x100, 1, 0, 0, 0) + name + b"\0\1\0\1")
        except OSError:
            select.select([], [server], [], 0.01)
        try:
            while server.recv(512):
                answered += 1
        except OSError:
            pass
    while select.select([server], [], [], 0.3)[0]:
        server.recv(512)
        answered += 1
    return answered


def pipelined():
    """Queries behind each other on one connection, without waiting for an answer."""
    query = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + b"\x03abc\x07example\0\0\1\0\1"
    data = (struct.pack("!H", len(query)) + query) * 1000
    end, sent, answered = time.monotonic() + C.get("hold", 1), 0, 0
    with socket.create_connection(("10.200.0.1", 53), 5) as connection:
        connection.setblocking(False)
        while time.monotonic() < end:
            readable, writable, _ = select.select([connection], [connection], [], 1)
            if readable:
                answered += len(connection.recv(1 << 18))
            if writable:
                sent += connection.send(data[sent % len(data):])
    return {"sent": sent, "answered": answered}


def pushes():
    """As many bytes as it takes, on one connection, of one head."""
    with socket.create_connection(PLACE, 5) as connection:
        sent = 0
        try:
            while sent < 50000000:
                sent += connection.send(b"x" * 65536)
        except OSError:
            pass
        return sent


found = {}
for deed in C["deeds"]:
    began = time.monotonic()
    found[deed] = {"outcome": globals()[deed](), "seconds": round(time.monotonic() - began, 2)}
print(json.dumps(found))

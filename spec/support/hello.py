"""TLS hellos that ask for odd names, from inside a sandbox. Runs there by `python3 -c`, with one argument, a
JSON object: host, port, and names: what each hello asks for, in latin-1, "" for nothing. A real hello is
made and its name replaced. Prints JSON: for each, what came back: "hello", "alert N", "closed" or an errno's
name; and what the certificate is for does not matter here."""
import json
import socket
import ssl
import struct
import sys

C = json.loads(sys.argv[1])


def hello(name):
    """A ClientHello for `name`; one of the same length is made first, then exchanged."""
    plain = "x" * (len(name) - 5) + ".test" if len(name) > 5 else "x" * len(name)
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    made = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=plain or None)
    try:
        made.do_handshake()
    except ssl.SSLWantReadError:
        pass
    data = out.read()
    return data.replace(plain.encode(), name.encode("latin-1")) if name else data


def answer(data, pieces):
    with socket.create_connection((C["host"], C["port"]), 5) as connection:
        connection.settimeout(3)
        for i in range(0, len(data), pieces):
            connection.sendall(data[i:i + pieces])
        head = connection.recv(7)
        if not head:
            return "closed"
        return {22: "hello", 21: "alert %d" % head[-1]}.get(head[0], head.decode("latin-1"))


def attempt(name):
    data = hello(name)
    kept = []
    for pieces in (len(data), 100, 9):
        try:
            kept.append(answer(data, pieces))
        except OSError as error:
            kept.append(type(error).__name__)
    return kept[0] if len(set(kept)) == 1 else "/".join(kept)


print(json.dumps({name: attempt(name) for name in C["names"]}))

"""Asks a sandbox's name server, from inside it, record by record.

Runs there by `python3 -c`, with a list of queries as JSON on standard input: [name, type number, options].
Options: edns (size), class, server (address), tcp (how often on one connection). Prints a list of {rcode,
flags, asked, answers, authority, additional, length}.
"""
import json, socket, struct, sys


def name_at(data, at):
    labels, end = [], None
    while data[at]:
        if data[at] >= 192:
            end = end or at + 2
            at = (data[at] & 63) << 8 | data[at + 1]
        else:
            labels.append(data[at + 1:at + 1 + data[at]].decode("latin-1"))
            at += 1 + data[at]
    return ".".join(labels), end or at + 1


def ask(name, kind, options):
    query = struct.pack(">6H", 4711, 256, 1, 0, 0, 1 if "edns" in options else 0)
    for label in name.split("."):
        query += bytes([len(label)]) + label.encode()
    query += b"\0" + struct.pack(">HH", kind, options.get("class", 1))
    if "edns" in options:
        query += struct.pack(">BHHIH", 0, 41, options["edns"], 0, 0)
    family = socket.AF_INET6 if ":" in options.get("server", "") else socket.AF_INET
    where = (options.get("server", "10.200.0.1"), 53)
    if "tcp" in options:
        with socket.create_connection(where, 5) as connection:
            connection.sendall((struct.pack(">H", len(query)) + query) * options["tcp"])
            data = b""
            while len(data) < 2 or len(data) < (2 + struct.unpack(">H", data[:2])[0]) * options["tcp"]:
                data += connection.recv(65536)
            data = data[2:2 + struct.unpack(">H", data[:2])[0]]
    else:
        with socket.socket(family, socket.SOCK_DGRAM) as connection:
            connection.settimeout(5)
            connection.connect(where)
            connection.send(query)
            data = connection.recv(65536)
    ident, flags, _, answers, authority, additional = struct.unpack(">6H", data[:12])
    assert ident == 4711
    asked, at = name_at(data, 12)
    at, records = at + 4, []
    for _ in range(answers + authority + additional):
        owner, at = name_at(data, at)
        kind, klass, ttl, length = struct.unpack(">HHIH", data[at:at + 10])
        value = data[at + 10:at + 10 + length]
        if kind in (1, 28):
            value = socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, value)
        elif kind == 12:
            value = name_at(data, at + 10)[0]
        else:
            value = value.hex()
        records.append({"owner": owner, "type": kind, "ttl": ttl, "data": value, "class": klass})
        at += 10 + length
    return {"rcode": flags & 15, "flags": flags, "asked": asked, "answers": records[:answers], "authority": records[answers:answers + authority],
            "additional": records[answers + authority:], "length": len(data)}


print(json.dumps([ask(name, kind, options) for name, kind, options in json.load(sys.stdin)]))

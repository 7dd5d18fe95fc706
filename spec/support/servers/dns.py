"""A DNS server over UDP and TCP on one port, for the resolver's specs.

The configuration's `zone` is a JSON file, read again at each query, so that a spec changes it while
it runs: {"name": {"A": [...], "AAAA": [...], "CNAME": "other", "ttl": 60, "rcode": 2, "drop": true,
"delay": 0.5, "truncate": true, "turns": [{...}, {...}], "wrong_id": true}}. `turns` are answers that
take turns, as a rebinding server's do. Names that it lacks are NXDOMAIN. Each query is a line in `log`.
"""
import json
import socket
import struct
import threading
import time

import listening

TYPES = {1: "A", 28: "AAAA", 5: "CNAME"}
TURNS = {}


def parse(query):
    ident, flags, questions = struct.unpack(">HHH", query[:6])
    labels, place = [], 12
    while query[place]:
        labels.append(query[place + 1:place + 1 + query[place]].decode("latin-1"))
        place += 1 + query[place]
    kind, = struct.unpack(">H", query[place + 1:place + 3])
    return ident, ".".join(labels).lower(), TYPES.get(kind, str(kind)), query[12:place + 5]


def encoded(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def record(name, kind, ttl, data):
    return encoded(name) + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def lookup(name):
    with open(listening.config()["zone"]) as file:
        entry = json.load(file).get(name)
    if entry and "turns" in entry:
        turn = TURNS[name] = TURNS.get(name, -1) + 1
        entry = entry["turns"][turn % len(entry["turns"])]
    return entry


def records_of(name, kind, entry):
    records, ttl = [], entry.get("ttl", 60)
    if "CNAME" in entry:
        records.append(record(name, 5, ttl, encoded(entry["CNAME"])))
        name, entry = entry["CNAME"], lookup(entry["CNAME"]) or {}
    for address in entry.get(kind, []):
        family, number = (socket.AF_INET, 1) if kind == "A" else (socket.AF_INET6, 28)
        records.append(record(name, number, ttl, socket.inet_pton(family, address)))
    return records


def answer(query, over):
    ident, name, kind, question = parse(query)
    with open(listening.config()["log"], "a") as log:
        log.write(json.dumps({"name": name, "type": kind, "over": over}) + "\n")
    entry = lookup(name)
    if entry and entry.get("delay"):
        time.sleep(entry["delay"])
    if entry and entry.get("drop"):
        return None
    rcode = 3 if entry is None else entry.get("rcode", 0)
    records = [] if rcode else records_of(name, kind, entry)
    flags = 0x8580 | rcode
    if entry and entry.get("truncate") and over == "udp":
        flags, records = flags | 0x0200, []
    if entry and entry.get("wrong_id"):
        ident ^= 0x5555
    return struct.pack(">HHHHHH", ident, flags, 1, len(records), 0, 0) + question + b"".join(records)


def serve_udp(server):
    def one(query, peer):
        reply = answer(query, "udp")
        if reply:
            server.sendto(reply, peer)
    while True:
        threading.Thread(target=one, args=server.recvfrom(4096), daemon=True).start()


def serve_tcp(connection, _):
    stream = connection.makefile("rb")
    while True:
        head = stream.read(2)
        if len(head) < 2:
            return
        reply = answer(stream.read(struct.unpack(">H", head)[0]), "tcp")
        if reply is None:
            return
        connection.sendall(struct.pack(">H", len(reply)) + reply)


def main():
    # listening.run binds the same port for TCP.
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((listening.config().get("host", "127.0.0.1"), listening.config()["port"]))
    threading.Thread(target=serve_udp, args=(udp,), daemon=True).start()
    listening.run(serve_tcp)


main()

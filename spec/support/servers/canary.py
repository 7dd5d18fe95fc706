"""A canary: answers whoever reaches it, and writes down every connection, datagram and packet.

The configuration's `log` gets a line for each. It listens on `port`, TCP and UDP, of each of `hosts`, on
the abstract unix socket `abstract` if given, and sees every packet on the interface `sniff` but what kernels
say to find each other: ARP, and IPv6 of and to link-local addresses.
"""
import json
import socket
import threading

import listening

CONFIG = listening.config()
LOCK = threading.Lock()


def note(how, what):
    with LOCK, open(CONFIG["log"], "a") as log:
        log.write(json.dumps({"how": how, "what": str(what)}) + "\n")


def meet(connection, how, peer):
    note(how, peer)
    connection.settimeout(5)
    try:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\ncanary")
    except OSError:
        pass
    connection.close()


def accept(listener, how):
    while True:
        connection, peer = listener.accept()
        threading.Thread(target=meet, args=(connection, how, peer), daemon=True).start()


def receive(server, how):
    while True:
        _, peer = server.recvfrom(65536)
        note(how, peer)
        server.sendto(b"canary", peer)


def is_chatter(packet):
    kind, payload = packet[12:14], packet[14:]
    if kind == b"\x86\xdd":
        discovery = payload[6] == 58 and 133 <= payload[40] <= 137
        return discovery or payload[8:10] == b"\xfe\x80" or payload[8:24] == bytes(16)
    return kind == b"\x08\x06"


def sniff(interface):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    packets.bind((interface, 0))
    while True:
        packet, where = packets.recvfrom(65536)
        if where[2] != socket.PACKET_OUTGOING and not is_chatter(packet):
            note("packet", packet[:60].hex())


def start(target, *words):
    threading.Thread(target=target, args=words, daemon=True).start()


def main():
    port = CONFIG.get("port", 0)
    for host in CONFIG["hosts"]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        port = listener.getsockname()[1]
        udp = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        udp.bind((host, port))
        start(accept, listener, "tcp")
        start(receive, udp, "udp")
    if CONFIG.get("abstract"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\0" + CONFIG["abstract"])
        listener.listen()
        start(accept, listener, "unix")
    if CONFIG.get("sniff"):
        start(sniff, CONFIG["sniff"])
    print("listening %d" % port, flush=True)
    threading.Event().wait()


main()

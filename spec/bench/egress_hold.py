"""Opens TLS connections and holds them, for the measurement of what a connection costs.

egress_hold.py URL COUNT STATE ROOTS: "idle" after one whole answer each, "busy" in the middle of one
that nobody reads on. Says "holding COUNT" and waits to be killed.
"""
import socket
import ssl
import sys
import time
import urllib.parse

url, count, state, roots = urllib.parse.urlsplit(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
context = ssl.create_default_context(cafile=roots)
request = ("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (url.path, url.hostname)).encode()
held = []


def read_answer(stream):
    length = 0
    status = stream.readline()
    assert status.startswith(b"HTTP/1.1 200"), status
    for line in iter(stream.readline, b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if state == "idle":
        assert len(stream.read(length)) == length


for _ in range(count):
    plain = socket.create_connection((url.hostname, url.port))
    connection = context.wrap_socket(plain, server_hostname=url.hostname)
    connection.sendall(request)
    stream = connection.makefile("rb", buffering=1024)
    read_answer(stream)
    held.append((connection, stream))

print("holding %d" % len(held), flush=True)
while True:
    time.sleep(60)

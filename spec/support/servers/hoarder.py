"""An HTTP/1.1 server that keeps what it was told in Authorization, and gives it back later, to whoever asks,
in ways that are hard to see through. What each path does is below; `log` gets each request's head, one JSON
string a line."""
import gzip
import json
import threading

import listening
from http_message import Reply, Request, read_head

KEPT = {"token": "nothing"}
LOCK = threading.Lock()


def keep(request, reply):
    KEPT["token"] = request.header("authorization").partition(" ")[2]
    reply.whole(b"kept\n")


def part(request, reply):
    """Obeys Range, as a server of files does."""
    data = KEPT["token"].encode()
    first, _, last = request.header("range").removeprefix("bytes=").partition("-")
    if not first:
        return reply.whole(data)
    last = int(last or len(data) - 1)
    fields = [("Content-Range", "bytes %s-%d/%d" % (first, last, len(data)))]
    reply.whole(data[int(first):last + 1], 206, fields)


def coded(request, reply):
    """Compressed, whatever was asked for, under the codings of `as`, a header for each."""
    codings = [("Content-Encoding", coding) for coding in request.query["as"].split("/")]
    reply.whole(gzip.compress(KEPT["token"].encode()), fields=codings)


def switch(request, reply):
    """Speaks another protocol, with the extensions that were asked for."""
    reply.keep = False
    extensions = request.header("sec-websocket-extensions")
    reply.head(101, [("Upgrade", "websocket"), ("Connection", "Upgrade")] + ([("Sec-WebSocket-Extensions", extensions)] if extensions else []))
    data = KEPT["token"].encode()
    reply.raw(b"\x81" + bytes([len(data)]) + data)


def hint(_, reply):
    reply.head(103, [("Link", "<%s>" % KEPT["token"])])
    reply.whole(b"hinted\n")


def named(_, reply):
    reply.whole(b"see the names\n", fields=[("X-" + KEPT["token"], "1"), ("Set-Cookie", "a=%s; Path=/" % KEPT["token"])])


def extension(_, reply):
    reply.chunked()
    reply.raw(b"5;secret=%s\r\nhello\r\n0;%s\r\n\r\n" % (KEPT["token"].encode(), KEPT["token"].encode()))


def folded(_, reply):
    data = KEPT["token"].encode()
    reply.keep = False
    reply.raw(b"HTTP/1.1 200 OK\r\nX-A: %s\r\n %s\r\nContent-Length: 0\r\n\r\n" % (data[:12], data[12:]))


def failed(_, reply):
    reply.whole(b"unknown token %s\n" % KEPT["token"].encode(), 500)


def moved(_, reply):
    reply.whole(b"", 302, [("Location", "https://elsewhere.test/?token=" + KEPT["token"])])


def trace(request, reply):
    reply.whole(request.head.encode())


def until_close(_, reply):
    reply.keep = False
    reply.raw(b"HTTP/1.0 200 OK\r\n\r\n" + KEPT["token"].encode())
    reply.connection.unwrap()


PATHS = {"/keep": keep, "/part": part, "/coded": coded, "/switch": switch, "/hint": hint, "/named": named,
         "/extension": extension, "/folded": folded, "/failed": failed, "/moved": moved, "/trace": trace,
         "/close": until_close}


def serve(connection, number):
    stream, count = connection.makefile("rb"), 0
    while True:
        head = read_head(stream)
        if head is None:
            return
        count += 1
        request = Request(stream, head)
        reply = Reply(connection, request, number, count)
        with LOCK, open(listening.config()["log"], "a") as log:
            log.write(json.dumps(request.head) + "\n")
        request.body()
        PATHS[request.path](request, reply)
        if not reply.keep:
            return


listening.run(serve)

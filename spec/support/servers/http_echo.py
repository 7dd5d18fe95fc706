"""An HTTP/1.1 server that says exactly what it got, and answers in every way that is hard to relay.

The path chooses the answer: see ANSWERS below. Query parameters tune it. Each request is also
written to the `log` file of the configuration, one JSON object a line, before it is answered.
"""
import base64
import gzip
import hashlib
import json
import socket
import struct
import threading
import time
import urllib.parse

import listening
from http_message import Reply, Request, read_head

LOG_LOCK = threading.Lock()


def pattern(size, start=0):
    """Bytes that tell their place: no shift or gap goes unseen."""
    block = bytes(i * 7 % 251 for i in range(251))
    start %= 251
    return (block * (size // 251 + 2))[start:start + size]


def echo(request, reply):
    body = request.body()
    value = {
        "head": request.head, "method": request.method, "target": request.target,
        "headers": request.fields, "body": body.decode("latin-1"), "size": len(body),
        "trailers": request.trailers, "connection": reply.number, "request": reply.count,
    }
    if hasattr(reply.connection, "cipher"):
        value["tls"] = {
            "version": reply.connection.version(), "cipher": reply.connection.cipher()[0],
            "sni": getattr(reply.connection, "wanted_name", None),
            "alpn": reply.connection.selected_alpn_protocol(),
        }
    reply.json(value)


def sink(request, reply):
    """Reads the body, as slowly as `rate` bytes a second asks, and tells its size and digest."""
    size, digest, rate = 0, hashlib.sha256(), request.number("rate", 0)
    plain = "digest" not in request.query
    for piece in request.pieces():
        size += len(piece)
        if not plain:
            digest.update(piece)
        if rate:
            time.sleep(len(piece) / rate)
    reply.json({"size": size, "sha256": None if plain else digest.hexdigest(), "trailers": request.trailers})


def status(request, reply):
    """/status/304: that status, with no body where it can't have one."""
    code = int(request.path.rsplit("/", 1)[1])
    if code in (204, 304):
        reply.head(code, [("ETag", '"x"')])
    else:
        reply.whole(request.query.get("body", "status %d\n" % code).encode(), code)


def sized(request, reply):
    """`size` bytes of a pattern, with a length; HEAD gives the length alone."""
    left, place = int(request.number("size", 1000)), 0
    reply.head(200, [("Content-Length", left), ("Content-Type", "application/octet-stream")])
    while left and request.method != "HEAD":
        piece = pattern(min(left, 251 * 1024), place)
        reply.raw(piece)
        left, place = left - len(piece), place + len(piece)


def chunked(request, reply):
    """Chunks of the `sizes`, each sent on its own, or byte by byte with `drip`."""
    place = 0
    reply.chunked()
    for size in request.query.get("sizes", "1,2,3,1000,1,70000,16384,5").split(","):
        data = pattern(int(size), place)
        place += len(data)
        framed = b"%x;name=value\r\n%s\r\n" % (len(data), data)
        for i in range(len(framed)) if "drip" in request.query else ():
            reply.raw(framed[i:i + 1])
        if "drip" not in request.query:
            reply.raw(framed)
    reply.last_chunk()


def trailers(request, reply):
    body = request.body() or b"a body with trailers\n"
    reply.chunked([("Trailer", "X-Digest")])
    reply.chunk(body)
    reply.last_chunk([("X-Digest", hashlib.sha256(body).hexdigest())])


def events(request, reply):
    """A stream of `count` events, one each `interval` seconds."""
    reply.chunked([("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")])
    for i in range(int(request.number("count", 5))):
        reply.chunk(b"data: event %d at %.3f\n\n" % (i + 1, time.time()))
        time.sleep(request.number("interval", 0.1))
    reply.last_chunk()


def early(request, reply):
    """Refuses without reading the body, as a server with a limit does."""
    reply.keep = False
    reply.whole(b"too large\n", 413)
    request.read = True


def hints(request, reply):
    reply.head(103, [("Link", "</style.css>; rel=preload")])
    time.sleep(request.number("delay", 0.05))
    reply.whole(b"after hints\n")


def refuse_expectation(request, reply):
    request.read, reply.keep = True, False
    reply.whole(b"not expected\n", 417)


def cut(request, reply):
    """Promises more than it sends, then ends: by FIN, or with `reset` by RST."""
    sent = int(request.number("after", 100))
    reply.keep = False
    if "chunked" in request.query:
        reply.chunked()
        reply.raw(b"%x\r\n%s" % (sent + 100, pattern(sent)))
    else:
        reply.head(200, [("Content-Length", sent + 100)])
        reply.raw(pattern(sent))
    if "reset" in request.query:
        reply.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def until_close(request, reply):
    """A body that ends with the connection."""
    reply.keep = False
    reply.head(200, [("Connection", "close")])
    reply.raw(pattern(int(request.number("size", 1000))))


def presented(request):
    """The credential in Authorization: the password of Basic, else what follows the scheme."""
    scheme, _, rest = request.header("authorization").partition(" ")
    if scheme.lower() == "basic":
        return base64.b64decode(rest).partition(b":")[2]
    return rest.encode("latin-1")


FORMS = {
    "plain": lambda secret: secret,
    "base64": base64.b64encode,
    "base64-1": lambda secret: base64.b64encode(b"x" + secret + b"tail"),
    "base64-2": lambda secret: base64.b64encode(b"xy" + secret + b"tail"),
    "base64url": base64.urlsafe_b64encode,
    "percent": lambda secret: b"".join(b"%%%02x" % byte for byte in secret),
    "percent-upper": lambda secret: b"".join(b"%%%02X" % byte for byte in secret),
    "percent-mixed": lambda secret: b"".join(b"%%%02x" % b if i % 2 else bytes([b]) for i, b in enumerate(secret)),
    "quoted": lambda secret: urllib.parse.quote(secret, safe="").encode(),
}


def leak(request, reply):
    """Gives the credential back in the `form`, in the `place`: body, header, trailer, reason, or as
    chunks of one byte ("drip"). Gzipped when the client allows it and `gzip` asks."""
    secret = FORMS[request.query.get("form", "plain")](presented(request))
    place = request.query.get("place", "body")
    data = b"before " + secret + b" after\n"
    text = secret.decode("latin-1")
    if place == "header":
        reply.whole(b"see the header\n", fields=[("X-Leak", "a %s b" % text)])
    elif place == "reason":
        reply.raw(b"HTTP/1.1 200 %s\r\nContent-Length: 0\r\n\r\n" % secret)
    elif place in ("trailer", "drip"):
        reply.chunked()
        for i in range(len(data)) if place == "drip" else ():
            reply.chunk(data[i:i + 1])
        reply.last_chunk([("X-Leak", text)] if place == "trailer" else [])
    elif "gzip" in request.query and "gzip" in request.header("accept-encoding"):
        reply.whole(gzip.compress(data), fields=[("Content-Encoding", "gzip")])
    elif "gzip" in request.query and "force" in request.query:
        reply.whole(gzip.compress(data), fields=[("Content-Encoding", "gzip")])
    else:
        reply.whole(data)


def compressed(request, reply):
    data = b"compress me, please. " * 200
    if "gzip" in request.header("accept-encoding"):
        reply.whole(gzip.compress(data), fields=[("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")])
    else:
        reply.whole(data, fields=[("Vary", "Accept-Encoding")])


def redirect(request, reply):
    location = ("Location", request.query.get("to", "/echo"))
    reply.whole(b"elsewhere\n", int(request.number("status", 302)), [location])


def upgrade(request, reply):
    """Switches to a protocol that gives every byte back, until the peer's end. With `leak` it says the
    credential first, a byte at a time."""
    reply.keep = False
    reply.head(101, [("Upgrade", request.header("upgrade") or "echo"), ("Connection", "Upgrade")])
    for byte in presented(request) if "leak" in request.query else b"":
        reply.raw(bytes([byte]))
    while True:
        data = request.stream.read1(65536)
        if not data:
            return
        reply.raw(data)


def slow(request, reply):
    request.body()
    time.sleep(request.number("delay", 1))
    reply.whole(b"at last\n")


def large_head(request, reply):
    reply.whole(b"large head\n", fields=[("X-Large", "x" * int(request.number("size", 10000)))])


def raw(request, reply):
    """Exactly the bytes of `hex`, whatever they are, then the end unless `keep`."""
    reply.keep = "keep" in request.query
    request.body()
    reply.raw(bytes.fromhex(request.query["hex"]))


def hang_up(request, reply):
    """No answer at all."""
    reply.keep, request.read = False, True


ANSWERS = {
    "/echo": echo, "/sink": sink, "/status": status, "/bytes": sized, "/chunked": chunked,
    "/trailers": trailers, "/events": events, "/early": early, "/hints": hints,
    "/expect-fail": refuse_expectation, "/cut": cut, "/close": until_close, "/leak": leak,
    "/gzip": compressed, "/redirect": redirect, "/upgrade": upgrade, "/slow": slow,
    "/large-head": large_head, "/raw": raw, "/hang-up": hang_up,
}


def note(request, number, count):
    path = listening.config().get("log")
    if path:
        line = json.dumps({"head": request.head, "method": request.method, "target": request.target,
                           "headers": request.fields, "connection": number, "request": count})
        with LOG_LOCK, open(path, "a") as log:
            log.write(line + "\n")


def serve(connection, number):
    stream = connection.makefile("rb", buffering=1 << 18)
    count = 0
    while True:
        head = read_head(stream)
        if head is None:
            return
        count += 1
        request = Request(stream, head)
        reply = Reply(connection, request, number, count)
        note(request, number, count)
        answer = ANSWERS.get("/" + request.path.split("/")[1], echo)
        if request.header("expect").lower() == "100-continue" and answer not in (early, refuse_expectation):
            reply.raw(b"HTTP/1.1 100 Continue\r\n\r\n")
        answer(request, reply)
        if not request.read:
            request.body()
        if not reply.keep:
            return


listening.run(serve)

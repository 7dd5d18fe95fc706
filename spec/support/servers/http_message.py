"""Requests as they came and answers as they are asked for, for http_echo.py: no library in between that
would tidy either."""
import json
import urllib.parse


def read_head(stream):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline(1 << 20)
        if not line:
            return None
        head += line
    return head[:-2]


class Request:
    """One request, read byte by byte as it came; `head` is its exact text."""

    def __init__(self, stream, head):
        self.stream = stream
        self.head = head.decode("latin-1")
        lines = self.head.split("\r\n")
        self.method, self.target, self.version = lines[0].split(" ", 2)
        self.fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:] if line]
        url = urllib.parse.urlsplit(self.target)
        self.path = url.path
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.trailers = []
        self.read = False

    def header(self, name, default=""):
        return next((value for key, value in self.fields if key.lower() == name), default)

    def number(self, name, default):
        return float(self.query.get(name, default))

    def pieces(self):
        """The body, piece by piece."""
        self.read = True
        if "chunked" in self.header("transfer-encoding").lower():
            while True:
                size = int(self.line().split(b";")[0], 16)
                if size == 0:
                    break
                yield from self.exactly(size)
                self.line()
            while True:
                line = self.line()
                if not line:
                    return
                self.trailers.append([part.strip() for part in line.decode("latin-1").split(":", 1)])
        else:
            yield from self.exactly(int(self.header("content-length", "0") or 0))

    def line(self):
        line = self.stream.readline(65536)
        if not line.endswith(b"\n"):
            raise EOFError
        return line.rstrip(b"\r\n")

    def exactly(self, size):
        while size > 0:
            piece = self.stream.read1(min(size, 1 << 18))
            if not piece:
                raise EOFError
            size -= len(piece)
            yield piece

    def body(self):
        return b"".join(self.pieces())


class Reply:
    """Where the answer goes."""

    def __init__(self, connection, request, number, count):
        self.connection, self.request = connection, request
        self.number, self.count = number, count
        self.keep = "close" not in request.header("connection").lower() and request.version == "HTTP/1.1"

    def raw(self, data):
        self.connection.sendall(data)

    def head(self, status, fields, reason="Whatever"):
        lines = ["HTTP/1.1 %d %s" % (status, reason)] + ["%s: %s" % field for field in fields]
        self.raw("\r\n".join(lines + ["", ""]).encode("latin-1"))

    def whole(self, data, status=200, fields=()):
        fields = list(fields) + [("Content-Length", len(data))]
        if not self.keep:
            fields.append(("Connection", "close"))
        self.head(status, fields)
        if self.request.method != "HEAD":
            self.raw(data)

    def json(self, value, status=200, fields=()):
        data = json.dumps(value).encode() + b"\n"
        self.whole(data, status, [("Content-Type", "application/json")] + list(fields))

    def chunked(self, fields=()):
        self.head(200, list(fields) + [("Transfer-Encoding", "chunked")])

    def chunk(self, data):
        self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    def last_chunk(self, trailers=()):
        lines = "".join("%s: %s\r\n" % field for field in trailers)
        self.raw(b"0\r\n" + lines.encode("latin-1") + b"\r\n")

"""Talks to a server from inside a sandbox, byte for byte, and tells what came back and when.

Runs there by `python3 -c`, with a JSON object as its input: host, port, tls (a certificate is always
checked), sni, versions ("1.3": that alone), address (connect there instead), steps. A step is one of
{"send": text}, {"send_zeros": n} (says in "sent" how far it came), {"await": text or n bytes},
{"read": seconds}, {"sleep": seconds}, {"end": true} (half-close, not over TLS), {"cut": true}. After the last step
it reads to the end, for at most `patience` seconds. Prints JSON: text, ended ("eof", "reset",
"timeout", "tls", or an error), pieces (seconds, bytes), sent.
"""
import json
import socket
import ssl
import struct
import sys
import time


class Ended(Exception):
    pass


class Talk:
    def __init__(self, config):
        self.data, self.pieces, self.sent = b"", [], 0
        self.keep = config.get("keep", 1 << 20)
        self.total = 0
        self.socket = socket.create_connection((config.get("address", config["host"]), config["port"]), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if config.get("tls"):
            context = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
            if config.get("versions") == "1.3":
                context.minimum_version = ssl.TLSVersion.TLSv1_3
            if config.get("alpn"):
                context.set_alpn_protocols(config["alpn"])
            name = config.get("sni", config["host"])
            self.socket = context.wrap_socket(self.socket, server_hostname=name, suppress_ragged_eofs=False)
        self.began = time.monotonic()

    def receive(self, seconds):
        self.socket.settimeout(max(seconds, 0.001))
        piece = self.socket.recv(65536)
        if not piece:
            raise Ended("eof")
        if self.total < self.keep:
            self.data += piece
        self.total += len(piece)
        self.pieces.append([round(time.monotonic() - self.began, 3), len(piece)])

    def until(self, done, seconds):
        limit = time.monotonic() + seconds
        while not done():
            left = limit - time.monotonic()
            if left <= 0:
                raise Ended("timeout")
            self.receive(left)

    def send(self, data):
        self.socket.settimeout(20)
        self.socket.sendall(data)
        self.sent += len(data)

    def step(self, step):
        if "send" in step:
            self.send(step["send"].encode("latin-1"))
        elif "send_zeros" in step:
            left, block = step["send_zeros"], bytes(65536)
            while left:
                self.send(block[:left])
                left -= min(left, len(block))
        elif "await" in step:
            wanted = step["await"]
            if isinstance(wanted, str):
                self.until(lambda: wanted.encode("latin-1") in self.data, 20)
            else:
                self.until(lambda: self.total >= wanted, 60)
        elif "read" in step:
            try:
                self.until(lambda: False, step["read"])
            except (TimeoutError, Ended) as ended:
                if str(ended) == "eof":
                    raise
        elif "sleep" in step:
            time.sleep(step["sleep"])
        elif "end" in step:
            self.socket.shutdown(socket.SHUT_WR)
        elif "cut" in step:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()
            raise Ended("cut")


def ending(run):
    try:
        run()
    except Ended as ended:
        return str(ended)
    except TimeoutError:
        return "timeout"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    except ssl.SSLEOFError:
        return "tls cut"
    except ssl.SSLError as error:
        return "tls " + str(error)
    except OSError as error:
        return "error " + str(error)


def main():
    config, talk = json.load(sys.stdin), None

    def connect():
        nonlocal talk
        talk = Talk(config)

    def converse():
        for step in config.get("steps", ()):
            talk.step(step)

    def drain():
        talk.until(lambda: False, config.get("patience", 20))

    ended = ending(connect) or ending(converse)
    if talk and ended in (None, "reset"):
        ended = ending(drain) if not ended else (ending(drain) or ended)
    print(json.dumps({
        "ended": ended, "text": talk.data.decode("latin-1") if talk else "", "total": talk.total if talk else 0,
        "pieces": talk.pieces if talk else [], "sent": talk.sent if talk else 0,
    }))


main()

"""A WebSocket server (RFC 6455) that gives every message back.

Text and binary, any length, fragments (given back whole), ping and close. A text message "close"
makes it end the conversation; "big N" brings N bytes.
"""
import base64
import hashlib
import struct

import listening

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUE, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def read_exactly(stream, size):
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def read_frame(stream):
    first, second = read_exactly(stream, 2)
    length = second & 127
    if length == 126:
        length, = struct.unpack(">H", read_exactly(stream, 2))
    elif length == 127:
        length, = struct.unpack(">Q", read_exactly(stream, 8))
    mask = read_exactly(stream, 4) if second & 128 else b"\0\0\0\0"
    data = bytearray(read_exactly(stream, length))
    for i in range(4):
        data[i::4] = bytes(byte ^ mask[i] for byte in data[i::4])
    return bool(first & 128), first & 15, bytes(data)


def frame(opcode, data):
    if len(data) < 126:
        return struct.pack(">BB", 128 | opcode, len(data)) + data
    if len(data) < 65536:
        return struct.pack(">BBH", 128 | opcode, 126, len(data)) + data
    return struct.pack(">BBQ", 128 | opcode, 127, len(data)) + data


def handshake(connection, stream):
    key = None
    for line in iter(lambda: stream.readline(65536), b"\r\n"):
        if not line:
            raise EOFError
        name, _, value = line.partition(b":")
        if name.lower() == b"sec-websocket-key":
            key = value.strip()
    if not key:
        connection.sendall(b"HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        raise EOFError
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")


def serve(connection, _):
    stream = connection.makefile("rb")
    handshake(connection, stream)
    kind, message = None, b""
    while True:
        final, opcode, data = read_frame(stream)
        if opcode == CLOSE:
            return connection.sendall(frame(CLOSE, data))
        if opcode == PING:
            connection.sendall(frame(PONG, data))
        if opcode > BINARY:
            continue
        kind, message = (kind if opcode == CONTINUE else opcode), message + data
        if not final:
            continue
        if message == b"close":
            connection.sendall(frame(CLOSE, struct.pack(">H", 1000)))
        elif message.startswith(b"big "):
            connection.sendall(frame(BINARY, b"\xa5" * int(message[4:])))
        else:
            connection.sendall(frame(kind, message))
        message = b""


listening.run(serve)

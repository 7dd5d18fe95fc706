"""A TCP server of the configuration's `kind`: "echo" gives every byte back, half-closed or not;
"lines" greets first, as ssh and SMTP do, and answers each line in capitals; "silent" reads and says
nothing; "count" says at the peer's end how many bytes came."""
import listening


def echo(connection, _):
    while True:
        data = connection.recv(1 << 16)
        if not data:
            return
        connection.sendall(data)


def lines(connection, number):
    connection.sendall(b"220 hello, connection %d\r\n" % number)
    for line in connection.makefile("rb"):
        if line.strip() == b"quit":
            return connection.sendall(b"221 bye\r\n")
        connection.sendall(line.upper())


def silent(connection, _):
    while connection.recv(1 << 16):
        pass


def count(connection, _):
    total = 0
    while True:
        data = connection.recv(1 << 18)
        if not data:
            return connection.sendall(b"%d\n" % total)
        total += len(data)


listening.run({"echo": echo, "lines": lines, "silent": silent, "count": count}[listening.config()["kind"]])

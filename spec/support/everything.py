"""A process that holds one of everything, and checks it all when told "check".

Run inside a sandbox by spec/lua/memory_spec.lua. Prints "checked" and what does not work any more.
"""
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time

directory = sys.argv[1]
state = {"checks": 0, "data": os.urandom(1 << 20)}
digest = hash(state["data"])

pair = socket.socketpair()
path = directory + "/socket"
unix_listener = socket.socket(socket.AF_UNIX)
unix_listener.bind(path)
unix_listener.listen(5)
unix_client = socket.socket(socket.AF_UNIX)
unix_client.connect(path)
unix_server, _ = unix_listener.accept()

tcp_listener = socket.socket()
tcp_listener.bind(("127.0.0.1", 0))
tcp_listener.listen(5)
tcp_client = socket.create_connection(tcp_listener.getsockname())
tcp_server, _ = tcp_listener.accept()

abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
abstract.bind("\0" + directory)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
os.mkfifo(directory + "/fifo")
fifo = os.open(directory + "/fifo", os.O_RDWR)
pipe_read, pipe_write = os.pipe()
os.write(pipe_write, b"kept")
epoll = select.epoll()
epoll.register(tcp_server.fileno(), select.EPOLLIN)

deleted = open(directory + "/deleted", "w+")
deleted.write("deleted data")
deleted.flush()
os.unlink(directory + "/deleted")
linked = open(directory + "/linked", "w+")
linked.write("linked data")
linked.flush()
os.link(directory + "/linked", directory + "/other name")
os.unlink(directory + "/linked")
shared_file = open("/dev/shm/segment", "wb+")
shared_file.write(b"shm!" * 1024)
shared_file.flush()
shared = mmap.mmap(shared_file.fileno(), 4096)
lock = open(directory + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)

libc = ctypes.CDLL(None)
event = libc.eventfd(7, 0)
timer = libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
libc.timerfd_settime(timer, 0, (ctypes.c_long * 4)(0, 50000000, 0, 50000000), None)
inotify = libc.inotify_init1(os.O_NONBLOCK)
os.mkdir(directory + "/watched")
libc.inotify_add_watch(inotify, (directory + "/watched").encode(), 0x100)

ticks = [0]


def tick():
    while True:
        ticks[0] += 1
        time.sleep(0.02)


threading.Thread(target=tick, daemon=True).start()
alarms = []
signal.signal(signal.SIGALRM, lambda *_: alarms.append(time.monotonic()))
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)


def within(seconds, done):
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.02)
    return done()


def pass_bytes(source, target):
    source.send(b"bytes")
    return target.recv(5) == b"bytes"


def accept_tcp():
    with socket.create_connection(tcp_listener.getsockname()) as client:
        server, _ = tcp_listener.accept()
        return pass_bytes(client, server)


def accept_unix():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        server, _ = unix_listener.accept()
        return pass_bytes(client, server)


def polled():
    tcp_client.send(b"x")
    return len(epoll.poll(30)) == 1 and tcp_server.recv(1) == b"x"


def piped():
    found = os.read(pipe_read, 4)
    os.write(pipe_write, b"kept")
    return found == b"kept"


def read_deleted():
    deleted.seek(0)
    return deleted.read() == "deleted data"


def read_linked():
    linked.seek(0)
    return linked.read() == "linked data" and os.fstat(linked.fileno()).st_nlink == 1


def sent_datagram(receiver):
    with socket.socket(receiver.family, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"bytes", receiver.getsockname())
    return receiver.recv(5) == b"bytes"


def through_fifo():
    os.write(fifo, b"bytes")
    return os.read(fifo, 5) == b"bytes"


def counted():
    found = int.from_bytes(os.read(event, 8), sys.byteorder)
    os.write(event, (7).to_bytes(8, sys.byteorder))
    return found == 7


def watched():
    open("%s/watched/%d" % (directory, state["checks"]), "w").close()
    time.sleep(0.05)
    return len(os.read(inotify, 4096)) > 0


def locked():
    with open(directory + "/lock") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def threads():
    before = ticks[0]
    return within(30, lambda: ticks[0] > before)


def timers():
    """It goes on, and what a sleep has missed doesn't come all at once: a busy host may hold one up, and two
    that fell due meanwhile are one."""
    before = len(alarms)
    if not within(30, lambda: len(alarms) > before + 1):
        return False
    gaps = [after - first for first, after in zip(alarms, alarms[1:])]
    return len(gaps) <= (alarms[-1] - alarms[0]) / 0.2 + 2 and max(gaps) < 30


checks = {
    "socket pair": lambda: pass_bytes(*pair),
    "unix connection": lambda: pass_bytes(unix_client, unix_server),
    "unix listener": accept_unix,
    "tcp connection": lambda: pass_bytes(tcp_server, tcp_client),
    "tcp listener": accept_tcp,
    "epoll": polled,
    "pipe": piped,
    "deleted file": read_deleted,
    "file with another name": read_linked,
    "abstract unix socket": lambda: sent_datagram(abstract),
    "udp socket": lambda: sent_datagram(datagrams),
    "fifo": through_fifo,
    "eventfd": counted,
    "timerfd": lambda: int.from_bytes(os.read(timer, 8), sys.byteorder) > 0,
    "shared memory": lambda: shared[:4] == b"shm!",
    "inotify": watched,
    "lock": locked,
    "thread": threads,
    "timer": timers,
    "variables": lambda: hash(state["data"]) == digest,
}

print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    failed = []
    for name, check in checks.items():
        try:
            if not check():
                failed.append(name)
        except Exception as error:
            failed.append("%s (%r)" % (name, error))
    state["checks"] += 1
    print("checked %d: %s" % (state["checks"], ", ".join(failed) or "all well"), flush=True)

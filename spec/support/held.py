"""A process that holds one odd thing, named by the first argument, and checks it at each line "check".

Run inside a sandbox by spec/lua/memory_limits_spec.lua, in a directory of its own. Prints "ready", or
"lacking" and why when the kernel doesn't have it; then "well", or what is wrong.
"""
import array
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
held = []  # what must not be collected
cases = {}


def case(function):
    cases[function.__name__] = function
    return function


def child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return pid


def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise NotImplementedError(os.strerror(ctypes.get_errno()))
    return result


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def eventually(condition):
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def state(pid):
    with open("/proc/%d/stat" % pid) as file:
        return file.read().rpartition(") ")[2][0]


def reaches(pid, states):
    return eventually(lambda: state(pid) in states)


def kept(file, text):
    file.write(text)
    file.flush()
    held.append(file)
    return file


def reads(file, text):
    file.seek(0)
    return file.read() == text


# What comes back ------------------------------------------------------------------------------------


@case
def stopped():
    pid = child(signal.pause)
    os.kill(pid, signal.SIGSTOP)
    reaches(pid, "T")

    def check():
        if state(pid) != "T":
            return False
        os.kill(pid, signal.SIGCONT)
        went_on = reaches(pid, "S")
        os.kill(pid, signal.SIGSTOP)
        return went_on and reaches(pid, "T")

    return check


@case
def fifo_with_waiting_reader():
    os.mkfifo("fifo")

    def read():
        with open("fifo") as fifo, open("got", "w") as got:
            got.write(fifo.read())

    pid = child(read)
    time.sleep(0.2)

    def check():
        with open(os.open("fifo", os.O_WRONLY | os.O_NONBLOCK), "w") as fifo:
            fifo.write("hello")
        os.waitpid(pid, 0)
        with open("got") as got:
            return got.read() == "hello"

    return check


@case
def two_thousand_descriptors():
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    pipes = [os.pipe() for _ in range(300)]
    pairs = [socket.socketpair() for _ in range(400)]
    files = [open("file%d" % i, "w+") for i in range(600)]

    def check():
        for i, (reader, writer) in enumerate(pipes):
            os.write(writer, b"%d" % i)
            if os.read(reader, 9) != b"%d" % i:
                return False
        for one, other in pairs:
            one.send(b"x")
            if other.recv(9) != b"x":
                return False
        for i, file in enumerate(files):
            file.write("x")
            file.flush()
            if os.stat("file%d" % i).st_size == 0:
                return False
        return True

    return check


@case
def three_hundred_processes():
    children = []
    for i in range(300):
        reader, asks = os.pipe()
        answer, writer = os.pipe()
        if os.fork() == 0:
            os.close(asks)
            while os.read(reader, 1):
                os.write(writer, b"%d" % i)
            os._exit(0)
        os.close(reader)
        os.close(writer)
        children.append((asks, answer))

    def check():
        for i, (asks, answer) in enumerate(children):
            os.write(asks, b"x")
            if os.read(answer, 9) != b"%d" % i:
                return False
        return True

    return check


@case
def zombie():
    pid = child(lambda: os._exit(7))
    reaches(pid, "Z")
    return lambda: state(pid) == "Z" and os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 7


@case
def sessions_and_groups():
    """One of a session leader that is there, one of a leader that has ended."""

    def lead(name, stay):
        os.setsid()
        member = child(signal.pause)
        if stay:
            os.setpgid(member, member)
        with open(name + ".new", "w") as file:
            file.write(str(member))
        os.rename(name + ".new", name)
        if stay:
            signal.pause()

    def member_of(name):
        eventually(lambda: os.path.exists(name))
        with open(name) as file:
            return int(file.read())

    leader, gone = child(lambda: lead("kept", True)), child(lambda: lead("left", False))
    os.waitpid(gone, 0)
    one, other = member_of("kept"), member_of("left")
    return lambda: (os.getsid(one), os.getpgid(one), os.getsid(other), os.getpgid(other)) == (leader, one, gone, gone)


@case
def file_in_renamed_directory():
    os.makedirs("a/b")
    file = kept(open("a/b/file", "w+"), "text")
    directory = os.open("a/b", os.O_RDONLY)
    os.rename("a", "c")
    return lambda: reads(file, "text") and os.listdir(directory) == ["file"]


@case
def file_in_deleted_directory():
    os.makedirs("a/b")
    file = kept(open("a/b/file", "w+"), "text")
    os.unlink("a/b/file")
    os.removedirs("a/b")
    return lambda: reads(file, "text")


@case
def deleted_working_directory():
    os.mkdir("gone")
    pid = child(lambda: (os.chdir("gone"), signal.pause()))
    eventually(lambda: os.readlink("/proc/%d/cwd" % pid).endswith("gone"))
    os.rmdir("gone")
    return lambda: os.readlink("/proc/%d/cwd" % pid).endswith("(deleted)")


@case
def replaced_file():
    file = kept(open("name", "w+"), "old")
    kept(open("new", "w"), "new")
    os.rename("new", "name")
    return lambda: reads(file, "old") and open("name").read() == "new"


@case
def chroot():
    os.makedirs("jail/below")
    pid = child(lambda: (os.chroot("jail"), os.chdir("/below"), signal.pause()))
    eventually(lambda: os.readlink("/proc/%d/cwd" % pid).endswith("below"))
    return lambda: os.readlink("/proc/%d/root" % pid).endswith("jail") and os.readlink("/proc/%d/cwd" % pid).endswith("below")


@case
def filter_of_its_own():
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    # Refuses getppid (110 or 173) with EDOM, allows the rest.
    number = 110 if os.uname().machine == "x86_64" else 173
    rules = b"".join(struct.pack("HBBI", *rule) for rule in (
        (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | 33), (0x06, 0, 0, 0x7FFF0000)))
    held.append(ctypes.create_string_buffer(rules, len(rules)))
    asks, answers = socket.socketpair()

    def filtered():
        checked(libc.prctl(38, 1, 0, 0, 0))
        checked(libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(held[-1]))), 0, 0))
        while answers.recv(1):
            result = libc.syscall(number)
            answers.send(b"%d" % (ctypes.get_errno() if result < 0 else 0))

    child(filtered)

    def check():
        asks.send(b"x")
        return asks.recv(9) == b"33"

    return check


@case
def sealed_memory_file():
    fd = os.memfd_create("name", os.MFD_ALLOW_SEALING)
    os.write(fd, b"text")
    fcntl.fcntl(fd, 1033, 15)
    return lambda: os.pread(fd, 9, 0) == b"text" and fcntl.fcntl(fd, 1034) == 15


@case
def locks():
    posix, flock, own = (kept(open(name, "w"), "") for name in ("posix", "flock", "own"))
    fcntl.lockf(posix, fcntl.LOCK_EX, 10, 0)
    fcntl.flock(flock, fcntl.LOCK_SH)
    fcntl.fcntl(own, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 5, 0))  # F_OFD_SETLK
    waiting = kept(open("waiting", "w"), "")
    fcntl.flock(waiting, fcntl.LOCK_EX)
    waiter = child(lambda: (fcntl.flock(open("waiting"), fcntl.LOCK_EX), open("got", "w")))
    time.sleep(0.2)

    def refused(name, take):
        def try_it():
            with open(name, "r+") as file:
                try:
                    take(file)
                except OSError:
                    os._exit(1)

        return os.WEXITSTATUS(os.waitpid(child(try_it), 0)[1]) == 1

    def check():
        holds = (refused("posix", lambda file: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3))
                 and refused("flock", lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))
                 and refused("own", lambda file: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3)))
        early = os.path.exists("got")
        fcntl.flock(waiting, fcntl.LOCK_UN)
        os.waitpid(waiter, 0)
        return holds and not early and os.path.exists("got")

    return check


@case
def descriptors_in_flight():
    one, other = socket.socketpair()
    file = open("file", "w+")
    file.write("sent")
    file.flush()
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])
    file.close()
    held.append(one)

    def check():
        _, rights, _, _ = other.recvmsg(1, 64)
        return os.pread(struct.unpack("i", rights[0][2][:4])[0], 9, 0) == b"sent"

    return check


@case
def system_v():
    size = 32 << 20
    libc.shmat.restype = ctypes.c_void_p
    segment = checked(libc.shmget(0x77, size, 0o1600))
    at = libc.shmat(segment, None, 0)
    ctypes.memset(at, 7, size)
    semaphores = checked(libc.semget(0x78, 2, 0o1600))
    queue = checked(libc.msgget(0x79, 0o1600))
    message = struct.pack("q", 1) + b"hello"
    checked(libc.msgsnd(queue, message, 5, 0))

    def check():
        got = ctypes.create_string_buffer(64)
        return (libc.shmget(0x77, 0, 0) == segment and ctypes.string_at(at + size - 1, 1) == b"\7"
                and libc.semget(0x78, 0, 0) == semaphores and libc.msgrcv(queue, got, 32, 0, 0) == 5)

    return check


@case
def unix_datagrams():
    server, client = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    server.bind("socket")
    client.connect("socket")
    client.send(b"queued")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("\0abstract")
    listener.listen()

    def check():
        client.send(b"after")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.connect("\0abstract")
            listener.accept()
        return server.recv(9) == b"queued" and server.recv(9) == b"after"

    return check


@case
def netlink():
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    link.bind((0, 0))

    def check():
        link.send(struct.pack("IHHIIB3x", 20, 18, 0x301, 1, 0, 0))  # RTM_GETLINK
        return len(link.recv(65536)) > 20

    return check


@case
def packet_socket():
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    packets.bind(("lo", 0))
    return lambda: packets.getsockname()[0] == "lo"


@case
def signal_descriptor():
    mask = (ctypes.c_ulong * 16)(1 << (signal.SIGUSR1 - 1))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    fd = checked(libc.signalfd(-1, ctypes.byref(mask), 0))
    os.kill(os.getpid(), signal.SIGUSR1)
    return lambda: struct.unpack("I", os.read(fd, 128)[:4])[0] == signal.SIGUSR1


@case
def event_descriptor():
    fd = checked(libc.eventfd(5, 0))
    return lambda: struct.unpack("Q", os.read(fd, 8))[0] == 5


@case
def process_descriptor():
    pid = child(signal.pause)
    fd = os.pidfd_open(pid)
    dead = child(lambda: None)
    of_dead = os.pidfd_open(dead)
    os.waitpid(dead, 0)

    def check():
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return select.select([fd], [], [], 5)[0] == [fd] and select.select([of_dead], [], [], 5)[0] == [of_dead]

    return check


@case
def terminal_of_its_own():
    ours, theirs = os.openpty()

    def use():
        os.setsid()
        fcntl.ioctl(theirs, 0x540E, 0)  # TIOCSCTTY
        os.write(theirs, b"hello")
        signal.pause()

    child(use)
    select.select([ours], [], [], 5)
    return lambda: os.read(ours, 9) == b"hello" and os.isatty(theirs)


@case
def process_of_another_user():
    pid = child(lambda: os.execvp("sudo", ["sudo", "sleep", "1000"]))
    eventually(lambda: os.stat("/proc/%d" % pid).st_uid == 0)
    return lambda: os.stat("/proc/%d" % pid).st_uid == 0


@case
def programs_being_started():
    """Not one instant in which nobody waits in vfork."""
    for _ in range(3):
        child(lambda: [os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0) for _ in iter(int, 1)])
    counter = child(lambda: [time.sleep(0.01) for _ in iter(int, 1)])
    return lambda: reaches(counter, "SR")


# What is refused ------------------------------------------------------------------------------------


@case
def traced():
    pid = child(signal.pause)
    checked(libc.ptrace(0x4206, pid, 0, 0))  # PTRACE_SEIZE
    return lambda: reaches(pid, "S")


@case
def starting_for_ever():
    os.mkfifo("fifo")

    def start():
        os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "fifo", os.O_RDONLY, 0)])

    pid = child(start)
    reaches(pid, "D")
    return lambda: reaches(pid, "D")


@case
def first_thread_gone():
    import threading

    def leave():
        threading.Thread(target=time.sleep, args=(1000,)).start()
        libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)

    pid = child(leave)
    reaches(pid, "Z")
    return lambda: reaches(pid, "Z")


@case
def directory_of_proc():
    fd = os.open("/proc/self/", os.O_RDONLY)
    return lambda: "status" in os.listdir(fd)


@case
def landlock_rules():
    fd = call(444, ctypes.byref(ctypes.c_uint64(1)), 8, 0)
    return lambda: os.fstat(fd) is not None


@case
def secret_memory():
    fd = call(447, 0)
    os.ftruncate(fd, 4096)
    memory = mmap.mmap(fd, 4096)
    memory[:6] = b"secret"
    return lambda: memory[:6] == b"secret"


@case
def message_queue():
    library = ctypes.CDLL("librt.so.1", use_errno=True)
    queue = library.mq_open(b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None)
    if queue < 0:
        raise NotImplementedError(os.strerror(ctypes.get_errno()))
    library.mq_send(queue, b"text", 4, 1)
    library.mq_close(queue)

    def check():
        again = library.mq_open(b"/queue", os.O_RDWR)
        got = ctypes.create_string_buffer(65536)
        well = library.mq_receive(again, got, 65536, None) == 4
        library.mq_unlink(b"/queue")
        return well

    return check


@case
def unread_netlink():
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    link.bind((0, 0))
    link.send(struct.pack("IHHIIB3x", 20, 18, 0x301, 1, 0, 0))
    select.select([link], [], [], 5)
    return lambda: len(link.recv(65536)) > 20


@case
def unix_connection_not_accepted():
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    listener.listen()
    client.connect("socket")
    client.send(b"x")
    held.append(client)
    return lambda: listener.accept()[0].recv(1) == b"x"


@case
def eleven_hundred_pipes():
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    pipes = [os.pipe() for _ in range(1100)]
    return lambda: os.write(pipes[-1][1], b"x") == 1 and os.read(pipes[-1][0], 9) == b"x"


@case
def unix_name_deleted():
    server, client = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    server.bind("socket")
    client.connect("socket")
    os.unlink("socket")

    def check():
        client.send(b"x")
        return server.recv(1) == b"x"

    return check


name, directory = sys.argv[1:]
os.mkdir(directory)
os.chdir(directory)
try:
    examine = cases[name]()
except NotImplementedError as lack:
    print("lacking", lack, flush=True)
    sys.exit()
print("ready", flush=True)
for line in sys.stdin:
    try:
        verdict = "well" if examine() else "it is not as it was"
    except Exception as error:
        verdict = repr(error)
    sys.stdout.write("%s: %s.\n" % (name, verdict))
    sys.stdout.flush()

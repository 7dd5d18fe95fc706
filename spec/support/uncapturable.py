"""A process of the host that becomes one of a sandbox's, holding what can't be captured.

uncapturable.py KIND PID [GROUP]: opens it, enters the user namespace of PID, joins the control group and
prints "ready".
"""
import ctypes
import os
import struct
import sys
import time

SYS = {"io_uring": 425, "userfaultfd": 323, "perf": 298, "bpf": 321}  # x86-64
libc = ctypes.CDLL(None, use_errno=True)
kind, pid, group = sys.argv[1:]
memory = ctypes.create_string_buffer(256)
if kind == "io_uring":
    fd = libc.syscall(SYS[kind], 2, memory)
elif kind == "userfaultfd":
    fd = libc.syscall(SYS[kind], os.O_CLOEXEC)
elif kind == "perf":
    struct.pack_into("IIQ", memory, 0, 1, 128, 1)  # a software counter: the task's clock
    fd = libc.syscall(SYS[kind], memory, 0, -1, -1, 0)
else:
    struct.pack_into("IIII", memory, 0, 2, 4, 8, 1)  # an array map
    fd = libc.syscall(SYS[kind], 0, memory, 72)
if fd < 0:
    print("can't: " + os.strerror(ctypes.get_errno()), flush=True)
    sys.exit(1)
with open("/proc/%s/ns/user" % pid) as namespace:
    if libc.setns(namespace.fileno(), 0x10000000) < 0:
        print("can't enter: " + os.strerror(ctypes.get_errno()), flush=True)
        sys.exit(1)
# A group's file wants rights outside of that namespace: whoever started us writes it.
print("ready", flush=True)
time.sleep(60)

/* Tries system calls from inside a sandbox and prints "NAME ERRNO" for each, 0 for success. Compiled
 * statically by the specs that use it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void tell(const char *name, long result) {
  printf("%s %d\n", name, result < 0 ? errno : 0);
}

/* A child with these flags, which ends at once. */
static long try_clone(unsigned long flags) {
  long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
  if (pid == 0)
    _exit(0);
  if (pid > 0)
    waitpid((pid_t)pid, NULL, 0);
  return pid;
}

static long try_trace(void) {
  pid_t pid = fork();
  if (pid == 0) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    _exit(7);
  }
  int status;
  waitpid(pid, &status, 0);
  if (!WIFSTOPPED(status) || ptrace(PTRACE_CONT, pid, 0, 0) < 0)
    return -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : -1;
}

#ifdef __x86_64__
static long i386(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "0"(number), "b"(a), "c"(b), "d"(c)
                   : "memory", "r8", "r9", "r10", "r11");
  errno = (int)result < 0 ? -(int)result : 0;
  return (int)result < 0 ? -1 : (int)result;
}
#endif

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "identity") == 0)
    return printf("%d %d\n", (int)getuid(), (int)geteuid()) < 0;
  char name[16] = "nested";
  int here = open(".", O_RDONLY | O_DIRECTORY);
  tell("clone", try_clone(0));
  tell("clone_user", try_clone(CLONE_NEWUSER));
  tell("clone_net", try_clone(CLONE_NEWNET));
  tell("clone_mount", try_clone(CLONE_NEWNS));
  tell("unshare_user", unshare(CLONE_NEWUSER));
  tell("unshare_time", unshare(0x80));
  tell("unshare_files", unshare(CLONE_FILES));
  tell("clone3", syscall(SYS_clone3, 0, 0));
  tell("setns", setns(here, 0));
  tell("mount", syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, 0));
  tell("umount2", syscall(SYS_umount2, "/tmp", 0));
  tell("pivot_root", syscall(SYS_pivot_root, ".", "."));
  tell("fsopen", syscall(430, "tmpfs", 0));
  tell("open_tree", syscall(428, here, "", 1));
  tell("move_mount", syscall(429, here, "", here, "", 0));
  tell("mount_setattr", syscall(442, here, "", 0, 0, 0));
  tell("listmount", syscall(458, 0, 0, 0, 0));
  tell("io_uring_setup", syscall(425, 1, 0));
  tell("io_setup", syscall(SYS_io_setup, 1, &(long){0}));
  tell("bpf", syscall(SYS_bpf, 0, 0, 0));
  tell("perf_event_open", syscall(SYS_perf_event_open, 0, 0, -1, -1, 0));
  tell("userfaultfd", syscall(SYS_userfaultfd, 0));
  tell("keyctl", syscall(SYS_keyctl, 0, 0, 0, 0, 0));
  tell("add_key", syscall(SYS_add_key, "user", "a", "b", 1, -3));
  tell("init_module", syscall(SYS_init_module, 0, 0, ""));
  tell("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
  tell("open_by_handle_at", syscall(SYS_open_by_handle_at, here, 0, 0));
  tell("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
  tell("swapon", syscall(SYS_swapon, "/x", 0));
  tell("syslog", syscall(SYS_syslog, 3, name, sizeof name));
  tell("clock_settime", syscall(SYS_clock_settime, 0, &(long[2]){1, 1}));
  tell("personality_ask", personality(0xffffffff));
  tell("personality_norandomize", personality(ADDR_NO_RANDOMIZE));
  tell("personality_odd", personality(READ_IMPLIES_EXEC));
  tell("tiocsti", ioctl(0, 0x5412, name));
  tell("tioclinux", ioctl(0, 0x541c, name));
  tell("subvolume", ioctl(here, 0x5000940e, name));
  tell("subvolume_v2", ioctl(here, 0x50009418, name));
  tell("snapshot", ioctl(here, 0x50009401, name));
  tell("snapshot_v2", ioctl(here, 0x50009417, name));
  tell("ioctl_high_bits", syscall(SYS_ioctl, here, 0x15000940eul, name));
  unsigned long long zero = 0;
  tell("subvolume_flags", ioctl(here, 0x8008941a, &zero));
  tell("subvolume_seal", ioctl(here, 0x4008941a, &zero));
  tell("set_received", ioctl(here, 0xc0c89425, name));
  tell("start_sync", ioctl(here, 0x80089418, &zero));
  tell("sync", ioctl(here, 0x9408));
  tell("device_info", ioctl(here, 0xd000941e, name));
  tell("file_system_info", ioctl(here, 0x8400941f, name));
  tell("reflink", ioctl(here, 0x40049409, here));
  tell("reflink_range", ioctl(here, 0x4020940d, 0));
  tell("dedupe", ioctl(here, 0xc0189436, 0));
  int other = 27; /* N_NULL */
  tell("line_discipline", ioctl(0, 0x5423, &other));
  tell("limits_own", syscall(SYS_prlimit64, 0, 7, 0, (long[2]){0}));
  tell("limits_of_init", syscall(SYS_prlimit64, 1, 7, 0, (long[2]){0}));
  tell("socket_inet", socket(AF_INET, SOCK_STREAM, 0));
  tell("socket_unix", socket(AF_UNIX, SOCK_STREAM, 0));
  tell("socket_netlink", socket(AF_NETLINK, SOCK_RAW, 0));
  tell("socket_vsock", socket(40, SOCK_STREAM, 0));
  tell("socket_alg", socket(38, SOCK_SEQPACKET, 0));
  tell("trace", try_trace());
#ifdef __x86_64__
  unsigned *low = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  tell("x32_getpid", syscall(0x40000000 | SYS_getpid));
  tell("i386_getpid", i386(20, 0, 0, 0));
  tell("i386_mount", i386(21, 0, 0, 0));
  tell("i386_unshare_user", i386(310, CLONE_NEWUSER, 0, 0));
  tell("i386_clone_user", i386(120, CLONE_NEWUSER | SIGCHLD, 0, 0));
  tell("i386_clone3", i386(435, 0, 0, 0));
  tell("i386_setns", i386(346, here, 0, 0));
  tell("i386_io_uring_setup", i386(425, 1, 0, 0));
  tell("i386_socket_unix", i386(359, AF_UNIX, SOCK_STREAM, 0));
  tell("i386_socket_vsock", i386(359, 40, SOCK_STREAM, 0));
  memcpy(low, (unsigned[3]){40, SOCK_STREAM, 0}, 12);
  tell("i386_socketcall_vsock", i386(102, 1, (long)low, 0));
  tell("i386_limits_of_init", i386(340, 1, 7, 0));
  tell("i386_subvolume", i386(54, here, 0x5000940e, (long)low));
#endif
  return 0;
}

/* What the confined egress process may ask of the kernel: LuaJIT, libuv's loop, our pump and c-ares.
 *
 * Memory may be made executable: the JIT needs it. No path is ever opened, no process made or signalled;
 * new sockets are TCP and UDP; what it listens to comes from the server. */
#include "confine_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define KIND 0xf /* of socket()'s second argument; the rest are flags */

static const char *const allowed[] = {
    /* descriptors that it has; without a way back in the log, which it may only go on with */
    "read", "readv", "write", "writev", "close", "dup", "fstat", "newfstatat",
    "pipe2", "eventfd2",
    /* sockets that it has or makes, see below */
    "connect", "accept4", "recvfrom", "recvmsg", "recvmmsg", "sendto", "sendmsg", "sendmmsg",
    "shutdown", "getsockname", "getpeername", "getsockopt",
    /* waiting */
    "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll",
    "timerfd_create", "timerfd_settime", "timerfd_gettime", "timer_settime", "timer_gettime",
    "timer_delete", "nanosleep", "clock_nanosleep", "restart_syscall", "sched_yield", "futex",
    /* memory */
    "mmap", "munmap", "mprotect", "mremap", "madvise", "brk", "membarrier",
    /* signals to itself, see below */
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
    /* time, randomness, who it is */
    "clock_gettime", "clock_getres", "gettimeofday", "time", "getrandom", "getpid", "gettid",
    "getuid", "geteuid", "getgid", "getegid", "getrusage", "uname", "sysinfo",
    "sched_getaffinity", "rseq", "set_robust_list",
    /* the end */
    "exit", "exit_group",
};

static const int fcntls[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL};
static const unsigned ioctls[] = {FIONBIO, FIOCLEX, FIONCLEX, FIONREAD};

static const struct {
  int level, option;
} options[] = {
    {SOL_SOCKET, SO_LINGER},       {SOL_SOCKET, SO_KEEPALIVE},     {SOL_SOCKET, SO_RCVBUF},
    {SOL_SOCKET, SO_SNDBUF},       {SOL_SOCKET, SO_REUSEADDR},     {IPPROTO_TCP, TCP_NODELAY},
    {IPPROTO_TCP, TCP_CORK},       {IPPROTO_TCP, TCP_QUICKACK},    {IPPROTO_TCP, TCP_KEEPIDLE},
    {IPPROTO_TCP, TCP_KEEPINTVL},  {IPPROTO_TCP, TCP_KEEPCNT},     {IPPROTO_TCP, TCP_USER_TIMEOUT},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT}, {IPPROTO_IP, IP_PKTINFO},    {IPPROTO_IPV6, IPV6_RECVPKTINFO},
    {IPPROTO_IPV6, IPV6_V6ONLY},
};

static const struct {
  int kind, protocol;
} sockets[] = {{SOCK_STREAM, 0}, {SOCK_STREAM, IPPROTO_TCP}, {SOCK_DGRAM, 0}, {SOCK_DGRAM, IPPROTO_UDP}};

static int allow_names(scmp_filter_ctx filter) {
  int outcome = 0;
  for (unsigned i = 0; i < COUNT(allowed) && outcome == 0; i++) {
    int number = seccomp_syscall_resolve_name(allowed[i]);
    if (number != __NR_SCMP_ERROR && number >= 0) /* below 0: of other architectures */
      outcome = seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
  }
  return outcome;
}

static int allow_sockets(scmp_filter_ctx filter) {
  static const int families[] = {AF_INET, AF_INET6};
  int outcome = 0;
  for (unsigned i = 0; i < COUNT(families); i++)
    for (unsigned k = 0; k < COUNT(sockets) && outcome == 0; k++)
      outcome = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 3,
                                 SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[i]),
                                 SCMP_A1(SCMP_CMP_MASKED_EQ, KIND, (scmp_datum_t)sockets[k].kind),
                                 SCMP_A2(SCMP_CMP_EQ, (scmp_datum_t)sockets[k].protocol));
  for (unsigned i = 0; i < COUNT(options) && outcome == 0; i++)
    outcome = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(setsockopt), 2,
                               SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t)options[i].level),
                               SCMP_A2(SCMP_CMP_EQ, (scmp_datum_t)options[i].option));
  return outcome;
}

static int allow_by_argument(scmp_filter_ctx filter) {
  int outcome = allow_sockets(filter);
  for (unsigned i = 0; i < COUNT(fcntls) && outcome == 0; i++)
    outcome = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1,
                               SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t)fcntls[i]));
  for (unsigned i = 0; i < COUNT(ioctls) && outcome == 0; i++)
    outcome = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                               SCMP_A1(SCMP_CMP_EQ, ioctls[i]));
  /* abort() signals its own thread; limits may be read, its own. */
  if (outcome == 0)
    outcome = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
                               SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid()));
  if (outcome == 0)
    outcome = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2,
                               SCMP_A0(SCMP_CMP_EQ, 0), SCMP_A2(SCMP_CMP_EQ, 0));
  return outcome;
}

int tp_confine_filter(struct tp_error *err) {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
  int outcome = filter ? 0 : -ENOMEM;
  if (outcome == 0)
    outcome = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
  if (outcome == 0)
    outcome = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a binary tree */
  if (outcome == 0)
    outcome = allow_names(filter);
  if (outcome == 0)
    outcome = allow_by_argument(filter);
  if (outcome == 0)
    outcome = seccomp_load(filter);
  if (filter)
    seccomp_release(filter);
  return outcome == 0 ? 0 : tp_fail(err, -outcome, "load the system call filter");
}

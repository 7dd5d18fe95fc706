/* tidepool-init: pid 1 of a sandbox.
 *
 *   descriptor 3   the listening control socket; 0, 1 and 2 are /dev/null
 *
 * Runs as root of the sandbox's user namespace, without a filter. Its own capabilities stay, its
 * bounding set does not: whatever its children execute is limited, and can't trace it. A static
 * program without configuration; everything comes over the control socket. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"
#include "loop.h"
#include "raw.h"

#define LISTENER 3
#define EVENTS 32

uint8_t init_nonce[TP_INIT_NONCE];

static struct source signals;
static uint64_t shutdown_deadline;
static bool alone; /* no children are left */

/* CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT
 * AUDIT_WRITE SETFCAP: what package managers, sudo and builds need; docker's, less MKNOD. */
#define CAPABILITIES                                                                               \
  (1ull << 0 | 1ull << 1 | 1ull << 3 | 1ull << 4 | 1ull << 5 | 1ull << 6 | 1ull << 7 | 1ull << 8 | \
   1ull << 10 | 1ull << 13 | 1ull << 18 | 1ull << 29 | 1ull << 31)

/* Once, for all children: the bounding set counts at exec, and init never executes. */
static int cut_capabilities(void) {
  for (int cap = 0; cap < 64; cap++) {
    if (CAPABILITIES >> cap & 1)
      continue;
    if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
      return errno == EINVAL ? 0 : -1; /* beyond the kernel's last */
  }
  return 0;
}

int agent_cut_capabilities(void) {
  struct {
    uint32_t version;
    int pid;
  } header = {0x20080522, 0};
  struct {
    uint32_t effective, permitted, inheritable;
  } sets[2] = {{(uint32_t)CAPABILITIES, (uint32_t)CAPABILITIES, 0}, {0, 0, 0}};
  return (int)syscall(SYS_capset, &header, sets);
}

/* The plan unshares a time namespace. Since Linux 6.2 exec enters it; before, only children do, and
 * the kernel refuses them our memory (CLONE_VM) while theirs is another than ours. */
static int enter_time_namespace(void) {
  struct stat ours, theirs;
  if (stat("/proc/self/ns/time", &ours) < 0 ||
      stat("/proc/self/ns/time_for_children", &theirs) < 0 || ours.st_ino == theirs.st_ino)
    return 0;
  int fd = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return -1;
  int outcome = setns(fd, 0x80 /* CLONE_NEWTIME */);
  close(fd);
  return outcome;
}

static void read_nonce(void) {
  int fd = open(TP_INIT_NONCE_FILE, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return;
  if (read(fd, init_nonce, sizeof init_nonce) < 0)
    memset(init_nonce, 0, sizeof init_nonce);
  close(fd);
}

void reap(void) {
  int status;
  struct rusage usage;
  pid_t pid;
  while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
    start_settle(pid);
    process_reaped(pid, status, &usage);
  }
  alone = pid < 0 && errno == ECHILD;
}

static void signals_ready(struct source *source, uint32_t events) {
  struct signalfd_siginfo info[8];
  (void)events;
  if (read(source->fd, info, sizeof info) > 0)
    reap();
}

static int open_signals(void) {
  sigset_t all, child;
  /* What the spawner ignored would stay ignored in every program of the sandbox. */
  const uint64_t defaults[4] = {0}; /* the kernel's struct; libc keeps 32 to 34 to itself */
  for (int number = 1; number <= 64; number++)
    tp_raw(SYS_rt_sigaction, number, defaults, NULL, 8);
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, NULL);
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  int fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
  if (fd < 0)
    return -1;
  source_init(&signals, fd, signals_ready);
  source_want(&signals, EPOLLIN);
  return 0;
}

bool shutting_down(void) {
  return shutdown_deadline != 0;
}

void shutdown_start(uint32_t grace) {
  if (!shutdown_deadline)
    kill(-1, SIGTERM);
  kill(-1, SIGCONT); /* who is stopped can't end */
  shutdown_deadline = now_ms() + (grace < 600000 ? grace : 600000);
  reap();
}

/* ms to wait, -1 for ever; ends the program when its time has come. */
static int next_timeout(void) {
  const int timeouts[] = {start_timeout(), connect_timeout(), process_hold_timeout()};
  int least = -1;
  for (unsigned i = 0; i < sizeof timeouts / sizeof *timeouts; i++)
    if (timeouts[i] >= 0 && (least < 0 || timeouts[i] < least))
      least = timeouts[i];
  if (!shutdown_deadline)
    return least;
  uint64_t now = now_ms();
  if (alone || now >= shutdown_deadline) {
    control_flush_all();
    _exit(0); /* the kernel kills whoever is left */
  }
  int left = (int)(shutdown_deadline - now);
  return least < 0 || left < least ? left : least;
}

static int prepare(void) {
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || chdir("/") < 0)
    return -1;
  umask(022);
  tp_raw(SYS_close_range, LISTENER + 1, -1, 0);
  fcntl(LISTENER, F_SETFD, FD_CLOEXEC);
  fcntl(LISTENER, F_SETFL, O_RDWR | O_NONBLOCK);
  read_nonce();
  if (enter_time_namespace() < 0 || cut_capabilities() < 0 || start_init() < 0)
    return -1;
  loop_fd = epoll_create1(EPOLL_CLOEXEC);
  return loop_fd < 0 || open_signals() < 0 ? -1 : control_open(LISTENER);
}

int main(void) {
  if (prepare() < 0)
    return 111;
  for (;;) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(loop_fd, events, EVENTS, next_timeout());
    for (int i = 0; i < count; i++) {
      struct source *source = events[i].data.ptr;
      if (source->fd >= 0)
        source->ready(source, events[i].events);
    }
    loop_collect();
  }
}

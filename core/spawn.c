/* Plans, executed: see spawn.h. */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "btrfs.h"
#include "cgroup.h"
#include "freeze.h"
#include "raw.h"
#include "scope.h"
#include "snapshot.h"

#define CHILD_STACK (256u << 10)
#define CHILD_SECONDS 30

typedef int step_function(struct tp_run *, const struct tp_step *, struct tp_error *);

static step_function *const functions[TP_OPS] = {
#define X(name, kinds) tp_step_##name,
    TP_PLAN_OPS(X)
#undef X
};

void tp_run_begin(struct tp_run *run, const struct tp_plan *plan, const int *fds, unsigned count) {
  *run = (struct tp_run){
      .plan = plan, .pidfd = -1, .link = -1, .child_link = -1, .host_dev = -1, .failed = -1};
  for (unsigned i = 0; i < TP_PLAN_SLOTS; i++)
    run->slots[i] = i < count ? fds[i] : -1;
}

static void close_and_clear(int *fd) {
  tp_scope_close(fd);
  *fd = -1;
}

void tp_run_end(struct tp_run *run) {
  for (unsigned i = 0; i < TP_PLAN_SLOTS; i++)
    close_and_clear(&run->slots[i]);
  close_and_clear(&run->pidfd);
  close_and_clear(&run->link);
  close_and_clear(&run->child_link);
}

int tp_run_slot(struct tp_run *run, const struct tp_arg *arg, struct tp_error *err) {
  int fd = run->slots[arg->number];
  return fd >= 0 ? fd : tp_fail(err, EBADF, "slot %u is empty", (unsigned)arg->number);
}

void tp_run_fill(struct tp_run *run, const struct tp_arg *arg, int fd) {
  close_and_clear(&run->slots[arg->number]);
  run->slots[arg->number] = fd;
}

void tp_run_value(struct tp_run *run, uint64_t value) {
  if (run->value_count < TP_RUN_VALUES)
    run->values[run->value_count++] = value;
}

void tp_run_give(struct tp_run *run, const struct tp_arg *arg) {
  if (run->given_count < TP_RUN_GIVEN)
    run->given[run->given_count++] = run->slots[arg->number];
}

void tp_run_kill(struct tp_run *run) {
  if (run->pid <= 0)
    return;
  syscall(SYS_pidfd_send_signal, run->pidfd, SIGKILL, NULL, 0);
  while (waitpid(run->pid, NULL, 0) < 0 && errno == EINTR)
    ;
  run->pid = 0;
}

static int execute_step(struct tp_run *run, int i, struct tp_error *err) {
  const struct tp_step *step = &run->plan->steps[i];
  if (functions[step->op](run, step, err) >= 0) {
    run->made[i] = true;
    return 0;
  }
  if (step->optional)
    return 0;
  return tp_wrap(err, "plan step %d", i + 1);
}

/* Only what would outlive the failure: a mount of the child's goes with its namespace. */
static void undo_step(const struct tp_step *step) {
  const struct tp_arg *args = step->args;
  struct tp_error ignored;
  switch (step->op) {
  case TP_OP_mkdir:
    rmdir(args[0].bytes);
    break;
  case TP_OP_group:
    tp_cgroup_remove(args[0].bytes, &ignored);
    break;
  case TP_OP_file:
    unlink(args[0].bytes);
    break;
  case TP_OP_symlink:
    unlink(args[1].bytes);
    break;
  case TP_OP_rename:
    rename(args[1].bytes, args[0].bytes);
    break;
  case TP_OP_subvolume:
    tp_btrfs_destroy(args[0].bytes, args[1].bytes, &ignored);
    break;
  case TP_OP_snapshot:
    tp_btrfs_destroy(args[1].bytes, args[2].bytes, &ignored);
    break;
  case TP_OP_mount:
  case TP_OP_bind:
    umount2(args[1].bytes, MNT_DETACH);
    break;
  case TP_OP_pool:
  case TP_OP_attach:
    umount2(args[1].bytes, MNT_DETACH);
    break;
  case TP_OP_freeze:
    tp_freeze_end(args[0].bytes, &ignored);
    break;
  default:
    break;
  }
}

static bool in_child(const struct tp_plan *plan, int i) {
  return plan->child >= 0 && i > plan->child && i <= plan->exec;
}

static void undo(struct tp_run *run) {
  tp_run_kill(run);
  for (int i = (int)run->plan->count - 1; i >= 0; i--)
    if (run->made[i] && !in_child(run->plan, i))
      undo_step(&run->plan->steps[i]);
}

/* --- the child -------------------------------------------------------------------------------- */

int tp_run_await(struct tp_run *run, struct tp_error *err) {
  char go;
  ssize_t got;
  do
    got = read(run->child_link, &go, 1);
  while (got < 0 && errno == EINTR);
  return got == 1 ? 0 : tp_fail(err, ECANCELED, "spawner is gone");
}

static void child_report(struct tp_run *run, int step) {
  run->parent->failed = step;
  run->parent->child_failed = true;
  _exit(127);
}

static void child_main(void *arg) {
  struct tp_run *run = arg;
  const struct tp_plan *plan = run->plan;
  struct tp_error *err = &run->parent->child_error;
  close(run->link); /* else our own copy would hide that the spawner is gone */

  if (tp_run_await(run, err) < 0)
    child_report(run, plan->child);
  for (int i = plan->child + 1; i <= plan->exec; i++) {
    const struct tp_step *step = &plan->steps[i];
    if (step->op == TP_OP_join || functions[step->op](run, step, err) >= 0 || step->optional)
      continue;
    tp_wrap(err, "plan step %d", i + 1);
    child_report(run, i);
  }
  _exit(127);
}

/* clone NAMESPACES OWNER SLOT: the child of the plan, in new namespaces that OWNER's user id is
 * charged for (each sandbox has kernel limits of its own), born in the cgroup behind SLOT. */
int tp_step_clone(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  static char *stack; /* one child at a time uses these two */
  static struct tp_run child; /* its descriptors have numbers of its own */
  if (!stack) {
    char *made = mmap(NULL, CHILD_STACK, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (made == MAP_FAILED)
      return tp_fail(err, errno, "allocate the child's stack");
    mprotect(made, 4096, PROT_NONE);
    stack = made;
  }
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
    return tp_fail(err, errno, "make socket pair");
  run->link = pair[0];
  run->child_link = pair[1];
  child = *run;
  child.parent = run;

  int cgroup = run->slots[step->args[2].number];
  struct clone_args args = {
      .flags = CLONE_VM | CLONE_PIDFD | step->args[0].number |
               (cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
      .pidfd = (uintptr_t)&run->pidfd,
      .exit_signal = SIGCHLD,
      .stack = (uintptr_t)stack,
      .stack_size = CHILD_STACK,
      .cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
  };
  /* The spawner's securebits keep its capabilities over this change of identity. */
  uid_t owner = (uid_t)step->args[1].number;
  if (syscall(SYS_setresuid, -1, owner, -1) < 0)
    return tp_fail(err, errno, "become user %u", owner);
  long pid = tp_raw_clone3(&args, child_main, &child);
  if (syscall(SYS_setresuid, -1, 0, -1) < 0)
    _exit(1); /* can't be: 0 is the real id */
  if (pid < 0)
    return tp_fail(err, (int)-pid, "clone");

  run->pid = (pid_t)pid;
  close_and_clear(&run->child_link);
  return 0;
}

/* child: the steps from here to `exec` run inside. */
int tp_step_child(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run, (void)step, (void)err;
  return 0;
}

/* joined: inside, waits until the parent has made the `join` steps. */
int tp_step_joined(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)step;
  return tp_run_await(run, err);
}

/* exec PATH SLOT: the program, with SLOT as descriptor 3, /dev/null as 0, 1 and 2, and no other. */
int tp_step_exec(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  static char *const environment[] = {
      (char *)"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      (char *)"container=tidepool", NULL};
  int given = run->slots[step->args[1].number];
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0)
    return tp_fail(err, errno, "open /dev/null");
  for (int fd = 0; fd < 3; fd++)
    if (dup2(null, fd) < 0)
      return tp_fail(err, errno, "duplicate /dev/null");
  if (given >= 0 ? dup2(given, 3) < 0 : close(3) < 0 && errno != EBADF)
    return tp_fail(err, errno, "pass a descriptor");
  /* Marked and not closed: the link's end must tell the parent of the exec and of nothing else. */
  if (syscall(SYS_close_range, 4u, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
    return tp_fail(err, errno, "mark descriptors");

  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  signal(SIGPIPE, SIG_DFL);
  char *const argv[] = {(char *)step->args[0].bytes, NULL};
  execve(argv[0], argv, environment);
  return tp_fail(err, errno, "exec %s", argv[0]);
}

/* --- the parent while the child works --------------------------------------------------------- */

/* join DIRECTORY: moves the child into a cgroup. The kernel may take its time (a grace period), so
 * this runs beside the child's own steps and before its `joined`. Raw calls only, see spawn.h. */
static long join_group(const char *path, pid_t pid) {
  char file[4096 + 16], digits[16];
  size_t length = 0, used = 0;
  for (; path[length]; length++)
    file[length] = path[length];
  for (const char *tail = "/cgroup.procs";; tail++) {
    file[length++] = *tail;
    if (!*tail)
      break;
  }
  char reversed[16];
  unsigned count = 0;
  for (unsigned rest = (unsigned)pid; rest; rest /= 10)
    reversed[count++] = (char)('0' + rest % 10);
  while (count)
    digits[used++] = reversed[--count];

  long fd = tp_raw(SYS_openat, AT_FDCWD, (long)file, O_WRONLY | O_CLOEXEC, 0);
  if (fd < 0)
    return fd;
  long wrote = tp_raw(SYS_write, fd, (long)digits, (long)used, 0);
  tp_raw(SYS_close, fd, 0, 0, 0);
  return wrote < 0 ? wrote : 0;
}

int tp_step_join(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  if (run->pid <= 0)
    return tp_fail(err, EINVAL, "join without a child");
  long code = join_group(step->args[0].bytes, run->pid);
  return code < 0 ? tp_fail(err, (int)-code, "join %s", step->args[0].bytes) : 0;
}

static long say_go(int link) {
  static const char go = 1;
  return tp_raw(SYS_write, link, (long)&go, 1, 0);
}

/* The child's section: 0 once it has become the program. */
static int run_child(struct tp_run *run, struct tp_error *err) {
  const struct tp_plan *plan = run->plan;
  say_go(run->link);
  long joined = 0;
  int at = -1;
  for (int i = plan->child + 1; i < plan->exec && joined >= 0; i++) {
    if (plan->steps[i].op != TP_OP_join)
      continue;
    long code = join_group(plan->steps[i].args[0].bytes, run->pid);
    if (code < 0 && !plan->steps[i].optional)
      joined = code, at = i;
  }
  if (joined >= 0) {
    say_go(run->link);
    struct pollfd wait = {.fd = run->link, .events = POLLIN};
    long found = 0;
    struct timespec limit = {.tv_sec = CHILD_SECONDS};
    do
      found = tp_raw(SYS_ppoll, (long)&wait, 1, (long)&limit, 0);
    while (found == -EINTR);
    if (found <= 0)
      joined = -ETIMEDOUT, at = plan->exec;
  }

  if (joined < 0 || run->child_failed) {
    tp_run_kill(run); /* from here on libc is ours alone */
    if (!run->child_failed) {
      run->failed = at;
      return tp_fail(err, (int)-joined, "plan step %d: %s %s", at + 1,
                     tp_op_name(plan->steps[at].op), plan->steps[at].args[0].bytes);
    }
    *err = run->child_error;
    return -1;
  }
  close_and_clear(&run->link);
  return 0;
}

int tp_run_execute(struct tp_run *run, struct tp_error *err) {
  const struct tp_plan *plan = run->plan;
  for (int i = 0; i < (int)plan->count; i++) {
    int outcome;
    unsigned beside = tp_snapshots_beside(plan, (unsigned)i);
    if (i == plan->child) {
      outcome = run_child(run, err);
      i = plan->exec;
    } else if (beside > 1) {
      outcome = tp_snapshots_take(run, (unsigned)i, beside, err);
      i += (int)beside - 1;
    } else {
      outcome = execute_step(run, i, err);
      if (outcome < 0)
        run->failed = i;
    }
    if (outcome < 0) {
      undo(run);
      return -1;
    }
  }
  return 0;
}

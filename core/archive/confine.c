/* The jail of the archive workers: see confine.h. Runs as root until tp_confine_enter returns. */
#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "../scope.h"

/* glibc's <sys/mount.h> and <linux/mount.h> can't be included together everywhere. */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
#define FLAG_REC 16384
#define FLAG_PRIVATE (1 << 18)
#define FLAG_DETACH 2

#define MEMORY (1ull << 30)      /* bytes; xz and zstd want at most some hundred MiB */
#define READ_MEMORY (4ull << 30) /* a thread reserves a stack and an arena, mostly untouched */
#define FILES 4096
#define READ_FILES 8192 /* two trees, as deep as a path can name */

static bool is_overlay(int directory) {
  struct statfs fs;
  return fstatfs(directory, &fs) == 0 && fs.f_type == OVERLAYFS_SUPER_MAGIC;
}

int tp_confine_mount(int directory, int userns, struct tp_error *err) {
  TP_CLOSE int tree = (int)syscall(SYS_open_tree, directory, "",
                                   AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (tree < 0)
    return tp_fail(err, errno, "clone the target's mount");
  struct mount_attr attr = {
      .attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
      .propagation = FLAG_PRIVATE, /* a shared mount, as systemd has them, can't become the root */
  };
  if (userns >= 0 && !is_overlay(directory)) {
    attr.attr_set |= MOUNT_ATTR_IDMAP;
    attr.userns_fd = (uint64_t)userns;
  }
  if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
    return tp_fail(err, errno, "shift the target's ids (does its file system know idmapped mounts?)");
  return tp_take_fd(&tree);
}

/* The namespaces stay owned by the host's user namespace: the worker can't mount even with a full
 * set of capabilities in its own. */
static int change_root(int tree, struct tp_error *err) {
  if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) < 0)
    return tp_fail(err, errno, "unshare namespaces");
  if (mount(NULL, "/", NULL, FLAG_REC | FLAG_PRIVATE, NULL) < 0)
    return tp_fail(err, errno, "make mounts private");
  if (syscall(SYS_move_mount, tree, "", AT_FDCWD, "/tmp", MOVE_MOUNT_F_EMPTY_PATH) < 0)
    return tp_fail(err, errno, "mount the target");
  if (fchdir(tree) < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
    return tp_fail(err, errno, "pivot into the target");
  if (umount2(".", FLAG_DETACH) < 0 || chdir("/") < 0)
    return tp_fail(err, errno, "leave the host's root");
  return 0;
}

static int cut_capabilities(struct tp_error *err) {
  /* MKNOD and SYS_ADMIN are not here. A FIFO needs neither. */
  uint64_t keep = 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH |
                  1u << CAP_FOWNER | 1u << CAP_FSETID | 1u << CAP_SETFCAP;
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2] = {{.effective = (uint32_t)keep, .permitted = (uint32_t)keep}};
  data[1].effective = data[1].permitted = (uint32_t)(keep >> 32);
  if (syscall(SYS_capset, &header, data) < 0)
    return tp_fail(err, errno, "cut capabilities");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
    return tp_fail(err, errno, "forbid new privileges");
  return 0;
}

static int set_limits(enum tp_confine_kind kind, uint64_t max_bytes, struct tp_error *err) {
  bool reads = kind == TP_CONFINE_READ;
  struct {
    int what;
    rlim_t value;
  } limits[] = {{RLIMIT_FSIZE, max_bytes},
                {RLIMIT_AS, reads ? READ_MEMORY : MEMORY},
                {RLIMIT_NOFILE, reads ? READ_FILES : FILES},
                {RLIMIT_CORE, 0}};
  for (unsigned i = 0; i < sizeof limits / sizeof *limits; i++) {
    struct rlimit limit = {limits[i].value, limits[i].value};
    if (setrlimit((__rlimit_resource_t)limits[i].what, &limit) < 0)
      return tp_fail(err, errno, "set limit %d", limits[i].what);
  }
  signal(SIGXFSZ, SIG_IGN); /* so that EFBIG is told with the file's name */
  signal(SIGPIPE, SIG_IGN);
  return 0;
}

static int allow(scmp_filter_ctx filter, const int *calls, size_t count) {
  int result = 0;
  for (size_t i = 0; result == 0 && i < count; i++)
    result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls[i], 0);
  return result;
}

/* Threads, and nothing else that clone makes. glibc falls back to clone, whose flags can be read,
 * only when it hears ENOSYS. */
static int allow_threads(scmp_filter_ctx filter) {
  static const int calls[] = {SCMP_SYS(set_robust_list),   SCMP_SYS(rseq),       SCMP_SYS(sched_yield),
                              SCMP_SYS(sched_getaffinity), SCMP_SYS(flistxattr)};
  int result = allow(filter, calls, sizeof calls / sizeof *calls);
  if (result == 0)
    result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
  if (result == 0)
    result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                              SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
  return result;
}

static int install_filter(enum tp_confine_kind kind, struct tp_error *err) {
  static const int calls[] = {
      SCMP_SYS(read), SCMP_SYS(readv), SCMP_SYS(pread64), SCMP_SYS(write), SCMP_SYS(writev),
      SCMP_SYS(pwrite64), SCMP_SYS(lseek), SCMP_SYS(close), SCMP_SYS(open), SCMP_SYS(openat),
      SCMP_SYS(creat), SCMP_SYS(stat), SCMP_SYS(lstat), SCMP_SYS(fstat), SCMP_SYS(newfstatat),
      SCMP_SYS(statx), SCMP_SYS(statfs), SCMP_SYS(fstatfs), SCMP_SYS(access), SCMP_SYS(faccessat),
      SCMP_SYS(faccessat2), SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(getdents64),
      SCMP_SYS(getcwd), SCMP_SYS(chdir), SCMP_SYS(fchdir), SCMP_SYS(mkdir), SCMP_SYS(mkdirat),
      SCMP_SYS(rmdir), SCMP_SYS(unlink), SCMP_SYS(unlinkat), SCMP_SYS(rename), SCMP_SYS(renameat),
      SCMP_SYS(renameat2), SCMP_SYS(link), SCMP_SYS(linkat), SCMP_SYS(symlink), SCMP_SYS(symlinkat),
      SCMP_SYS(mknod), SCMP_SYS(mknodat), SCMP_SYS(chown), SCMP_SYS(fchown), SCMP_SYS(lchown),
      SCMP_SYS(fchownat), SCMP_SYS(chmod), SCMP_SYS(fchmod), SCMP_SYS(fchmodat), SCMP_SYS(umask),
      SCMP_SYS(utime), SCMP_SYS(utimes), SCMP_SYS(futimesat), SCMP_SYS(utimensat),
      SCMP_SYS(ftruncate), SCMP_SYS(truncate), SCMP_SYS(fallocate), SCMP_SYS(setxattr),
      SCMP_SYS(lsetxattr), SCMP_SYS(fsetxattr), SCMP_SYS(lremovexattr), SCMP_SYS(getxattr),
      SCMP_SYS(lgetxattr),
      SCMP_SYS(fgetxattr), SCMP_SYS(fcntl), SCMP_SYS(dup), SCMP_SYS(brk), SCMP_SYS(munmap),
      SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(futex), SCMP_SYS(getpid), SCMP_SYS(gettid),
      SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getegid),
      SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(getrandom),
      SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(tgkill),
      SCMP_SYS(restart_syscall), SCMP_SYS(exit), SCMP_SYS(exit_group),
  };
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
  int result = filter ? allow(filter, calls, sizeof calls / sizeof *calls) : -ENOMEM;
  if (result == 0 && kind == TP_CONFINE_READ)
    result = allow_threads(filter);
  /* Memory may be mapped, never made executable. */
  if (result == 0)
    result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                              SCMP_A2(SCMP_CMP_MASKED_EQ, 4 /* PROT_EXEC */, 0));
  if (result == 0)
    result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                              SCMP_A2(SCMP_CMP_MASKED_EQ, 4, 0));
  if (result == 0)
    result = seccomp_load(filter);
  seccomp_release(filter);
  return result == 0 ? 0 : tp_fail(err, -result, "install the system call filter");
}

int tp_confine_enter(enum tp_confine_kind kind, int tree, int userns, uint64_t max_bytes,
                     struct tp_error *err) {
  if (change_root(tree, err) < 0)
    return -1;
  if (setns(userns, CLONE_NEWUSER) < 0)
    return tp_fail(err, errno, "enter user namespace");
  if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
    return tp_fail(err, errno, "become the range's root");
  close(tree);
  close(userns);

  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
    return tp_fail(err, errno, "tie to the supervisor");
  if (set_limits(kind, max_bytes, err) < 0 || cut_capabilities(err) < 0)
    return -1;
  return install_filter(kind, err);
}

/* The egress process's confinement. Root when it begins; afterwards a user id of its own, in an empty
 * read-only root, without capabilities, and with a list of system calls.
 *
 * The process parses what sandboxes and the internet send, runs policies and holds secrets. Whoever
 * takes it over shall find nothing else: no file, no other process, no new kind of socket. It keeps the
 * host's network, since reaching out is its work; that it goes where policies say is its own word. */
#include "confine.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "confine_filter.h"
#include "watchdog.h"

#define FILES (1u << 20)
#define LOG_LIMIT (1u << 30) /* bytes; the one file that it writes is the server's log */

static int check(const struct tp_confinement *confinement, struct tp_error *err) {
  struct stat tasks;
  if (geteuid() != 0)
    return tp_fail(err, EPERM, "only root can give root up");
  if (confinement->uid == 0 || confinement->gid == 0)
    return tp_fail(err, EINVAL, "the user to become is root");
  /* Only the thread that calls would get a new root and the filter. */
  if (stat("/proc/self/task", &tasks) < 0)
    return tp_fail(err, errno, "count threads");
  if (tasks.st_nlink != 3)
    return tp_fail(err, EBUSY, "the process has %u threads", (unsigned)tasks.st_nlink - 2);
  return 0;
}

static int set_limit(__rlimit_resource_t what, rlim_t value, struct tp_error *err) {
  struct rlimit limit = {value, value};
  if (setrlimit(what, &limit) < 0)
    return tp_fail(err, errno, "set limit %d", (int)what);
  return 0;
}

static int set_limits(const struct tp_confinement *confinement, struct tp_error *err) {
  /* fs.nr_open may be lower; then what was inherited is as good as it gets. */
  rlim_t files = confinement->files ? confinement->files : FILES;
  struct rlimit inherited;
  if (set_limit(RLIMIT_NOFILE, files, err) < 0 && getrlimit(RLIMIT_NOFILE, &inherited) == 0 &&
      set_limit(RLIMIT_NOFILE, inherited.rlim_max, err) < 0)
    return -1;
  signal(SIGXFSZ, SIG_IGN);
  if (set_limit(RLIMIT_FSIZE, LOG_LIMIT, err) < 0 || set_limit(RLIMIT_CORE, 0, err) < 0 ||
      set_limit(RLIMIT_NPROC, 0, err) < 0)
    return -1;
  return confinement->memory ? tp_watchdog_limit_memory(confinement->memory, err) : 0;
}

static int leave_files(struct tp_error *err) {
  if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) < 0)
    return tp_fail(err, errno, "unshare namespaces");
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
    return tp_fail(err, errno, "make mounts private");
  if (mount("none", "/tmp", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
            "mode=0555,size=4k,nr_inodes=1") < 0)
    return tp_fail(err, errno, "mount an empty root");
  if (chdir("/tmp") < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
    return tp_fail(err, errno, "pivot into the empty root");
  if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
    return tp_fail(err, errno, "leave the host's root");
  return 0;
}

static int drop_privileges(const struct tp_confinement *confinement, struct tp_error *err) {
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
    if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
      return tp_fail(err, errno, "drop capability %d", capability);
  if (setgroups(0, NULL) < 0 ||
      setresgid(confinement->gid, confinement->gid, confinement->gid) < 0 ||
      setresuid(confinement->uid, confinement->uid, confinement->uid) < 0)
    return tp_fail(err, errno, "become user %u", (unsigned)confinement->uid);
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[2] = {{0}};
  if (syscall(SYS_capset, &header, none) < 0)
    return tp_fail(err, errno, "drop capabilities");
  /* Undumpable: its memory, with the secrets, is not another process's to read. */
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
    return tp_fail(err, errno, "forbid new privileges");
  return 0;
}

int tp_confine_self(const struct tp_confinement *confinement, struct tp_error *err) {
  if (check(confinement, err) < 0)
    return -1;
  tzset(); /* while /etc/localtime is there */
  if (set_limits(confinement, err) < 0 || leave_files(err) < 0 ||
      drop_privileges(confinement, err) < 0)
    return -1;
  return tp_confine_filter(err);
}

/* tidepool-criu: prepares what CRIU can't know of a sandbox, then becomes CRIU.
 *
 *   tidepool-criu [--of PID] [--owner UID] [--group DIRECTORY]... [--root DIRECTORY --at POINT --uid-base N]
 *                 [--cgroup-at POINT] [--run DIRECTORY] -- PROGRAM ARGUMENT...
 *
 * Runs as root, started by the server in its mount namespace; it takes one of its own, so that what
 * it mounts goes with it. --group enters control groups, which the restored processes are then born
 * in; --root mounts a sandbox's root with the ids of its range; --cgroup-at mounts the group that
 * was entered, as the root of a cgroup namespace. --run puts a directory in the place of /run, where
 * CRIU keeps what it has found out about the kernel. --owner takes on the user who owns the sandbox's
 * user namespace, and keeps all capabilities: where the machine has withheld CAP_SYS_RESOURCE from
 * us, the owner still has it inside.
 * --of PID names the sandbox that is to be dumped: what CRIU would forget of it is refused, and a
 * shortage of memory does not end CRIU.
 * As CRIU's own action script it is the hook of hook.h.
 * Standard error tells "CODE: message" of what fails here; exit status 125. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../archive/confine.h"
#include "../scope.h"
#include "hook.h"
#include "queues.h"

#define FAILED 125
#define MAX_GROUPS 8
#define WRITING 10 /* seconds */

struct options {
  const char *groups[MAX_GROUPS];
  unsigned group_count;
  const char *root, *at, *cgroup_at, *run;
  struct tp_range range;
  long owner;
  pid_t of;
};

static int enter_group(const char *directory, struct tp_error *err) {
  char path[4096];
  snprintf(path, sizeof path, "%s/cgroup.procs", directory);
  TP_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, "0", 1) < 0)
    return tp_fail(err, errno, "enter %s", directory);
  return 0;
}

/* CRIU binds the root from here: a mount of its own, private, or it refuses to pivot into it. */
static int mount_root(const struct options *options, struct tp_error *err) {
  TP_CLOSE int directory = open(options->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0)
    return tp_fail(err, errno, "open %s", options->root);
  TP_CLOSE int userns = tp_userns_open(&options->range, err);
  if (userns < 0)
    return -1;
  TP_CLOSE int tree = tp_confine_mount(directory, userns, err);
  if (tree < 0)
    return -1;
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_NODEV, .attr_clr = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC};
  if (mount_setattr(tree, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
    return tp_fail(err, errno, "set flags of %s", options->root);
  if (move_mount(tree, "", AT_FDCWD, options->at, MOVE_MOUNT_F_EMPTY_PATH) < 0)
    return tp_fail(err, errno, "mount the root on %s", options->at);
  if (mount(NULL, options->at, NULL, MS_PRIVATE, NULL) < 0)
    return tp_fail(err, errno, "make %s private", options->at);
  return 0;
}

/* By its own calls: mount(2) refuses a file system where it is mounted already, and on a host with cgroup v2
 * alone that is where the restored root looks for it. */
static int mount_groups(const char *point, struct tp_error *err) {
  if (unshare(CLONE_NEWCGROUP) < 0)
    return tp_fail(err, errno, "unshare the cgroup namespace");
  TP_CLOSE int context = fsopen("cgroup2", FSOPEN_CLOEXEC);
  if (context < 0 || fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
    return tp_fail(err, errno, "open cgroup2");
  TP_CLOSE int tree = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID |
                                                            MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
  if (tree < 0 || move_mount(tree, "", AT_FDCWD, point, MOVE_MOUNT_F_EMPTY_PATH) < 0)
    return tp_fail(err, errno, "mount cgroup2 on %s", point);
  return 0;
}

/* CRIU asks the kernel for 25 ms what it can do, unless an earlier one has written that down. One that
 * was killed while it wrote has left a file that keeps all later ones from it. */
static int mount_run(const char *directory, struct tp_error *err) {
  char path[4096];
  struct stat st;
  snprintf(path, sizeof path, "%s/criu.kdat.tmp", directory);
  if (stat(path, &st) == 0 && st.st_mtime + WRITING < time(NULL))
    unlink(path);
  if (mount(directory, "/run", NULL, MS_BIND, NULL) < 0)
    return tp_fail(err, errno, "bind %s on /run", directory);
  return 0;
}

/* Not uid 0 any more, so an exec would drop the capabilities unless they are ambient. */
static int become_owner(uid_t owner, struct tp_error *err) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct sets[2];
  if (syscall(SYS_capget, &header, sets) < 0)
    return tp_fail(err, errno, "read capabilities");
  for (unsigned i = 0; i < 2; i++)
    sets[i].inheritable = sets[i].permitted;
  if (syscall(SYS_capset, &header, sets) < 0)
    return tp_fail(err, errno, "keep capabilities");
  for (int cap = 0; cap < 64; cap++)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0); /* those that we have */
  if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NOROOT) < 0)
    return tp_fail(err, errno, "set securebits");
  return syscall(SYS_setresuid, -1, owner, -1) < 0 ? tp_fail(err, errno, "become user %u", owner) : 0;
}

/* A CRIU that is killed while it dumps can take a process with it. Not where it is not permitted. */
static void protect_from_shortage(void) {
  TP_CLOSE int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, "-1000", 5) < 0)
    return;
}

static int prepare(const struct options *options, struct tp_error *err) {
  if (options->of > 0) {
    protect_from_shortage();
    if (tp_criu_no_queues(options->of, err) < 0)
      return -1;
  }
  if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
    return tp_fail(err, errno, "unshare mounts");
  if (options->root && mount_root(options, err) < 0)
    return -1;
  for (unsigned i = 0; i < options->group_count; i++)
    if (enter_group(options->groups[i], err) < 0)
      return -1;
  if (options->cgroup_at && mount_groups(options->cgroup_at, err) < 0)
    return -1;
  if (options->run && mount_run(options->run, err) < 0)
    return -1;
  return options->owner > 0 ? become_owner((uid_t)options->owner, err) : 0;
}

static int usage(void) {
  fprintf(stderr, "EINVAL: tidepool-criu: wrong command line\n");
  return 2;
}

static int say(const struct tp_error *err) {
  fprintf(stderr, "%s: %s\n", tp_error_name(err->code), err->message);
  return FAILED;
}

int main(int argc, char **argv) {
  struct tp_error err;
  const char *stage = getenv("CRTOOLS_SCRIPT_ACTION");
  if (stage && getenv(TP_CRIU_HOOK))
    return tp_criu_hook(stage, &err) < 0 ? say(&err) : 0;
  static const struct option names[] = {{"owner", 1, NULL, 'o'},     {"group", 1, NULL, 'g'},
                                        {"root", 1, NULL, 'r'},      {"at", 1, NULL, 'a'},
                                        {"uid-base", 1, NULL, 'u'},  {"cgroup-at", 1, NULL, 'c'},
                                        {"run", 1, NULL, 'R'},       {"of", 1, NULL, 'f'},
                                        {NULL, 0, NULL, 0}};
  struct options options = {.range = {.count = 65536}};
  for (int found; (found = getopt_long(argc, argv, "+", names, NULL)) != -1;) {
    switch (found) {
    case 'f': options.of = (pid_t)atoi(optarg); break;
    case 'o': options.owner = atol(optarg); break;
    case 'g':
      if (options.group_count == MAX_GROUPS)
        return usage();
      options.groups[options.group_count++] = optarg;
      break;
    case 'r': options.root = optarg; break;
    case 'a': options.at = optarg; break;
    case 'u': options.range.base = (uint32_t)strtoul(optarg, NULL, 10); break;
    case 'c': options.cgroup_at = optarg; break;
    case 'R': options.run = optarg; break;
    default: return usage();
    }
  }
  if (optind >= argc || !options.root != !options.at || (options.root && !options.range.base))
    return usage();
  if (prepare(&options, &err) == 0) {
    execv(argv[optind], argv + optind);
    tp_fail(&err, errno, "exec %s", argv[optind]);
  }
  return say(&err);
}

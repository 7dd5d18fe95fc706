/* Control groups: see cgroup.h. Runs in the server (root) and in the spawner. */
#include "cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

int tp_cgroup_leaf(int parent, const char *name, uid_t owner, struct tp_error *err) {
  char procs[256];
  if (snprintf(procs, sizeof procs, "%s/cgroup.procs", name) >= (int)sizeof procs)
    return tp_fail(err, ENAMETOOLONG, "cgroup %s", name);
  /* One that is there was made on the way of the same request, by a server that was then killed, or
   * is shared; whether it had its owner already, nobody knows. */
  bool made = mkdirat(parent, name, 0755) == 0;
  if (!made && errno != EEXIST)
    return tp_fail(err, errno, "make cgroup %s", name);
  TP_CLOSE int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 || fchownat(parent, procs, owner, owner, 0) < 0) {
    int code = errno;
    if (made)
      unlinkat(parent, name, AT_REMOVEDIR);
    return tp_fail(err, code, "prepare cgroup %s", name);
  }
  return tp_take_fd(&fd);
}

int tp_cgroup_populated(int directory, struct tp_error *err) {
  char text[128];
  TP_CLOSE int fd = openat(directory, "cgroup.events", O_RDONLY | O_CLOEXEC);
  ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (got < 0)
    return tp_fail(err, errno, "read cgroup.events");
  text[got] = '\0';
  return strstr(text, "populated 1") != NULL;
}

static int read_members(int directory, char **text, struct tp_error *err) {
  TP_CLOSE int fd = openat(directory, "cgroup.procs", O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return tp_fail(err, errno, "open cgroup.procs");
  size_t size = 4096, length = 0;
  TP_FREE char *bytes = malloc(size);
  for (;;) {
    if (!bytes)
      return tp_fail(err, ENOMEM, "read cgroup.procs");
    ssize_t got = read(fd, bytes + length, size - length - 1);
    if (got < 0)
      return tp_fail(err, errno, "read cgroup.procs");
    if (got == 0)
      break;
    length += (size_t)got;
    if (size - length < 64)
      bytes = realloc(bytes, size *= 2);
  }
  bytes[length] = '\0';
  *text = bytes;
  bytes = NULL;
  return 0;
}

static bool is_member(const char *members, pid_t pid) {
  for (char *end; *members; members = *end ? end + 1 : end)
    if (strtol(members, &end, 10) == pid)
      return true;
  return false;
}

/* A pid read from cgroup.procs may be another process's by now. One that is still a member after its
 * pidfd was opened is the process that the pidfd stands for. */
static int signal_member(int directory, pid_t pid, int signal, struct tp_error *err) {
  TP_CLOSE int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (pidfd < 0)
    return errno == ESRCH ? 0 : tp_fail(err, errno, "open pidfd");
  TP_FREE char *now = NULL;
  if (read_members(directory, &now, err) < 0)
    return -1;
  if (is_member(now, pid) && syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) < 0 &&
      errno != ESRCH)
    return tp_fail(err, errno, "signal process");
  return 0;
}

static bool first_thread_ended(pid_t pid) {
  char path[64], text[256];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  TP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (got < 0)
    return false;
  text[got] = '\0';
  const char *name_end = strrchr(text, ')');
  return name_end && strncmp(name_end, ") Z", 3) == 0;
}

/* cgroup.kill signals first threads, so it does not reach a process whose first thread has ended and
 * whose others go on (Linux 6.18). Such a one is still a member; one that is dead is not. */
static void kill_missed(int directory) {
  struct tp_error err;
  TP_FREE char *members = NULL;
  if (read_members(directory, &members, &err) < 0)
    return; /* the group is gone */
  char *end;
  for (char *at = members; *at; at = *end ? end + 1 : end) {
    pid_t pid = (pid_t)strtol(at, &end, 10);
    if (end == at)
      break;
    if (first_thread_ended(pid))
      signal_member(directory, pid, SIGKILL, &err);
  }
}

int tp_cgroup_kill(int directory, struct tp_error *err) {
  TP_CLOSE int fd = openat(directory, "cgroup.kill", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, "1", 1) < 0)
    return tp_fail(err, errno, "kill cgroup");
  kill_missed(directory);
  return 0;
}

int tp_cgroup_signal(int directory, int signal, struct tp_error *err) {
  TP_FREE char *members = NULL;
  if (read_members(directory, &members, err) < 0)
    return -1;
  char *at = members;
  while (*at) {
    char *end;
    pid_t pid = (pid_t)strtol(at, &end, 10);
    if (end == at)
      break;
    if (pid > 0 && signal_member(directory, pid, signal, err) < 0)
      return -1;
    at = *end ? end + 1 : end;
  }
  return 0;
}

static void pause_shortly(void) {
  nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* A group that has just lost its last process says EBUSY for a moment. */
static int remove_one(int parent, const char *name) {
  for (int tries = 0; tries < 100; tries++) {
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
      return 0;
    if (errno != EBUSY)
      return -1;
    pause_shortly();
  }
  return -1;
}

static int remove_below(int parent, const char *name, int depth) {
  int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return errno == ENOENT ? 0 : -1;
  DIR *directory = fdopendir(fd);
  if (!directory) {
    close(fd);
    return -1;
  }
  int outcome = 0;
  for (struct dirent *entry; outcome == 0 && (entry = readdir(directory));)
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
      outcome = depth > 0 ? remove_below(fd, entry->d_name, depth - 1) : -1;
  int code = errno;
  closedir(directory);
  errno = code;
  return outcome < 0 ? -1 : remove_one(parent, name);
}

int tp_cgroup_remove(const char *path, struct tp_error *err) {
  return remove_below(AT_FDCWD, path, 8) < 0 ? tp_fail(err, errno, "remove cgroup %s", path) : 0;
}

/* group PATH OWNER: a cgroup for a sandbox, whose cgroup.procs is OWNER's (0: the host's root). An
 * empty one that an earlier server left is replaced, one with processes refused. Undone. */
int tp_step_group(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  uid_t owner = (uid_t)step->args[1].number;
  if (mkdir(path, 0755) < 0) {
    if (errno != EEXIST)
      return tp_fail(err, errno, "make cgroup %s", path);
    if (remove_below(AT_FDCWD, path, 8) < 0 || mkdir(path, 0755) < 0)
      return tp_fail(err, errno, "replace cgroup %s", path);
  }
  if (!owner)
    return 0;
  char procs[4096 + 16];
  snprintf(procs, sizeof procs, "%s/cgroup.procs", path);
  if (chown(procs, owner, owner) < 0) {
    int code = errno;
    rmdir(path);
    return tp_fail(err, code, "chown %s", procs);
  }
  return 0;
}

/* ungroup PATH: removes a group and those below. */
int tp_step_ungroup(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  return tp_cgroup_remove(step->args[0].bytes, err);
}

/* killgroup PATH: kills all in a v2 group and waits up to 5 s until none is left. No group: fine. */
int tp_step_killgroup(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  TP_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return errno == ENOENT ? 0 : tp_fail(err, errno, "open cgroup %s", path);
  if (tp_cgroup_kill(fd, err) < 0)
    return -1;
  for (int tries = 0; tries < 5000; tries++) {
    int populated = tp_cgroup_populated(fd, err);
    if (populated <= 0)
      return populated;
    pause_shortly();
  }
  return tp_fail(err, EBUSY, "processes of cgroup %s don't end", path);
}

/* dynmods: moving a process between v1 groups waits for an RCU grace period (7 ms here) unless some
 * hierarchy asks the kernel to favour such moves (0.3 ms). Ours is a named one without controllers,
 * so that the host's own stay as they are; it lives as long as this descriptor. Linux 6.0. */
int tp_step_dynmods(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run, (void)step;
  static int held = -1;
  if (held >= 0)
    return 0;
  TP_CLOSE int context = fsopen("cgroup", FSOPEN_CLOEXEC);
  if (context < 0 || fsconfig(context, FSCONFIG_SET_FLAG, "none", NULL, 0) < 0 ||
      fsconfig(context, FSCONFIG_SET_STRING, "name", "tidepool", 0) < 0 ||
      fsconfig(context, FSCONFIG_SET_FLAG, "favordynmods", NULL, 0) < 0 ||
      fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
    return tp_fail(err, errno, "favour moves between cgroups");
  held = fsmount(context, FSMOUNT_CLOEXEC, 0);
  return held < 0 ? tp_fail(err, errno, "favour moves between cgroups") : 0;
}

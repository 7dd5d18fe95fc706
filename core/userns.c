/* User namespaces for mapped mounts: see userns.h. Runs as root. */
#include "userns.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scope.h"

static int write_map(pid_t pid, const char *name, const struct tp_range *range,
                     struct tp_error *err) {
  char path[64], line[64];
  snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
  int length = snprintf(line, sizeof line, "0 %u %u\n", range->base, range->count);
  TP_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, line, (size_t)length) != length)
    return tp_fail(err, errno, "write %s", name);
  return 0;
}

int tp_userns_open(const struct tp_range *range, struct tp_error *err) {
  /* A process must be in the namespace while its maps are written; then a descriptor holds it. */
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) < 0)
    return tp_fail(err, errno, "make pipe");
  pid_t pid = fork();
  if (pid == 0) {
    char result = unshare(CLONE_NEWUSER) < 0 ? (char)errno : 0;
    if (write(ready[1], &result, 1) == 1)
      pause();
    _exit(0);
  }
  close(ready[1]);
  TP_CLOSE int ready_read = ready[0];
  if (pid < 0)
    return tp_fail(err, errno, "fork");

  char result = 0, path[64];
  int fd = -1;
  if (read(ready_read, &result, 1) != 1 || result)
    tp_fail(err, result ? result : EIO, "unshare user namespace");
  else if (write_map(pid, "uid_map", range, err) == 0 && write_map(pid, "gid_map", range, err) == 0) {
    snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
      tp_fail(err, errno, "open user namespace");
  }
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  return fd;
}

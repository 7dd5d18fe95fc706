/* Plan steps on identity and namespaces, and the server's own mount namespace. */
#include "namespace.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

int tp_namespace_unshare_mounts(struct tp_error *err) {
  static bool done;
  if (done)
    return 0;
  if (unshare(CLONE_NEWNS) < 0)
    return tp_fail(err, errno, "unshare mounts");
  if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
    return tp_fail(err, errno, "make mounts slaves");
  done = true;
  return 0;
}

static int write_child_file(struct tp_run *run, const char *name, const char *text,
                            struct tp_error *err) {
  char path[64];
  if (run->pid <= 0)
    return tp_fail(err, EINVAL, "write %s without a child", name);
  snprintf(path, sizeof path, "/proc/%d/%s", (int)run->pid, name);
  TP_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, text, strlen(text)) < 0)
    return tp_fail(err, errno, "write %s", path);
  return 0;
}

/* idmaps BASE COUNT: 0..COUNT-1 inside is BASE.. outside, users and groups. */
int tp_step_idmaps(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  char map[64];
  snprintf(map, sizeof map, "0 %u %u", (unsigned)step->args[0].number,
           (unsigned)step->args[1].number);
  if (write_child_file(run, "gid_map", map, err) < 0)
    return -1;
  return write_child_file(run, "uid_map", map, err);
}

/* identity: root of the new user namespace, in a session of its own. */
int tp_step_identity(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run, (void)step;
  if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
    return tp_fail(err, errno, "become root inside");
  if (setsid() < 0)
    return tp_fail(err, errno, "start a session");
  umask(0022);
  return 0;
}

/* unshare NAMESPACES: those that a clone can't make: a cgroup one, once the child is in its cgroup,
 * and a time one, which the child enters as it execs (since Linux 6.2; before, init does). */
int tp_step_unshare(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  return unshare((int)step->args[0].number) < 0 ? tp_fail(err, errno, "unshare") : 0;
}

int tp_step_hostname(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  if (sethostname(step->args[0].bytes, step->args[0].length) < 0)
    return tp_fail(err, errno, "set hostname");
  return 0;
}

/* listen SLOT PATH: a unix stream socket, for root alone. */
int tp_step_listen(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  const char *path = step->args[1].bytes;
  if (step->args[1].length >= sizeof address.sun_path)
    return tp_fail(err, ENAMETOOLONG, "listen on %s", path);
  memcpy(address.sun_path, path, step->args[1].length);
  TP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
      chmod(path, 0600) < 0 || listen(fd, 64) < 0)
    return tp_fail(err, errno, "listen on %s", path);
  tp_run_fill(run, &step->args[0], tp_take_fd(&fd));
  return 0;
}

/* rlimit RESOURCE SOFT HARD, of the child and what it starts. */
int tp_step_rlimit(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  struct rlimit limit = {.rlim_cur = step->args[1].number, .rlim_max = step->args[2].number};
  if (setrlimit((__rlimit_resource_t)step->args[0].number, &limit) < 0)
    return tp_fail(err, errno, "set limit of resource %u", (unsigned)step->args[0].number);
  return 0;
}

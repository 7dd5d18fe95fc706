/* The hook of a dump or restore: see hook.h. Root, started by CRIU. */
#include "hook.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../channel.h"
#include "../init/protocol.h"
#include "../scope.h"
#include "../spawn.h"

#define PATIENCE 20000 /* ms; the server steers the network meanwhile */

static int reach(const char *path, struct tp_error *err) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path)
    return tp_fail(err, ENAMETOOLONG, "reach the server");
  strcpy(address.sun_path, path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return tp_fail(err, errno, "make a socket");
  if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
    tp_fail(err, errno, "reach the server");
    close(fd);
    return -1;
  }
  return fd;
}

/* What the server wants to be done inside: the bytes of a plan, none when length is 0. */
struct wish {
  uint8_t *bytes;
  size_t length;
};

static int ask(struct tp_channel *channel, const char *text, struct wish *wish, struct tp_error *err) {
  if (tp_channel_send(channel, text, strlen(text), NULL, 0, err) < 0)
    return -1;
  struct tp_frame frame;
  int fds[TP_FRAME_FDS], got;
  while ((got = tp_channel_receive(channel, &frame, fds, err)) == 0) {
    struct pollfd wait = {.fd = channel->fd, .events = POLLIN};
    int found = poll(&wait, 1, PATIENCE);
    if (found == 0 || (found < 0 && errno != EINTR))
      return tp_fail(err, found == 0 ? ETIMEDOUT : errno, "wait for the server");
  }
  if (got < 0)
    return -1;
  if (frame.length < 2 || memcmp(frame.payload, "ok", 2) != 0)
    return tp_fail(err, ECANCELED, "the server refuses");
  wish->length = frame.length - 2;
  wish->bytes = malloc(wish->length + 1);
  if (!wish->bytes)
    return tp_fail(err, ENOMEM, "keep the server's answer");
  memcpy(wish->bytes, (const uint8_t *)frame.payload + 2, wish->length);
  return 0;
}

static int enter(pid_t pid, struct tp_error *err) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
  TP_CLOSE int users = open(path, O_RDONLY | O_CLOEXEC);
  snprintf(path, sizeof path, "/proc/%d/ns/mnt", (int)pid);
  TP_CLOSE int mounts = open(path, O_RDONLY | O_CLOEXEC);
  if (users < 0 || mounts < 0 || setns(mounts, CLONE_NEWNS) < 0 || setns(users, CLONE_NEWUSER) < 0)
    return tp_fail(err, errno, "enter the namespaces of process %d", (int)pid);
  if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
    return tp_fail(err, errno, "become root inside");
  umask(022);
  return 0;
}

static int carry_out(const struct wish *wish, struct tp_error *err) {
  TP_FREE struct tp_plan *plan = malloc(sizeof *plan);
  if (!plan)
    return tp_fail(err, ENOMEM, "read a plan");
  if (tp_plan_decode(wish->bytes, wish->length, plan, err) < 0)
    return -1;
  struct tp_run run;
  tp_run_begin(&run, plan, NULL, 0);
  int outcome = tp_run_execute(&run, err);
  tp_run_end(&run);
  return outcome;
}

/* Nothing inside runs yet. Restored more than once, two would draw the same from what the vDSO keeps of the
 * kernel's random numbers in each process, if the kernel didn't begin anew. init's directory had to be
 * writable for its socket to be made. */
static int finish(pid_t pid, const struct wish *wish, struct tp_error *err) {
  TP_CLOSE int generator = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (generator >= 0)
    ioctl(generator, RNDRESEEDCRNG); /* where we may; else it does so within the minute */
  if (enter(pid, err) < 0 || (wish->length && carry_out(wish, err) < 0))
    return -1;
  if (mount(NULL, TP_INIT_DIRECTORY, NULL,
            MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
    return tp_fail(err, errno, "make %s read-only", TP_INIT_DIRECTORY);
  return 0;
}

int tp_criu_hook(const char *stage, struct tp_error *err) {
  bool namespaces = strcmp(stage, "setup-namespaces") == 0;
  bool restored = strcmp(stage, "post-restore") == 0;
  bool dumped = strcmp(stage, "post-dump") == 0;
  if (!namespaces && !restored && !dumped)
    return 0;
  const char *server = getenv(TP_CRIU_HOOK), *init = getenv("CRTOOLS_INIT_PID");
  if (!server || !init)
    return tp_fail(err, EINVAL, "the hook's environment is not complete");
  struct tp_channel channel;
  int fd = reach(server, err);
  if (fd < 0)
    return -1;
  tp_channel_init(&channel, fd);
  char text[64];
  snprintf(text, sizeof text, "%s %s", stage, init);
  struct wish wish = {NULL, 0};
  int outcome = ask(&channel, text, &wish, err);
  tp_channel_close(&channel);
  if (outcome == 0 && restored)
    outcome = finish((pid_t)atoi(init), &wish, err);
  free(wish.bytes);
  return outcome;
}

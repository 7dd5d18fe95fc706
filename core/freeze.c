/* Plan steps `freeze` and `thaw`: see freeze.h. Runs in the spawner, as root. */
#include "freeze.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int ask(const char *group, const char *value, struct tp_error *err) {
  char path[4096 + 16];
  snprintf(path, sizeof path, "%s/cgroup.freeze", group);
  TP_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, value, 1) < 0)
    return tp_fail(err, errno, "write %s to %s", value, path);
  return 0;
}

/* Has the kernel stopped all of it? */
static int is_frozen(int events, struct tp_error *err) {
  char text[128];
  ssize_t got = pread(events, text, sizeof text - 1, 0);
  if (got < 0)
    return tp_fail(err, errno, "read cgroup.events");
  text[got] = '\0';
  return strstr(text, "frozen 1") != NULL;
}

/* The file's poll wakes with each change after the last read. */
static int await(const char *group, unsigned milliseconds, struct tp_error *err) {
  char path[4096 + 16];
  snprintf(path, sizeof path, "%s/cgroup.events", group);
  TP_CLOSE int events = open(path, O_RDONLY | O_CLOEXEC);
  if (events < 0)
    return tp_fail(err, errno, "open %s", path);
  uint64_t end = now() + (uint64_t)milliseconds * 1000000u;
  for (;;) {
    int frozen = is_frozen(events, err);
    if (frozen != 0)
      return frozen < 0 ? -1 : 0;
    uint64_t at = now();
    if (at >= end)
      return tp_fail(err, ETIMEDOUT, "some process of %s can't be stopped within %u ms", group,
                     milliseconds);
    struct pollfd wait = {.fd = events, .events = POLLPRI};
    if (poll(&wait, 1, (int)((end - at) / 1000000u) + 1) < 0 && errno != EINTR)
      return tp_fail(err, errno, "poll %s", path);
  }
}

int tp_freeze_begin(const char *group, unsigned milliseconds, struct tp_error *err) {
  struct tp_error ignored;
  if (ask(group, "1", err) < 0)
    return -1;
  if (await(group, milliseconds, err) == 0)
    return 0;
  tp_freeze_end(group, &ignored);
  return -1;
}

int tp_freeze_end(const char *group, struct tp_error *err) {
  return ask(group, "0", err) < 0 && err->code != ENOENT && err->code != ENODEV ? -1 : 0;
}

/* freeze GROUP MILLISECONDS: stops all in it -> nanoseconds that this took. Undone. */
int tp_step_freeze(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  run->froze = now();
  if (tp_freeze_begin(step->args[0].bytes, (unsigned)step->args[1].number, err) < 0)
    return -1;
  tp_run_value(run, now() - run->froze);
  return 0;
}

/* thaw GROUP -> nanoseconds since this plan's `freeze` began. */
int tp_step_thaw(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  if (tp_freeze_end(step->args[0].bytes, err) < 0)
    return -1;
  tp_run_value(run, run->froze ? now() - run->froze : 0);
  return 0;
}

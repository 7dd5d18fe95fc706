/* tidepool-spawner: executes plans for the server, one after the other.
 *
 * Runs as root, single-threaded (but for snapshot.h), with few descriptors and little memory, so that a
 * clone is cheap.
 * Descriptor 3 is the channel to the server:
 *   request  [u32 serial] plan, with the descriptors of its first slots
 *   answer   [u32 serial][i32 errno][u32 failed step, from 1][string message][u32 pid]
 *            [u32 count] u64 values, with the pidfd when there is a pid, and what steps have given
 *   event    [u32 0][u32 pid][u32 wait status] when a child has ended
 * At the end of the channel the server is gone: so are we, and the children live on. */
#include <errno.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../channel.h"
#include "../spawn.h"
#include "../steer.h"

#define CHANNEL_FD 3
#define ANSWER_SIZE (64 + sizeof((struct tp_error *)0)->message + 8 * TP_RUN_VALUES)

static uint8_t *put(uint8_t *at, uint64_t value, unsigned size) {
  for (unsigned i = 0; i < size; i++)
    *at++ = (uint8_t)(value >> (8 * i));
  return at;
}

static int answer(struct tp_channel *channel, uint32_t serial, const struct tp_run *run,
                  const struct tp_error *failure, struct tp_error *err) {
  uint8_t bytes[ANSWER_SIZE], *at = bytes;
  size_t length = failure ? strlen(failure->message) : 0;
  at = put(at, serial, 4);
  at = put(at, failure ? (uint32_t)failure->code : 0, 4);
  at = put(at, failure ? (uint32_t)(run->failed + 1) : 0, 4);
  at = put(at, length, 4);
  if (length)
    memcpy(at, failure->message, length);
  at += length;
  at = put(at, failure ? 0 : (uint32_t)run->pid, 4);
  at = put(at, run->value_count, 4);
  for (unsigned i = 0; i < run->value_count; i++)
    at = put(at, run->values[i], 8);
  int fds[1 + TP_RUN_GIVEN];
  unsigned count = 0;
  if (!failure && run->pid > 0)
    fds[count++] = run->pidfd;
  for (unsigned i = 0; !failure && i < run->given_count; i++)
    fds[count++] = run->given[i];
  return tp_channel_send(channel, bytes, (size_t)(at - bytes), fds, count, err);
}

static int serve(struct tp_channel *channel, const struct tp_frame *frame, const int *fds,
                 struct tp_error *err) {
  static struct tp_plan plan; /* too big for the stack to be touched each time */
  static struct tp_run run;
  struct tp_error failure;
  if (frame->length < 4) {
    for (unsigned i = 0; i < frame->fds; i++)
      close(fds[i]);
    return tp_fail(err, EBADMSG, "request without a serial");
  }
  const uint8_t *at = frame->payload;
  uint32_t serial = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;

  tp_run_begin(&run, &plan, fds, frame->fds);
  bool failed = tp_plan_decode(at + 4, frame->length - 4, &plan, &failure) < 0 ||
                tp_run_execute(&run, &failure) < 0;
  int outcome = answer(channel, serial, &run, failed ? &failure : NULL, err);
  tp_run_end(&run);
  return outcome;
}

static int receive(struct tp_channel *channel, struct tp_error *err) {
  for (;;) {
    struct tp_frame frame;
    int fds[TP_FRAME_FDS];
    int got = tp_channel_receive(channel, &frame, fds, err);
    if (got <= 0)
      return got;
    if (serve(channel, &frame, fds, err) < 0)
      return -1;
  }
}

/* Tells of the children that have ended. Failed plans have reaped theirs themselves. */
static int reap(struct tp_channel *channel, int signals, struct tp_error *err) {
  struct signalfd_siginfo info[16];
  while (read(signals, info, sizeof info) > 0)
    ;
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    uint8_t bytes[12];
    put(put(put(bytes, 0, 4), (uint32_t)pid, 4), (uint32_t)status, 4);
    if (tp_channel_send(channel, bytes, sizeof bytes, NULL, 0, err) < 0)
      return -1;
  }
  return 0;
}

static int run(struct tp_channel *channel, int signals, struct tp_error *err) {
  struct pollfd wait[2] = {{.fd = channel->fd}, {.fd = signals, .events = POLLIN}};
  bool stocked = false;
  for (;;) {
    wait[0].events = (short)(POLLIN | (channel->first ? POLLOUT : 0));
    int found = poll(wait, 2, stocked ? -1 : 0);
    if (found < 0 && errno != EINTR)
      return tp_fail(err, errno, "poll");
    stocked = found == 0 && tp_steer_stock(); /* one at a time, while nothing else is to do */
    if (wait[0].revents && (receive(channel, err) < 0 || tp_channel_flush(channel, err) < 0))
      return -1;
    if (wait[1].revents && reap(channel, signals, err) < 0)
      return -1;
  }
}

int main(void) {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_SETMASK, &child, NULL);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  signal(SIGTERM, SIG_DFL);
  signal(SIGCHLD, SIG_DFL);
  umask(0022);
  fcntl(CHANNEL_FD, F_SETFD, FD_CLOEXEC);
  syscall(SYS_close_range, CHANNEL_FD + 1, ~0u, 0); /* what the server's starter left open */
  if (chdir("/") < 0)
    return 1;
  /* A namespace is charged to whoever makes it: `clone` takes that identity on and keeps its powers. */
  if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) < 0) {
    perror("tidepool-spawner: set securebits");
    return 1;
  }
  int signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
  struct tp_channel channel;
  struct tp_error err;
  tp_channel_init(&channel, CHANNEL_FD);
  if (signals < 0 || run(&channel, signals, &err) < 0) {
    bool ended = signals >= 0 && (err.code == EPIPE || err.code == ECONNRESET);
    if (!ended)
      fprintf(stderr, "tidepool-spawner: %s\n", signals < 0 ? "signalfd" : err.message);
    return ended ? 0 : 1;
  }
  return 0;
}

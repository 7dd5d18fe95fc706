/* The agent's loop and its small operations: see agent.h. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "init.h"

const char *agent_path(struct tp_bytes path, char room[AGENT_PATH]) {
  static const char base[] = "/workspace/";
  size_t used = path.length && path.data[0] == '/' ? 0 : sizeof base - 1;
  memcpy(room, base, used);
  if (path.length)
    memcpy(room + used, path.data, path.length);
  room[used + path.length] = 0;
  return room;
}

/* Nanoseconds since 1970, and the nearest that there are for what lies outside of 1970 to 2262. */
static uint64_t moment(const struct timespec *at) {
  if (at->tv_sec < 0)
    return 0;
  if (at->tv_sec >= INT64_MAX / 1000000000)
    return INT64_MAX;
  return (uint64_t)at->tv_sec * 1000000000u + (uint64_t)at->tv_nsec;
}

void agent_stat(const struct stat *from, struct tp_agent_stat *to) {
  *to = (struct tp_agent_stat){
      .mode = from->st_mode,
      .uid = from->st_uid,
      .gid = from->st_gid,
      .links = (uint32_t)from->st_nlink,
      .size = (uint64_t)from->st_size,
      .mtime = moment(&from->st_mtim),
      .inode = from->st_ino,
      .blocks = (uint64_t)from->st_blocks,
  };
}

static int ending = -1; /* readable when we are to end between two operations, by SIGTERM */

static void wait_for(struct agent *agent, short events) {
  struct pollfd entries[] = {{.fd = agent->channel.fd, .events = events}, {.fd = ending, .events = POLLIN}};
  while (poll(entries, events & POLLIN && agent->file < 0 ? 2 : 1, -1) < 0 && errno == EINTR) {
  }
}

static bool asked_to_end(void) {
  struct pollfd entry = {.fd = ending, .events = POLLIN};
  return ending >= 0 && poll(&entry, 1, 0) > 0;
}

static _Noreturn void leave(struct agent *agent) {
  agent_abort(agent);
  _exit(0);
}

void agent_reply(struct agent *agent, const struct tp_agent_reply *reply, const int *fd) {
  struct tp_error err;
  agent->writer.length = 0;
  agent->writer.bad = false;
  tp_agent_encode_reply(&agent->writer, reply);
  if (agent->writer.bad || tp_channel_send(&agent->channel, agent->writer.bytes,
                                           agent->writer.length, fd, fd ? 1 : 0, &err) < 0)
    leave(agent);
  for (;;) {
    int empty = tp_channel_flush(&agent->channel, &err);
    if (empty > 0)
      return;
    if (empty < 0)
      leave(agent);
    wait_for(agent, POLLOUT);
  }
}

static void fail(struct agent *agent, const struct tp_agent_request *request, uint16_t op, int code,
                 const char *what) {
  struct tp_error err;
  tp_fail(&err, code, "%.*s", (int)(sizeof err.message / 2), what);
  struct tp_agent_reply reply = {.op = op, .status = (uint16_t)err.code};
  reply.serial = request->serial;
  reply.message = (struct tp_bytes){(const uint8_t *)err.message, (uint32_t)strlen(err.message)};
  agent_reply(agent, &reply, NULL);
}

/* Regular files alone; whatever else there is, opening it neither waits nor takes a terminal. */
static int open_file(const char *path, int *fd, struct tp_agent_stat *stat) {
  struct stat st;
  *fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (*fd < 0)
    return errno;
  if (fstat(*fd, &st) < 0)
    return errno;
  if (!S_ISREG(st.st_mode))
    return S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
  agent_stat(&st, stat);
  return 0;
}

static int stat_path(const char *path, bool follow, char target[TP_INIT_PATH],
                     struct tp_agent_reply *reply) {
  struct stat st;
  if (fstatat(AT_FDCWD, path, &st, follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0)
    return errno;
  agent_stat(&st, &reply->stat);
  ssize_t length = S_ISLNK(st.st_mode) ? readlink(path, target, TP_INIT_PATH) : 0;
  if (length < 0)
    return errno;
  reply->target = (struct tp_bytes){(const uint8_t *)target, (uint32_t)length};
  return 0;
}

static int set_times(const char *path, uint64_t mtime) {
  struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                              {(time_t)(mtime / 1000000000u), (long)(mtime % 1000000000u)}};
  return utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) < 0 ? errno : 0;
}

static void answer(struct agent *agent, const struct tp_agent_request *request) {
  struct tp_agent_reply reply = {.op = request->op, .serial = request->serial};
  char path_room[AGENT_PATH], other_room[AGENT_PATH], target[TP_INIT_PATH];
  const char *path = agent_path(request->path, path_room), *what = path;
  int fd = -1, code = 0;

  if (request->path.length == 0 && request->op != TP_AGENT_WRITE &&
      request->op != TP_AGENT_COMMIT && request->op != TP_AGENT_ABORT) {
    fail(agent, request, request->op, ENOENT, "empty path");
    return;
  }
  switch (request->op) {
  case TP_AGENT_OPEN: code = open_file(path, &fd, &reply.stat); break;
  case TP_AGENT_BEGIN: code = agent_begin(agent, request); break;
  case TP_AGENT_WRITE: agent_write(agent, request); return;
  case TP_AGENT_COMMIT:
    what = "write";
    code = agent_commit(agent, request, &reply.stat);
    break;
  case TP_AGENT_ABORT: agent_abort(agent); break;
  case TP_AGENT_LIST:
    reply.op = TP_AGENT_DONE;
    code = agent_list(agent, request, path_room, sizeof path_room);
    break;
  case TP_AGENT_STAT:
    code = stat_path(path, request->flags & TP_AGENT_FOLLOW, target, &reply);
    break;
  case TP_AGENT_MKDIR: code = agent_mkdir(request); break;
  case TP_AGENT_REMOVE: code = agent_remove(request); break;
  case TP_AGENT_RENAME:
    code = rename(path, agent_path(request->other, other_room)) < 0 ? errno : 0;
    break;
  case TP_AGENT_CHMOD: code = chmod(path, request->mode & 07777) < 0 ? errno : 0; break;
  case TP_AGENT_SYMLINK:
    /* The contents are the user's as they are, not a path of ours. */
    memcpy(target, request->other.data, request->other.length);
    if (request->other.length < sizeof target)
      target[request->other.length] = 0;
    code = request->other.length >= sizeof target ? ENAMETOOLONG
           : symlink(target, path) < 0            ? errno
                                                  : 0;
    break;
  case TP_AGENT_TIMES: code = set_times(path, request->mtime); break;
  }
  if (code)
    fail(agent, request, reply.op, code, what);
  else
    agent_reply(agent, &reply, fd >= 0 ? &fd : NULL);
  if (fd >= 0)
    close(fd);
}

_Noreturn void agent_run(int socket) {
  static struct agent agent;
  struct tp_error err;
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  sigprocmask(SIG_SETMASK, &term, NULL);
  ending = signalfd(-1, &term, SFD_NONBLOCK | SFD_CLOEXEC);
  umask(0); /* modes are what the client says */
  if (geteuid() == 0 && agent_cut_capabilities() < 0)
    _exit(126);

  agent.file = -1;
  tp_writer_init(&agent.writer, TP_FRAME_LIMIT);
  tp_channel_init(&agent.channel, socket);
  for (;;) {
    struct tp_frame frame;
    struct tp_agent_request request;
    int fds[TP_FRAME_FDS];
    if (agent.file < 0 && asked_to_end())
      leave(&agent); /* what was not read the client knows of: its socket is reset */
    int got = tp_channel_receive(&agent.channel, &frame, fds, &err);
    if (got == 0) {
      wait_for(&agent, POLLIN);
      continue;
    }
    for (unsigned i = 0; got > 0 && i < frame.fds; i++)
      close(fds[i]); /* no request has any */
    if (got < 0 || tp_agent_decode_request(frame.payload, frame.length, &request, &err) < 0)
      leave(&agent);
    answer(&agent, &request);
  }
}

/* Control connections: the server's requests and init's answers and events.
 *
 * Only peers from outside the pid namespace are heard: to us their pid is 0. A message that is not
 * one of ours ends its connection and nothing else. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "init.h"

#define ACCEPTS 64 /* the length of the listener's queue */

struct control {
  struct source source; /* first member; its fd is the channel's */
  struct control *next;
  struct tp_channel channel;
  bool hello;
};

static struct source listener;
static struct control *controls;
static unsigned count;

/* The descriptors that came with a request; what is not taken is closed. */
struct received {
  int fd[TP_FRAME_FDS];
  unsigned count;
};

static void control_close(struct control *control) {
  if (control->source.fd < 0)
    return;
  for (struct control **at = &controls; *at; at = &(*at)->next)
    if (*at == control) {
      *at = control->next;
      count--;
      break;
    }
  start_forget_control(control);
  connect_forget_control(control);
  source_want(&control->source, 0);
  control->source.fd = -1;
  tp_channel_close(&control->channel);
  free_later(control);
}

static void send_reply(struct control *control, const struct tp_init_reply *reply, const int *fds,
                       unsigned fd_count) {
  static struct tp_writer writer; /* kept for its memory */
  struct tp_error err;
  writer.limit = TP_FRAME_LIMIT;
  writer.length = 0;
  writer.bad = false;
  if (control->source.fd < 0)
    return;
  tp_init_encode_reply(&writer, reply);
  if (writer.bad ||
      tp_channel_send(&control->channel, writer.bytes, writer.length, fds, fd_count, &err) < 0) {
    control_close(control);
    return;
  }
  source_want(&control->source, EPOLLIN | (control->channel.first ? EPOLLOUT : 0));
}

void control_reply(const struct origin *origin, const struct tp_init_reply *reply, const int *fds,
                   unsigned fd_count) {
  if (!origin->control)
    return;
  struct tp_init_reply numbered = *reply;
  numbered.serial = origin->serial;
  send_reply(origin->control, &numbered, fds, fd_count);
}

void control_ok(const struct origin *origin) {
  struct tp_init_reply reply = {.type = TP_INIT_OK};
  control_reply(origin, &reply, NULL, 0);
}

void control_fail(const struct origin *origin, unsigned step, int code, const char *message) {
  struct tp_init_reply reply = {.type = TP_INIT_FAILED};
  struct tp_error err;
  tp_fail(&err, code, "%s", message);
  reply.failed.step = step;
  reply.failed.code = err.code;
  reply.failed.message = (struct tp_bytes){(const uint8_t *)err.message,
                                           (uint32_t)strlen(err.message)};
  control_reply(origin, &reply, NULL, 0);
}

void control_event(const struct tp_init_reply *event) {
  struct control *next;
  for (struct control *control = controls; control; control = next) {
    next = control->next;
    if (control->hello)
      send_reply(control, event, NULL, 0);
  }
}

void control_flush_all(void) {
  struct tp_error err;
  for (struct control *control = controls; control; control = control->next)
    tp_channel_flush(&control->channel, &err);
}

static int take(struct received *received, unsigned index) {
  int fd = received->fd[index];
  received->fd[index] = -1;
  return fd;
}

static void refuse(const struct origin *origin, int code, const char *message) {
  control_fail(origin, TP_STEP_REQUEST, code, message);
}

static void hello(const struct origin *origin, uint32_t version) {
  if (version != TP_INIT_VERSION) {
    refuse(origin, EPROTONOSUPPORT, "version");
    return;
  }
  origin->control->hello = true;
  process_hold();
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  struct tp_init_reply reply = {.type = TP_INIT_WELCOME};
  reply.welcome.version = TP_INIT_VERSION;
  memcpy(reply.welcome.nonce, init_nonce, TP_INIT_NONCE);
  reply.welcome.processes = process_count();
  control_reply(origin, &reply, NULL, 0);
}

/* The cgroup's descriptor comes first; where cgroups can't be had it is left out. */
static void start(const struct origin *origin, const struct tp_init_start *request,
                  struct received *received) {
  unsigned attach = request->flags & TP_START_ATTACH ? 1 : 0;
  if (received->count != attach && received->count != attach + 1) {
    refuse(origin, EBADMSG, "descriptors of start");
    return;
  }
  if (shutting_down()) {
    refuse(origin, ECANCELED, "shutting down");
    return;
  }
  if (attach && !attach_possible(received->fd[received->count - 1])) {
    refuse(origin, ENOTSOCK, "attach");
    return;
  }
  int cgroup = received->count > attach ? received->fd[0] : -1;
  int socket = attach ? take(received, received->count - 1) : -1;
  start_process(origin, request, cgroup, socket);
}

static void attach(const struct origin *origin, const struct tp_init_request *request,
                   struct received *received) {
  struct process *process = process_find(request->attach.id);
  if (received->count != 1) {
    refuse(origin, EBADMSG, "descriptors of attach");
    return;
  }
  int code = process ? attach_open(process, received->fd[0], request->attach.flags,
                                   request->attach.offset)
                     : ESRCH;
  if (code) {
    refuse(origin, code, "attach");
    return;
  }
  take(received, 0);
  control_ok(origin);
  process_pump(process);
}

static void signal_process(const struct origin *origin, uint32_t id, int32_t number) {
  struct process *process = process_find(id);
  int code = 0;
  if (number < 1 || number > 64)
    code = EINVAL;
  else if (!process || process->reaped)
    code = ESRCH;
  else if (kill(process->pid, number) < 0)
    code = errno;
  if (code)
    refuse(origin, code, "signal");
  else
    control_ok(origin);
}

static void agent(const struct origin *origin, struct tp_bytes user, struct received *received) {
  if (received->count != 1 && received->count != 2)
    refuse(origin, EBADMSG, "descriptors of agent");
  else if (shutting_down())
    refuse(origin, ECANCELED, "shutting down");
  else if (!attach_possible(received->fd[received->count - 1]))
    refuse(origin, ENOTSOCK, "agent");
  else
    start_agent(origin, user, received->count == 2 ? received->fd[0] : -1,
                received->fd[received->count - 1]);
}

static void forget(const struct origin *origin, uint32_t id) {
  int code = process_forget(id);
  if (code)
    refuse(origin, code, "forget");
  else
    control_ok(origin);
}

/* What is open to the outside can't be kept over a dump. The listener stays, and so do the rings.
 * Dumpable until the next HELLO: of an init that was restored, whose memory counts as the host's, CRIU
 * couldn't read the namespaces else. What it holds still keeps root inside from tracing it. */
static void quiesce(const struct origin *origin) {
  if (start_pending() || connect_pending()) {
    refuse(origin, EBUSY, "quiesce");
    return;
  }
  control_ok(origin);
  prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
  process_detach_all();
  control_flush_all();
  while (controls)
    control_close(controls);
}

static void dispatch(struct control *control, const struct tp_init_request *request,
                     struct received *received) {
  const struct origin origin = {control, request->serial};
  if (!control->hello && request->type != TP_INIT_HELLO) {
    refuse(&origin, EPROTO, "hello comes first");
    return;
  }
  switch (request->type) {
  case TP_INIT_HELLO: hello(&origin, request->version); break;
  case TP_INIT_START: start(&origin, &request->start, received); break;
  case TP_INIT_ATTACH: attach(&origin, request, received); break;
  case TP_INIT_SIGNAL: signal_process(&origin, request->signal.id, request->signal.signal); break;
  case TP_INIT_LIST:
    process_list(&origin);
    control_ok(&origin);
    break;
  case TP_INIT_FORGET: forget(&origin, request->id); break;
  case TP_INIT_AGENT: agent(&origin, request->user, received); break;
  case TP_INIT_CONNECT:
    connect_start(&origin, request->connect.family, request->connect.port);
    break;
  case TP_INIT_SHUTDOWN:
    control_ok(&origin);
    shutdown_start(request->grace);
    break;
  case TP_INIT_QUIESCE: quiesce(&origin); break;
  }
}

static void control_ready(struct source *source, uint32_t events) {
  struct control *control = (struct control *)source;
  struct tp_error err;
  if (events & EPOLLOUT) {
    int empty = tp_channel_flush(&control->channel, &err);
    if (empty < 0) {
      control_close(control);
      return;
    }
    source_want(source, EPOLLIN | (empty ? 0 : EPOLLOUT));
  }
  /* To the last: what the channel has buffered would not wake us again. */
  while (source->fd >= 0) {
    struct tp_frame frame;
    struct received received;
    struct tp_init_request request;
    int got = tp_channel_receive(&control->channel, &frame, received.fd, &err);
    if (got == 0)
      break;
    if (got < 0) {
      control_close(control);
      return;
    }
    received.count = frame.fds;
    int valid = tp_init_decode_request(frame.payload, frame.length, &request, &err);
    if (valid == 0)
      dispatch(control, &request, &received);
    for (unsigned j = 0; j < received.count; j++)
      if (received.fd[j] >= 0)
        close(received.fd[j]);
    if (valid < 0)
      control_close(control);
  }
}

/* False when nobody waits any more. */
static bool accept_one(void) {
  int fd = accept4(listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0)
    return false;
  struct ucred peer = {.pid = -1};
  socklen_t size = sizeof peer;
  bool outside = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid == 0;
  struct control *control = outside && count < MAX_CONTROLS ? calloc(1, sizeof *control) : NULL;
  if (!control) {
    close(fd);
    return true;
  }
  tp_channel_init(&control->channel, fd);
  source_init(&control->source, fd, control_ready);
  control->next = controls;
  controls = control;
  count++;
  source_want(&control->source, EPOLLIN);
  return true;
}

/* Many at a time: root inside may keep the queue full, and the server has to get through. */
static void listener_ready(struct source *source, uint32_t events) {
  (void)source, (void)events;
  for (int i = 0; i < ACCEPTS && accept_one(); i++)
    ;
}

int control_open(int fd) {
  source_init(&listener, fd, listener_ready);
  source_want(&listener, EPOLLIN);
  return listener.events ? 0 : -1;
}

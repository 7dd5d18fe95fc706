/* CONNECT: a socket to a port on the sandbox's loopback, handed to the server. */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "init.h"

#define MAX_CONNECTS 256u

struct connection {
  struct source source; /* first member */
  struct connection *next;
  struct origin origin;
  uint64_t deadline;
};

static struct connection *connections;
static unsigned count;

static void finish(struct connection *connection, int code) {
  if (code) {
    control_fail(&connection->origin, TP_STEP_REQUEST, code, "connect");
  } else {
    struct tp_init_reply reply = {.type = TP_INIT_CONNECTED};
    control_reply(&connection->origin, &reply, &connection->source.fd, 1);
  }
  for (struct connection **at = &connections; *at; at = &(*at)->next)
    if (*at == connection) {
      *at = connection->next;
      count--;
      break;
    }
  source_close(&connection->source);
  free_later(connection);
}

static void ready(struct source *source, uint32_t events) {
  (void)events;
  int code = 0;
  socklen_t size = sizeof code;
  if (getsockopt(source->fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0)
    code = errno;
  finish((struct connection *)source, code);
}

static int begin(int fd, uint32_t family, uint32_t port) {
  struct sockaddr_in v4 = {.sin_family = AF_INET,
                           .sin_port = htons((uint16_t)port),
                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                            .sin6_port = htons((uint16_t)port),
                            .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  int code = family == 4 ? connect(fd, (struct sockaddr *)&v4, sizeof v4)
                         : connect(fd, (struct sockaddr *)&v6, sizeof v6);
  return code < 0 ? errno : 0;
}

void connect_start(const struct origin *origin, uint32_t family, uint32_t port) {
  if ((family != 4 && family != 6) || port == 0 || port > 65535) {
    control_fail(origin, TP_STEP_REQUEST, EINVAL, "connect");
    return;
  }
  struct connection *connection = count < MAX_CONNECTS ? calloc(1, sizeof *connection) : NULL;
  if (!connection) {
    control_fail(origin, TP_STEP_REQUEST, EAGAIN, "connect");
    return;
  }
  int fd = socket(family == 4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int code = fd < 0 ? errno : 0;
  source_init(&connection->source, fd, ready);
  connection->origin = *origin;
  connection->deadline = now_ms() + CONNECT_TIMEOUT;
  connection->next = connections;
  connections = connection;
  count++;
  if (!code)
    code = begin(fd, family, port);
  if (code == EINPROGRESS)
    source_want(&connection->source, EPOLLOUT);
  else
    finish(connection, code);
}

void connect_forget_control(const struct control *control) {
  for (struct connection *connection = connections; connection; connection = connection->next)
    if (connection->origin.control == control)
      connection->origin.control = NULL;
}

int connect_timeout(void) {
  uint64_t now = connections ? now_ms() : 0;
  int next = -1;
  struct connection *following;
  for (struct connection *connection = connections; connection; connection = following) {
    following = connection->next;
    if (connection->deadline <= now)
      finish(connection, ETIMEDOUT);
    else if (next < 0 || connection->deadline - now < (uint64_t)next)
      next = (int)(connection->deadline - now);
  }
  return next;
}

bool connect_pending(void) {
  return count > 0;
}

/* Connections of a flow: how they begin and end, and who holds them. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../scope.h"
#include "flow_parts.h"

struct tp_conn *tp_conn_retain(struct tp_conn *conn) {
  conn->references++;
  return conn;
}

void tp_conn_drop(struct tp_conn *conn) {
  if (--conn->references > 0)
    return;
  struct tp_flow *flow = conn->flow;
  if (conn->next)
    conn->next->by = conn->by;
  *conn->by = conn->next;
  tp_http_reader_free(conn->http);
  free(conn);
  tp_flow_release(flow);
}

void tp_conn_shred(struct tp_conn *conn) {
  if (conn->fd < 0)
    return;
  /* By hand, since the epoll keeps what somebody has a duplicate of. */
  epoll_ctl(conn->flow->epoll, EPOLL_CTL_DEL, conn->fd, NULL);
  close(conn->fd);
  conn->fd = -1;
  conn->readable = conn->writable = false;
  tp_conn_retain(conn); /* the last reference may be an operation's */
  if (conn->reader)
    tp_op_cancel(conn->reader, "connection closed");
  if (conn->writer)
    tp_op_cancel(conn->writer, "connection closed");
  tp_chunk_give(conn->flow, &conn->input);
  tp_chunk_give(conn->flow, &conn->output);
  tp_tls_free(conn->tls);
  conn->tls = NULL;
  tp_conn_drop(conn);
}

static struct tp_conn *new_conn(struct tp_flow *flow, struct tp_error *err) {
  struct tp_conn *conn = calloc(1, sizeof *conn);
  if (!conn) {
    tp_fail(err, ENOMEM, "make connection");
    return NULL;
  }
  conn->flow = flow;
  flow->references++;
  conn->fd = -1;
  conn->references = 1;
  conn->next = flow->conns;
  conn->by = &flow->conns;
  if (conn->next)
    conn->next->by = &conn->next;
  flow->conns = conn;
  return conn;
}

static int watch(struct tp_conn *conn, struct tp_error *err) {
  int one = 1;
  setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on unix sockets */
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                              .data.ptr = conn};
  if (epoll_ctl(conn->flow->epoll, EPOLL_CTL_ADD, conn->fd, &event) < 0)
    return tp_fail(err, errno, "watch connection");
  return 0;
}

struct tp_conn *tp_flow_adopt(struct tp_flow *flow, int fd, struct tp_error *err) {
  TP_CLOSE int own = fd;
  if (flow->closed) {
    tp_fail(err, EPIPE, "flow is closed");
    return NULL;
  }
  if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) {
    tp_fail(err, errno, "adopt connection");
    return NULL;
  }
  struct tp_conn *conn = new_conn(flow, err);
  if (!conn)
    return NULL;
  conn->fd = tp_take_fd(&own);
  conn->readable = conn->writable = true;
  if (watch(conn, err) == 0)
    return conn;
  tp_conn_shred(conn);
  tp_conn_drop(conn);
  return NULL;
}

static int step_connect(struct tp_op *op) {
  struct tp_conn *conn = op->to;
  int code = 0;
  socklen_t size = sizeof code;
  if (!conn->writable)
    return TP_STEP_WAIT;
  if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0)
    code = errno;
  if (code)
    return tp_op_fail(op, code, "connect");
  conn->readable = true;
  return TP_STEP_DONE;
}

static int fill_address(const char *text, unsigned port, struct sockaddr_storage *address,
                        socklen_t *size, struct tp_error *err) {
  struct sockaddr_in *four = (struct sockaddr_in *)address;
  struct sockaddr_in6 *six = (struct sockaddr_in6 *)address;
  *address = (struct sockaddr_storage){0};
  if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons((uint16_t)port);
    *size = sizeof *four;
    return 0;
  }
  if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
    six->sin6_family = AF_INET6;
    six->sin6_port = htons((uint16_t)port);
    *size = sizeof *six;
    return 0;
  }
  return tp_fail(err, EINVAL, "not an IP address: %.64s", text);
}

/* A relay may have no time limit, and a host may vanish without a word. */
static void keep_alive(int fd) {
  static const struct {
    int level, name, value;
  } options[] = {{SOL_SOCKET, SO_KEEPALIVE, 1},
                 {IPPROTO_TCP, TCP_KEEPIDLE, 60},
                 {IPPROTO_TCP, TCP_KEEPINTVL, 20},
                 {IPPROTO_TCP, TCP_KEEPCNT, 4}};
  for (unsigned i = 0; i < sizeof options / sizeof *options; i++)
    setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

static int open_socket(struct tp_conn *conn, const char *text, unsigned port,
                       struct tp_error *err) {
  struct sockaddr_storage address;
  socklen_t size = 0;
  if (fill_address(text, port, &address, &size, err) < 0)
    return -1;
  conn->fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (conn->fd < 0)
    return tp_fail(err, errno, "make socket");
  keep_alive(conn->fd);
  if (connect(conn->fd, (struct sockaddr *)&address, size) < 0 && errno != EINPROGRESS)
    return tp_fail(err, errno, "connect");
  /* Not before: one that isn't connected counts as hung up. */
  return watch(conn, err);
}

struct tp_conn *tp_flow_connect(struct tp_flow *flow, const char *address, unsigned port,
                                uint64_t limit, struct tp_op **op, struct tp_error *err) {
  struct tp_conn *conn = flow->closed ? NULL : new_conn(flow, err);
  if (!conn) {
    if (flow->closed)
      tp_fail(err, EPIPE, "flow is closed");
    return NULL;
  }
  *op = NULL;
  if (open_socket(conn, address, port, err) == 0) {
    struct tp_op *begun = tp_op_new(TP_OP_CONNECT, conn, conn, step_connect, limit);
    if (begun) {
      *op = tp_op_begin(begun);
      return conn;
    }
    tp_fail(err, ENOMEM, "connect");
  }
  tp_conn_shred(conn);
  tp_conn_drop(conn);
  return NULL;
}

/* What is read now is of no interest, but unread it would turn our close into a reset, and the peer
 * might lose our last bytes with it. */
static int discard(struct tp_conn *conn) {
  char waste[16 << 10];
  for (size_t taken = 0; taken < TP_STEP_BYTES;) {
    ssize_t got = recv(conn->fd, waste, sizeof waste, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return TP_STEP_WAIT;
    if (got <= 0)
      return TP_STEP_DONE;
    taken += (size_t)got;
  }
  return TP_STEP_AGAIN;
}

static int step_close(struct tp_op *op) {
  struct tp_conn *conn = op->to;
  enum tp_io io = conn->shut ? TP_IO_OK : tp_conn_end(conn, &op->err);
  if (io == TP_IO_BLOCKED)
    return TP_STEP_WAIT;
  tp_tls_free(conn->tls); /* what comes is not looked at, and the wait may be long */
  conn->tls = NULL;
  int what = io == TP_IO_FAILED || conn->ended ? TP_STEP_DONE : discard(conn);
  if (what == TP_STEP_DONE) {
    op->done = true; /* or shredding would cancel it */
    tp_conn_shred(conn);
  }
  return what;
}

void tp_conn_close(struct tp_conn *conn) {
  if (conn->fd < 0 || conn->closing)
    return;
  conn->closing = true;
  tp_conn_retain(conn);
  bool fresh = conn->reader && conn->reader->kind == TP_OP_CONNECT;
  bool ended_ops = conn->reader || conn->writer;
  if (conn->reader)
    tp_op_cancel(conn->reader, "connection closed");
  if (conn->writer)
    tp_op_cancel(conn->writer, "connection closed");
  if (ended_ops)
    tp_flow_wake(conn->flow);
  struct tp_op *op = fresh ? NULL : tp_op_new(TP_OP_CLOSE, conn, conn, step_close, TP_CLOSE_LIMIT);
  if (op)
    tp_op_begin(op);
  else
    tp_conn_shred(conn);
  tp_conn_drop(conn);
}

void tp_conn_reset(struct tp_conn *conn) {
  struct linger now = {.l_onoff = 1};
  if (conn->fd < 0)
    return;
  setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  tp_conn_shred(conn);
  tp_flow_wake(conn->flow);
}

void tp_conn_release(struct tp_conn *conn) {
  tp_conn_close(conn);
  tp_conn_drop(conn);
}

bool tp_conn_is_open(const struct tp_conn *conn) {
  return conn->fd >= 0 && !conn->closing;
}

bool tp_conn_is_reading(const struct tp_conn *conn) {
  return conn->reader && !conn->closing;
}

bool tp_conn_is_writing(const struct tp_conn *conn) {
  return conn->writer && !conn->closing;
}

int tp_conn_fd(const struct tp_conn *conn) {
  return conn->fd;
}

const struct tp_tls *tp_conn_tls(const struct tp_conn *conn) {
  return conn->tls;
}

void tp_conn_stats(const struct tp_conn *conn, uint64_t *read, uint64_t *written) {
  *read = conn->read;
  *written = conn->written;
}

bool tp_conn_side(const struct tp_conn *conn, enum tp_http_side *side) {
  *side = conn->side;
  return conn->http != NULL;
}

/* Plain bytes of a connection, in and out, whatever lies between them and the socket: its chunks,
 * and under TLS what flow_records.c does. A chunk is held only while it holds something. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "flow_parts.h"

static enum tp_io broke(struct tp_conn *conn, int code, const char *what, struct tp_error *err) {
  conn->code = code;
  conn->broken = true;
  tp_fail(err, code, "%s", what);
  return TP_IO_FAILED;
}

static enum tp_io receive(struct tp_conn *conn, char *bytes, size_t room, size_t *length,
                          struct tp_error *err) {
  ssize_t got;
  do
    got = recv(conn->fd, bytes, room, MSG_DONTWAIT);
  while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    conn->readable = false;
    return TP_IO_BLOCKED;
  }
  if (got < 0)
    return broke(conn, errno, "read", err);
  if (got == 0 && conn->code) /* the error was asked for before all was read */
    return broke(conn, conn->code, "read", err);
  if (got == 0) {
    conn->ended = true;
    return TP_IO_ENDED;
  }
  /* Fewer than asked for means that no more is there, and what comes will be an event. */
  conn->readable = (size_t)got == room || conn->hung_up;
  conn->read += (uint64_t)got;
  *length = (size_t)got;
  return TP_IO_OK;
}

/* Room behind what is there: all of a chunk but what is unread. */
static int input_room(struct tp_conn *conn) {
  if (!conn->input && !(conn->input = tp_chunk_take(conn->flow)))
    return -1;
  if (conn->input->size < TP_CHUNK_SIZE && tp_chunk_grow(conn->flow, &conn->input) < 0)
    return -1;
  struct tp_chunk *chunk = conn->input;
  if (chunk->start == chunk->end)
    chunk->start = chunk->end = 0;
  if (chunk->end == chunk->size && chunk->start > 0) {
    memmove(chunk->bytes, chunk->bytes + chunk->start, chunk->end - chunk->start);
    chunk->end -= chunk->start;
    chunk->start = 0;
  }
  return 0;
}

enum tp_io tp_conn_fill(struct tp_conn *conn, struct tp_error *err) {
  if (conn->fd < 0) {
    tp_fail(err, EPIPE, "connection is closed");
    return TP_IO_FAILED;
  }
  if (conn->ended)
    return TP_IO_ENDED;
  if (!conn->readable)
    return TP_IO_BLOCKED;
  if (input_room(conn) < 0) {
    tp_fail(err, ENOMEM, "read");
    return TP_IO_FAILED;
  }
  struct tp_chunk *chunk = conn->input;
  if (chunk->end == chunk->size)
    return TP_IO_OK; /* full; whoever asks looks at what there is */
  size_t got = 0;
  enum tp_io io = receive(conn, chunk->bytes + chunk->end, chunk->size - chunk->end, &got, err);
  chunk->end += got;
  if (chunk->start == chunk->end)
    tp_chunk_give(conn->flow, &conn->input);
  return io;
}

void tp_conn_rest(struct tp_conn *conn) {
  if (conn->http)
    tp_http_forget(conn->http);
  if (conn->input)
    tp_chunk_shrink(conn->flow, &conn->input);
}

void tp_input_take(struct tp_conn *conn, size_t length) {
  conn->input->start += length;
  if (conn->input->start == conn->input->end)
    tp_chunk_give(conn->flow, &conn->input);
}

enum tp_io tp_conn_view(struct tp_conn *conn, char **bytes, size_t *length, struct tp_error *err) {
  if (conn->tls)
    return tp_records_view(conn, bytes, length, err);
  if (!conn->input) {
    enum tp_io io = tp_conn_fill(conn, err);
    if (io != TP_IO_OK)
      return io;
  }
  *bytes = conn->input->bytes + conn->input->start;
  *length = conn->input->end - conn->input->start;
  return TP_IO_OK;
}

void tp_conn_consume(struct tp_conn *conn, size_t length) {
  if (length == 0)
    return;
  if (conn->tls)
    tp_tls_data_in_ack(conn->tls, length);
  else
    tp_input_take(conn, length);
}

int tp_conn_code(struct tp_conn *conn) {
  int code = 0;
  socklen_t size = sizeof code;
  if (conn->fd < 0)
    return EPIPE;
  /* Asking takes the error away, and reading would find a good end: remember it. */
  if (!conn->code && getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &code, &size) == 0)
    conn->code = code;
  return conn->code ? conn->code : EPIPE;
}

enum tp_io tp_conn_transmit(struct tp_conn *conn, const void *bytes, size_t length, size_t *sent,
                            struct tp_error *err) {
  if (conn->fd < 0) {
    tp_fail(err, EPIPE, "connection is closed");
    return TP_IO_FAILED;
  }
  if (!conn->writable)
    return TP_IO_BLOCKED;
  ssize_t put;
  do
    put = send(conn->fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (put < 0 && errno == EINTR);
  if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    conn->writable = false;
    return TP_IO_BLOCKED;
  }
  if (put < 0)
    return broke(conn, errno, "write", err);
  conn->writable = (size_t)put == length;
  conn->written += (uint64_t)put;
  *sent = (size_t)put;
  return TP_IO_OK;
}

enum tp_io tp_output_send(struct tp_conn *conn, struct tp_error *err) {
  struct tp_chunk *chunk = conn->output;
  while (chunk && chunk->start < chunk->end) {
    size_t sent = 0;
    enum tp_io io = tp_conn_transmit(conn, chunk->bytes + chunk->start,
                                     chunk->end - chunk->start, &sent, err);
    if (io != TP_IO_OK)
      return io;
    chunk->start += sent;
  }
  tp_chunk_give(conn->flow, &conn->output);
  return TP_IO_OK;
}

enum tp_io tp_output_room(struct tp_conn *conn, size_t want, struct tp_error *err) {
  struct tp_chunk *chunk = conn->output;
  if (conn->fd < 0) {
    tp_fail(err, EPIPE, "connection is closed");
    return TP_IO_FAILED;
  }
  if (chunk && TP_CHUNK_SIZE - chunk->end >= want)
    return TP_IO_OK;
  if (chunk) {
    enum tp_io io = tp_output_send(conn, err);
    if (io == TP_IO_FAILED)
      return io;
    if (io == TP_IO_BLOCKED) {
      if (TP_CHUNK_SIZE - (chunk->end - chunk->start) < want)
        return io;
      memmove(chunk->bytes, chunk->bytes + chunk->start, chunk->end - chunk->start);
      chunk->end -= chunk->start;
      chunk->start = 0;
      return TP_IO_OK;
    }
  }
  if (!conn->output && !(conn->output = tp_chunk_take(conn->flow))) {
    tp_fail(err, ENOMEM, "write");
    return TP_IO_FAILED;
  }
  return TP_IO_OK;
}

enum tp_io tp_conn_room(struct tp_conn *conn, size_t want, char **bytes, size_t *room,
                        struct tp_error *err) {
  if (conn->tls)
    return tp_records_room(conn, want, bytes, room, err);
  enum tp_io io = tp_output_room(conn, want, err);
  if (io != TP_IO_OK)
    return io;
  *bytes = conn->output->bytes + conn->output->end;
  *room = TP_CHUNK_SIZE - conn->output->end;
  return TP_IO_OK;
}

void tp_conn_commit(struct tp_conn *conn, size_t length) {
  if (conn->tls)
    tp_tls_data_out_ack(conn->tls, length);
  else
    conn->output->end += length;
}

enum tp_io tp_conn_put(struct tp_conn *conn, const char *bytes, size_t length, size_t *taken,
                       struct tp_error *err) {
  if (!conn->tls && !conn->output)
    return tp_conn_transmit(conn, bytes, length, taken, err);
  char *window;
  size_t room;
  enum tp_io io = tp_conn_room(conn, 1, &window, &room, err);
  if (io != TP_IO_OK)
    return io;
  *taken = length < room ? length : room;
  memcpy(window, bytes, *taken);
  tp_conn_commit(conn, *taken);
  return TP_IO_OK;
}

enum tp_io tp_conn_flush(struct tp_conn *conn, struct tp_error *err) {
  if (conn->broken && conn->code) {
    tp_fail(err, conn->code, "write");
    return TP_IO_FAILED;
  }
  if (!conn->tls)
    return tp_output_send(conn, err);
  enum tp_io io = tp_conn_send_records(conn, false, err);
  if (io != TP_IO_OK)
    return io;
  tp_tls_flush(conn->tls);
  return tp_conn_send_records(conn, true, err);
}

enum tp_io tp_conn_end(struct tp_conn *conn, struct tp_error *err) {
  if (conn->tls && !(tp_tls_state(conn->tls) & TP_TLS_CLOSED)) {
    enum tp_io io = tp_conn_flush(conn, err);
    if (io != TP_IO_OK)
      return io;
    tp_tls_close(conn->tls);
  }
  enum tp_io io = conn->tls ? tp_conn_send_records(conn, true, err) : tp_output_send(conn, err);
  if (io != TP_IO_OK)
    return io;
  conn->shut = true;
  shutdown(conn->fd, SHUT_WR);
  return TP_IO_OK;
}

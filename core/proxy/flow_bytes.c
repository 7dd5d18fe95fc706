/* Plain bytes of a connection, in and out, whatever lies between them and the socket.
 *
 * Without TLS they go through the connection's chunks; with it through the windows of its engine,
 * and the chunks hold records. A chunk is held only while it holds something. */
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

static void take_input(struct tp_conn *conn, size_t length) {
  conn->input->start += length;
  if (conn->input->start == conn->input->end)
    tp_chunk_give(conn->flow, &conn->input);
}

static size_t give_records(struct tp_conn *conn) {
  size_t room;
  unsigned char *window = tp_tls_records_in(conn->tls, &room);
  size_t length = conn->input->end - conn->input->start;
  if (length > room)
    length = room;
  if (length == 0)
    return 0;
  memcpy(window, conn->input->bytes + conn->input->start, length);
  tp_tls_records_in_ack(conn->tls, length);
  take_input(conn, length);
  return length;
}

/* A failed engine may still have the alert that says so. */
static enum tp_io tls_over(struct tp_conn *conn, struct tp_error *err) {
  struct tp_error ignored;
  tp_conn_send_records(conn, true, &ignored);
  return tp_tls_failure(conn->tls, err) < 0 ? TP_IO_FAILED : TP_IO_ENDED;
}

enum tp_io tp_conn_feed(struct tp_conn *conn, struct tp_error *err) {
  if (conn->input && give_records(conn) > 0)
    return TP_IO_OK;
  return tp_conn_fill(conn, err);
}

static enum tp_io view_tls(struct tp_conn *conn, char **bytes, size_t *length,
                           struct tp_error *err) {
  for (;;) {
    unsigned state = tp_tls_state(conn->tls);
    if (state & TP_TLS_HAS_DATA) {
      *bytes = (char *)tp_tls_data_in(conn->tls, length);
      return TP_IO_OK;
    }
    if (state & TP_TLS_CLOSED)
      return tls_over(conn, err);
    if (!(state & TP_TLS_TAKES_RECORDS)) {
      enum tp_io io = tp_conn_send_records(conn, true, err);
      if (io != TP_IO_OK)
        return io;
      if (tp_tls_state(conn->tls) == state) { /* can't be, and must not spin */
        tp_fail(err, EPROTO, "TLS takes nothing");
        return TP_IO_FAILED;
      }
      continue;
    }
    enum tp_io io = tp_conn_feed(conn, err);
    if (io == TP_IO_ENDED)
      conn->truncated = true;
    if (io != TP_IO_OK)
      return io;
  }
}

enum tp_io tp_conn_view(struct tp_conn *conn, char **bytes, size_t *length, struct tp_error *err) {
  if (conn->tls)
    return view_tls(conn, bytes, length, err);
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
    take_input(conn, length);
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

/* One send; *sent of length. */
static enum tp_io transmit(struct tp_conn *conn, const void *bytes, size_t length, size_t *sent,
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

/* Send what the output chunk holds: OK when it is empty. */
static enum tp_io send_output(struct tp_conn *conn, struct tp_error *err) {
  struct tp_chunk *chunk = conn->output;
  while (chunk && chunk->start < chunk->end) {
    size_t sent = 0;
    enum tp_io io = transmit(conn, chunk->bytes + chunk->start, chunk->end - chunk->start, &sent,
                             err);
    if (io != TP_IO_OK)
      return io;
    chunk->start += sent;
  }
  tp_chunk_give(conn->flow, &conn->output);
  return TP_IO_OK;
}

/* Room of at least `want` in the output chunk. */
static enum tp_io output_room(struct tp_conn *conn, size_t want, struct tp_error *err) {
  struct tp_chunk *chunk = conn->output;
  if (conn->fd < 0) {
    tp_fail(err, EPIPE, "connection is closed");
    return TP_IO_FAILED;
  }
  if (chunk && TP_CHUNK_SIZE - chunk->end >= want)
    return TP_IO_OK;
  if (chunk) {
    enum tp_io io = send_output(conn, err);
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

/* Move the engine's records on: into the chunk while they fit, and with `all` to the kernel. */
enum tp_io tp_conn_send_records(struct tp_conn *conn, bool all, struct tp_error *err) {
  size_t length;
  unsigned char *window;
  while ((window = tp_tls_records_out(conn->tls, &length)) && length > 0) {
    enum tp_io io;
    if (all && !conn->output) {
      size_t sent = 0;
      io = transmit(conn, window, length, &sent, err);
      if (io != TP_IO_OK)
        return io;
      tp_tls_records_out_ack(conn->tls, sent);
      continue;
    }
    io = output_room(conn, 1, err);
    if (io != TP_IO_OK)
      return io;
    struct tp_chunk *chunk = conn->output;
    if (length > TP_CHUNK_SIZE - chunk->end)
      length = TP_CHUNK_SIZE - chunk->end;
    memcpy(chunk->bytes + chunk->end, window, length);
    chunk->end += length;
    tp_tls_records_out_ack(conn->tls, length);
  }
  return all ? send_output(conn, err) : TP_IO_OK;
}

static enum tp_io room_tls(struct tp_conn *conn, size_t want, char **bytes, size_t *room,
                           struct tp_error *err) {
  for (unsigned tries = 0; tries < 4; tries++) {
    unsigned state = tp_tls_state(conn->tls);
    if (state & TP_TLS_TAKES_DATA) {
      *bytes = (char *)tp_tls_data_out(conn->tls, room);
      if (*room >= want)
        return TP_IO_OK;
      tp_tls_flush(conn->tls);
    }
    if (state & TP_TLS_CLOSED) {
      enum tp_io io = tls_over(conn, err);
      if (io == TP_IO_ENDED)
        tp_fail(err, EPIPE, "TLS connection is closed");
      return TP_IO_FAILED;
    }
    enum tp_io io = tp_conn_send_records(conn, false, err);
    if (io != TP_IO_OK)
      return io;
  }
  tp_fail(err, EPROTO, "TLS takes no data");
  return TP_IO_FAILED;
}

enum tp_io tp_conn_room(struct tp_conn *conn, size_t want, char **bytes, size_t *room,
                        struct tp_error *err) {
  if (conn->tls)
    return room_tls(conn, want, bytes, room, err);
  enum tp_io io = output_room(conn, want, err);
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
    return transmit(conn, bytes, length, taken, err);
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
    return send_output(conn, err);
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
  enum tp_io io = conn->tls ? tp_conn_send_records(conn, true, err) : send_output(conn, err);
  if (io != TP_IO_OK)
    return io;
  conn->shut = true;
  shutdown(conn->fd, SHUT_WR);
  return TP_IO_OK;
}

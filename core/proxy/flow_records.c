/* Plain bytes of a connection under TLS: through the windows of its engine, while the chunks
 * between it and the socket hold records. */
#include <errno.h>
#include <string.h>

#include "flow_parts.h"

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
  tp_input_take(conn, length);
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

enum tp_io tp_records_view(struct tp_conn *conn, char **bytes, size_t *length,
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

enum tp_io tp_conn_send_records(struct tp_conn *conn, bool all, struct tp_error *err) {
  size_t length;
  unsigned char *window;
  while ((window = tp_tls_records_out(conn->tls, &length)) && length > 0) {
    enum tp_io io;
    if (all && !conn->output) {
      size_t sent = 0;
      io = tp_conn_transmit(conn, window, length, &sent, err);
      if (io != TP_IO_OK)
        return io;
      tp_tls_records_out_ack(conn->tls, sent);
      continue;
    }
    io = tp_output_room(conn, 1, err);
    if (io != TP_IO_OK)
      return io;
    struct tp_chunk *chunk = conn->output;
    if (length > TP_CHUNK_SIZE - chunk->end)
      length = TP_CHUNK_SIZE - chunk->end;
    memcpy(chunk->bytes + chunk->end, window, length);
    chunk->end += length;
    tp_tls_records_out_ack(conn->tls, length);
  }
  return all ? tp_output_send(conn, err) : TP_IO_OK;
}

enum tp_io tp_records_room(struct tp_conn *conn, size_t want, char **bytes, size_t *room,
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

/* Heads and whole bodies of HTTP messages, read of a connection; whole pieces, written; the watch
 * for a peer that goes away. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flow_parts.h"

static int step_head(struct tp_op *op) {
  struct tp_conn *conn = op->from;
  char *bytes;
  size_t length;
  while (!op->head) {
    enum tp_io io = tp_conn_view(conn, &bytes, &length, &op->err);
    if (io == TP_IO_BLOCKED)
      return TP_STEP_WAIT;
    if (io == TP_IO_FAILED || (io == TP_IO_ENDED && tp_http_end(conn->http, &op->err) < 0))
      return tp_op_failed(op);
    if (io == TP_IO_ENDED)
      return tp_op_end(op, TP_FLOW_EOF, "closed between messages");
    ssize_t used = tp_http_head(conn->http, bytes, length, &op->head, &op->err);
    if (used < 0)
      return tp_op_failed(op);
    tp_conn_consume(conn, (size_t)used);
  }
  conn->body = op->head->body;
  return TP_STEP_DONE;
}

struct tp_op *tp_conn_read_head(struct tp_conn *conn, enum tp_http_side side, const char *method,
                                uint64_t limit) {
  if (!conn->http) {
    conn->http = tp_http_reader_new(side);
    conn->side = side;
  }
  if (!conn->http)
    return NULL;
  if (method)
    tp_http_expect(conn->http, method);
  struct tp_op *op = tp_op_new(TP_OP_HEAD, conn, NULL, step_head, limit);
  return op ? tp_op_begin(op) : NULL;
}

enum tp_io tp_conn_next_body(struct tp_conn *conn, size_t most, struct tp_span *span,
                             struct tp_error *err) {
  char *bytes = "";
  size_t length = 0;
  *span = (struct tp_span){0};
  if (!conn->http) {
    tp_fail(err, EINVAL, "no head was read");
    return TP_IO_FAILED;
  }
  /* Without bytes first: a body may be complete without any, and nothing is to be waited for. */
  ssize_t used = tp_http_body(conn->http, bytes, 0, &span->bytes, &span->length, &span->complete,
                              err);
  if (used < 0)
    return TP_IO_FAILED;
  if (span->complete)
    return TP_IO_OK;
  enum tp_io io = tp_conn_view(conn, &bytes, &length, err);
  if (io == TP_IO_ENDED) {
    if (tp_http_end(conn->http, err) < 0)
      return TP_IO_FAILED;
    if (conn->truncated) {
      tp_fail(err, EBADMSG, "the body was cut off: TLS was not closed");
      return TP_IO_FAILED;
    }
    span->complete = true;
    return TP_IO_OK;
  }
  if (io != TP_IO_OK)
    return io;
  used = tp_http_body(conn->http, bytes, length < most ? length : most, &span->bytes,
                      &span->length, &span->complete, err);
  if (used < 0)
    return TP_IO_FAILED;
  span->used = (size_t)used;
  return TP_IO_OK;
}

static int append(struct tp_op *op, const struct tp_span *span) {
  if (op->length + span->length > op->most)
    return tp_fail(&op->err, EMSGSIZE, "the body is larger than %llu bytes",
                   (unsigned long long)op->most);
  if (op->length + span->length > op->size) {
    size_t size = op->size ? op->size * 2 : 4096;
    while (size < op->length + span->length)
      size *= 2;
    char *bytes = realloc(op->bytes, size);
    if (!bytes)
      return tp_fail(&op->err, ENOMEM, "read body");
    op->bytes = bytes;
    op->size = size;
  }
  if (span->length)
    memcpy(op->bytes + op->length, span->bytes, span->length);
  op->length += span->length;
  return 0;
}

static int step_body(struct tp_op *op) {
  struct tp_span span;
  for (size_t moved = 0; moved < TP_STEP_BYTES; moved += span.used) {
    enum tp_io io = tp_conn_next_body(op->from, SIZE_MAX, &span, &op->err);
    if (io == TP_IO_BLOCKED)
      return TP_STEP_WAIT;
    if (io != TP_IO_OK || append(op, &span) < 0)
      return tp_op_failed(op);
    tp_conn_consume(op->from, span.used);
    if (span.complete)
      return TP_STEP_DONE;
    tp_op_progress(op);
  }
  return TP_STEP_AGAIN;
}

struct tp_op *tp_conn_read_body(struct tp_conn *conn, uint64_t most, uint64_t limit) {
  struct tp_op *op = tp_op_new(TP_OP_BODY, conn, NULL, step_body, limit);
  if (!op)
    return NULL;
  op->most = most;
  return tp_op_begin(op);
}

static int step_write(struct tp_op *op) {
  for (size_t budget = TP_STEP_BYTES; op->offset < op->length;) {
    size_t taken = 0;
    enum tp_io io = tp_conn_put(op->to, op->bytes + op->offset, op->length - op->offset, &taken,
                                &op->err);
    if (io == TP_IO_BLOCKED)
      return TP_STEP_WAIT;
    if (io != TP_IO_OK)
      return tp_op_failed(op);
    op->offset += taken;
    tp_op_progress(op);
    if (taken >= budget)
      return TP_STEP_AGAIN;
    budget -= taken;
  }
  if (op->more)
    return TP_STEP_DONE;
  enum tp_io io = tp_conn_flush(op->to, &op->err);
  if (io == TP_IO_FAILED)
    return tp_op_failed(op);
  return io == TP_IO_OK ? TP_STEP_DONE : TP_STEP_WAIT;
}

/* The first attempt is made with the caller's bytes; only what the socket didn't take is copied. */
struct tp_op *tp_conn_write(struct tp_conn *conn, const char *bytes, size_t length, bool more,
                            uint64_t limit) {
  struct tp_op *op = tp_op_new(TP_OP_WRITE, NULL, conn, step_write, limit);
  if (!op)
    return NULL;
  op->bytes = (char *)bytes;
  op->length = length;
  op->more = more;
  op = tp_op_begin(op);
  size_t rest = op->length - op->offset;
  op->bytes = NULL;
  if (op->done || rest == 0)
    return op;
  op->bytes = malloc(rest);
  if (!op->bytes) {
    op->length = op->offset = 0; /* nothing of it may be sent after this */
    tp_flow_cancel(conn->flow, op->token);
    return op;
  }
  memcpy(op->bytes, bytes + op->offset, rest);
  op->length = rest;
  op->offset = 0;
  return op;
}

static int step_read(struct tp_op *op) {
  char *bytes;
  size_t length;
  enum tp_io io = tp_conn_view(op->from, &bytes, &length, &op->err);
  if (io == TP_IO_BLOCKED)
    return TP_STEP_WAIT;
  if (io == TP_IO_ENDED)
    return tp_op_end(op, TP_FLOW_EOF, "closed");
  if (io == TP_IO_FAILED)
    return tp_op_failed(op);
  op->length = length < op->most ? length : op->most;
  op->bytes = malloc(op->length);
  if (!op->bytes)
    return tp_op_fail(op, ENOMEM, "read");
  memcpy(op->bytes, bytes, op->length);
  tp_conn_consume(op->from, op->length);
  return TP_STEP_DONE;
}

struct tp_op *tp_conn_read(struct tp_conn *conn, size_t most, uint64_t limit) {
  struct tp_op *op = tp_op_new(TP_OP_READ, conn, NULL, step_read, limit);
  if (!op)
    return NULL;
  op->most = most;
  return tp_op_begin(op);
}

static int step_watch(struct tp_op *op) {
  char *bytes;
  size_t length;
  enum tp_io io = tp_conn_view(op->from, &bytes, &length, &op->err);
  if (io == TP_IO_BLOCKED)
    return TP_STEP_WAIT;
  op->data = io == TP_IO_OK;
  return io == TP_IO_FAILED ? tp_op_failed(op) : TP_STEP_DONE;
}

struct tp_op *tp_conn_watch(struct tp_conn *conn, uint64_t limit) {
  struct tp_op *op = tp_op_new(TP_OP_WATCH, conn, NULL, step_watch, limit);
  return op ? tp_op_begin(op) : NULL;
}

/* What a client speaks, by its first bytes, which stay unread; and how to refuse it in TLS. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flow_parts.h"

enum { LINE_MOST = 16 << 10, METHOD_MOST = 24, OTHER_MOST = 256 };

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* What the bytes are: 1 with op->peek and *length of what is to be shown, or 0: too few. */
static int judge_tls(struct tp_op *op, const char *bytes, size_t *length) {
  struct tp_error err;
  if (!op->hello && !(op->hello = calloc(1, sizeof *op->hello)))
    return 0; /* and the time limit ends it */
  int complete = tp_hello_parse((const uint8_t *)bytes, *length, op->hello, &err);
  if (complete == 0 && *length < TP_CHUNK_SIZE)
    return 0;
  op->peek = complete > 0 ? TP_PEEK_TLS : TP_PEEK_OTHER;
  return 1;
}

static bool is_method(char letter) {
  return (letter >= 'A' && letter <= 'Z') || letter == '-';
}

static int judge_line(struct tp_op *op, const char *bytes, size_t *length) {
  size_t method = 0;
  while (method < *length && is_method(bytes[method]))
    method++;
  op->peek = TP_PEEK_OTHER;
  if (method == *length && method <= METHOD_MOST)
    return 0;
  if (method == 0 || method > METHOD_MOST || bytes[method] != ' ')
    return 1;
  size_t most = *length < LINE_MOST ? *length : LINE_MOST;
  const char *end = memchr(bytes, '\n', most);
  if (!end && most < LINE_MOST)
    return 0;
  size_t line = end ? (size_t)(end - bytes) : most;
  if (line > 0 && bytes[line - 1] == '\r')
    line--;
  /* One that is too long is HTTP's to refuse. */
  if (!end || (line > 9 && memcmp(bytes + line - 9, " HTTP/1.", 8) == 0)) {
    op->peek = TP_PEEK_HTTP;
    *length = line;
  }
  return 1;
}

static int judge(struct tp_op *op, const char *bytes, size_t *length) {
  size_t known = sizeof preface - 1, least = *length < known ? *length : known;
  if (memcmp(bytes, preface, least) == 0) {
    op->peek = TP_PEEK_H2;
    return least == known;
  }
  return bytes[0] == 0x16 ? judge_tls(op, bytes, length) : judge_line(op, bytes, length);
}

static int show(struct tp_op *op, const char *bytes, size_t length) {
  if (op->peek == TP_PEEK_TLS)
    return TP_STEP_DONE; /* op->hello says it all */
  if (op->peek != TP_PEEK_HTTP && length > OTHER_MOST)
    length = OTHER_MOST;
  op->bytes = malloc(length + 1);
  if (!op->bytes)
    return tp_op_fail(op, ENOMEM, "peek");
  memcpy(op->bytes, bytes, length);
  op->length = length;
  return TP_STEP_DONE;
}

/* All that can be seen without taking it. Under TLS that is one record. */
static enum tp_io see(struct tp_conn *conn, char **bytes, size_t *length, struct tp_error *err) {
  if (conn->tls)
    return tp_conn_view(conn, bytes, length, err);
  enum tp_io io = tp_conn_fill(conn, err);
  if (conn->input) {
    *bytes = conn->input->bytes + conn->input->start;
    *length = conn->input->end - conn->input->start;
  }
  return io;
}

static int step_peek(struct tp_op *op) {
  struct tp_conn *conn = op->from;
  for (;;) {
    char *bytes = NULL;
    size_t length = 0;
    enum tp_io io = see(conn, &bytes, &length, &op->err);
    if (io == TP_IO_FAILED)
      return tp_op_failed(op);
    size_t shown = length;
    if (length && judge(op, bytes, &shown))
      return show(op, bytes, shown);
    bool all = conn->tls ? length > 0 : length == TP_CHUNK_SIZE;
    if (length && (all || io == TP_IO_ENDED)) {
      op->peek = TP_PEEK_OTHER;
      return show(op, bytes, length);
    }
    if (io == TP_IO_ENDED)
      return tp_op_end(op, TP_FLOW_EOF, "closed before it said anything");
    if (io == TP_IO_BLOCKED)
      return TP_STEP_WAIT;
  }
}

int tp_peek_time_out(struct tp_op *op) {
  char *bytes = NULL;
  size_t length = 0;
  op->peek = TP_PEEK_SILENT;
  if (see(op->from, &bytes, &length, &op->err) == TP_IO_FAILED)
    return -1;
  if (length == 0)
    return 0;
  op->peek = TP_PEEK_OTHER;
  return show(op, bytes, length) == TP_STEP_DONE ? 0 : -1;
}

struct tp_op *tp_conn_peek(struct tp_conn *conn, uint64_t limit) {
  struct tp_op *op = tp_op_new(TP_OP_PEEK, conn, NULL, step_peek, limit);
  return op ? tp_op_begin(op) : NULL;
}

int tp_conn_alert(struct tp_conn *conn, unsigned number, struct tp_error *err) {
  const char record[] = {21, 3, 3, 0, 2, 2, (char)number};
  char *window;
  size_t room;
  if (conn->tls)
    return tp_fail(err, EINVAL, "alert: TLS has begun");
  if (tp_conn_room(conn, sizeof record, &window, &room, err) != TP_IO_OK)
    return -1;
  memcpy(window, record, sizeof record);
  tp_conn_commit(conn, sizeof record);
  return tp_conn_flush(conn, err) == TP_IO_FAILED ? -1 : 0;
}

/* The relay: two connections as one, for what isn't HTTP, until both directions have ended.
 *
 * Between plain sockets a half-close passes. TLS 1.2 has none: the end that one side of a TLS
 * connection sends ends both ways, so it ends the relay, once what was read has been written. */
#include "flow_parts.h"

/* Moves src's bytes to dst. BLOCKED: on either; ENDED: all is written, the end too. */
static enum tp_io move(struct tp_op *op, struct tp_conn *src, struct tp_conn *dst,
                       uint64_t *moved, size_t *budget) {
  while (*budget > 0) {
    char *bytes;
    size_t length, taken = 0;
    enum tp_io io = tp_conn_view(src, &bytes, &length, &op->err);
    if (io == TP_IO_FAILED)
      return io;
    if (io == TP_IO_BLOCKED) {
      io = tp_conn_flush(dst, &op->err);
      return io == TP_IO_FAILED ? io : TP_IO_BLOCKED;
    }
    if (io == TP_IO_ENDED) {
      io = tp_conn_flush(dst, &op->err);
      if (io == TP_IO_OK)
        io = tp_conn_end(dst, &op->err);
      return io == TP_IO_OK ? TP_IO_ENDED : io;
    }
    io = tp_conn_put(dst, bytes, length, &taken, &op->err);
    if (io != TP_IO_OK)
      return io;
    tp_conn_consume(src, taken);
    *moved += taken;
    *budget -= taken < *budget ? taken : *budget;
    tp_op_progress(op);
  }
  return TP_IO_OK;
}

static int step_relay(struct tp_op *op) {
  struct tp_conn *ends[] = {op->from, op->to};
  bool again = false;
  for (unsigned i = 0; i < 2; i++) {
    size_t budget = TP_STEP_BYTES;
    if (op->half_done[i])
      continue;
    enum tp_io io = move(op, ends[i], ends[!i], &op->moved[i], &budget);
    if (io == TP_IO_FAILED)
      return tp_op_failed(op);
    if (io == TP_IO_OK)
      again = true;
    if (io == TP_IO_ENDED) {
      op->half_done[i] = true;
      if (ends[0]->tls || ends[1]->tls)
        op->half_done[!i] = true;
    }
  }
  if (op->half_done[0] && op->half_done[1])
    return TP_STEP_DONE;
  return again ? TP_STEP_AGAIN : TP_STEP_WAIT;
}

struct tp_op *tp_flow_relay(struct tp_conn *a, struct tp_conn *b, uint64_t limit) {
  struct tp_op *op = tp_op_new(TP_OP_RELAY, a, b, step_relay, limit);
  return op ? tp_op_begin(op) : NULL;
}

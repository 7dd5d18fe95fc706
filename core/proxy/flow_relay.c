/* The relay: two connections as one, for what isn't HTTP, until both directions have ended.
 *
 * Between plain sockets a half-close passes. TLS 1.2 has none: the end that one side of a TLS
 * connection sends ends both ways, so it ends the relay, once what was read has been written. */
#include "flow_parts.h"

/* A protocol may wait for an answer to just the bytes that the scrub holds back because a secret
 * might begin there. So after this silence, in ms, they go out, and a secret that an upstream sends
 * in two parts with a longer pause between is not found. */
enum { HELD_MOST = 1000 };

/* What the scrub has let go, to dst. */
static enum tp_io put_ready(struct tp_op *op, struct tp_conn *dst, uint64_t *moved) {
  struct tp_pump *pump = op->pump;
  while (pump->ready > 0) {
    size_t taken = 0;
    enum tp_io io = tp_conn_put(dst, pump->buffer + pump->ready_at, pump->ready, &taken, &op->err);
    if (io != TP_IO_OK)
      return io;
    pump->ready_at += taken;
    pump->ready -= taken;
    *moved += taken;
  }
  return TP_IO_OK;
}

/* What is held goes out, as if the stream ended here. */
static enum tp_io let_go(struct tp_op *op) {
  struct tp_span nothing = {.complete = true};
  op->wake_at = 0;
  enum tp_io io = tp_pump_scrub(op, &nothing) < 0 ? TP_IO_FAILED : TP_IO_OK;
  op->pump->stream = (struct tp_scrub_stream){0};
  return io;
}

/* One piece of src, by way of the scrub if there is one. */
static enum tp_io move_piece(struct tp_op *op, struct tp_pump *pump, struct tp_conn *src,
                             struct tp_conn *dst, uint64_t *moved, size_t *used) {
  char *bytes;
  size_t length;
  enum tp_io io = pump ? put_ready(op, dst, moved) : TP_IO_OK;
  if (io != TP_IO_OK)
    return io;
  io = tp_conn_view(src, &bytes, &length, &op->err);
  if (pump && pump->held > 0 && (io == TP_IO_ENDED || (io == TP_IO_BLOCKED && op->woken)))
    return let_go(op);
  if (io == TP_IO_BLOCKED) {
    io = tp_conn_flush(dst, &op->err);
    return io == TP_IO_FAILED ? io : TP_IO_BLOCKED;
  }
  if (io != TP_IO_OK)
    return io;
  if (pump) {
    *used = length < TP_SCRUB_PIECE ? length : TP_SCRUB_PIECE;
    struct tp_span span = {.bytes = bytes, .length = *used};
    io = tp_pump_scrub(op, &span) < 0 ? TP_IO_FAILED : TP_IO_OK;
    op->wake_at = pump->held > 0 ? src->flow->now + HELD_MOST : 0;
  } else {
    io = tp_conn_put(dst, bytes, length, used, &op->err);
    *moved += *used;
  }
  if (io == TP_IO_OK)
    tp_conn_consume(src, *used);
  return io;
}

/* Moves src's bytes to dst. BLOCKED: on either; ENDED: all is written, the end too. */
static enum tp_io move(struct tp_op *op, unsigned way, struct tp_conn *src, struct tp_conn *dst) {
  struct tp_pump *pump = way == 1 ? op->pump : NULL;
  for (size_t budget = TP_STEP_BYTES; budget > 0;) {
    size_t used = 0;
    enum tp_io io = move_piece(op, pump, src, dst, &op->moved[way], &used);
    if (io == TP_IO_ENDED) {
      io = tp_conn_flush(dst, &op->err);
      if (io == TP_IO_OK)
        io = tp_conn_end(dst, &op->err);
      return io == TP_IO_OK ? TP_IO_ENDED : io;
    }
    if (io != TP_IO_OK)
      return io;
    if (used)
      tp_op_progress(op);
    budget -= used < budget ? used : budget;
  }
  return TP_IO_OK;
}

static int step_relay(struct tp_op *op) {
  struct tp_conn *ends[] = {op->from, op->to};
  bool again = false;
  for (unsigned i = 0; i < 2; i++) {
    if (op->half_done[i])
      continue;
    enum tp_io io = move(op, i, ends[i], ends[!i]);
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
  op->woken = false;
  tp_op_time(op);
  return again ? TP_STEP_AGAIN : TP_STEP_WAIT;
}

struct tp_op *tp_flow_relay(struct tp_conn *a, struct tp_conn *b, struct tp_scrub *scrub,
                            uint64_t limit) {
  struct tp_pump_options options = {.scrub = scrub};
  struct tp_pump *pump = scrub ? tp_pump_new(&options) : NULL;
  struct tp_op *op = pump || !scrub ? tp_op_new(TP_OP_RELAY, a, b, step_relay, limit) : NULL;
  if (!op) {
    tp_pump_free(pump);
    return NULL;
  }
  op->pump = pump;
  return tp_op_begin(op);
}

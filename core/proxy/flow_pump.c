/* The pump: the body of a message, from one connection to another, framed anew and scrubbed on the
 * way. It holds what fits the connections' buffers and what the scrub holds, never more. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flow_parts.h"

enum { PIECE = TP_SCRUB_PIECE, LEAST_ROOM = 64, CHUNK_EXTRA = 16 };

static int fail_write(struct tp_op *op) {
  op->write_failed = true;
  return tp_op_failed(op);
}

static void keep_tail(struct tp_pump *pump, const char *bytes, size_t length) {
  size_t most = pump->options.tail;
  if (length > most) {
    bytes += length - most;
    length = most;
  }
  if (length == 0)
    return;
  if (pump->tail_length + length > most) {
    size_t kept = most - length;
    memmove(pump->tail, pump->tail + pump->tail_length - kept, kept);
    pump->tail_length = kept;
  }
  memcpy(pump->tail + pump->tail_length, bytes, length);
  pump->tail_length += length;
}

/* How much body fits now. */
static enum tp_io body_room(struct tp_op *op, char **window, size_t *room) {
  if (op->pump->options.framing == TP_FRAME_NONE) {
    *room = PIECE;
    return TP_IO_OK;
  }
  enum tp_io io = tp_conn_room(op->to, LEAST_ROOM, window, room, &op->err);
  if (io == TP_IO_OK && op->pump->options.framing == TP_FRAME_CHUNKED)
    *room -= CHUNK_EXTRA;
  return io;
}

/* `length` is at most what body_room said. */
static void emit(struct tp_op *op, char *window, const char *bytes, size_t length) {
  struct tp_pump *pump = op->pump;
  size_t at = 0;
  if (length == 0)
    return;
  op->moved[0] += length;
  keep_tail(pump, bytes, length);
  if (pump->options.framing == TP_FRAME_NONE)
    return;
  if (pump->options.framing == TP_FRAME_CHUNKED)
    at = (size_t)sprintf(window, "%zx\r\n", length);
  memcpy(window + at, bytes, length);
  at += length;
  if (pump->options.framing == TP_FRAME_CHUNKED) {
    memcpy(window + at, "\r\n", 2);
    at += 2;
  }
  tp_conn_commit(op->to, at);
}

/* What the scrub has let go. */
static enum tp_io emit_ready(struct tp_op *op) {
  struct tp_pump *pump = op->pump;
  while (pump->ready > 0) {
    char *window = NULL;
    size_t room;
    enum tp_io io = body_room(op, &window, &room);
    if (io != TP_IO_OK)
      return io;
    size_t length = pump->ready < room ? pump->ready : room;
    emit(op, window, pump->buffer + pump->ready_at, length);
    pump->ready_at += length;
    pump->ready -= length;
  }
  return TP_IO_OK;
}

/* One that masks goes on with what it has masked. */
static bool detects(const struct tp_pump *pump) {
  return !(tp_scrub_flags(pump->options.scrub) & TP_SCRUB_MASK);
}

int tp_pump_scrub(struct tp_op *op, const struct tp_span *span) {
  struct tp_pump *pump = op->pump;
  unsigned found = 0;
  memmove(pump->buffer, pump->buffer + pump->ready_at, pump->held);
  if (span->length)
    memcpy(pump->buffer + pump->held, span->bytes, span->length);
  size_t length = pump->held + span->length;
  tp_scrub_run(pump->options.scrub, &pump->stream, pump->buffer, length, span->complete,
               &pump->held, &found);
  pump->ready_at = 0;
  pump->ready = length - pump->held;
  if (found)
    pump->found = found;
  if (!found || !detects(pump))
    return 0;
  return tp_fail(&op->err, EILSEQ, "the body holds a secret");
}

/* One piece of body, as it is or by way of the scrub. */
static enum tp_io move_piece(struct tp_op *op, size_t *used) {
  struct tp_pump *pump = op->pump;
  struct tp_span span;
  char *window = NULL;
  size_t room = PIECE;
  *used = 0;
  enum tp_io io = pump->options.scrub ? TP_IO_OK : body_room(op, &window, &room);
  if (io != TP_IO_OK) {
    op->write_failed = io == TP_IO_FAILED;
    return io;
  }
  io = tp_conn_next_body(op->from, room, &span, &op->err);
  if (io == TP_IO_BLOCKED) {
    /* Nothing more for now: what was written must not wait for it. */
    enum tp_io flushed = tp_conn_flush(op->to, &op->err);
    op->write_failed = flushed == TP_IO_FAILED;
    return flushed == TP_IO_FAILED ? flushed : io;
  }
  if (io != TP_IO_OK)
    return io;
  if (pump->options.scrub && tp_pump_scrub(op, &span) < 0)
    return TP_IO_FAILED;
  if (!pump->options.scrub)
    emit(op, window, span.bytes, span.length);
  tp_conn_consume(op->from, span.used);
  pump->complete = span.complete;
  *used = span.used;
  if (span.used)
    tp_op_progress(op);
  return TP_IO_OK;
}

static int write_piece(struct tp_op *op, const char *bytes, size_t length) {
  struct tp_pump *pump = op->pump;
  char *grown = realloc(pump->buffer, pump->ready + length + 1);
  if (!grown)
    return tp_fail(&op->err, ENOMEM, "pump trailers");
  pump->buffer = grown;
  memcpy(grown + pump->ready, bytes, length);
  pump->ready += length;
  return 0;
}

/* The last chunk and the trailers, which may echo a secret as well as the body. */
static int make_end(struct tp_op *op) {
  struct tp_pump *pump = op->pump;
  pump->trailers = tp_http_trailers(op->from->http, &pump->trailer_count);
  pump->ready = pump->ready_at = pump->held = 0;
  pump->ended = true;
  if (pump->options.framing != TP_FRAME_CHUNKED)
    return 0;
  if (write_piece(op, "0\r\n", 3) < 0)
    return -1;
  for (unsigned i = 0; i < pump->trailer_count; i++) {
    const struct tp_http_header *line = &pump->trailers[i];
    if (write_piece(op, line->name, line->name_length) < 0 || write_piece(op, ": ", 2) < 0 ||
        write_piece(op, line->value, line->value_length) < 0 || write_piece(op, "\r\n", 2) < 0)
      return -1;
  }
  if (write_piece(op, "\r\n", 2) < 0)
    return -1;
  if (!pump->options.scrub)
    return 0;
  struct tp_scrub_stream stream = {0};
  size_t held;
  unsigned found = 0;
  tp_scrub_run(pump->options.scrub, &stream, pump->buffer, pump->ready, true, &held, &found);
  if (found)
    pump->found = found;
  return found && detects(pump) ? tp_fail(&op->err, EILSEQ, "a trailer holds a secret") : 0;
}

static int step_end(struct tp_op *op) {
  struct tp_pump *pump = op->pump;
  if (!pump->ended && make_end(op) < 0)
    return tp_op_failed(op);
  while (pump->ready > 0) {
    size_t taken = 0;
    enum tp_io io = tp_conn_put(op->to, pump->buffer + pump->ready_at, pump->ready, &taken,
                                &op->err);
    if (io == TP_IO_BLOCKED)
      return TP_STEP_WAIT;
    if (io != TP_IO_OK)
      return fail_write(op);
    pump->ready_at += taken;
    pump->ready -= taken;
  }
  enum tp_io io = tp_conn_flush(op->to, &op->err);
  if (io == TP_IO_FAILED)
    return fail_write(op);
  return io == TP_IO_OK ? TP_STEP_DONE : TP_STEP_WAIT;
}

static int step_pump(struct tp_op *op) {
  struct tp_pump *pump = op->pump;
  size_t moved = 0, used;
  if (!tp_conn_is_open(op->to) || op->to->broken) {
    tp_fail(&op->err, tp_conn_code(op->to), "write");
    return fail_write(op);
  }
  while (!pump->complete || (pump->ready > 0 && !pump->ended)) {
    enum tp_io io = pump->ended ? TP_IO_OK : emit_ready(op);
    if (io == TP_IO_FAILED)
      return fail_write(op);
    if (io == TP_IO_BLOCKED)
      return TP_STEP_WAIT;
    if (pump->complete)
      break;
    io = move_piece(op, &used);
    if (io == TP_IO_FAILED)
      return tp_op_failed(op);
    if (io == TP_IO_BLOCKED)
      return TP_STEP_WAIT;
    if ((moved += used) >= TP_STEP_BYTES)
      return TP_STEP_AGAIN;
  }
  return step_end(op);
}

void tp_pump_free(struct tp_pump *pump) {
  if (!pump)
    return;
  tp_scrub_release(pump->options.scrub);
  free(pump->buffer);
  free(pump->tail);
  free(pump);
}

struct tp_pump *tp_pump_new(const struct tp_pump_options *options) {
  struct tp_pump *pump = calloc(1, sizeof *pump);
  if (!pump)
    return NULL;
  pump->options = *options;
  if (options->scrub) {
    tp_scrub_retain(options->scrub);
    pump->buffer = malloc(tp_scrub_holds(options->scrub) + PIECE);
  }
  if (options->tail)
    pump->tail = malloc(options->tail);
  if ((!options->scrub || pump->buffer) && (!options->tail || pump->tail))
    return pump;
  tp_pump_free(pump);
  return NULL;
}

struct tp_op *tp_flow_pump(struct tp_conn *from, struct tp_conn *to,
                           const struct tp_pump_options *options, uint64_t limit) {
  struct tp_pump *pump = tp_pump_new(options);
  struct tp_op *op = pump ? tp_op_new(TP_OP_PUMP, from, to, step_pump, limit) : NULL;
  if (!op) {
    tp_pump_free(pump);
    return NULL;
  }
  op->pump = pump;
  return tp_op_begin(op);
}

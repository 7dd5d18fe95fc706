/* Operations of a flow: their turns, tokens, time limits and ends. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flow_parts.h"

enum { SLOT_BITS = 20, SLOTS_MOST = 1 << SLOT_BITS };

/* Which operations of its connections it is. On one that is closing it is none. */
static void attach(struct tp_op *op) {
  struct tp_conn *from = op->from, *to = op->to;
  if (from)
    from->reader = op;
  if (to)
    to->writer = op;
  if (op->kind == TP_OP_RELAY)
    from->writer = to->reader = op;
}

static void detach(struct tp_op *op) {
  struct tp_conn *conns[] = {op->from, op->to};
  for (unsigned i = 0; i < 2; i++) {
    if (conns[i] && conns[i]->reader == op)
      conns[i]->reader = NULL;
    if (conns[i] && conns[i]->writer == op)
      conns[i]->writer = NULL;
  }
}

static struct tp_flow *flow_of(const struct tp_op *op) {
  return op->from ? op->from->flow : op->to->flow;
}

struct tp_op *tp_op_new(enum tp_op_kind kind, struct tp_conn *from, struct tp_conn *to,
                        int (*step)(struct tp_op *), uint64_t limit) {
  struct tp_op *op = malloc(sizeof *op);
  if (!op)
    return NULL;
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->from = from ? tp_conn_retain(from) : NULL;
  op->to = to ? tp_conn_retain(to) : NULL;
  op->step = step;
  op->limit = limit;
  op->refused = kind != TP_OP_CLOSE &&
                ((from && !tp_conn_is_open(from)) || (to && !tp_conn_is_open(to)));
  if (!op->refused)
    attach(op);
  return op;
}

static int give_token(struct tp_flow *flow, struct tp_op *op) {
  if (flow->free_count == 0) {
    uint32_t count = flow->slot_count ? flow->slot_count * 2 : 64;
    if (count > SLOTS_MOST)
      return -1;
    struct tp_op **slots = realloc(flow->slots, count * sizeof *slots);
    if (!slots)
      return -1;
    flow->slots = slots;
    uint32_t *list = realloc(flow->free_slots, count * sizeof *list);
    if (!list)
      return -1;
    flow->free_slots = list;
    while (count > flow->slot_count)
      flow->free_slots[flow->free_count++] = --count;
    flow->slot_count = flow->slot_count ? flow->slot_count * 2 : 64;
  }
  uint32_t slot = flow->free_slots[--flow->free_count];
  flow->slots[slot] = op;
  if (++flow->generation == 0)
    flow->generation = 1; /* no token is 0 */
  op->token = ((uint64_t)flow->generation << SLOT_BITS) | slot;
  return 0;
}

static void take_token(struct tp_flow *flow, struct tp_op *op) {
  if (!op->token)
    return;
  uint32_t slot = op->token & (SLOTS_MOST - 1);
  flow->slots[slot] = NULL;
  flow->free_slots[flow->free_count++] = slot;
}

static void unqueue(struct tp_op *op) {
  struct tp_flow *flow = flow_of(op);
  if (!op->queued)
    return;
  op->queued = false;
  flow->queued--;
  if (op->previous_queued)
    op->previous_queued->next_queued = op->next_queued;
  else
    flow->queue_first = op->next_queued;
  if (op->next_queued)
    op->next_queued->previous_queued = op->previous_queued;
  else
    flow->queue_last = op->previous_queued;
}

void tp_op_enqueue(struct tp_op *op) {
  struct tp_flow *flow = flow_of(op);
  if (op->queued || op->done)
    return;
  op->queued = true;
  op->next_queued = NULL;
  op->previous_queued = flow->queue_last;
  if (flow->queue_last)
    flow->queue_last->next_queued = op;
  else
    flow->queue_first = op;
  flow->queue_last = op;
  flow->queued++;
}

static void untime(struct tp_op *op) {
  if (!op->timed)
    return;
  op->timed = false;
  *op->timed_by = op->next_timed;
  if (op->next_timed)
    op->next_timed->timed_by = op->timed_by;
}

/* The wheel holds when to look, at the earliest; progress only moves op->deadline. */
void tp_op_time(struct tp_op *op) {
  struct tp_flow *flow = flow_of(op);
  uint64_t due = op->limit ? op->deadline : UINT64_MAX;
  if (op->wake_at && op->wake_at < due)
    due = op->wake_at;
  uint64_t tick = due / TP_TICK + 1;
  if (due == UINT64_MAX || (op->timed && op->tick <= tick))
    return;
  untime(op);
  op->tick = tick > flow->tick ? tick : flow->tick + 1;
  struct tp_op **list = &flow->wheel[op->tick % TP_TICKS];
  op->next_timed = *list;
  op->timed_by = list;
  if (op->next_timed)
    op->next_timed->timed_by = &op->next_timed;
  *list = op;
  op->timed = true;
  tp_flow_arm(flow, op->tick);
}

void tp_op_progress(struct tp_op *op) {
  op->deadline = flow_of(op)->now + op->limit;
}

/* It has ended: out of everything but the list that tp_flow_next reads. */
static void finish(struct tp_op *op) {
  struct tp_flow *flow = flow_of(op);
  op->done = true;
  unqueue(op);
  untime(op);
  if (op->kind == TP_OP_CLOSE) {
    tp_op_free(op);
    return;
  }
  if (!op->token)
    return; /* whoever began it will see */
  if (flow->done_last)
    flow->done_last->next_done = op;
  else
    flow->done_first = op;
  flow->done_last = op;
}

void tp_op_step(struct tp_op *op) {
  unqueue(op);
  int what = op->step(op);
  if (what == TP_STEP_DONE)
    finish(op);
  else if (what == TP_STEP_AGAIN)
    tp_op_enqueue(op);
}

struct tp_op *tp_op_begin(struct tp_op *op) {
  struct tp_flow *flow = flow_of(op);
  bool closing = op->kind == TP_OP_CLOSE;
  flow->now = tp_flow_clock() / 1000;
  tp_op_progress(op);
  int what = op->refused ? tp_op_end(op, EPIPE, "connection is closed") : op->step(op);
  if (what != TP_STEP_DONE && !closing && give_token(flow, op) < 0) {
    tp_fail(&op->err, ENOMEM, "begin operation");
    what = tp_op_failed(op);
  }
  if (what == TP_STEP_DONE) {
    finish(op);
    return closing ? NULL : op;
  }
  tp_op_time(op);
  if (what == TP_STEP_AGAIN) {
    tp_op_enqueue(op);
    tp_flow_wake(flow);
  }
  return op;
}

void tp_op_free(struct tp_op *op) {
  if (!op)
    return;
  struct tp_flow *flow = flow_of(op);
  flow->references++; /* the connections may hold the last ones */
  detach(op);
  unqueue(op);
  untime(op);
  take_token(flow, op);
  if (op->from && !op->from->reader)
    tp_conn_rest(op->from);
  struct tp_conn *from = op->from, *to = op->to;
  if (op->hello)
    tp_hello_free(op->hello);
  free(op->hello);
  tp_pump_free(op->pump);
  free(op->bytes);
  free(op);
  if (from)
    tp_conn_drop(from);
  if (to)
    tp_conn_drop(to);
  tp_flow_release(flow);
}

int tp_op_failed(struct tp_op *op) {
  op->failed = true;
  return TP_STEP_DONE;
}

int tp_op_fail(struct tp_op *op, int code, const char *what) {
  tp_fail(&op->err, code, "%s", what);
  return tp_op_failed(op);
}

int tp_op_end(struct tp_op *op, int code, const char *what) {
  op->err.code = code;
  snprintf(op->err.message, sizeof op->err.message, "%s", what);
  return tp_op_failed(op);
}

static void end_early(struct tp_op *op, int code, const char *what) {
  tp_op_end(op, code, what);
  detach(op);
  finish(op);
}

void tp_op_cancel(struct tp_op *op, const char *why) {
  if (!op->done)
    end_early(op, ECANCELED, why);
}

int tp_flow_cancel(struct tp_flow *flow, uint64_t token) {
  uint32_t slot = token & (SLOTS_MOST - 1);
  struct tp_op *op = slot < flow->slot_count ? flow->slots[slot] : NULL;
  if (!op || op->token != token)
    return -1;
  if (op->done) {
    if (op->kind == TP_OP_WATCH)
      detach(op); /* told or not, whoever gives a watch up reads next */
    return -1;
  }
  tp_op_cancel(op, "cancelled");
  tp_flow_wake(flow);
  return 0;
}

static void time_out(struct tp_op *op) {
  struct tp_conn *conn = op->from;
  if (op->kind == TP_OP_CLOSE)
    tp_conn_shred(conn);
  else if (op->kind == TP_OP_PEEK && tp_peek_time_out(op) == 0)
    finish(op);
  else
    end_early(op, ETIMEDOUT, "timed out");
}

static void expire_slot(struct tp_flow *flow, struct tp_op **list) {
  /* Apart, since one with a far deadline may come back to the same slot. */
  struct tp_op *rest = *list;
  *list = NULL;
  if (rest)
    rest->timed_by = &rest;
  while (rest) {
    struct tp_op *op = rest;
    untime(op);
    if (op->wake_at && op->wake_at <= flow->now) {
      op->wake_at = 0;
      op->woken = true;
      tp_op_enqueue(op);
    }
    if (op->limit && op->deadline <= flow->now)
      time_out(op);
    else
      tp_op_time(op);
  }
}

void tp_op_expire(struct tp_flow *flow) {
  uint64_t now = flow->now / TP_TICK;
  if (now > flow->tick + TP_TICKS)
    flow->tick = now - TP_TICKS;
  while (flow->tick < now) {
    flow->tick++;
    expire_slot(flow, &flow->wheel[flow->tick % TP_TICKS]);
  }
}

uint64_t tp_op_next_tick(struct tp_flow *flow) {
  for (uint64_t tick = flow->tick + 1; tick <= flow->tick + TP_TICKS; tick++)
    if (flow->wheel[tick % TP_TICKS])
      return tick;
  return 0;
}

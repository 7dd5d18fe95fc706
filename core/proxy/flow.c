/* The flow's loop: which sockets are ready, which operations get their turn, what has ended. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "flow_parts.h"

enum { EVENTS = 128 };

uint64_t tp_flow_clock(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int watch_own(struct tp_flow *flow, int fd, uint32_t events, void *mark) {
  struct epoll_event event = {.events = events, .data.ptr = mark};
  return epoll_ctl(flow->epoll, EPOLL_CTL_ADD, fd, &event);
}

static int open_all(struct tp_flow *flow, struct tp_error *err) {
  flow->epoll = epoll_create1(EPOLL_CLOEXEC);
  flow->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  flow->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (flow->epoll < 0 || flow->event < 0 || flow->timer < 0)
    return tp_fail(err, errno, "open flow");
  /* Edge-triggered, each write to the event wakes again, so nobody has to read it. */
  if (watch_own(flow, flow->event, EPOLLIN | EPOLLET, &flow->event) < 0 ||
      watch_own(flow, flow->timer, EPOLLIN | EPOLLET, &flow->timer) < 0)
    return tp_fail(err, errno, "watch flow");
  return 0;
}

struct tp_flow *tp_flow_new(struct tp_error *err) {
  struct tp_flow *flow = calloc(1, sizeof *flow);
  if (!flow) {
    tp_fail(err, ENOMEM, "open flow");
    return NULL;
  }
  flow->references = 1;
  flow->now = tp_flow_clock() / 1000;
  flow->tick = flow->now / TP_TICK;
  if (open_all(flow, err) == 0)
    return flow;
  tp_flow_free(flow);
  return NULL;
}

void tp_flow_release(struct tp_flow *flow) {
  if (--flow->references > 0)
    return;
  while (flow->chunks) {
    struct tp_chunk *chunk = flow->chunks;
    flow->chunks = chunk->next;
    free(chunk);
  }
  free(flow->slots);
  free(flow->free_slots);
  free(flow);
}

void tp_flow_free(struct tp_flow *flow) {
  flow->closed = true;
  for (struct tp_conn *conn = flow->conns, *next; conn; conn = next) {
    next = conn->next;
    tp_conn_retain(conn);
    tp_conn_shred(conn);
    next = conn->next;
    tp_conn_drop(conn);
  }
  for (struct tp_op *op; (op = tp_flow_next(flow));)
    tp_op_free(op);
  int *own[] = {&flow->epoll, &flow->event, &flow->timer};
  for (unsigned i = 0; i < 3; i++) {
    if (*own[i] >= 0)
      close(*own[i]);
    *own[i] = -1;
  }
  tp_flow_release(flow);
}

int tp_flow_number(const struct tp_flow *flow) {
  return flow->epoll;
}

void tp_flow_wake(struct tp_flow *flow) {
  uint64_t one = 1;
  if (flow->woken || flow->closed)
    return;
  flow->woken = write(flow->event, &one, sizeof one) == sizeof one;
}

struct tp_chunk *tp_chunk_take(struct tp_flow *flow) {
  struct tp_chunk *chunk = flow->chunks;
  if (chunk) {
    flow->chunks = chunk->next;
    flow->chunk_count--;
  } else if (!(chunk = malloc(sizeof *chunk + TP_CHUNK_SIZE))) {
    return NULL;
  }
  chunk->next = NULL;
  chunk->size = TP_CHUNK_SIZE;
  chunk->start = chunk->end = 0;
  return chunk;
}

void tp_chunk_give(struct tp_flow *flow, struct tp_chunk **held) {
  struct tp_chunk *chunk = *held;
  *held = NULL;
  if (!chunk)
    return;
  if (flow->chunk_count >= TP_CHUNKS_KEPT || chunk->size < TP_CHUNK_SIZE) {
    free(chunk);
    return;
  }
  chunk->next = flow->chunks;
  flow->chunks = chunk;
  flow->chunk_count++;
}

static void move_content(struct tp_flow *flow, struct tp_chunk **held, struct tp_chunk *to) {
  struct tp_chunk *from = *held;
  to->end = from->end - from->start;
  to->start = 0;
  memcpy(to->bytes, from->bytes + from->start, to->end);
  tp_chunk_give(flow, held);
  *held = to;
}

void tp_chunk_shrink(struct tp_flow *flow, struct tp_chunk **held) {
  size_t length = (*held)->end - (*held)->start;
  if (length * 4 > (*held)->size)
    return;
  struct tp_chunk *small = malloc(sizeof *small + length);
  if (!small)
    return;
  small->next = NULL;
  small->size = length;
  move_content(flow, held, small);
}

int tp_chunk_grow(struct tp_flow *flow, struct tp_chunk **held) {
  struct tp_chunk *large = tp_chunk_take(flow);
  if (!large)
    return -1;
  move_content(flow, held, large);
  return 0;
}

static void note_event(struct tp_conn *conn, uint32_t events) {
  if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
    conn->hung_up = true;
  if (events & EPOLLERR)
    conn->broken = true;
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
    conn->readable = true;
    if (conn->reader)
      tp_op_enqueue(conn->reader);
  }
  if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
    conn->writable = true;
    if (conn->writer)
      tp_op_enqueue(conn->writer);
    else if (conn->reader && conn->tls) /* TLS may have something to say before it reads on */
      tp_op_enqueue(conn->reader);
  }
}

/* Returns how many events there were. */
static int poll_events(struct tp_flow *flow) {
  struct epoll_event events[EVENTS];
  int count = epoll_wait(flow->epoll, events, EVENTS, 0);
  for (int i = 0; i < count; i++) {
    void *mark = events[i].data.ptr;
    if (mark == &flow->event)
      flow->woken = false;
    else if (mark == &flow->timer)
      flow->armed = 0;
    else
      note_event(mark, events[i].events);
  }
  return count > 0 ? count : 0;
}

/* One turn for each operation that waits for one now, as far as the time goes: a turn may be a TLS
 * handshake's signature. */
static uint64_t step_queued(struct tp_flow *flow, uint64_t until) {
  uint64_t now = 0;
  for (unsigned turns = flow->queued; turns > 0 && flow->queue_first && now < until; turns--) {
    tp_op_step(flow->queue_first);
    now = tp_flow_clock();
  }
  return now ? now : tp_flow_clock();
}

void tp_flow_run(struct tp_flow *flow) {
  if (flow->closed)
    return;
  uint64_t now = tp_flow_clock(), until = now + TP_RUN_MICROSECONDS;
  int events;
  do {
    flow->now = now / 1000;
    events = poll_events(flow);
    if (!flow->armed)
      tp_op_expire(flow);
    now = step_queued(flow, until);
  } while ((events || flow->queue_first) && !flow->done_first && now < until);
  flow->now = now / 1000;
}

struct tp_op *tp_flow_next(struct tp_flow *flow) {
  struct tp_op *op = flow->done_first;
  if (!op)
    return NULL;
  flow->done_first = op->next_done;
  if (!flow->done_first)
    flow->done_last = NULL;
  op->next_done = NULL;
  return op;
}

void tp_flow_settle(struct tp_flow *flow) {
  if (flow->closed)
    return;
  if (flow->queue_first || flow->done_first)
    tp_flow_wake(flow);
  if (!flow->armed)
    tp_flow_arm(flow, tp_op_next_tick(flow));
}

void tp_flow_arm(struct tp_flow *flow, uint64_t tick) {
  if (!tick || flow->closed || (flow->armed && flow->armed <= tick))
    return;
  uint64_t at = tick * TP_TICK;
  struct itimerspec due = {.it_value = {.tv_sec = (time_t)(at / 1000),
                                        .tv_nsec = (long)(at % 1000) * 1000000 + 1}};
  if (timerfd_settime(flow->timer, TFD_TIMER_ABSTIME, &due, NULL) == 0)
    flow->armed = tick;
}

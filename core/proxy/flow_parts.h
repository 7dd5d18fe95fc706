/* What the parts of the flow share; nobody else includes this.
 *
 * The sockets are in the flow's epoll edge-triggered, for good: `readable` and `writable` remember
 * what the last event and the last call said, so an operation costs no epoll_ctl. */
#ifndef TP_PROXY_FLOW_PARTS_H
#define TP_PROXY_FLOW_PARTS_H

#include "flow.h"

enum {
  TP_CHUNK_SIZE = 64 << 10,   /* a buffer of bytes that wait, held only while some do */
  TP_CHUNKS_KEPT = 16,        /* free ones that a flow keeps */
  TP_STEP_BYTES = 512 << 10,  /* what one operation may move before it is another's turn */
  TP_RUN_MICROSECONDS = 2000, /* what one run may take */
  TP_TICK = 100,              /* ms, the timers' grain */
  TP_TICKS = 512,
  TP_CLOSE_LIMIT = 5000,      /* ms */
  TP_SCRUB_PIECE = 16 << 10
};

struct tp_chunk {
  struct tp_chunk *next;
  size_t start, end, size; /* smaller than TP_CHUNK_SIZE where a little waits for long */
  char bytes[];
};

struct tp_flow {
  int epoll, event, timer;
  unsigned references; /* the owner's, and one for each connection */
  bool closed, woken;
  uint64_t now;           /* ms */
  struct tp_conn *conns;
  struct tp_op *queue_first, *queue_last; /* to be stepped */
  unsigned queued;
  struct tp_op *done_first, *done_last;
  struct tp_op *wheel[TP_TICKS];
  uint64_t tick, armed;   /* the last tick that was looked at; the one the timer is set to, or 0 */
  struct tp_chunk *chunks;
  unsigned chunk_count;
  struct tp_op **slots;   /* by the low bits of a token */
  uint32_t *free_slots;
  uint32_t slot_count, free_count, generation;
};

struct tp_conn {
  struct tp_flow *flow;
  struct tp_conn *next, **by;
  unsigned references;
  int fd;             /* -1: closed */
  bool readable, writable;
  bool hung_up;       /* an end waits behind what can be read */
  bool ended;         /* the peer's end was read */
  bool truncated;     /* ended without TLS's own end */
  bool broken;        /* the socket has failed */
  bool closing, shut; /* tp_conn_close was called; our end was sent */
  int code;           /* the socket's error, once known */
  struct tp_chunk *input, *output;
  struct tp_tls *tls;
  struct tp_http_reader *http;
  enum tp_http_side side;
  enum tp_http_body body; /* what the last head announced */
  struct tp_op *reader, *writer;
  uint64_t read, written;
};

/* What came of an attempt to read or write. */
enum tp_io { TP_IO_OK, TP_IO_BLOCKED, TP_IO_ENDED, TP_IO_FAILED };

/* What a step says: come again when a socket is ready, or as soon as others had their turn. */
enum { TP_STEP_WAIT, TP_STEP_AGAIN, TP_STEP_DONE };

/* flow.c */
void tp_flow_wake(struct tp_flow *flow);
void tp_flow_arm(struct tp_flow *flow, uint64_t tick); /* be woken at that tick, or earlier */
void tp_flow_release(struct tp_flow *flow);
uint64_t tp_flow_clock(void); /* microseconds */
struct tp_chunk *tp_chunk_take(struct tp_flow *flow);
void tp_chunk_give(struct tp_flow *flow, struct tp_chunk **chunk);
void tp_chunk_shrink(struct tp_flow *flow, struct tp_chunk **chunk);
int tp_chunk_grow(struct tp_flow *flow, struct tp_chunk **chunk);

/* flow_op.c. tp_op_begin steps the operation for the first time. */
struct tp_op *tp_op_new(enum tp_op_kind kind, struct tp_conn *from, struct tp_conn *to,
                        int (*step)(struct tp_op *), uint64_t limit);
struct tp_op *tp_op_begin(struct tp_op *op);
void tp_op_enqueue(struct tp_op *op);
void tp_op_step(struct tp_op *op);
void tp_op_progress(struct tp_op *op);
/* Have the timer look at it in time for its deadline and its wake_at, at which op->woken is set. */
void tp_op_time(struct tp_op *op);
int tp_op_fail(struct tp_op *op, int code, const char *what); /* TP_STEP_DONE */
int tp_op_end(struct tp_op *op, int code, const char *what); /* the message as it is */
int tp_op_failed(struct tp_op *op);                           /* the same; op->err is filled */
void tp_op_cancel(struct tp_op *op, const char *why);
void tp_op_expire(struct tp_flow *flow);
uint64_t tp_op_next_tick(struct tp_flow *flow);
int tp_peek_time_out(struct tp_op *op); /* 0: that is a result too */

/* flow_conn.c */
struct tp_conn *tp_conn_retain(struct tp_conn *conn);
void tp_conn_drop(struct tp_conn *conn);  /* gives one of the flow's own references back */
void tp_conn_shred(struct tp_conn *conn); /* closes the socket and frees what it needed */

/* flow_bytes.c: plain bytes in and out, whatever lies between them and the socket.
 *
 * tp_conn_view shows what can be read, tp_conn_consume takes it. tp_conn_room gives at least `want`
 * (<= 4096) bytes to write to, tp_conn_commit says how many were; they leave when there is a good
 * load, all of them with tp_conn_flush: OK when the kernel has everything. tp_conn_put is room,
 * copy and commit in one, for at least one byte of `length`. FAILED fills err. */
enum tp_io tp_conn_view(struct tp_conn *conn, char **bytes, size_t *length, struct tp_error *err);
void tp_conn_consume(struct tp_conn *conn, size_t length);
enum tp_io tp_conn_room(struct tp_conn *conn, size_t want, char **bytes, size_t *room,
                        struct tp_error *err);
void tp_conn_commit(struct tp_conn *conn, size_t length);
enum tp_io tp_conn_put(struct tp_conn *conn, const char *bytes, size_t length, size_t *taken,
                       struct tp_error *err);
enum tp_io tp_conn_flush(struct tp_conn *conn, struct tp_error *err);
/* Reads more of the socket behind what is buffered, for those who need to see it in one piece. */
enum tp_io tp_conn_fill(struct tp_conn *conn, struct tp_error *err);
/* Nobody reads it for now: holds no more than what is unread. */
void tp_conn_rest(struct tp_conn *conn);
/* Why it can't be used any more. */
int tp_conn_code(struct tp_conn *conn);
/* No more will be written. Call when flushed. */
enum tp_io tp_conn_end(struct tp_conn *conn, struct tp_error *err);

/* What the two parts of that share. tp_conn_transmit: one send, *sent of length. tp_output_send: OK
 * when the output chunk is empty. tp_output_room: at least `want` at its end. */
enum tp_io tp_conn_transmit(struct tp_conn *conn, const void *bytes, size_t length, size_t *sent,
                            struct tp_error *err);
enum tp_io tp_output_send(struct tp_conn *conn, struct tp_error *err);
enum tp_io tp_output_room(struct tp_conn *conn, size_t want, struct tp_error *err);
void tp_input_take(struct tp_conn *conn, size_t length);

/* flow_records.c: view and room under TLS. tp_conn_feed lets the engine take what was read, or
 * reads; tp_conn_send_records moves its records on: into the chunk while they fit, with `all` to
 * the kernel. */
enum tp_io tp_records_view(struct tp_conn *conn, char **bytes, size_t *length,
                           struct tp_error *err);
enum tp_io tp_records_room(struct tp_conn *conn, size_t want, char **bytes, size_t *room,
                           struct tp_error *err);
enum tp_io tp_conn_feed(struct tp_conn *conn, struct tp_error *err);
enum tp_io tp_conn_send_records(struct tp_conn *conn, bool all, struct tp_error *err);

/* flow_http.c: the next of the body that the last head announced, of at most so many bytes of the
 * connection. Consume `used` when done with it. FAILED also when it was cut off. */
struct tp_span {
  const char *bytes;
  size_t length, used;
  bool complete;
};
enum tp_io tp_conn_next_body(struct tp_conn *conn, size_t most, struct tp_span *span,
                             struct tp_error *err);

/* flow_pump.c. tp_pump_scrub puts the next piece behind what is held, once nothing is ready any
 * more; -1: a detecting scrub has found something. */
struct tp_pump *tp_pump_new(const struct tp_pump_options *options);
void tp_pump_free(struct tp_pump *pump);
int tp_pump_scrub(struct tp_op *op, const struct tp_span *span);

#endif

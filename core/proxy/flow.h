/* Moves the bytes of many connections in one thread: sockets, plain or under TLS, HTTP messages on
 * them, pumps and relays between two of them.
 *
 * Runs in the egress process, unprivileged; every byte comes from a sandbox or from the network.
 * The flow owns its connections and operations. It never calls back: its one descriptor is readable
 * when there is work, tp_flow_run does it, tp_flow_next hands out what has ended. An operation
 * starts at once and may have ended (op->done) when its start function returns; otherwise it is
 * known by its token. A connection has at most one reading and one writing operation, which its
 * users check. */
#ifndef TP_PROXY_FLOW_H
#define TP_PROXY_FLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"
#include "hello.h"
#include "http.h"
#include "scrub.h"
#include "tls.h"

struct tp_flow;
struct tp_conn;

/* The code of a connection that was closed in good order where it could be: no errno says that. */
enum { TP_FLOW_EOF = 0x10000 };

enum tp_op_kind {
  TP_OP_CONNECT,
  TP_OP_PEEK,
  TP_OP_TLS,
  TP_OP_HEAD,
  TP_OP_BODY,
  TP_OP_READ,
  TP_OP_WRITE,
  TP_OP_PUMP,
  TP_OP_RELAY,
  TP_OP_WATCH,
  TP_OP_CLOSE
};

enum tp_peek { TP_PEEK_TLS, TP_PEEK_HTTP, TP_PEEK_H2, TP_PEEK_OTHER, TP_PEEK_SILENT };

struct tp_pump;

/* What an operation ended with. `bytes` are the operation's own. */
struct tp_op {
  enum tp_op_kind kind;
  uint64_t token;
  bool done, failed;
  struct tp_error err;

  enum tp_peek peek;               /* TP_OP_PEEK, with the hello or the first bytes */
  struct tp_hello *hello;
  char *bytes; /* TP_OP_PEEK, TP_OP_BODY, TP_OP_READ; TP_OP_WRITE: what is to be sent */
  size_t length;
  const struct tp_http_head *head; /* TP_OP_HEAD; until the operation is freed */
  bool data;                       /* TP_OP_WATCH: something came, it was not the end */
  bool write_failed;               /* TP_OP_PUMP: which side */
  uint64_t moved[2];               /* TP_OP_PUMP: body bytes; TP_OP_RELAY: each way */
  struct tp_pump *pump;

  /* The flow's own. */
  struct tp_conn *from, *to;       /* whom it reads and whom it writes; counted references */
  int (*step)(struct tp_op *op);
  uint64_t limit, deadline;        /* ms; limit 0: none */
  uint64_t wake_at, tick;          /* ms, 0: never; which tick of the timers it waits for */
  struct tp_op *next_queued, *previous_queued, *next_done;
  struct tp_op *next_timed, **timed_by;
  bool refused, queued, timed, woken, half_done[2];
  size_t offset, size;             /* TP_OP_WRITE: sent of bytes; TP_OP_BODY: allocated */
  uint64_t most;                   /* TP_OP_BODY */
  bool more;                       /* TP_OP_WRITE */
};

struct tp_flow *tp_flow_new(struct tp_error *err);
/* Closes every connection at once. The memory goes with the last connection's release. */
void tp_flow_free(struct tp_flow *flow);
int tp_flow_number(const struct tp_flow *flow);

/* Do what can be done now, for a few milliseconds at most. */
void tp_flow_run(struct tp_flow *flow);
/* The next operation that has ended, or NULL. The caller frees it. */
struct tp_op *tp_flow_next(struct tp_flow *flow);
/* After the last tp_flow_next: makes the descriptor readable if something is left. */
void tp_flow_settle(struct tp_flow *flow);
/* End an operation; it comes out of tp_flow_next with ECANCELED. 0, or -1: it has ended already. */
int tp_flow_cancel(struct tp_flow *flow, uint64_t token);
void tp_op_free(struct tp_op *op);

/* Both return a connection with one reference, the caller's. tp_flow_adopt takes the descriptor
 * over (also when it fails). tp_flow_connect: `address` is a literal; *op as for the functions
 * below. */
struct tp_conn *tp_flow_adopt(struct tp_flow *flow, int fd, struct tp_error *err);
struct tp_conn *tp_flow_connect(struct tp_flow *flow, const char *address, unsigned port,
                                uint64_t limit, struct tp_op **op, struct tp_error *err);
/* Give the reference back; an open connection is closed. */
void tp_conn_release(struct tp_conn *conn);
/* Send what is queued and the end, then close; in the background, at most 5 s. Cancels its
 * operations. */
void tp_conn_close(struct tp_conn *conn);
/* Close now, by a TCP reset. */
void tp_conn_reset(struct tp_conn *conn);

bool tp_conn_is_open(const struct tp_conn *conn);
bool tp_conn_is_reading(const struct tp_conn *conn);
bool tp_conn_is_writing(const struct tp_conn *conn);
int tp_conn_fd(const struct tp_conn *conn);
const struct tp_tls *tp_conn_tls(const struct tp_conn *conn);
void tp_conn_stats(const struct tp_conn *conn, uint64_t *read, uint64_t *written);
/* False: no head was read yet. */
bool tp_conn_side(const struct tp_conn *conn, enum tp_http_side *side);

/* Operations. `limit` in ms, 0 for none. NULL only when there is no memory. */
struct tp_op *tp_conn_peek(struct tp_conn *conn, uint64_t limit);
struct tp_op *tp_conn_accept_tls(struct tp_conn *conn, struct tp_tls_identity *, uint64_t limit);
struct tp_op *tp_conn_connect_tls(struct tp_conn *conn, struct tp_tls_trust *, const char *host,
                                  uint64_t limit);
struct tp_op *tp_conn_read_head(struct tp_conn *conn, enum tp_http_side side, const char *method,
                                uint64_t limit);
struct tp_op *tp_conn_read_body(struct tp_conn *conn, uint64_t most, uint64_t limit);
/* With `more` it may end with bytes that wait in a TLS record: what is written next sends them along. */
struct tp_op *tp_conn_write(struct tp_conn *conn, const char *bytes, size_t length, bool more,
                            uint64_t limit);
struct tp_op *tp_conn_read(struct tp_conn *conn, size_t most, uint64_t limit);
struct tp_op *tp_conn_watch(struct tp_conn *conn, uint64_t limit);
/* `scrub`, or NULL, looks at what goes from b to a. */
struct tp_op *tp_flow_relay(struct tp_conn *a, struct tp_conn *b, struct tp_scrub *scrub,
                            uint64_t limit);

enum tp_framing { TP_FRAME_LENGTH, TP_FRAME_CHUNKED, TP_FRAME_NONE, TP_FRAME_EOF };

struct tp_pump_options {
  enum tp_framing framing; /* of what is written. LENGTH, EOF: bytes as they are; NONE: dropped */
  struct tp_scrub *scrub;  /* or NULL. What one finds that only detects ends the pump with EILSEQ */
  size_t tail;             /* so many of the last bytes are kept for the caller */
};

/* What a pump has to tell beside op->moved. A relay with a scrub has one too. */
struct tp_pump {
  struct tp_pump_options options;
  const struct tp_http_header *trailers; /* until the operation is freed */
  unsigned trailer_count;
  unsigned found; /* the pattern that a detecting scrub saw, or 0 */
  char *tail;
  size_t tail_length;

  struct tp_scrub_stream stream;
  char *buffer;                      /* what the scrub looks at; of ready + held bytes */
  size_t ready_at, ready, held, size;
  bool complete, ended;              /* the body was read; its end was written */
};

struct tp_op *tp_flow_pump(struct tp_conn *from, struct tp_conn *to,
                           const struct tp_pump_options *options, uint64_t limit);

/* Queue a fatal TLS alert in plain, for a peer whose ClientHello was only peeked at. */
int tp_conn_alert(struct tp_conn *conn, unsigned number, struct tp_error *err);

#endif

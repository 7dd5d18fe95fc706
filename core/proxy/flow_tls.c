/* TLS handshakes on a connection of a flow, whatever was read of it before. */
#include <errno.h>

#include "flow_parts.h"

/* A handshake that fails sends the alert that says so, as far as the socket takes it. */
static int refuse(struct tp_op *op) {
  struct tp_error ignored;
  tp_conn_send_records(op->from, true, &ignored);
  if (tp_tls_failure(op->from->tls, &op->err) < 0)
    return tp_op_failed(op);
  return tp_op_end(op, EPROTO, "TLS handshake: the peer ended it");
}

static int fail_handshake(struct tp_op *op) {
  tp_wrap(&op->err, "TLS handshake");
  return tp_op_failed(op);
}

static int step_handshake(struct tp_op *op) {
  struct tp_conn *conn = op->from;
  for (;;) {
    if (tp_tls_state(conn->tls) & TP_TLS_CLOSED)
      return refuse(op);
    enum tp_io io = tp_conn_send_records(conn, true, &op->err);
    if (io == TP_IO_FAILED)
      return fail_handshake(op);
    unsigned state = tp_tls_state(conn->tls);
    if (state & TP_TLS_TAKES_DATA && io == TP_IO_OK)
      return TP_STEP_DONE;
    if (!(state & TP_TLS_TAKES_RECORDS)) {
      if (io == TP_IO_BLOCKED)
        return TP_STEP_WAIT;
      if (state & (TP_TLS_CLOSED | TP_TLS_HAS_RECORDS))
        continue;
      return tp_op_fail(op, EPROTO, "TLS handshake stands still");
    }
    io = tp_conn_feed(conn, &op->err);
    if (io == TP_IO_BLOCKED)
      return TP_STEP_WAIT;
    if (io == TP_IO_ENDED)
      return tp_op_end(op, ECONNRESET, "TLS handshake: the peer closed the connection");
    if (io == TP_IO_FAILED)
      return fail_handshake(op);
  }
}

static struct tp_op *begin(struct tp_conn *conn, struct tp_tls *tls, uint64_t limit,
                           const struct tp_error *err) {
  struct tp_op *op = tp_op_new(TP_OP_TLS, conn, conn, step_handshake, limit);
  if (!op || !tls || conn->tls || op->refused) {
    tp_tls_free(tls);
    if (!op)
      return NULL;
    if (op->refused)
      return tp_op_begin(op);
    op->err = *err;
    op->done = op->failed = true;
    return op;
  }
  conn->tls = tls;
  return tp_op_begin(op);
}

struct tp_op *tp_conn_accept_tls(struct tp_conn *conn, struct tp_tls_identity *identity,
                                 uint64_t limit) {
  struct tp_error err;
  tp_fail(&err, EISCONN, "TLS has begun already");
  return begin(conn, conn->tls ? NULL : tp_tls_server(identity, &err), limit, &err);
}

struct tp_op *tp_conn_connect_tls(struct tp_conn *conn, struct tp_tls_trust *trust,
                                  const char *host, uint64_t limit) {
  struct tp_error err;
  tp_fail(&err, EISCONN, "TLS has begun already");
  return begin(conn, conn->tls ? NULL : tp_tls_client(trust, host, &err), limit, &err);
}

/* proxy.flow: connections and what is done on them. Lua waits on flow:number().
 *
 * An operation returns 0 and its results when it ended at once, else a token, and flow:run() tells
 * what it ended with. A connection's Lua handle closes it when collected; what the flow still has to
 * do then, to send what is queued, it does without. */
#include "../../proxy/flow.h"
#include "hello.h"
#include "http.h"

#define FLOW_TYPE "tidepool.Flow"
#define CONN_TYPE "tidepool.Conn"

enum { BATCH = 256 };

static struct tp_flow *check_flow(lua_State *L) {
  struct tp_flow **flow = luaL_checkudata(L, 1, FLOW_TYPE);
  luaL_argcheck(L, *flow, 1, "flow is closed");
  return *flow;
}

static struct tp_conn *check_conn(lua_State *L, int index) {
  struct tp_conn **conn = luaL_checkudata(L, index, CONN_TYPE);
  luaL_argcheck(L, *conn, index, "connection is closed");
  return *conn;
}

static struct tp_conn *check_reading(lua_State *L, int index) {
  struct tp_conn *conn = check_conn(L, index);
  luaL_argcheck(L, !tp_conn_is_reading(conn), index, "connection is being read already");
  return conn;
}

static struct tp_conn *check_writing(lua_State *L, int index) {
  struct tp_conn *conn = check_conn(L, index);
  luaL_argcheck(L, !tp_conn_is_writing(conn), index, "connection is being written already");
  return conn;
}

/* Seconds to milliseconds; nil is no limit. */
static uint64_t check_limit(lua_State *L, int index) {
  if (lua_isnoneornil(L, index))
    return 0;
  lua_Number seconds = luaL_checknumber(L, index);
  luaL_argcheck(L, seconds >= 0 && seconds < 1e9, index, "a time limit in seconds");
  return seconds * 1000 < 1 ? 1 : (uint64_t)(seconds * 1000);
}

static int push_failure(lua_State *L, const struct tp_error *err) {
  if (err->code != TP_FLOW_EOF)
    return tp_lua_fail(L, err);
  lua_pushnil(L);
  lua_pushstring(L, err->message);
  lua_pushliteral(L, "EOF");
  return 3;
}

static int push_peek(lua_State *L, const struct tp_op *op) {
  static const char *const names[] = {[TP_PEEK_TLS] = "tls",
                                      [TP_PEEK_HTTP] = "http",
                                      [TP_PEEK_H2] = "h2",
                                      [TP_PEEK_OTHER] = "other",
                                      [TP_PEEK_SILENT] = "silent"};
  lua_pushstring(L, names[op->peek]);
  if (op->peek == TP_PEEK_SILENT)
    return 1;
  if (op->peek != TP_PEEK_TLS)
    lua_pushlstring(L, op->bytes, op->length);
  else
    tp_push_hello(L, op->hello);
  return 2;
}

static int push_pump(lua_State *L, const struct tp_op *op) {
  const struct tp_pump *pump = op->pump;
  if (op->failed) {
    push_failure(L, &op->err);
    lua_pushstring(L, op->write_failed ? "write" : "read");
    lua_pushnumber(L, (lua_Number)op->moved[0]);
    if (!pump->found)
      return 5;
    lua_pushinteger(L, (lua_Integer)pump->found);
    return 6;
  }
  lua_pushnumber(L, (lua_Number)op->moved[0]);
  if (pump->trailer_count)
    tp_push_http_headers(L, pump->trailers, pump->trailer_count);
  else
    lua_pushnil(L);
  if (pump->tail)
    lua_pushlstring(L, pump->tail, pump->tail_length);
  else
    lua_pushnil(L);
  if (!pump->found)
    return 3;
  lua_pushinteger(L, (lua_Integer)pump->found);
  return 4;
}

static int push_relay(lua_State *L, const struct tp_op *op) {
  int count = op->failed ? push_failure(L, &op->err) : 0;
  lua_pushnumber(L, (lua_Number)op->moved[0]);
  lua_pushnumber(L, (lua_Number)op->moved[1]);
  return count + 2;
}

static int push_results(lua_State *L, const struct tp_op *op) {
  if (op->kind == TP_OP_PUMP)
    return push_pump(L, op);
  if (op->kind == TP_OP_RELAY)
    return push_relay(L, op);
  if (op->failed)
    return push_failure(L, &op->err);
  switch (op->kind) {
  case TP_OP_PEEK: return push_peek(L, op);
  case TP_OP_HEAD: tp_push_http_head(L, op->head); return 1;
  case TP_OP_READ:
  case TP_OP_BODY: lua_pushlstring(L, op->bytes ? op->bytes : "", op->length); return 1;
  case TP_OP_WATCH:
    if (op->data) {
      lua_pushliteral(L, "data");
      return 1;
    }
    break;
  default: break;
  }
  lua_pushboolean(L, 1);
  return 1;
}

/* Whatever an operation's results raise (no memory), it is freed by this owner. */
#define OP_SCOPE __attribute__((cleanup(free_op)))
static void free_op(struct tp_op **op) {
  tp_op_free(*op);
}

/* A token, or 0 and the results. */
static int begun(lua_State *L, struct tp_op *op) {
  if (!op)
    return luaL_error(L, "no memory for an operation");
  if (!op->done) {
    lua_pushnumber(L, (lua_Number)op->token);
    return 1;
  }
  OP_SCOPE struct tp_op *ended = op;
  lua_pushinteger(L, 0);
  return 1 + push_results(L, ended);
}

/* proxy.flow.new() -> flow | nil, message, code */
static int l_new(lua_State *L) {
  struct tp_flow **flow = lua_newuserdata(L, sizeof *flow);
  *flow = NULL;
  luaL_getmetatable(L, FLOW_TYPE);
  lua_setmetatable(L, -2);
  struct tp_error err;
  *flow = tp_flow_new(&err);
  return *flow ? 1 : tp_lua_fail(L, &err);
}

/* flow:number() -> integer, readable when flow:run() has something to do */
static int l_number(lua_State *L) {
  lua_pushinteger(L, tp_flow_number(check_flow(L)));
  return 1;
}

/* { token, results..., n = count } */
static void push_ended(lua_State *L, struct tp_op *op) {
  OP_SCOPE struct tp_op *ended = op;
  int table = lua_gettop(L) + 1;
  lua_createtable(L, 4, 1);
  int count = push_results(L, ended);
  lua_pushinteger(L, count + 1);
  lua_setfield(L, table, "n");
  while (count > 0)
    lua_rawseti(L, table, 1 + count--);
  lua_pushnumber(L, (lua_Number)ended->token);
  lua_rawseti(L, table, 1);
}

/* flow:run() -> list of { token, results..., n = how many with the token } */
static int l_run(lua_State *L) {
  struct tp_flow *flow = check_flow(L);
  luaL_checkstack(L, 16, NULL);
  lua_newtable(L);
  tp_flow_run(flow);
  int count = 0;
  for (struct tp_op *op; count < BATCH && (op = tp_flow_next(flow));) {
    push_ended(L, op);
    lua_rawseti(L, -2, ++count);
  }
  tp_flow_settle(flow);
  return 1;
}

/* flow:cancel(token) -> true, or false: it has ended already, and flow:run() has told or will */
static int l_cancel(lua_State *L) {
  struct tp_flow *flow = check_flow(L);
  lua_pushboolean(L, tp_flow_cancel(flow, (uint64_t)luaL_checknumber(L, 2)) == 0);
  return 1;
}

/* flow:close(): every connection at once; closing twice is harmless. */
static int l_close_flow(lua_State *L) {
  struct tp_flow **flow = luaL_checkudata(L, 1, FLOW_TYPE);
  if (*flow)
    tp_flow_free(*flow);
  *flow = NULL;
  return 0;
}

static struct tp_conn **new_handle(lua_State *L) {
  struct tp_conn **conn = lua_newuserdata(L, sizeof *conn);
  *conn = NULL;
  luaL_getmetatable(L, CONN_TYPE);
  lua_setmetatable(L, -2);
  return conn;
}

/* flow:adopt(fd) -> conn | nil, message, code; takes the connected socket over */
static int l_adopt(lua_State *L) {
  struct tp_flow *flow = check_flow(L);
  int fd = tp_check_fd(L, 2);
  struct tp_conn **conn = new_handle(L);
  struct tp_error err;
  if (lua_isuserdata(L, 2))
    *(int *)lua_touserdata(L, 2) = -1;
  *conn = tp_flow_adopt(flow, fd, &err);
  return *conn ? 1 : tp_lua_fail(L, &err);
}

/* flow:connect(address, port, timeout) -> conn, token or conn, 0, results | nil, message, code */
static int l_connect(lua_State *L) {
  struct tp_flow *flow = check_flow(L);
  const char *address = luaL_checkstring(L, 2);
  lua_Integer port = luaL_checkinteger(L, 3);
  luaL_argcheck(L, port > 0 && port < 65536, 3, "port");
  uint64_t limit = check_limit(L, 4);
  struct tp_conn **conn = new_handle(L);
  struct tp_op *op;
  struct tp_error err;
  *conn = tp_flow_connect(flow, address, (unsigned)port, limit, &op, &err);
  if (!*conn)
    return tp_lua_fail(L, &err);
  return 1 + begun(L, op);
}

/* The scrub in the options at `index`, or NULL; left on the stack, which keeps it. */
static struct tp_scrub *opt_scrub(lua_State *L, int index) {
  if (lua_isnoneornil(L, index))
    return NULL;
  luaL_checktype(L, index, LUA_TTABLE);
  lua_getfield(L, index, "scrub");
  return lua_isnil(L, -1) ? NULL : *(struct tp_scrub **)luaL_checkudata(L, -1, TP_SCRUB_TYPE);
}

/* flow:pump(from, to, options, timeout) */
static int l_pump(lua_State *L) {
  static const char *const framings[] = {"length", "chunked", "none", "eof", NULL};
  check_flow(L);
  struct tp_conn *from = check_reading(L, 2), *to = check_writing(L, 3);
  luaL_checktype(L, 4, LUA_TTABLE);
  uint64_t limit = check_limit(L, 5);
  struct tp_pump_options options = {0};
  lua_getfield(L, 4, "framing");
  options.framing = (enum tp_framing)luaL_checkoption(L, -1, NULL, framings);
  lua_getfield(L, 4, "tail");
  lua_Integer tail = luaL_optinteger(L, -1, 0);
  luaL_argcheck(L, tail >= 0 && tail <= 1 << 20, 4, "tail is 0 to 1 MiB");
  options.tail = (size_t)tail;
  options.scrub = opt_scrub(L, 4);
  return begun(L, tp_flow_pump(from, to, &options, limit));
}

/* flow:relay(a, b, idle_timeout, options) */
static int l_relay(lua_State *L) {
  check_flow(L);
  struct tp_conn *a = check_reading(L, 2), *b = check_reading(L, 3);
  check_writing(L, 2);
  check_writing(L, 3);
  luaL_argcheck(L, a != b, 3, "a connection can't be relayed to itself");
  uint64_t limit = check_limit(L, 4);
  return begun(L, tp_flow_relay(a, b, opt_scrub(L, 5), limit));
}

/* conn:peek(timeout) */
static int l_peek(lua_State *L) {
  struct tp_conn *conn = check_reading(L, 1);
  return begun(L, tp_conn_peek(conn, check_limit(L, 2)));
}

/* conn:accept_tls(identity, timeout) */
static int l_accept_tls(lua_State *L) {
  struct tp_conn *conn = check_reading(L, 1);
  check_writing(L, 1);
  struct tp_tls_identity *identity = tp_check_identity(L, 2);
  return begun(L, tp_conn_accept_tls(conn, identity, check_limit(L, 3)));
}

/* conn:connect_tls(trust, host, timeout) */
static int l_connect_tls(lua_State *L) {
  struct tp_conn *conn = check_reading(L, 1);
  check_writing(L, 1);
  struct tp_tls_trust *trust = tp_check_trust(L, 2);
  const char *host = luaL_checkstring(L, 3);
  return begun(L, tp_conn_connect_tls(conn, trust, host, check_limit(L, 4)));
}

/* conn:read_head(side, timeout, request_method) */
static int l_read_head(lua_State *L) {
  static const char *const sides[] = {"request", "response", NULL};
  struct tp_conn *conn = check_reading(L, 1);
  enum tp_http_side side = luaL_checkoption(L, 2, NULL, sides) ? TP_HTTP_RESPONSE : TP_HTTP_REQUEST;
  enum tp_http_side before;
  const char *method = luaL_optstring(L, 4, NULL);
  luaL_argcheck(L, !tp_conn_side(conn, &before) || before == side, 2,
                "the connection was read from the other side");
  return begun(L, tp_conn_read_head(conn, side, method, check_limit(L, 3)));
}

/* conn:read_body(limit, timeout) */
static int l_read_body(lua_State *L) {
  struct tp_conn *conn = check_reading(L, 1);
  lua_Number most = luaL_checknumber(L, 2);
  luaL_argcheck(L, most >= 0 && most <= 1 << 30, 2, "a limit of 0 to 1 GiB");
  return begun(L, tp_conn_read_body(conn, (uint64_t)most, check_limit(L, 3)));
}

/* conn:write(bytes, timeout) */
static int l_write(lua_State *L) {
  struct tp_conn *conn = check_writing(L, 1);
  size_t length;
  const char *bytes = luaL_checklstring(L, 2, &length);
  return begun(L, tp_conn_write(conn, bytes, length, check_limit(L, 3)));
}

/* conn:read(timeout, most) */
static int l_read(lua_State *L) {
  struct tp_conn *conn = check_reading(L, 1);
  lua_Integer most = luaL_optinteger(L, 3, 64 << 10);
  luaL_argcheck(L, most > 0 && most <= 1 << 30, 3, "at most 1 byte to 1 GiB");
  return begun(L, tp_conn_read(conn, (size_t)most, check_limit(L, 2)));
}

/* conn:watch_close(timeout) */
static int l_watch_close(lua_State *L) {
  struct tp_conn *conn = check_reading(L, 1);
  return begun(L, tp_conn_watch(conn, check_limit(L, 2)));
}

/* conn:alert(number) -> true | nil, message, code */
static int l_alert(lua_State *L) {
  struct tp_conn *conn = check_writing(L, 1);
  lua_Integer number = luaL_checkinteger(L, 2);
  luaL_argcheck(L, number >= 0 && number < 256, 2, "an alert is 0 to 255");
  struct tp_error err;
  if (tp_conn_alert(conn, (unsigned)number, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* conn:close(); closing twice is harmless. */
static int l_close(lua_State *L) {
  struct tp_conn **conn = luaL_checkudata(L, 1, CONN_TYPE);
  if (*conn)
    tp_conn_close(*conn);
  return 0;
}

/* conn:reset(); on a closed connection it is harmless, on one that is closing it cuts that short. */
static int l_reset(lua_State *L) {
  struct tp_conn **conn = luaL_checkudata(L, 1, CONN_TYPE);
  if (*conn)
    tp_conn_reset(*conn);
  return 0;
}

static int l_release(lua_State *L) {
  struct tp_conn **conn = luaL_checkudata(L, 1, CONN_TYPE);
  if (*conn)
    tp_conn_release(*conn);
  *conn = NULL;
  return 0;
}

/* conn:stats() -> { read, written } */
static int l_stats(lua_State *L) {
  uint64_t read, written;
  tp_conn_stats(check_conn(L, 1), &read, &written);
  lua_createtable(L, 0, 2);
  lua_pushnumber(L, (lua_Number)read);
  lua_setfield(L, -2, "read");
  lua_pushnumber(L, (lua_Number)written);
  lua_setfield(L, -2, "written");
  return 1;
}

/* conn:fd() -> integer | nothing when closed */
static int l_fd(lua_State *L) {
  int fd = tp_conn_fd(check_conn(L, 1));
  if (fd < 0)
    return 0;
  lua_pushinteger(L, fd);
  return 1;
}

/* conn:is_open() -> boolean */
static int l_is_open(lua_State *L) {
  lua_pushboolean(L, tp_conn_is_open(check_conn(L, 1)));
  return 1;
}

/* conn:tls() -> { alpn, suite } | nothing without TLS */
static int l_tls(lua_State *L) {
  const struct tp_tls *tls = tp_conn_tls(check_conn(L, 1));
  if (!tls)
    return 0;
  lua_createtable(L, 0, 2);
  lua_pushstring(L, tp_tls_alpn(tls));
  lua_setfield(L, -2, "alpn");
  lua_pushstring(L, tp_tls_suite(tls));
  lua_setfield(L, -2, "suite");
  return 1;
}

int tp_open_flow(lua_State *L) {
  static const luaL_Reg flow[] = {{"number", l_number}, {"run", l_run},         {"cancel", l_cancel},
                                  {"adopt", l_adopt},   {"connect", l_connect}, {"pump", l_pump},
                                  {"relay", l_relay},   {"close", l_close_flow}, {NULL, NULL}};
  static const luaL_Reg conn[] = {{"peek", l_peek},
                                  {"accept_tls", l_accept_tls},
                                  {"connect_tls", l_connect_tls},
                                  {"read_head", l_read_head},
                                  {"read_body", l_read_body},
                                  {"read", l_read},
                                  {"write", l_write},
                                  {"watch_close", l_watch_close},
                                  {"alert", l_alert},
                                  {"close", l_close},
                                  {"reset", l_reset},
                                  {"stats", l_stats},
                                  {"fd", l_fd},
                                  {"is_open", l_is_open},
                                  {"tls", l_tls},
                                  {NULL, NULL}};
  static const luaL_Reg functions[] = {{"new", l_new}, {NULL, NULL}};
  tp_define_class(L, FLOW_TYPE, l_close_flow, flow);
  tp_define_class(L, CONN_TYPE, l_release, conn);
  return tp_push_functions(L, functions);
}

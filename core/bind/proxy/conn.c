/* A connection of proxy.flow, and what is done on one. Closed when it is collected; what the flow
 * still has to do then, to send what is queued, it does without. */
#include "flow.h"

#define CONN_TYPE "tidepool.Conn"

static struct tp_conn *check_conn(lua_State *L, int index) {
  struct tp_conn **conn = luaL_checkudata(L, index, CONN_TYPE);
  luaL_argcheck(L, *conn, index, "connection is closed");
  return *conn;
}

struct tp_conn *tp_check_reading(lua_State *L, int index) {
  struct tp_conn *conn = check_conn(L, index);
  luaL_argcheck(L, !tp_conn_is_reading(conn), index, "connection is being read already");
  return conn;
}

struct tp_conn *tp_check_writing(lua_State *L, int index) {
  struct tp_conn *conn = check_conn(L, index);
  luaL_argcheck(L, !tp_conn_is_writing(conn), index, "connection is being written already");
  return conn;
}

uint64_t tp_check_limit(lua_State *L, int index) {
  if (lua_isnoneornil(L, index))
    return 0;
  lua_Number seconds = luaL_checknumber(L, index);
  luaL_argcheck(L, seconds >= 0 && seconds < 1e9, index, "a time limit in seconds");
  return seconds * 1000 < 1 ? 1 : (uint64_t)(seconds * 1000);
}

struct tp_conn **tp_new_conn(lua_State *L) {
  struct tp_conn **conn = lua_newuserdata(L, sizeof *conn);
  *conn = NULL;
  luaL_getmetatable(L, CONN_TYPE);
  lua_setmetatable(L, -2);
  return conn;
}

/* conn:peek(timeout) */
static int l_peek(lua_State *L) {
  struct tp_conn *conn = tp_check_reading(L, 1);
  return tp_push_begun(L, tp_conn_peek(conn, tp_check_limit(L, 2)));
}

/* conn:accept_tls(identity, timeout) */
static int l_accept_tls(lua_State *L) {
  struct tp_conn *conn = tp_check_reading(L, 1);
  tp_check_writing(L, 1);
  struct tp_tls_identity *identity = tp_check_identity(L, 2);
  return tp_push_begun(L, tp_conn_accept_tls(conn, identity, tp_check_limit(L, 3)));
}

/* conn:connect_tls(trust, host, timeout) */
static int l_connect_tls(lua_State *L) {
  struct tp_conn *conn = tp_check_reading(L, 1);
  tp_check_writing(L, 1);
  struct tp_tls_trust *trust = tp_check_trust(L, 2);
  const char *host = luaL_checkstring(L, 3);
  return tp_push_begun(L, tp_conn_connect_tls(conn, trust, host, tp_check_limit(L, 4)));
}

/* conn:read_head(side, timeout, request_method) */
static int l_read_head(lua_State *L) {
  static const char *const sides[] = {"request", "response", NULL};
  struct tp_conn *conn = tp_check_reading(L, 1);
  enum tp_http_side side = luaL_checkoption(L, 2, NULL, sides) ? TP_HTTP_RESPONSE : TP_HTTP_REQUEST;
  enum tp_http_side before;
  const char *method = luaL_optstring(L, 4, NULL);
  luaL_argcheck(L, !tp_conn_side(conn, &before) || before == side, 2,
                "the connection was read from the other side");
  return tp_push_begun(L, tp_conn_read_head(conn, side, method, tp_check_limit(L, 3)));
}

/* conn:read_body(limit, timeout) */
static int l_read_body(lua_State *L) {
  struct tp_conn *conn = tp_check_reading(L, 1);
  lua_Number most = luaL_checknumber(L, 2);
  luaL_argcheck(L, most >= 0 && most <= 1 << 30, 2, "a limit of 0 to 1 GiB");
  return tp_push_begun(L, tp_conn_read_body(conn, (uint64_t)most, tp_check_limit(L, 3)));
}

/* conn:write(bytes, timeout, more) */
static int l_write(lua_State *L) {
  struct tp_conn *conn = tp_check_writing(L, 1);
  size_t length;
  const char *bytes = luaL_checklstring(L, 2, &length);
  return tp_push_begun(L, tp_conn_write(conn, bytes, length, lua_toboolean(L, 4), tp_check_limit(L, 3)));
}

/* conn:read(timeout, most) */
static int l_read(lua_State *L) {
  struct tp_conn *conn = tp_check_reading(L, 1);
  lua_Integer most = luaL_optinteger(L, 3, 64 << 10);
  luaL_argcheck(L, most > 0 && most <= 1 << 30, 3, "at most 1 byte to 1 GiB");
  return tp_push_begun(L, tp_conn_read(conn, (size_t)most, tp_check_limit(L, 2)));
}

/* conn:watch_close(timeout) */
static int l_watch_close(lua_State *L) {
  struct tp_conn *conn = tp_check_reading(L, 1);
  return tp_push_begun(L, tp_conn_watch(conn, tp_check_limit(L, 2)));
}

/* conn:alert(number) -> true | nil, message, code */
static int l_alert(lua_State *L) {
  struct tp_conn *conn = tp_check_writing(L, 1);
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

/* conn:reset(); harmless on a closed connection; cuts the end of one that is closing short. */
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

void tp_define_conn(lua_State *L) {
  static const luaL_Reg methods[] = {{"peek", l_peek},
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
  tp_define_class(L, CONN_TYPE, l_release, methods);
}

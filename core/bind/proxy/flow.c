/* proxy.flow: connections and what is done on them. Lua waits on flow:number().
 *
 * An operation returns 0 and its results when it ended at once, else a token, and flow:run() tells
 * what it ended with. */
#include "flow.h"

#define FLOW_TYPE "tidepool.Flow"

enum { BATCH = 256 };

static struct tp_flow *check_flow(lua_State *L) {
  struct tp_flow **flow = luaL_checkudata(L, 1, FLOW_TYPE);
  luaL_argcheck(L, *flow, 1, "flow is closed");
  return *flow;
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
  TP_OP_SCOPE struct tp_op *ended = op;
  int table = lua_gettop(L) + 1;
  lua_createtable(L, 4, 1);
  int count = tp_push_results(L, ended);
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

/* flow:adopt(fd) -> conn | nil, message, code; takes the connected socket over */
static int l_adopt(lua_State *L) {
  struct tp_flow *flow = check_flow(L);
  int fd = tp_check_fd(L, 2);
  struct tp_conn **conn = tp_new_conn(L);
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
  uint64_t limit = tp_check_limit(L, 4);
  struct tp_conn **conn = tp_new_conn(L);
  struct tp_op *op;
  struct tp_error err;
  *conn = tp_flow_connect(flow, address, (unsigned)port, limit, &op, &err);
  if (!*conn)
    return tp_lua_fail(L, &err);
  return 1 + tp_push_begun(L, op);
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
  struct tp_conn *from = tp_check_reading(L, 2), *to = tp_check_writing(L, 3);
  luaL_checktype(L, 4, LUA_TTABLE);
  uint64_t limit = tp_check_limit(L, 5);
  struct tp_pump_options options = {0};
  lua_getfield(L, 4, "framing");
  options.framing = (enum tp_framing)luaL_checkoption(L, -1, NULL, framings);
  lua_getfield(L, 4, "tail");
  lua_Integer tail = luaL_optinteger(L, -1, 0);
  luaL_argcheck(L, tail >= 0 && tail <= 1 << 20, 4, "tail is 0 to 1 MiB");
  options.tail = (size_t)tail;
  options.scrub = opt_scrub(L, 4);
  return tp_push_begun(L, tp_flow_pump(from, to, &options, limit));
}

/* flow:relay(a, b, idle_timeout, options) */
static int l_relay(lua_State *L) {
  check_flow(L);
  struct tp_conn *a = tp_check_reading(L, 2), *b = tp_check_reading(L, 3);
  tp_check_writing(L, 2);
  tp_check_writing(L, 3);
  luaL_argcheck(L, a != b, 3, "a connection can't be relayed to itself");
  uint64_t limit = tp_check_limit(L, 4);
  return tp_push_begun(L, tp_flow_relay(a, b, opt_scrub(L, 5), limit));
}

int tp_open_flow(lua_State *L) {
  static const luaL_Reg flow[] = {
      {"number", l_number}, {"run", l_run},   {"cancel", l_cancel}, {"adopt", l_adopt},
      {"connect", l_connect}, {"pump", l_pump}, {"relay", l_relay}, {"close", l_close_flow},
      {NULL, NULL}};
  static const luaL_Reg functions[] = {{"new", l_new}, {NULL, NULL}};
  tp_define_class(L, FLOW_TYPE, l_close_flow, flow);
  tp_define_conn(L);
  return tp_push_functions(L, functions);
}

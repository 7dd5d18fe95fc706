/* What the flow's operations end with, as Lua values. A failure is nil, message, code. */
#include "flow.h"
#include "hello.h"
#include "http.h"

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

int tp_push_results(lua_State *L, const struct tp_op *op) {
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

int tp_push_begun(lua_State *L, struct tp_op *op) {
  if (!op)
    return luaL_error(L, "no memory for an operation");
  if (!op->done) {
    lua_pushnumber(L, (lua_Number)op->token);
    return 1;
  }
  TP_OP_SCOPE struct tp_op *ended = op;
  lua_pushinteger(L, 0);
  return 1 + tp_push_results(L, ended);
}

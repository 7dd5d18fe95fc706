/* proxy.http: a reader of HTTP/1 messages over bytes alone, as the flow uses it over connections. */
#include "http.h"

#define READER_TYPE "tidepool.HttpReader"

static struct tp_http_reader *check_reader(lua_State *L) {
  return *(struct tp_http_reader **)luaL_checkudata(L, 1, READER_TYPE);
}

/* proxy.http.reader("request"|"response") -> reader */
static int l_reader(lua_State *L) {
  static const char *const sides[] = {"request", "response", NULL};
  int side = luaL_checkoption(L, 1, NULL, sides);
  struct tp_http_reader **owner = lua_newuserdata(L, sizeof *owner);
  *owner = NULL;
  luaL_getmetatable(L, READER_TYPE);
  lua_setmetatable(L, -2);
  *owner = tp_http_reader_new(side == 0 ? TP_HTTP_REQUEST : TP_HTTP_RESPONSE);
  return *owner ? 1 : luaL_error(L, "no memory for a reader");
}

void tp_push_http_headers(lua_State *L, const struct tp_http_header *headers, unsigned count) {
  lua_createtable(L, (int)count, 0);
  for (unsigned i = 0; i < count; i++) {
    lua_createtable(L, 2, 0);
    lua_pushlstring(L, headers[i].name, headers[i].name_length);
    lua_rawseti(L, -2, 1);
    lua_pushlstring(L, headers[i].value, headers[i].value_length);
    lua_rawseti(L, -2, 2);
    lua_rawseti(L, -2, (int)i + 1);
  }
}

static void set_string(lua_State *L, const char *name, const char *value) {
  if (!value)
    return;
  lua_pushstring(L, value);
  lua_setfield(L, -2, name);
}

static void set_number(lua_State *L, const char *name, double value) {
  lua_pushnumber(L, value);
  lua_setfield(L, -2, name);
}

static void set_flag(lua_State *L, const char *name, bool value) {
  lua_pushboolean(L, value);
  lua_setfield(L, -2, name);
}

void tp_push_http_head(lua_State *L, const struct tp_http_head *head) {
  static const char *const bodies[] = {[TP_HTTP_NONE] = "none",
                                       [TP_HTTP_LENGTH] = "length",
                                       [TP_HTTP_CHUNKED] = "chunked",
                                       [TP_HTTP_EOF] = "eof",
                                       [TP_HTTP_UPGRADE] = "upgrade"};
  lua_createtable(L, 0, 10);
  set_string(L, "method", head->method);
  set_string(L, "target", head->target);
  set_string(L, "reason", head->reason);
  if (head->status)
    set_number(L, "status", head->status);
  set_number(L, "minor", head->minor);
  set_string(L, "body", bodies[head->body]);
  if (head->body == TP_HTTP_LENGTH)
    set_number(L, "length", (double)head->length);
  set_flag(L, "keep_alive", head->keep_alive);
  set_flag(L, "upgrade", head->upgrade);
  set_flag(L, "expect_continue", head->expect_continue);
  tp_push_http_headers(L, head->headers, head->header_count);
  lua_setfield(L, -2, "headers");
}

/* reader:expect(method): the request that the next final response answers */
static int l_expect(lua_State *L) {
  tp_http_expect(check_reader(L), luaL_checkstring(L, 2));
  return 0;
}

/* reader:head(bytes) -> consumed, head or nil | nil, message, code */
static int l_head(lua_State *L) {
  struct tp_http_reader *reader = check_reader(L);
  size_t length;
  const char *bytes = luaL_checklstring(L, 2, &length);
  const struct tp_http_head *head;
  struct tp_error err;
  ssize_t used = tp_http_head(reader, bytes, length, &head, &err);
  if (used < 0)
    return tp_lua_fail(L, &err);
  lua_pushinteger(L, (lua_Integer)used);
  if (!head)
    return 1;
  tp_push_http_head(L, head);
  return 2;
}

/* reader:body(bytes) -> consumed, span ("" for none), complete | nil, message, code */
static int l_body(lua_State *L) {
  struct tp_http_reader *reader = check_reader(L);
  size_t length, body_length;
  const char *bytes = luaL_checklstring(L, 2, &length), *body;
  bool complete;
  struct tp_error err;
  ssize_t used = tp_http_body(reader, bytes, length, &body, &body_length, &complete, &err);
  if (used < 0)
    return tp_lua_fail(L, &err);
  lua_pushinteger(L, (lua_Integer)used);
  lua_pushlstring(L, body ? body : "", body_length);
  lua_pushboolean(L, complete);
  return 3;
}

/* reader:trailers() -> { { name, value }, ... } */
static int l_trailers(lua_State *L) {
  unsigned count;
  const struct tp_http_header *list = tp_http_trailers(check_reader(L), &count);
  tp_push_http_headers(L, list, count);
  return 1;
}

/* reader:finish() -> true | nil, message, "EBADMSG": the connection ended */
static int l_finish(lua_State *L) {
  struct tp_error err;
  if (tp_http_end(check_reader(L), &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* reader:forget(): gives back what the last head and trailers took */
static int l_forget(lua_State *L) {
  tp_http_forget(check_reader(L));
  return 0;
}

static int l_gc(lua_State *L) {
  struct tp_http_reader **owner = lua_touserdata(L, 1);
  tp_http_reader_free(*owner);
  *owner = NULL;
  return 0;
}

int tp_open_http(lua_State *L) {
  static const luaL_Reg methods[] = {{"expect", l_expect}, {"head", l_head},
                                     {"body", l_body},     {"trailers", l_trailers},
                                     {"finish", l_finish}, {"forget", l_forget},
                                     {NULL, NULL}};
  static const luaL_Reg functions[] = {{"reader", l_reader}, {NULL, NULL}};
  tp_define_class(L, READER_TYPE, l_gc, methods);
  return tp_push_functions(L, functions);
}

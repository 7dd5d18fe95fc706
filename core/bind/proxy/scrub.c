/* proxy.scrub: masks secrets in texts. Streams are scrubbed by the pump, which takes the same object. */
#include <stdlib.h>
#include <string.h>

#include "../../proxy/scrub.h"
#include "../../scope.h"
#include "proxy.h"

static struct tp_scrub **check_scrub(lua_State *L) {
  return luaL_checkudata(L, 1, TP_SCRUB_TYPE);
}

/* One { bytes, id } of the list at index 1. */
static void read_pattern(lua_State *L, int at, struct tp_scrub_pattern *pattern) {
  lua_rawgeti(L, 1, at);
  luaL_checktype(L, -1, LUA_TTABLE);
  lua_rawgeti(L, -1, 1);
  lua_rawgeti(L, -2, 2);
  if (lua_type(L, -2) != LUA_TSTRING || lua_type(L, -1) != LUA_TNUMBER)
    luaL_error(L, "secret %d must be { bytes, id }", at);
  pattern->bytes = lua_tolstring(L, -2, &pattern->length); /* the list keeps it */
  lua_Integer id = lua_tointeger(L, -1);
  pattern->id = id > 0 && id <= 0x7fffffff ? (unsigned)id : 0;
  lua_pop(L, 3);
}

/* proxy.scrub.new({ { bytes, id }, ... }, "mask"|"detect") -> scrub | nil, message, code */
static int l_new(lua_State *L) {
  static const char *const names[] = {"mask", "detect", NULL};
  luaL_checktype(L, 1, LUA_TTABLE);
  int mode = luaL_checkoption(L, 2, "mask", names);
  size_t count = lua_objlen(L, 1);
  luaL_argcheck(L, count <= TP_SCRUB_SECRETS, 1, "too many secrets");
  struct tp_scrub **scrub = lua_newuserdata(L, sizeof *scrub);
  *scrub = NULL;
  luaL_getmetatable(L, TP_SCRUB_TYPE);
  lua_setmetatable(L, -2);

  struct tp_scrub_pattern patterns[TP_SCRUB_SECRETS];
  for (size_t i = 0; i < count; i++)
    read_pattern(L, (int)i + 1, &patterns[i]);
  struct tp_error err;
  *scrub = tp_scrub_new(patterns, (unsigned)count, mode == 0 ? TP_SCRUB_MASK : TP_SCRUB_DETECT, &err);
  return *scrub ? 1 : tp_lua_fail(L, &err);
}

/* scrub:text(bytes) -> bytes, id or nil; a whole text, such as a header or a log line */
static int l_text(lua_State *L) {
  struct tp_scrub **scrub = check_scrub(L);
  size_t length, held;
  const char *bytes = luaL_checklstring(L, 2, &length);
  TP_FREE char *copy = malloc(length + 1);
  if (!copy)
    return luaL_error(L, "not enough memory");
  memcpy(copy, bytes, length);
  struct tp_scrub_stream stream = {0};
  unsigned found;
  tp_scrub_run(*scrub, &stream, copy, length, true, &held, &found);
  if (!found) {
    lua_pushvalue(L, 2);
    return 1;
  }
  lua_pushlstring(L, copy, length);
  lua_pushinteger(L, (lua_Integer)found);
  return 2;
}

/* scrub:pieces({ bytes, ... }) -> { bytes, ... }, id or nil: what a pump would send on of a stream that
 * comes in these pieces; for tests of the cut */
static int l_pieces(lua_State *L) {
  struct tp_scrub **scrub = check_scrub(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  size_t count = lua_objlen(L, 2), held = 0;
  TP_FREE char *buffer = NULL;
  struct tp_scrub_stream stream = {0};
  unsigned first = 0;
  lua_createtable(L, (int)count, 0);
  for (size_t i = 1; i <= count; i++) {
    size_t size;
    unsigned found;
    lua_rawgeti(L, 2, (int)i);
    const char *piece = luaL_checklstring(L, -1, &size);
    char *grown = realloc(buffer, held + size + 1);
    if (!grown)
      return luaL_error(L, "not enough memory");
    buffer = grown;
    memcpy(buffer + held, piece, size);
    size += held;
    tp_scrub_run(*scrub, &stream, buffer, size, i == count, &held, &found);
    if (!first)
      first = found;
    lua_pushlstring(L, buffer, size - held);
    lua_rawseti(L, -3, (int)i);
    lua_pop(L, 1);
    memmove(buffer, buffer + size - held, held);
  }
  if (!first)
    return 1;
  lua_pushinteger(L, (lua_Integer)first);
  return 2;
}

/* scrub:holds() -> the most bytes that a stream's end is ever kept back for */
static int l_holds(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)tp_scrub_holds(*check_scrub(L)));
  return 1;
}

static int l_gc(lua_State *L) {
  struct tp_scrub **scrub = check_scrub(L);
  tp_scrub_release(*scrub);
  *scrub = NULL;
  return 0;
}

int tp_open_scrub(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"text", l_text}, {"pieces", l_pieces}, {"holds", l_holds}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"new", l_new}, {NULL, NULL}};
  tp_define_class(L, TP_SCRUB_TYPE, l_gc, methods);
  return tp_push_functions(L, functions);
}

/* proxy.hello: what a TLS client says first. */
#include "hello.h"

#define HELLO_TYPE "tidepool.Hello"

static struct tp_hello *new_hello(lua_State *L) {
  struct tp_hello *hello = lua_newuserdata(L, sizeof *hello);
  *hello = (struct tp_hello){0};
  luaL_getmetatable(L, HELLO_TYPE);
  lua_setmetatable(L, -2);
  return hello;
}

static void push_protocols(lua_State *L, const struct tp_hello *hello) {
  lua_newtable(L);
  int count = 0;
  for (size_t at = 0; at < hello->alpn_length; at += 1u + hello->alpn[at]) {
    lua_pushlstring(L, (const char *)hello->alpn + at + 1, hello->alpn[at]);
    lua_rawseti(L, -2, ++count);
  }
}

/* Without the extension a client means its hello's own version, and older ones. GREASE values, which
 * mean nothing (RFC 8701), are left out. */
static void push_versions(lua_State *L, const struct tp_hello *hello) {
  lua_newtable(L);
  int count = 0;
  for (size_t at = 0; at + 1 < hello->versions_length; at += 2) {
    unsigned version = (unsigned)hello->versions[at] << 8 | hello->versions[at + 1];
    if ((version & 0x0f0f) == 0x0a0a)
      continue;
    lua_pushinteger(L, (lua_Integer)version);
    lua_rawseti(L, -2, ++count);
  }
  if (hello->versions_length == 0) {
    lua_pushinteger(L, hello->version);
    lua_rawseti(L, -2, 1);
  }
}

void tp_push_hello(lua_State *L, const struct tp_hello *hello) {
  lua_createtable(L, 0, 6);
  if (hello->sni[0]) {
    lua_pushstring(L, hello->sni);
    lua_setfield(L, -2, "sni");
  }
  push_protocols(L, hello);
  lua_setfield(L, -2, "alpn");
  push_versions(L, hello);
  lua_setfield(L, -2, "versions");
  lua_pushboolean(L, hello->has_tls12);
  lua_setfield(L, -2, "has_tls12");
  lua_pushboolean(L, hello->ech);
  lua_setfield(L, -2, "ech");
  lua_pushinteger(L, (lua_Integer)hello->session_id_length);
  lua_setfield(L, -2, "session_id_length");
}

/* proxy.hello.parse(bytes) -> { sni, alpn, versions, has_tls12, ech, session_id_length }
 * | nil, "more" | nil, message, code */
static int l_parse(lua_State *L) {
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  struct tp_hello *hello = new_hello(L);
  struct tp_error err;
  int got = tp_hello_parse((const uint8_t *)bytes, length, hello, &err);
  if (got < 0)
    return tp_lua_fail(L, &err);
  if (got == 0) {
    lua_pushnil(L);
    lua_pushliteral(L, "more");
    return 2;
  }
  tp_push_hello(L, hello);
  tp_hello_free(hello);
  return 1;
}

static int l_gc(lua_State *L) {
  tp_hello_free(lua_touserdata(L, 1));
  return 0;
}

int tp_open_hello(lua_State *L) {
  static const luaL_Reg functions[] = {{"parse", l_parse}, {NULL, NULL}};
  tp_define_class(L, HELLO_TYPE, l_gc, NULL);
  return tp_push_functions(L, functions);
}

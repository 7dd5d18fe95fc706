/* Fields of a Lua table, checked: what the codecs' bindings share. A wrong type raises. */
#ifndef TP_BIND_FIELDS_H
#define TP_BIND_FIELDS_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../wire.h"

static inline bool tp_field_flag(lua_State *L, int table, const char *name) {
  lua_getfield(L, table, name);
  bool set = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return set;
}

static inline double tp_field_number(lua_State *L, int table, const char *name, double otherwise,
                                     double most) {
  lua_getfield(L, table, name);
  double value = otherwise;
  if (!lua_isnil(L, -1)) {
    if (lua_type(L, -1) != LUA_TNUMBER)
      luaL_error(L, "field %s: number expected, got %s", name, luaL_typename(L, -1));
    value = lua_tonumber(L, -1);
    if (!(value >= 0 && value <= most))
      luaL_error(L, "field %s: number out of range", name);
  }
  lua_pop(L, 1);
  return value;
}

static inline uint32_t tp_field_u32(lua_State *L, int table, const char *name,
                                    uint32_t otherwise) {
  return (uint32_t)tp_field_number(L, table, name, otherwise, UINT32_MAX);
}

/* The string stays on the stack, so that its bytes stay. */
static inline struct tp_bytes tp_field_text(lua_State *L, int table, const char *name) {
  size_t length = 0;
  lua_getfield(L, table, name);
  if (lua_isnil(L, -1))
    return (struct tp_bytes){(const uint8_t *)"", 0};
  if (lua_type(L, -1) != LUA_TSTRING)
    luaL_error(L, "field %s: string expected, got %s", name, luaL_typename(L, -1));
  const char *bytes = lua_tolstring(L, -1, &length);
  if (memchr(bytes, 0, length))
    luaL_error(L, "field %s: has a zero byte", name);
  return (struct tp_bytes){(const uint8_t *)bytes, (uint32_t)length};
}

static inline void tp_set_number(lua_State *L, const char *name, double value) {
  lua_pushnumber(L, value);
  lua_setfield(L, -2, name);
}

static inline void tp_set_text(lua_State *L, const char *name, struct tp_bytes text) {
  lua_pushlstring(L, (const char *)text.data, text.length);
  lua_setfield(L, -2, name);
}

static inline void tp_set_string(lua_State *L, const char *name, const char *text) {
  lua_pushstring(L, text);
  lua_setfield(L, -2, name);
}

static inline void tp_set_flag(lua_State *L, const char *name, bool value) {
  lua_pushboolean(L, value);
  lua_setfield(L, -2, name);
}

#endif

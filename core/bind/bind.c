/* What the binding files share: see bind.h. */
#include "bind.h"

#include <errno.h>

int tp_lua_fail(lua_State *L, const struct tp_error *err) {
  lua_pushnil(L);
  lua_pushstring(L, err->message);
  lua_pushstring(L, tp_error_name(err->code));
  return 3;
}

int tp_lua_fail_errno(lua_State *L, const char *what) {
  struct tp_error err;
  tp_fail(&err, errno, "%s", what);
  return tp_lua_fail(L, &err);
}

void tp_define_class(lua_State *L, const char *name, lua_CFunction gc, const luaL_Reg *methods) {
  luaL_newmetatable(L, name);
  lua_pushcfunction(L, gc);
  lua_setfield(L, -2, "__gc");
  if (methods) {
    lua_newtable(L);
    luaL_register(L, NULL, methods);
    lua_setfield(L, -2, "__index");
  }
  lua_pop(L, 1);
}

int tp_push_functions(lua_State *L, const luaL_Reg *functions) {
  lua_newtable(L);
  luaL_register(L, NULL, functions);
  return 1;
}

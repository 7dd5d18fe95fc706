/* proxy.confine: the egress process gives up what it does not need. */
#include "../../proxy/confine.h"
#include "proxy.h"

static lua_Number field(lua_State *L, const char *name, lua_Number otherwise, lua_Number least) {
  lua_getfield(L, 1, name);
  lua_Number value = lua_isnil(L, -1) ? otherwise : luaL_checknumber(L, -1);
  lua_pop(L, 1);
  if (value != otherwise && !(value >= least && value < 9e15))
    luaL_error(L, "%s is out of range", name);
  return value;
}

/* proxy.confine.enter{ uid, gid, memory, files } -> true | nil, message, code */
static int l_enter(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_Number uid = field(L, "uid", -1, 1), gid = field(L, "gid", -1, 1);
  luaL_argcheck(L, uid > 0 && uid < 0xffffffff && gid > 0 && gid < 0xffffffff, 1, "uid and gid");
  struct tp_confinement confinement = {
      .uid = (uid_t)uid,
      .gid = (gid_t)gid,
      .memory = (size_t)field(L, "memory", 0, 1 << 20),
      .files = (size_t)field(L, "files", 0, 16),
  };
  struct tp_error err;
  if (tp_confine_self(&confinement, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

int tp_open_confine(lua_State *L) {
  static const luaL_Reg functions[] = {{"enter", l_enter}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

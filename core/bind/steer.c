/* core.steer: opening and shutting what the plan step `steer` has made. The server calls it, as
 * root: all of it needs bpf(2) or sockets of ours, none of it blocks. */
#include "../steer.h"
#include "bind.h"

static const char *const modes[] = {"bpf", "tproxy", NULL};

/* core.steer.probe() -> true | nil, message, code */
static int l_probe(lua_State *L) {
  struct tp_error err;
  if (tp_steer_probe(&err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

struct arguments {
  int map, sockets[TP_STEER_SOCKETS];
  enum tp_steer_mode mode;
};

/* (map or nil, { tcp4 =, tcp6 =, udp4 =, udp6 = }, mode or nil) */
static struct arguments check_arguments(lua_State *L) {
  static const char *const names[TP_STEER_SOCKETS] = {"tcp4", "tcp6", "udp4", "udp6"};
  struct arguments args = {.mode = (enum tp_steer_mode)luaL_checkoption(L, 3, "bpf", modes)};
  args.map = args.mode == TP_STEER_BPF ? tp_check_fd(L, 1) : -1;
  luaL_checktype(L, 2, LUA_TTABLE);
  for (int i = 0; i < TP_STEER_SOCKETS; i++) {
    lua_getfield(L, 2, names[i]);
    args.sockets[i] = lua_isnil(L, -1) ? -1 : tp_check_fd(L, lua_gettop(L));
  }
  return args;
}

/* core.steer.open(map, sockets, mode) -> true | nil, message, code */
static int l_open(lua_State *L) {
  struct arguments args = check_arguments(L);
  struct tp_error err;
  if (tp_steer_open(args.mode, args.map, args.sockets, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* core.steer.shut(map, sockets, mode) -> true | nil, message, code */
static int l_shut(lua_State *L) {
  struct arguments args = check_arguments(L);
  struct tp_error err;
  if (tp_steer_shut(args.mode, args.map, args.sockets, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

int tp_open_steer(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"probe", l_probe}, {"open", l_open}, {"shut", l_shut}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

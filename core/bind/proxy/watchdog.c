/* proxy.watchdog: ends the process when one call lasts too long, and says afterwards whose it was. */
#include <errno.h>

#include "../../proxy/watchdog.h"
#include "proxy.h"

/* proxy.watchdog.start{ seconds, fd } -> true | nil, message, code */
static int l_start(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  lua_getfield(L, 1, "seconds");
  double seconds = luaL_optnumber(L, 2, 1);
  luaL_argcheck(L, seconds >= 0.01 && seconds <= 3600, 1, "seconds must be 0.01 to 3600");
  lua_getfield(L, 1, "fd");
  int fd = tp_check_fd(L, 3);
  struct tp_error err;
  if (tp_watchdog_start(fd, seconds, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* proxy.watchdog.arm(text): a run begins */
static int l_arm(lua_State *L) {
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  tp_watchdog_arm(text, length);
  return 0;
}

/* proxy.watchdog.disarm(): it has come back */
static int l_disarm(lua_State *L) {
  (void)L;
  tp_watchdog_disarm();
  return 0;
}

/* proxy.watchdog.read(fd) -> text of who took too long | nil, text of who ran when it ended otherwise */
static int l_read(lua_State *L) {
  int fd = tp_check_fd(L, 1);
  char text[TP_WATCHDOG_TEXT];
  size_t length;
  struct tp_error err;
  int state = tp_watchdog_read(fd, text, &length, &err);
  if (state < 0)
    return tp_lua_fail(L, &err);
  if (state == TP_WATCHDOG_IDLE)
    return 0;
  if (state == TP_WATCHDOG_RUNNING)
    lua_pushnil(L);
  lua_pushlstring(L, text, length);
  return state == TP_WATCHDOG_RUNNING ? 2 : 1;
}

/* proxy.watchdog.limit_memory(bytes) -> true | nil, message, code */
static int l_limit_memory(lua_State *L) {
  lua_Number bytes = luaL_checknumber(L, 1);
  luaL_argcheck(L, bytes >= 1 << 20 && bytes <= 1e15, 1, "at least a MiB");
  struct tp_error err;
  if (tp_watchdog_limit_memory((size_t)bytes, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

int tp_open_watchdog(lua_State *L) {
  static const luaL_Reg functions[] = {{"start", l_start}, {"arm", l_arm},
                                       {"disarm", l_disarm}, {"read", l_read},
                                       {"limit_memory", l_limit_memory}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

/* require "tidepool.core": one row a binding file. */
#include "bind.h"

static const struct {
  const char *name;
  lua_CFunction open;
} parts[] = {
    {"fd", tp_open_fd},
    {"poll", tp_open_poll},
    {"channel", tp_open_channel},
    {"init", tp_open_init},
    {"agent", tp_open_agent},
    {"stream", tp_open_stream},
    {"plan", tp_open_plan},
    {"namespace", tp_open_namespace},
    {"seccomp", tp_open_seccomp},
    {"cgroup", tp_open_cgroup},
    {"copy", tp_open_copy},
    {"steer", tp_open_steer},
};

int luaopen_tidepool_core(lua_State *L);

int luaopen_tidepool_core(lua_State *L) {
  lua_newtable(L);
  for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) {
    parts[i].open(L);
    lua_setfield(L, -2, parts[i].name);
  }
  return 1;
}

/* require "tidepool.proxy": what the egress process parses, encrypts and pumps with. One row a file. */
#include "proxy.h"

static const struct {
  const char *name;
  lua_CFunction open;
} parts[] = {
    {"http", tp_open_http},
    {"hello", tp_open_hello},
    {"dns", tp_open_dns},
    {"scrub", tp_open_scrub},
    {"resolver", tp_open_resolver},
    {"digest", tp_open_digest},
    {"watchdog", tp_open_watchdog},
    {"confine", tp_open_confine},
    {"tls", tp_open_tls},
    {"ca", tp_open_ca},
    {"flow", tp_open_flow},
    {"socket", tp_open_socket},
    {NULL, NULL},
};

int luaopen_tidepool_proxy(lua_State *L);

int luaopen_tidepool_proxy(lua_State *L) {
  /* Descriptors are objects of the core module, which must be there first. */
  lua_getglobal(L, "require");
  lua_pushliteral(L, "tidepool.core");
  lua_call(L, 1, 0);
  lua_newtable(L);
  for (unsigned i = 0; parts[i].name; i++) {
    parts[i].open(L);
    lua_setfield(L, -2, parts[i].name);
  }
  return 1;
}

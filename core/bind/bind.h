/* What the binding files share. Only files in this folder know Lua.
 *
 * A binding translates and nothing else. The Lua owner of a resource is made before the resource,
 * so that an error on the way leaks nothing; failure is the triple nil, message, code. */
#ifndef TP_BIND_H
#define TP_BIND_H

#include <lauxlib.h>
#include <lua.h>

#include "../error.h"

/* Push a descriptor object that owns -1; whatever the caller puts there is closed by __gc. */
int *tp_new_fd(lua_State *L);

/* The number behind argument `index`: a descriptor object or a plain integer. Raises when closed. */
int tp_check_fd(lua_State *L, int index);

/* Collect a table of descriptors at `index` (or nil) into fds; returns the count, raises over max. */
unsigned tp_check_fds(lua_State *L, int index, int *fds, unsigned max);

/* Push nil, message, code and return 3. */
int tp_lua_fail(lua_State *L, const struct tp_error *err);
/* The same for a call that has just set errno. */
int tp_lua_fail_errno(lua_State *L, const char *what);

/* Make the metatable of userdata of this name. Without methods it is one that Lua never sees. */
void tp_define_class(lua_State *L, const char *name, lua_CFunction gc, const luaL_Reg *methods);
/* Push a new table of functions and return 1. */
int tp_push_functions(lua_State *L, const luaL_Reg *functions);

/* Each pushes its table of functions. One row a file in module.c. */
int tp_open_fd(lua_State *L);
int tp_open_poll(lua_State *L);
int tp_open_channel(lua_State *L);
int tp_open_init(lua_State *L);
int tp_open_agent(lua_State *L);
int tp_open_stream(lua_State *L);
int tp_open_plan(lua_State *L);
int tp_open_namespace(lua_State *L);
int tp_open_seccomp(lua_State *L);
int tp_open_cgroup(lua_State *L);
int tp_open_copy(lua_State *L);
int tp_open_steer(lua_State *L);

#endif

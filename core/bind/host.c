/* core.namespace, core.seccomp, core.cgroup: what the server does itself on the host,
 * because none of it blocks. The rest is plan steps, see core.plan. */
#include <stdlib.h>

#include "../cgroup.h"
#include "../namespace.h"
#include "../seccomp.h"
#include "bind.h"

/* core.namespace.unshare_mount() -> true | nil, message, code: the calling thread, and what it starts
 * from now on, gets a mount namespace that follows the host's; once a process, later calls do nothing. */
static int l_unshare_mount(lua_State *L) {
  struct tp_error err;
  if (tp_namespace_unshare_mounts(&err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* core.seccomp.filter() -> bytes | nil, message, code: struct sock_filter[] */
static int l_filter(lua_State *L) {
  struct tp_error err;
  void *filter;
  size_t length;
  if (tp_seccomp_filter(&filter, &length, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, filter, length);
  free(filter);
  return 1;
}

/* core.cgroup.leaf(directory, name, uid) -> fd | nil, message, code: a group for one process, new or
 * there already, whose cgroup.procs belongs to uid */
static int l_leaf(lua_State *L) {
  int parent = tp_check_fd(L, 1);
  const char *name = luaL_checkstring(L, 2);
  uid_t owner = (uid_t)luaL_checknumber(L, 3);
  int *fd = tp_new_fd(L);
  struct tp_error err;
  *fd = tp_cgroup_leaf(parent, name, owner, &err);
  return *fd < 0 ? tp_lua_fail(L, &err) : 1;
}

/* core.cgroup.kill(directory) -> true | nil, message, code: SIGKILL to all in the group and below */
static int l_kill(lua_State *L) {
  struct tp_error err;
  if (tp_cgroup_kill(tp_check_fd(L, 1), &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* core.cgroup.signal(directory, signal) -> true | nil, message, code */
static int l_signal(lua_State *L) {
  struct tp_error err;
  if (tp_cgroup_signal(tp_check_fd(L, 1), (int)luaL_checkinteger(L, 2), &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* core.cgroup.populated(directory) -> boolean | nil, message, code */
static int l_populated(lua_State *L) {
  struct tp_error err;
  int populated = tp_cgroup_populated(tp_check_fd(L, 1), &err);
  if (populated < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, populated);
  return 1;
}

int tp_open_namespace(lua_State *L) {
  static const luaL_Reg functions[] = {{"unshare_mount", l_unshare_mount}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

int tp_open_seccomp(lua_State *L) {
  static const luaL_Reg functions[] = {{"filter", l_filter}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

int tp_open_cgroup(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"leaf", l_leaf}, {"kill", l_kill}, {"signal", l_signal}, {"populated", l_populated}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

/* proxy.socket: connections and datagrams that were steered to the egress process. */
#include <string.h>

#include "../../proxy/socket.h"
#include "proxy.h"

enum { DATAGRAM_MOST = 4096 }; /* DNS over UDP; EDNS says 1232 in practice */

static void set_endpoint(lua_State *L, const struct tp_endpoint *endpoint, const char *address,
                         const char *port) {
  lua_pushstring(L, endpoint->address);
  lua_setfield(L, -2, address);
  lua_pushinteger(L, (lua_Integer)endpoint->port);
  lua_setfield(L, -2, port);
}

/* proxy.socket.accept(listener) -> fd, { address, port, peer_address, peer_port } |
 * nil, message, code */
static int l_accept(lua_State *L) {
  int listener = tp_check_fd(L, 1);
  int *fd = tp_new_fd(L);
  struct tp_endpoint local, peer;
  struct tp_error err;
  *fd = tp_socket_accept(listener, &local, &peer, &err);
  if (*fd < 0)
    return tp_lua_fail(L, &err);
  lua_createtable(L, 0, 4);
  set_endpoint(L, &local, "address", "port");
  set_endpoint(L, &peer, "peer_address", "peer_port");
  return 2;
}

/* proxy.socket.want_address(fd) -> true | nil, message, code */
static int l_want_address(lua_State *L) {
  struct tp_error err;
  if (tp_socket_want_address(tp_check_fd(L, 1), &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* proxy.socket.receive(fd) -> bytes, from | nil, message, code */
static int l_receive(lua_State *L) {
  char bytes[DATAGRAM_MOST];
  struct tp_datagram from;
  struct tp_error err;
  ssize_t got = tp_socket_receive(tp_check_fd(L, 1), bytes, sizeof bytes, &from, &err);
  if (got < 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, bytes, (size_t)got);
  lua_pushlstring(L, (const char *)&from, sizeof from);
  return 2;
}

/* proxy.socket.send(fd, bytes, from) -> true | nil, message, code */
static int l_send(lua_State *L) {
  size_t length, size;
  int fd = tp_check_fd(L, 1);
  const char *bytes = luaL_checklstring(L, 2, &length);
  const char *from = luaL_checklstring(L, 3, &size);
  struct tp_datagram to;
  struct tp_error err;
  luaL_argcheck(L, size == sizeof to, 3, "not what receive gave");
  memcpy(&to, from, sizeof to);
  luaL_argcheck(L, to.peer_size <= sizeof to.peer, 3, "not what receive gave");
  if (tp_socket_send(fd, bytes, length, &to, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

int tp_open_socket(lua_State *L) {
  static const luaL_Reg functions[] = {{"accept", l_accept},
                                       {"want_address", l_want_address},
                                       {"receive", l_receive},
                                       {"send", l_send},
                                       {NULL, NULL}};
  return tp_push_functions(L, functions);
}

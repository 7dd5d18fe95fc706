/* core.channel: framed unix sockets that carry descriptors. Lua waits on channel:number(). */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../channel.h"
#include "bind.h"

#define CHANNEL_TYPE "tidepool.Channel"

static struct tp_channel *check_channel(lua_State *L) {
  return luaL_checkudata(L, 1, CHANNEL_TYPE);
}

static struct tp_channel *new_channel(lua_State *L) {
  struct tp_channel *channel = lua_newuserdata(L, sizeof *channel);
  *channel = (struct tp_channel){.fd = -1};
  luaL_getmetatable(L, CHANNEL_TYPE);
  lua_setmetatable(L, -2);
  return channel;
}

/* core.channel.wrap(fd) -> channel; takes the descriptor over */
static int l_wrap(lua_State *L) {
  int fd = tp_check_fd(L, 1);
  struct tp_channel *channel = new_channel(L);
  if (lua_isuserdata(L, 1))
    *(int *)lua_touserdata(L, 1) = -1;
  tp_channel_init(channel, fd);
  return 1;
}

static int fill_address(lua_State *L, struct sockaddr_un *address) {
  size_t length;
  const char *path = luaL_checklstring(L, 1, &length);
  luaL_argcheck(L, length < sizeof address->sun_path, 1, "socket path is too long");
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  memcpy(address->sun_path, path, length);
  return 0;
}

/* core.channel.connect(path) -> channel | nil, message, code */
static int l_connect(lua_State *L) {
  struct sockaddr_un address;
  fill_address(L, &address);
  struct tp_channel *channel = new_channel(L);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return tp_lua_fail_errno(L, "make socket");
  channel->fd = fd;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
    return tp_lua_fail_errno(L, "connect to server");
  tp_channel_init(channel, fd);
  return 1;
}

/* core.channel.listen(path) -> fd | nil, message, code; the socket file is made with mode 0600 */
static int l_listen(lua_State *L) {
  struct sockaddr_un address;
  fill_address(L, &address);
  int *fd = tp_new_fd(L);
  *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (*fd < 0)
    return tp_lua_fail_errno(L, "make socket");
  mode_t before = umask(0177);
  int bound = bind(*fd, (struct sockaddr *)&address, sizeof address);
  int code = errno;
  umask(before);
  errno = code;
  if (bound < 0)
    return tp_lua_fail_errno(L, address.sun_path);
  if (listen(*fd, 512) < 0)
    return tp_lua_fail_errno(L, "listen");
  return 1;
}

/* core.channel.accept(fd) -> channel, { pid, uid, gid } | nil, message, code ("EAGAIN": none waits) */
static int l_accept(lua_State *L) {
  int listener = tp_check_fd(L, 1);
  struct tp_channel *channel = new_channel(L);
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0)
    return tp_lua_fail_errno(L, "accept");
  tp_channel_init(channel, fd);
  struct ucred peer;
  socklen_t size = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
    return tp_lua_fail_errno(L, "read peer credentials");
  lua_createtable(L, 0, 3);
  lua_pushinteger(L, peer.pid);
  lua_setfield(L, -2, "pid");
  lua_pushinteger(L, peer.uid);
  lua_setfield(L, -2, "uid");
  lua_pushinteger(L, peer.gid);
  lua_setfield(L, -2, "gid");
  return 2;
}

/* channel:send(bytes, fds) -> true when all was written, false when some waits | nil, message, code */
static int l_send(lua_State *L) {
  struct tp_channel *channel = check_channel(L);
  size_t length;
  const char *bytes = luaL_checklstring(L, 2, &length);
  int fds[TP_FRAME_FDS];
  unsigned count = tp_check_fds(L, 3, fds, TP_FRAME_FDS);
  struct tp_error err;
  if (tp_channel_send(channel, bytes, length, fds, count, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, channel->first == NULL);
  return 1;
}

/* channel:flush() -> true when nothing waits any more, false | nil, message, code */
static int l_flush(lua_State *L) {
  struct tp_error err;
  int empty = tp_channel_flush(check_channel(L), &err);
  if (empty < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, empty);
  return 1;
}

/* channel:receive() -> bytes, { fds } or nil | nil, message, code ("EAGAIN": nothing yet,
 * "EPIPE": the peer has closed) */
static int l_receive(lua_State *L) {
  struct tp_channel *channel = check_channel(L);
  struct tp_frame frame;
  struct tp_error err;
  int fds[TP_FRAME_FDS];
  int got = tp_channel_receive(channel, &frame, fds, &err);
  if (got == 0)
    tp_fail(&err, EAGAIN, "receive");
  if (got <= 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, (const char *)frame.payload, frame.length);
  if (frame.fds == 0)
    return 1;
  lua_createtable(L, (int)frame.fds, 0);
  for (unsigned i = 0; i < frame.fds; i++) {
    *tp_new_fd(L) = fds[i];
    lua_rawseti(L, -2, (int)i + 1);
  }
  return 2;
}

/* channel:number() -> integer | nil when closed */
static int l_number(lua_State *L) {
  struct tp_channel *channel = check_channel(L);
  if (channel->fd < 0)
    return 0;
  lua_pushinteger(L, channel->fd);
  return 1;
}

/* channel:close(); closing twice is harmless. */
static int l_close(lua_State *L) {
  tp_channel_close(check_channel(L));
  return 0;
}

int tp_open_channel(lua_State *L) {
  static const luaL_Reg methods[] = {{"send", l_send},       {"flush", l_flush},
                                     {"receive", l_receive}, {"number", l_number},
                                     {"close", l_close},     {NULL, NULL}};
  static const luaL_Reg functions[] = {{"wrap", l_wrap},
                                       {"connect", l_connect},
                                       {"listen", l_listen},
                                       {"accept", l_accept},
                                       {NULL, NULL}};
  tp_define_class(L, CHANNEL_TYPE, l_close, methods);
  return tp_push_functions(L, functions);
}

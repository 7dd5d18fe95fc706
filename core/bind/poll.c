/* core.poll: a descriptor's readiness behind an epoll of its own, for the loop to wait on.
 *
 * A loop that polls the descriptor itself is told of its errors apart: libuv stops the handle and luv
 * prints them. Through an epoll an error is readiness like any other, and the next read or write
 * tells what it was. It also lets one descriptor be waited on twice. */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "bind.h"

#define POLL_TYPE "tidepool.Poll"

struct poll {
  int epoll, fd;
};

static struct poll *check_poll(lua_State *L) {
  struct poll *poll = luaL_checkudata(L, 1, POLL_TYPE);
  luaL_argcheck(L, poll->epoll >= 0, 1, "poll is closed");
  return poll;
}

static int control(struct poll *poll, int operation, const char *events) {
  struct epoll_event event = {0};
  if (strchr(events, 'r'))
    event.events |= EPOLLIN | EPOLLRDHUP;
  if (strchr(events, 'w'))
    event.events |= EPOLLOUT;
  return epoll_ctl(poll->epoll, operation, poll->fd, &event);
}

/* core.poll.open(fd, events) -> poll | nil, message, code; events "r", "w" or "rw". The descriptor
 * stays the caller's and must outlive the poll. "EPERM": a regular file, which is always ready. */
static int l_open(lua_State *L) {
  int fd = tp_check_fd(L, 1);
  const char *events = luaL_checkstring(L, 2);
  struct poll *poll = lua_newuserdata(L, sizeof *poll);
  *poll = (struct poll){.epoll = -1, .fd = fd};
  luaL_getmetatable(L, POLL_TYPE);
  lua_setmetatable(L, -2);
  poll->epoll = epoll_create1(EPOLL_CLOEXEC);
  if (poll->epoll < 0)
    return tp_lua_fail_errno(L, "make epoll");
  if (control(poll, EPOLL_CTL_ADD, events) < 0)
    return tp_lua_fail_errno(L, "watch descriptor");
  return 1;
}

/* poll:number() -> integer: readable whenever the descriptor is ready */
static int l_number(lua_State *L) {
  lua_pushinteger(L, check_poll(L)->epoll);
  return 1;
}

/* poll:set(events) -> true | nil, message, code */
static int l_set(lua_State *L) {
  struct poll *poll = check_poll(L);
  if (control(poll, EPOLL_CTL_MOD, luaL_checkstring(L, 2)) < 0)
    return tp_lua_fail_errno(L, "watch descriptor");
  lua_pushboolean(L, 1);
  return 1;
}

/* poll:close(); closing twice is harmless. */
static int l_close(lua_State *L) {
  struct poll *poll = luaL_checkudata(L, 1, POLL_TYPE);
  if (poll->epoll >= 0)
    close(poll->epoll);
  poll->epoll = -1;
  return 0;
}

int tp_open_poll(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"number", l_number}, {"set", l_set}, {"close", l_close}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"open", l_open}, {NULL, NULL}};
  tp_define_class(L, POLL_TYPE, l_close, methods);
  return tp_push_functions(L, functions);
}

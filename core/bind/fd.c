/* core.fd: descriptors as Lua objects that close themselves, and the few calls on them. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bind.h"

#define FD_TYPE "tidepool.Fd"

int *tp_new_fd(lua_State *L) {
  int *fd = lua_newuserdata(L, sizeof *fd);
  *fd = -1;
  luaL_getmetatable(L, FD_TYPE);
  lua_setmetatable(L, -2);
  return fd;
}

int tp_check_fd(lua_State *L, int index) {
  if (lua_type(L, index) == LUA_TNUMBER)
    return (int)lua_tointeger(L, index);
  int *fd = luaL_checkudata(L, index, FD_TYPE);
  luaL_argcheck(L, *fd >= 0, index, "descriptor is closed");
  return *fd;
}

unsigned tp_check_fds(lua_State *L, int index, int *fds, unsigned max) {
  if (lua_isnoneornil(L, index))
    return 0;
  luaL_checktype(L, index, LUA_TTABLE);
  unsigned count = (unsigned)lua_objlen(L, index);
  luaL_argcheck(L, count <= max, index, "too many descriptors");
  for (unsigned i = 0; i < count; i++) {
    lua_rawgeti(L, index, (int)i + 1);
    fds[i] = tp_check_fd(L, lua_gettop(L));
    lua_pop(L, 1);
  }
  return count;
}

/* fd:number() -> integer */
static int l_number(lua_State *L) {
  lua_pushinteger(L, tp_check_fd(L, 1));
  return 1;
}

/* fd:close(); closing twice is harmless. */
static int l_close(lua_State *L) {
  int *fd = luaL_checkudata(L, 1, FD_TYPE);
  if (*fd >= 0)
    close(*fd);
  *fd = -1;
  return 0;
}

/* fd:take() -> integer; the caller owns the number from then on. */
static int l_take(lua_State *L) {
  int *fd = luaL_checkudata(L, 1, FD_TYPE);
  luaL_argcheck(L, *fd >= 0, 1, "descriptor is closed");
  lua_pushinteger(L, *fd);
  *fd = -1;
  return 1;
}

static int l_tostring(lua_State *L) {
  int *fd = luaL_checkudata(L, 1, FD_TYPE);
  if (*fd >= 0)
    lua_pushfstring(L, "fd %d", *fd);
  else
    lua_pushliteral(L, "fd (closed)");
  return 1;
}

/* core.fd.own(number) -> fd */
static int l_own(lua_State *L) {
  int number = (int)luaL_checkinteger(L, 1);
  *tp_new_fd(L) = number;
  return 1;
}

/* core.fd.pair() -> fd, fd | nil, message, code: two connected unix stream sockets, non-blocking */
static int l_pair(lua_State *L) {
  int *one = tp_new_fd(L), *two = tp_new_fd(L), pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
    return tp_lua_fail_errno(L, "make socket pair");
  *one = pair[0];
  *two = pair[1];
  return 2;
}

/* core.fd.open(path, flags, mode) -> fd | nil, message, code; flags as a string of
 * "r", "w", "rw", with "c" create, "x" exclusive, "t" truncate, "a" append, "d" directory, "p"
 * O_PATH, "n" no-follow, "b" non-blocking. Always close-on-exec. */
static int l_open(lua_State *L) {
  const char *path = luaL_checkstring(L, 1), *letters = luaL_optstring(L, 2, "r");
  mode_t mode = (mode_t)luaL_optinteger(L, 3, 0600);
  int flags = strchr(letters, 'w') ? (strchr(letters, 'r') ? O_RDWR : O_WRONLY) : O_RDONLY;
  static const struct {
    char letter;
    int flag;
  } table[] = {{'c', O_CREAT},     {'x', O_EXCL}, {'t', O_TRUNC},    {'a', O_APPEND},
               {'d', O_DIRECTORY}, {'p', O_PATH}, {'n', O_NOFOLLOW}, {'b', O_NONBLOCK}};
  for (unsigned i = 0; i < sizeof table / sizeof *table; i++)
    if (strchr(letters, table[i].letter))
      flags |= table[i].flag;

  int *fd = tp_new_fd(L);
  *fd = open(path, flags | O_CLOEXEC, mode);
  return *fd < 0 ? tp_lua_fail_errno(L, path) : 1;
}

/* core.fd.kind(fd) -> "file", "directory", "socket", "fifo", "char", "block" or "link" */
static int l_kind(lua_State *L) {
  struct stat st;
  if (fstat(tp_check_fd(L, 1), &st) < 0)
    return tp_lua_fail_errno(L, "stat descriptor");
  switch (st.st_mode & S_IFMT) {
  case S_IFREG:
    lua_pushliteral(L, "file");
    break;
  case S_IFDIR:
    lua_pushliteral(L, "directory");
    break;
  case S_IFSOCK:
    lua_pushliteral(L, "socket");
    break;
  case S_IFIFO:
    lua_pushliteral(L, "fifo");
    break;
  case S_IFCHR:
    lua_pushliteral(L, "char");
    break;
  case S_IFBLK:
    lua_pushliteral(L, "block");
    break;
  case S_IFLNK:
    lua_pushliteral(L, "link");
    break;
  default:
    lua_pushliteral(L, "other");
    break;
  }
  return 1;
}

/* core.fd.pidfd(pid) -> fd | nil, message, code; readable once the process has ended */
static int l_pidfd(lua_State *L) {
  pid_t pid = (pid_t)luaL_checkinteger(L, 1);
  int *fd = tp_new_fd(L);
  *fd = (int)syscall(SYS_pidfd_open, pid, 0);
  return *fd < 0 ? tp_lua_fail_errno(L, "open pidfd") : 1;
}

/* core.fd.duplicate(fd) -> fd | nil, message, code */
static int l_duplicate(lua_State *L) {
  int from = tp_check_fd(L, 1);
  int *fd = tp_new_fd(L);
  *fd = fcntl(from, F_DUPFD_CLOEXEC, 3);
  return *fd < 0 ? tp_lua_fail_errno(L, "duplicate descriptor") : 1;
}

/* core.fd.borrow(pidfd, number) -> fd | nil, message, code; another process's open file, held by us too */
static int l_borrow(lua_State *L) {
  int pidfd = tp_check_fd(L, 1);
  int number = (int)luaL_checkinteger(L, 2);
  int *fd = tp_new_fd(L);
  *fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
  return *fd < 0 ? tp_lua_fail_errno(L, "borrow descriptor") : 1;
}

/* core.fd.waiting(fd) -> bytes that can be read at once | nil, message, code */
static int l_waiting(lua_State *L) {
  int count = 0;
  if (ioctl(tp_check_fd(L, 1), FIONREAD, &count) < 0)
    return tp_lua_fail_errno(L, "count bytes");
  lua_pushinteger(L, count);
  return 1;
}

/* core.fd.close_from(first): closes every descriptor from that number on. For a daemon's start. */
static int l_close_from(lua_State *L) {
  syscall(SYS_close_range, (unsigned)luaL_checkinteger(L, 1), ~0u, 0);
  return 0;
}

/* core.fd.lock(fd) -> true | nil, message, "EAGAIN" when another process holds the lock */
static int l_lock(lua_State *L) {
  if (flock(tp_check_fd(L, 1), LOCK_EX | LOCK_NB) < 0)
    return tp_lua_fail_errno(L, "lock");
  lua_pushboolean(L, 1);
  return 1;
}

/* core.fd.read(fd, size) -> bytes, "" at the end | nil, message, code */
static int l_read(lua_State *L) {
  int fd = tp_check_fd(L, 1);
  lua_Integer size = luaL_checkinteger(L, 2);
  luaL_argcheck(L, size > 0 && size <= 64 << 20, 2, "size must be 1 byte to 64 MiB");
  char *buffer = lua_newuserdata(L, (size_t)size);
  ssize_t got;
  do
    got = read(fd, buffer, (size_t)size);
  while (got < 0 && errno == EINTR);
  if (got < 0)
    return tp_lua_fail_errno(L, "read");
  lua_pushlstring(L, buffer, (size_t)got);
  return 1;
}

/* core.fd.write(fd, bytes, offset) -> how many were taken, from offset (0) on | nil, message, code
 */
static int l_write(lua_State *L) {
  int fd = tp_check_fd(L, 1);
  size_t length, offset;
  const char *bytes = luaL_checklstring(L, 2, &length);
  offset = (size_t)luaL_optinteger(L, 3, 0);
  luaL_argcheck(L, offset <= length, 3, "offset is past the end");
  ssize_t put;
  do
    put = write(fd, bytes + offset, length - offset);
  while (put < 0 && errno == EINTR);
  if (put < 0)
    return tp_lua_fail_errno(L, "write");
  lua_pushinteger(L, put);
  return 1;
}

/* core.fd.raise_limit(most) -> how many descriptors this process may open now: as many as asked for where
 * root may raise the hard limit, else the hard limit */
static int l_raise_limit(lua_State *L) {
  rlim_t most = (rlim_t)luaL_checkinteger(L, 1);
  struct rlimit now;
  if (getrlimit(RLIMIT_NOFILE, &now) < 0)
    return tp_lua_fail_errno(L, "read limit of descriptors");
  struct rlimit wanted = {.rlim_cur = now.rlim_max, .rlim_max = now.rlim_max};
  if (wanted.rlim_max < most)
    wanted = (struct rlimit){.rlim_cur = most, .rlim_max = most};
  if (setrlimit(RLIMIT_NOFILE, &wanted) < 0) {
    wanted = (struct rlimit){.rlim_cur = now.rlim_max, .rlim_max = now.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &wanted) < 0)
      return tp_lua_fail_errno(L, "raise limit of descriptors");
  }
  lua_pushnumber(L, (lua_Number)wanted.rlim_cur);
  return 1;
}

int tp_open_fd(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"number", l_number}, {"close", l_close}, {"take", l_take}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"own", l_own},
                                       {"pair", l_pair},
                                       {"open", l_open},
                                       {"kind", l_kind},
                                       {"pidfd", l_pidfd},
                                       {"lock", l_lock},
                                       {"raise_limit", l_raise_limit},
                                       {"duplicate", l_duplicate},
                                       {"borrow", l_borrow},
                                       {"waiting", l_waiting},
                                       {"close_from", l_close_from},
                                       {"read", l_read},
                                       {"write", l_write},
                                       {NULL, NULL}};
  tp_define_class(L, FD_TYPE, l_close, methods);
  luaL_getmetatable(L, FD_TYPE);
  lua_pushcfunction(L, l_tostring);
  lua_setfield(L, -2, "__tostring");
  lua_pop(L, 1);
  return tp_push_functions(L, functions);
}

/* core.copy: bytes and entries of the host's side of a copy. Rules and reasons: core/copy.h.
 *
 * Offsets and sizes are Lua numbers, exact below 2^53. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "../copy.h"
#include "bind.h"

#define MOMENT 9.2e9 /* seconds: in nanoseconds, about what an int64_t holds */

static int64_t check_size(lua_State *L, int index) {
  lua_Number number = luaL_checknumber(L, index);
  luaL_argcheck(L, number >= 0 && number < 9007199254740992.0, index, "size out of range");
  return (int64_t)number;
}

/* A name from the sandbox may hold a NUL, behind which C would not look. */
static const char *check_entry(lua_State *L, int index) {
  size_t length;
  const char *name = luaL_checklstring(L, index, &length);
  return strlen(name) == length ? name : "";
}

static int finish(lua_State *L, int result, const struct tp_error *err) {
  if (result < 0)
    return tp_lua_fail(L, err);
  lua_pushboolean(L, 1);
  return 1;
}

/* core.copy.range(in, in_offset, out, out_offset, length) -> count | nil, message, code;
 * less than `length` only at the end of `in` */
static int l_range(lua_State *L) {
  struct tp_error err;
  int64_t count = tp_copy_range(tp_check_fd(L, 1), check_size(L, 2), tp_check_fd(L, 3),
                                check_size(L, 4), check_size(L, 5), &err);
  if (count < 0)
    return tp_lua_fail(L, &err);
  lua_pushnumber(L, (lua_Number)count);
  return 1;
}

/* core.copy.extent(fd, from) -> start, stop | false when only a hole is left | nil, message, code */
static int l_extent(lua_State *L) {
  struct tp_error err;
  int64_t start, stop;
  int found = tp_copy_extent(tp_check_fd(L, 1), check_size(L, 2), &start, &stop, &err);
  if (found < 0)
    return tp_lua_fail(L, &err);
  if (!found) {
    lua_pushboolean(L, 0);
    return 1;
  }
  lua_pushnumber(L, (lua_Number)start);
  lua_pushnumber(L, (lua_Number)stop);
  return 2;
}

/* core.copy.read(fd, offset, length) -> bytes, "" at the end | nil, message, code */
static int l_read(lua_State *L) {
  int fd = tp_check_fd(L, 1);
  int64_t offset = check_size(L, 2), length = check_size(L, 3);
  luaL_argcheck(L, length <= 64 << 20, 3, "at most 64 MiB at a time");
  char *bytes = lua_newuserdata(L, (size_t)length + 1);
  ssize_t got = 0, n;
  while (got < length && (n = pread(fd, bytes + got, (size_t)(length - got), offset + got)) != 0) {
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0) {
      struct tp_error err;
      tp_fail(&err, errno, "read");
      return tp_lua_fail(L, &err);
    }
    got += n;
  }
  lua_pushlstring(L, bytes, (size_t)got);
  return 1;
}

/* core.copy.open(directory, name, letters, mode) -> fd | nil, message, code; letters: "r" or "w",
 * "x" make it, "t" truncate, "d" a directory. Never follows a link, never waits for a FIFO. */
static int l_open(lua_State *L) {
  const char *name = check_entry(L, 2), *letters = luaL_optstring(L, 3, "r");
  int flags = O_NONBLOCK | O_NOCTTY | (strchr(letters, 'w') ? O_WRONLY : O_RDONLY);
  if (strchr(letters, 'x'))
    flags |= O_CREAT | O_EXCL;
  if (strchr(letters, 't'))
    flags |= O_TRUNC;
  if (strchr(letters, 'd'))
    flags |= O_DIRECTORY;

  mode_t mode = (mode_t)luaL_optinteger(L, 4, 0600);
  int directory = tp_check_fd(L, 1);
  int *fd = tp_new_fd(L);
  struct tp_error err;
  *fd = tp_copy_open(directory, name, flags, mode, &err);
  return *fd < 0 ? tp_lua_fail(L, &err) : 1;
}

/* core.copy.mkdir(directory, name, mode) -> true | nil, message, code */
static int l_mkdir(lua_State *L) {
  struct tp_error err;
  mode_t mode = (mode_t)luaL_optinteger(L, 3, 0700);
  return finish(L, tp_copy_mkdir(tp_check_fd(L, 1), check_entry(L, 2), mode, &err), &err);
}

/* core.copy.symlink(directory, name, target) -> true | nil, message, code */
static int l_symlink(lua_State *L) {
  struct tp_error err;
  const char *target = luaL_checkstring(L, 3);
  return finish(L, tp_copy_symlink(tp_check_fd(L, 1), check_entry(L, 2), target, &err), &err);
}

/* core.copy.unlink(directory, name) -> true | nil, message, code */
static int l_unlink(lua_State *L) {
  struct tp_error err;
  return finish(L, tp_copy_unlink(tp_check_fd(L, 1), check_entry(L, 2), &err), &err);
}

/* core.copy.rename(directory, from, to) -> true | nil, message, code; replaces what is there */
static int l_rename(lua_State *L) {
  struct tp_error err;
  return finish(L, tp_copy_rename(tp_check_fd(L, 1), check_entry(L, 2), check_entry(L, 3), &err),
                &err);
}

/* core.copy.stat(directory, name) -> { kind, mode, size } | nil, message, code; of a link itself */
static int l_stat(lua_State *L) {
  struct tp_error err;
  struct stat st;
  if (tp_copy_stat(tp_check_fd(L, 1), check_entry(L, 2), &st, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_createtable(L, 0, 3);
  lua_pushstring(L, S_ISREG(st.st_mode)   ? "file"
                    : S_ISDIR(st.st_mode) ? "directory"
                    : S_ISLNK(st.st_mode) ? "link"
                                          : "other");
  lua_setfield(L, -2, "kind");
  lua_pushinteger(L, st.st_mode & 07777);
  lua_setfield(L, -2, "mode");
  lua_pushnumber(L, (lua_Number)st.st_size);
  lua_setfield(L, -2, "size");
  return 1;
}

/* core.copy.finish(fd, mode, mtime seconds or nil, size or nil) -> true | nil, message, code: what an
 * entry gets last, when nothing writes to it any more */
static int l_finish(lua_State *L) {
  int fd = tp_check_fd(L, 1);
  mode_t mode = (mode_t)luaL_checkinteger(L, 2);
  if (!lua_isnoneornil(L, 4) && ftruncate(fd, check_size(L, 4)) < 0)
    return tp_lua_fail_errno(L, "set size");
  if (fchmod(fd, mode) < 0)
    return tp_lua_fail_errno(L, "set mode");
  struct tp_error err;
  if (!lua_isnoneornil(L, 3)) {
    lua_Number mtime = luaL_checknumber(L, 3);
    mtime = mtime < -MOMENT ? -MOMENT : mtime < MOMENT ? mtime : MOMENT; /* NaN, too */
    lua_Number whole = floor(mtime);
    int64_t ns = (int64_t)whole * 1000000000 + (int64_t)((mtime - whole) * 1e9);
    if (tp_copy_touch(fd, ns, &err) < 0)
      return tp_lua_fail(L, &err);
  }
  lua_pushboolean(L, 1);
  return 1;
}

int tp_open_copy(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"range", l_range},     {"extent", l_extent}, {"read", l_read},     {"open", l_open},
      {"mkdir", l_mkdir},     {"symlink", l_symlink}, {"unlink", l_unlink}, {"rename", l_rename},
      {"stat", l_stat},       {"finish", l_finish}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

/* core.plan: plans as Lua writes them, `{ { "mkdir", path, mode }, { "mount?", ... } }`, as bytes. A
 * "?" after an operation's name makes the step optional: its failure is ignored. */
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>

#include "../plan.h"
#include "bind.h"

struct flag {
  const char *name;
  uint64_t value;
};

static const struct flag mount_flags[] = {
    {"ro", MS_RDONLY},       {"nosuid", MS_NOSUID},     {"nodev", MS_NODEV},
    {"noexec", MS_NOEXEC},   {"noatime", MS_NOATIME},   {"bind", MS_BIND},
    {"remount", MS_REMOUNT}, {"rec", MS_REC},           {NULL, 0},
};

static const struct flag namespace_flags[] = {
    {"user", CLONE_NEWUSER}, {"pid", CLONE_NEWPID},       {"mount", CLONE_NEWNS},
    {"net", CLONE_NEWNET},   {"ipc", CLONE_NEWIPC},       {"uts", CLONE_NEWUTS},
    {"time", 0x80},          {"cgroup", CLONE_NEWCGROUP}, {NULL, 0},
};

/* "nosuid,nodev" -> bits; false: unknown word */
static bool parse_flags(const struct flag *table, const char *text, uint64_t *bits) {
  *bits = 0;
  while (*text) {
    size_t length = strcspn(text, ",");
    const struct flag *flag = table;
    while (flag->name && (strlen(flag->name) != length || memcmp(flag->name, text, length)))
      flag++;
    if (!flag->name)
      return false;
    *bits |= flag->value;
    text += length + (text[length] == ',');
  }
  return true;
}

/* Owned by Lua, so that an error on the way frees it. */
static struct tp_plan_writer *new_writer(lua_State *L) {
  struct tp_plan_writer *writer = lua_newuserdata(L, sizeof *writer);
  *writer = (struct tp_plan_writer){0};
  luaL_getmetatable(L, "tidepool.PlanWriter");
  lua_setmetatable(L, -2);
  return writer;
}

static int l_writer_gc(lua_State *L) {
  struct tp_plan_writer *writer = lua_touserdata(L, 1);
  free(writer->bytes);
  writer->bytes = NULL;
  return 0;
}

/* The argument on top of the stack; NULL, or what is wrong with it. */
static const char *add_argument(lua_State *L, struct tp_plan_writer *writer, char kind) {
  if (kind == 'p' || kind == 's') {
    if (lua_type(L, -1) != LUA_TSTRING)
      return "a string is needed";
    size_t length;
    const char *bytes = lua_tolstring(L, -1, &length);
    if (kind == 'p' && (length == 0 || length >= PATH_MAX || strlen(bytes) != length))
      return "a path is needed";
    tp_plan_bytes(writer, bytes, length);
    return NULL;
  }
  uint64_t bits;
  if (kind == 'm' || kind == 'c') {
    if (lua_type(L, -1) != LUA_TSTRING ||
        !parse_flags(kind == 'm' ? mount_flags : namespace_flags, lua_tostring(L, -1), &bits))
      return "flags are needed";
    tp_plan_number(writer, bits);
    return NULL;
  }
  if (lua_type(L, -1) != LUA_TNUMBER)
    return "a number is needed";
  lua_Number number = lua_tonumber(L, -1);
  if (!(number >= 0 && number < 9007199254740992.0))
    return "a whole number from 0 on is needed";
  if (kind == 'd' && number >= TP_PLAN_SLOTS)
    return "there is no such slot";
  tp_plan_number(writer, (uint64_t)number);
  return NULL;
}

/* The step on top of the stack. */
static int add_step(lua_State *L, struct tp_plan_writer *writer, unsigned step,
                    struct tp_error *err) {
  if (!lua_istable(L, -1))
    return tp_fail(err, EINVAL, "plan step %u is no table", step);
  int table = lua_gettop(L);
  lua_rawgeti(L, table, 1);
  size_t length = 0;
  const char *name = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &length) : "";
  bool optional = length && name[length - 1] == '?';
  int op = tp_op_find(name, length - optional);
  if (op < 0)
    return tp_fail(err, EINVAL, "plan step %u: unknown operation '%s'", step, name);

  const char *kinds = tp_op_kinds((enum tp_op)op);
  size_t wanted = strlen(kinds), given = lua_objlen(L, table) - 1;
  if (given != wanted)
    return tp_fail(err, EINVAL, "plan step %u: %s takes %zu arguments, not %zu", step, name, wanted,
                   given);
  tp_plan_step(writer, (enum tp_op)op, optional);
  for (size_t i = 0; i < wanted; i++) {
    lua_rawgeti(L, table, (int)i + 2);
    const char *wrong = add_argument(L, writer, kinds[i]);
    if (wrong)
      return tp_fail(err, EINVAL, "plan step %u: %s, argument %zu: %s", step, name, i + 1, wrong);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return 0;
}

/* core.plan.encode(steps) -> bytes | nil, message, code */
static int l_encode(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  struct tp_plan_writer *writer = new_writer(L);
  struct tp_error err;
  tp_plan_begin(writer);
  size_t count = lua_objlen(L, 1);
  for (size_t i = 1; i <= count; i++) {
    lua_rawgeti(L, 1, (int)i);
    if (add_step(L, writer, (unsigned)i, &err) < 0)
      return tp_lua_fail(L, &err);
    lua_settop(L, 2);
  }
  if (tp_plan_end(writer, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, (const char *)writer->bytes, writer->length);
  return 1;
}

/* core.plan.check(bytes) -> number of steps | nil, message, code: would the spawner take it? */
static int l_check(lua_State *L) {
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  static struct tp_plan plan;
  struct tp_error err;
  if (tp_plan_decode(bytes, length, &plan, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushinteger(L, (int)plan.count);
  return 1;
}

/* core.plan.code(errno) -> "ENOENT" and the like, for an answer of the spawner's */
static int l_code(lua_State *L) {
  lua_pushstring(L, tp_error_name((int)luaL_checkinteger(L, 1)));
  return 1;
}

int tp_open_plan(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"encode", l_encode}, {"check", l_check}, {"code", l_code}, {NULL, NULL}};
  tp_define_class(L, "tidepool.PlanWriter", l_writer_gc, NULL);
  return tp_push_functions(L, functions);
}

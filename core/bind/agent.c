/* core.agent: the client's half of the file agent's protocol, as bytes in and bytes out.
 *
 * core.agent.encode(op, serial, fields) -> bytes; operations and their fields (paths without a
 * leading slash are in /workspace, a mode left out is 0644, 0755 or what is there):
 *   open      path
 *   begin     path, mode, append, exclusive
 *   write     offset, data
 *   commit    size (left out: as written), mtime (seconds)
 *   abort     -
 *   list      path, recursive
 *   stat      path, follow
 *   mkdir     path, mode, parents
 *   remove    path, recursive
 *   rename    path, to
 *   chmod     path, mode
 *   symlink   path, target
 *   times     path, mtime
 *
 * core.agent.decode(bytes) -> { op =, serial =, ... } | nil, message, code. A failure has code
 * ("ENOENT") and message; else there may be stat = { mode, uid, gid, links, size, mtime, inode,
 * blocks, type }, path and target. `list` is answered by op "entry" for each and op "done". */
#include <errno.h>
#include <math.h>
#include <sys/stat.h>

#include "../frame.h"
#include "../init/codec.h"
#include "bind.h"
#include "fields.h"

static const char *const ops[] = {
    [TP_AGENT_OPEN] = "open",     [TP_AGENT_BEGIN] = "begin",   [TP_AGENT_WRITE] = "write",
    [TP_AGENT_COMMIT] = "commit", [TP_AGENT_ABORT] = "abort",   [TP_AGENT_LIST] = "list",
    [TP_AGENT_ENTRY] = "entry",   [TP_AGENT_DONE] = "done",     [TP_AGENT_STAT] = "stat",
    [TP_AGENT_MKDIR] = "mkdir",   [TP_AGENT_REMOVE] = "remove", [TP_AGENT_RENAME] = "rename",
    [TP_AGENT_CHMOD] = "chmod",   [TP_AGENT_SYMLINK] = "symlink", [TP_AGENT_TIMES] = "times",
};

#define OFFSET_MOST 9007199254740992.0 /* 2^53 */

static uint64_t field_mtime(lua_State *L, int t) {
  double seconds = tp_field_number(L, t, "mtime", 0, 1e10);
  double whole = floor(seconds);
  return (uint64_t)whole * 1000000000u + (uint64_t)((seconds - whole) * 1e9);
}

static void check_request(lua_State *L, int t, struct tp_agent_request *request) {
  static const struct {
    const char *name;
    uint16_t flag;
  } flags[] = {{"recursive", TP_AGENT_RECURSIVE},
               {"follow", TP_AGENT_FOLLOW},
               {"parents", TP_AGENT_PARENTS},
               {"append", TP_AGENT_APPEND},
               {"exclusive", TP_AGENT_EXCLUSIVE}};
  for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++)
    if (tp_field_flag(L, t, flags[i].name))
      request->flags |= flags[i].flag;
  request->path = tp_field_text(L, t, "path");
  request->other = tp_field_text(L, t, request->op == TP_AGENT_SYMLINK ? "target" : "to");
  request->mode = tp_field_u32(L, t, "mode", UINT32_MAX);
  request->offset = (uint64_t)tp_field_number(L, t, "offset", 0, OFFSET_MOST);
  double size = tp_field_number(L, t, "size", -1, OFFSET_MOST);
  request->size = size < 0 ? UINT64_MAX : (uint64_t)size;
  request->mtime = field_mtime(L, t);
  if (request->op == TP_AGENT_WRITE) {
    size_t length;
    lua_getfield(L, t, "data");
    if (lua_type(L, -1) != LUA_TSTRING)
      luaL_error(L, "field data: string expected, got %s", luaL_typename(L, -1));
    request->data.data = (const uint8_t *)lua_tolstring(L, -1, &length);
    request->data.length = (uint32_t)length;
  }
}

static int l_encode(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  struct tp_agent_request request = {.serial = (uint32_t)luaL_checknumber(L, 2)};
  lua_settop(L, 3);
  if (lua_isnil(L, 3)) {
    lua_newtable(L);
    lua_replace(L, 3);
  }
  luaL_checktype(L, 3, LUA_TTABLE);
  for (uint16_t i = TP_AGENT_OPEN; i <= TP_AGENT_TIMES; i++)
    if (strcmp(ops[i], name) == 0 && i != TP_AGENT_ENTRY && i != TP_AGENT_DONE)
      request.op = i;
  luaL_argcheck(L, request.op, 1, "no such operation");
  check_request(L, 3, &request);

  struct tp_writer writer;
  struct tp_error err;
  tp_writer_init(&writer, TP_FRAME_LIMIT);
  tp_agent_encode_request(&writer, &request);
  if (writer.bad) {
    tp_writer_free(&writer);
    tp_fail(&err, EMSGSIZE, "encode %s", name);
    return tp_lua_fail(L, &err);
  }
  lua_pushlstring(L, (const char *)writer.bytes, writer.length);
  tp_writer_free(&writer);
  return 1;
}

static const char *type_of(uint32_t mode) {
  switch (mode & S_IFMT) {
  case S_IFREG: return "file";
  case S_IFDIR: return "directory";
  case S_IFLNK: return "link";
  case S_IFIFO: return "fifo";
  case S_IFSOCK: return "socket";
  case S_IFCHR: return "char";
  case S_IFBLK: return "block";
  default: return "other";
  }
}

static void set_stat(lua_State *L, const struct tp_agent_stat *stat) {
  lua_createtable(L, 0, 9);
  tp_set_string(L, "type", type_of(stat->mode));
  tp_set_number(L, "mode", stat->mode & 07777);
  tp_set_number(L, "uid", stat->uid);
  tp_set_number(L, "gid", stat->gid);
  tp_set_number(L, "links", stat->links);
  tp_set_number(L, "size", (double)stat->size);
  /* Bounded, so that whoever turns it back into nanoseconds has room. */
  tp_set_number(L, "mtime", (double)(stat->mtime < INT64_MAX ? stat->mtime : INT64_MAX) / 1e9);
  tp_set_number(L, "inode", (double)stat->inode);
  tp_set_number(L, "blocks", (double)stat->blocks);
  lua_setfield(L, -2, "stat");
}

static int l_decode(lua_State *L) {
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  struct tp_agent_reply reply;
  struct tp_error err;
  if (tp_agent_decode_reply((const uint8_t *)bytes, length, &reply, &err) < 0)
    return tp_lua_fail(L, &err);

  lua_createtable(L, 0, 5);
  tp_set_string(L, "op", ops[reply.op]);
  tp_set_number(L, "serial", reply.serial);
  if (reply.status) {
    tp_set_string(L, "code", tp_error_name(reply.status));
    tp_set_text(L, "message", reply.message);
    return 1;
  }
  switch (reply.op) {
  case TP_AGENT_ENTRY: tp_set_text(L, "path", reply.path); /* fall through */
  case TP_AGENT_STAT: tp_set_text(L, "target", reply.target); /* fall through */
  case TP_AGENT_OPEN:
  case TP_AGENT_COMMIT: set_stat(L, &reply.stat); break;
  }
  return 1;
}

int tp_open_agent(lua_State *L) {
  static const luaL_Reg functions[] = {{"encode", l_encode}, {"decode", l_decode}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

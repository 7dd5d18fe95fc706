/* core.init: the server's half of init's protocol, as bytes in and bytes out, and how to reach it.
 *
 * core.init.encode(kind, serial, fields) -> bytes; kinds and their fields:
 *   hello     -
 *   start     argv, env (lists of strings; env also as a table), user, cwd, key, name, ring (bytes),
 *             tty, stdin, cols, rows; attach (a second descriptor goes with it), input, lossless,
 *             follow
 *   attach    id, offset, input, lossless, follow
 *   signal    id, signal (a number)
 *   list      -
 *   forget    id
 *   agent     user
 *   connect   family (4 or 6), port
 *   shutdown  grace (milliseconds)
 *   quiesce   -
 *
 * core.init.decode(bytes) -> { type =, serial =, ... } | nil, message, code; types and fields:
 *   welcome   version, nonce, processes
 *   ok, connected
 *   failed    step ("request", "user", "cwd", "exec", "spawn"), code ("ENOENT"), message
 *   started   id, pid
 *   process   id, pid, tty, stdin, running or kind ("code", "signal") and code, started (seconds
 *             since 1970), wall (seconds), start_offset, end_offset, dropped, key, name, user, cwd,
 *             argv
 *   exit      id, kind, code, wall, end_offset, dropped, cpu_seconds, memory (bytes, the peak) */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "../channel.h"
#include "../init/codec.h"
#include "../scope.h"
#include "bind.h"
#include "fields.h"

#define RESOLVE_NO_LINKS_IN_ROOT (0x04 | 0x10) /* RESOLVE_NO_SYMLINKS | RESOLVE_IN_ROOT */

static const struct {
  const char *name;
  uint16_t type;
} kinds[] = {
    {"hello", TP_INIT_HELLO},     {"start", TP_INIT_START},     {"attach", TP_INIT_ATTACH},
    {"signal", TP_INIT_SIGNAL},   {"list", TP_INIT_LIST},       {"forget", TP_INIT_FORGET},
    {"agent", TP_INIT_AGENT},     {"connect", TP_INIT_CONNECT}, {"shutdown", TP_INIT_SHUTDOWN},
    {"quiesce", TP_INIT_QUIESCE},
    {"welcome", TP_INIT_WELCOME}, {"ok", TP_INIT_OK},           {"failed", TP_INIT_FAILED},
    {"started", TP_INIT_STARTED}, {"process", TP_INIT_PROCESS}, {"connected", TP_INIT_CONNECTED},
    {"exit", TP_INIT_EXIT},
};

static const char *const steps[] = {"request", "user", "cwd", "exec", "spawn"};

/* A writer whose memory is Lua's to collect, whatever is raised on the way. */
static void put_item(lua_State *L, luaL_Buffer *buffer, const char *name, int index) {
  size_t length;
  if (lua_type(L, index) != LUA_TSTRING)
    luaL_error(L, "field %s: list of strings expected, it has a %s", name,
               luaL_typename(L, index));
  const char *bytes = lua_tolstring(L, index, &length);
  if (memchr(bytes, 0, length))
    luaL_error(L, "field %s: a string has a zero byte", name);
  char size[4] = {(char)length, (char)(length >> 8), (char)(length >> 16), (char)(length >> 24)};
  luaL_addlstring(buffer, size, sizeof size);
  luaL_addlstring(buffer, bytes, length);
}

/* Encode the list and leave it on the stack. `pairs`: name = value entries count as well. */
static struct tp_list field_list(lua_State *L, int table, const char *name, bool pairs) {
  struct tp_list list = {0};
  lua_getfield(L, table, name);
  if (lua_isnil(L, -1)) {
    list.bytes = (const uint8_t *)"";
    return list;
  }
  if (!lua_istable(L, -1))
    luaL_error(L, "field %s: table expected, got %s", name, luaL_typename(L, -1));
  int source = lua_gettop(L);

  /* Names and values first become "name=value" strings in a list of their own: a buffer in use
   * allows no other work on the stack. */
  lua_newtable(L);
  int items = lua_gettop(L);
  size_t count = lua_objlen(L, source);
  for (size_t i = 1; i <= count; i++) {
    lua_rawgeti(L, source, (int)i);
    lua_rawseti(L, items, (int)++list.count);
  }
  lua_pushnil(L);
  while (pairs && lua_next(L, source)) {
    if (lua_type(L, -2) == LUA_TSTRING && lua_isstring(L, -1)) {
      lua_pushfstring(L, "%s=%s", lua_tostring(L, -2), lua_tostring(L, -1));
      lua_rawseti(L, items, (int)++list.count);
    }
    lua_pop(L, 1);
  }
  luaL_Buffer buffer;
  luaL_buffinit(L, &buffer);
  for (uint32_t i = 1; i <= list.count; i++) {
    lua_rawgeti(L, items, (int)i);
    int index = lua_gettop(L);
    size_t length;
    if (lua_type(L, index) != LUA_TSTRING)
      luaL_error(L, "field %s: list of strings expected, it has a %s", name,
                 luaL_typename(L, index));
    lua_tolstring(L, index, &length);
    lua_insert(L, items + 1); /* below what the buffer keeps on the stack */
    put_item(L, &buffer, name, items + 1);
    lua_remove(L, items + 1);
  }
  luaL_pushresult(&buffer);
  list.bytes = (const uint8_t *)lua_tolstring(L, -1, &list.length);
  return list;
}

static uint32_t attach_flags(lua_State *L, int table) {
  return (tp_field_flag(L, table, "input") ? TP_ATTACH_INPUT : 0) |
         (tp_field_flag(L, table, "lossless") ? TP_ATTACH_LOSSLESS : 0) |
         (tp_field_flag(L, table, "follow") ? TP_ATTACH_FOLLOW : 0);
}

static void check_start(lua_State *L, int t, struct tp_init_start *start) {
  start->flags = (tp_field_flag(L, t, "tty") ? TP_START_TTY : 0) |
                 (tp_field_flag(L, t, "stdin") ? TP_START_STDIN : 0) |
                 (tp_field_flag(L, t, "attach") ? TP_START_ATTACH : 0);
  start->attach = attach_flags(L, t);
  start->ring = tp_field_u32(L, t, "ring", 0);
  start->cols = (uint16_t)tp_field_number(L, t, "cols", 0, 65535);
  start->rows = (uint16_t)tp_field_number(L, t, "rows", 0, 65535);
  start->key = tp_field_text(L, t, "key");
  start->name = tp_field_text(L, t, "name");
  start->user = tp_field_text(L, t, "user");
  start->cwd = tp_field_text(L, t, "cwd");
  start->argv = field_list(L, t, "argv", false);
  if (start->argv.count == 0)
    luaL_error(L, "field argv: empty");
  start->env = field_list(L, t, "env", true);
}

static void check_request(lua_State *L, int t, struct tp_init_request *request) {
  switch (request->type) {
  case TP_INIT_HELLO: request->version = tp_field_u32(L, t, "version", TP_INIT_VERSION); break;
  case TP_INIT_START: check_start(L, t, &request->start); break;
  case TP_INIT_ATTACH:
    request->attach.id = tp_field_u32(L, t, "id", 0);
    request->attach.flags = attach_flags(L, t);
    request->attach.offset = (uint64_t)tp_field_number(L, t, "offset", 0, 9007199254740992.0);
    break;
  case TP_INIT_SIGNAL:
    request->signal.id = tp_field_u32(L, t, "id", 0);
    request->signal.signal = (int32_t)tp_field_number(L, t, "signal", 0, 64);
    break;
  case TP_INIT_FORGET: request->id = tp_field_u32(L, t, "id", 0); break;
  case TP_INIT_AGENT: request->user = tp_field_text(L, t, "user"); break;
  case TP_INIT_CONNECT:
    request->connect.family = tp_field_u32(L, t, "family", 4);
    request->connect.port = tp_field_u32(L, t, "port", 0);
    break;
  case TP_INIT_SHUTDOWN: request->grace = tp_field_u32(L, t, "grace", 0); break;
  }
}

static int l_encode(lua_State *L) {
  const char *kind = luaL_checkstring(L, 1);
  struct tp_init_request request = {.serial = (uint32_t)luaL_checknumber(L, 2)};
  lua_settop(L, 3);
  if (lua_isnil(L, 3)) {
    lua_newtable(L);
    lua_replace(L, 3);
  }
  luaL_checktype(L, 3, LUA_TTABLE);
  for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (strcmp(kinds[i].name, kind) == 0)
      request.type = kinds[i].type;
  luaL_argcheck(L, request.type && request.type < TP_INIT_WELCOME, 1, "no such kind of request");
  check_request(L, 3, &request);

  struct tp_writer writer;
  struct tp_error err;
  tp_writer_init(&writer, TP_FRAME_LIMIT);
  tp_init_encode_request(&writer, &request);
  if (writer.bad) {
    tp_writer_free(&writer);
    tp_fail(&err, E2BIG, "encode %s", kind);
    return tp_lua_fail(L, &err);
  }
  lua_pushlstring(L, (const char *)writer.bytes, writer.length);
  tp_writer_free(&writer);
  return 1;
}

static void push_list(lua_State *L, struct tp_list list) {
  struct tp_bytes item;
  lua_createtable(L, (int)(list.count < 1024 ? list.count : 1024), 0);
  for (int i = 1; tp_list_next(&list, &item); i++) {
    lua_pushlstring(L, (const char *)item.data, item.length);
    lua_rawseti(L, -2, i);
  }
}

static void set_end(lua_State *L, uint32_t kind, int32_t code) {
  if (kind == TP_EXIT_RUNNING) {
    tp_set_flag(L, "running", true);
    return;
  }
  tp_set_string(L, "kind", kind == TP_EXIT_SIGNAL ? "signal" : "code");
  tp_set_number(L, "code", code);
}

static void set_process(lua_State *L, const struct tp_init_process *process) {
  tp_set_number(L, "id", process->id);
  tp_set_number(L, "pid", process->pid);
  tp_set_flag(L, "tty", process->flags & TP_START_TTY);
  tp_set_flag(L, "stdin", process->flags & TP_START_STDIN);
  set_end(L, process->kind, process->code);
  tp_set_number(L, "started", (double)process->started / 1e9);
  tp_set_number(L, "wall", (double)process->wall / 1e9);
  tp_set_number(L, "start_offset", (double)process->start);
  tp_set_number(L, "end_offset", (double)process->end);
  tp_set_number(L, "dropped", (double)process->dropped);
  tp_set_text(L, "key", process->key);
  tp_set_text(L, "name", process->name);
  tp_set_text(L, "user", process->user);
  tp_set_text(L, "cwd", process->cwd);
  push_list(L, process->argv);
  lua_setfield(L, -2, "argv");
}

static void set_exit(lua_State *L, const struct tp_init_exit *exit) {
  tp_set_number(L, "id", exit->id);
  set_end(L, exit->kind, exit->code);
  tp_set_number(L, "wall", (double)exit->wall / 1e9);
  tp_set_number(L, "end_offset", (double)exit->end);
  tp_set_number(L, "dropped", (double)exit->dropped);
  tp_set_number(L, "cpu_seconds", (double)exit->cpu / 1e9);
  tp_set_number(L, "memory", (double)exit->memory);
}

static int l_decode(lua_State *L) {
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  struct tp_init_reply reply;
  struct tp_error err;
  if (tp_init_decode_reply((const uint8_t *)bytes, length, &reply, &err) < 0)
    return tp_lua_fail(L, &err);

  lua_createtable(L, 0, 8);
  for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (kinds[i].type == reply.type)
      tp_set_string(L, "type", kinds[i].name);
  tp_set_number(L, "serial", reply.serial);
  switch (reply.type) {
  case TP_INIT_WELCOME:
    tp_set_number(L, "version", reply.welcome.version);
    tp_set_text(L, "nonce", (struct tp_bytes){reply.welcome.nonce, TP_INIT_NONCE});
    tp_set_number(L, "processes", reply.welcome.processes);
    break;
  case TP_INIT_FAILED:
    tp_set_string(L, "step",
                  reply.failed.step < sizeof steps / sizeof *steps ? steps[reply.failed.step]
                                                                  : "request");
    tp_set_string(L, "code", tp_error_name(reply.failed.code));
    tp_set_text(L, "message", reply.failed.message);
    break;
  case TP_INIT_STARTED:
    tp_set_number(L, "id", reply.started.id);
    tp_set_number(L, "pid", reply.started.pid);
    break;
  case TP_INIT_PROCESS: set_process(L, &reply.process); break;
  case TP_INIT_EXIT: set_exit(L, &reply.exit); break;
  }
  return 1;
}

/* The socket's file, held by O_PATH: found below the sandbox's root without a single symlink, since
 * whoever is root inside decides what is there. */
static int find_socket(lua_Integer pid, struct tp_error *err) {
  char root[40];
  snprintf(root, sizeof root, "/proc/%ld/root", (long)pid);
  TP_CLOSE int directory = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0)
    return tp_fail(err, errno, "open %s", root);
  struct {
    uint64_t flags, mode, resolve;
  } how = {O_PATH | O_CLOEXEC, 0, RESOLVE_NO_LINKS_IN_ROOT};
  int file = (int)syscall(SYS_openat2, directory, &TP_INIT_SOCKET[1], &how, sizeof how);
  return file < 0 ? tp_fail(err, errno, "open %s of process %ld", TP_INIT_SOCKET, (long)pid) : file;
}

/* core.init.connect(pid) -> channel | nil, message, code; pid: init's, as seen from here */
static int l_connect(lua_State *L) {
  struct tp_error err;
  lua_Integer pid = luaL_checkinteger(L, 1);
  struct tp_channel *channel = lua_newuserdata(L, sizeof *channel);
  *channel = (struct tp_channel){.fd = -1};
  luaL_getmetatable(L, "tidepool.Channel"); /* core.channel's */
  lua_setmetatable(L, -2);

  TP_CLOSE int file = find_socket(pid, &err);
  if (file < 0)
    return tp_lua_fail(L, &err);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  channel->fd = fd;
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d", file);
  if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
    tp_fail(&err, errno, "connect to init of process %ld", (long)pid);
    return tp_lua_fail(L, &err);
  }
  tp_channel_init(channel, fd);
  return 1;
}

int tp_open_init(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"encode", l_encode}, {"decode", l_decode}, {"connect", l_connect}, {NULL, NULL}};
  lua_newtable(L);
  luaL_register(L, NULL, functions);
  lua_pushinteger(L, TP_INIT_VERSION);
  lua_setfield(L, -2, "VERSION");
  return 1;
}

/* proxy.tls: whom to trust, and TLS ends without sockets, which Lua feeds. core/proxy/tls.h. */
#include "../../proxy/tls.h"

#include <string.h>
#include <time.h>

#include "../../proxy/trust.h"
#include "proxy.h"

#define TRUST_TYPE "tidepool.Trust"
#define END_TYPE "tidepool.TlsEnd"

static struct tp_tls_trust **new_trust(lua_State *L) {
  struct tp_tls_trust **trust = lua_newuserdata(L, sizeof *trust);
  *trust = NULL;
  luaL_getmetatable(L, TRUST_TYPE);
  lua_setmetatable(L, -2);
  return trust;
}

struct tp_tls_trust *tp_check_trust(lua_State *L, int index) {
  struct tp_tls_trust **trust = luaL_checkudata(L, index, TRUST_TYPE);
  return *trust;
}

static int l_trust_gc(lua_State *L) {
  struct tp_tls_trust **trust = luaL_checkudata(L, 1, TRUST_TYPE);
  tp_tls_trust_release(*trust);
  *trust = NULL;
  return 0;
}

/* proxy.tls.trust(pem) -> trust, count | nil, message, "EBADMSG" */
static int l_trust(lua_State *L) {
  size_t length;
  const char *pem = luaL_checklstring(L, 1, &length);
  struct tp_tls_trust **trust = new_trust(L);
  struct tp_error err;
  unsigned count;
  *trust = tp_trust_open(pem, length, &count, &err);
  if (!*trust)
    return tp_lua_fail(L, &err);
  lua_pushinteger(L, count);
  return 2;
}

static struct tp_tls **new_end(lua_State *L) {
  struct tp_tls **end = lua_newuserdata(L, sizeof *end);
  *end = NULL;
  luaL_getmetatable(L, END_TYPE);
  lua_setmetatable(L, -2);
  return end;
}

static struct tp_tls *check_end(lua_State *L) {
  struct tp_tls **end = luaL_checkudata(L, 1, END_TYPE);
  if (!*end)
    luaL_error(L, "TLS end is freed");
  return *end;
}

/* proxy.tls.server(identity) -> end | nil, message, code */
static int l_server(lua_State *L) {
  struct tp_tls_identity *identity = tp_check_identity(L, 1);
  struct tp_tls **end = new_end(L);
  struct tp_error err;
  *end = tp_tls_server(identity, &err);
  return *end ? 1 : tp_lua_fail(L, &err);
}

/* proxy.tls.client(trust, host) -> end | nil, message, code ("EINVAL": no host name) */
static int l_client(lua_State *L) {
  struct tp_tls_trust *trust = tp_check_trust(L, 1);
  const char *host = luaL_checkstring(L, 2);
  struct tp_tls **end = new_end(L);
  struct tp_error err;
  *end = tp_tls_client(trust, host, &err);
  return *end ? 1 : tp_lua_fail(L, &err);
}

/* end:free(); twice is harmless. */
static int l_free(lua_State *L) {
  struct tp_tls **end = luaL_checkudata(L, 1, END_TYPE);
  tp_tls_free(*end);
  *end = NULL;
  return 0;
}

typedef unsigned char *window(struct tp_tls *, size_t *);
typedef void acknowledge(struct tp_tls *, size_t);

/* Put the bytes of argument 2 into a window for as long as it takes some; push how many it took. */
static int fill(lua_State *L, window *open, acknowledge *used) {
  struct tp_tls *tls = check_end(L);
  size_t length, done = 0, room;
  const char *bytes = luaL_checklstring(L, 2, &length);
  while (done < length) {
    unsigned char *buffer = open(tls, &room);
    if (!buffer)
      break;
    size_t part = length - done < room ? length - done : room;
    memcpy(buffer, bytes + done, part);
    used(tls, part);
    done += part;
  }
  lua_pushinteger(L, (lua_Integer)done);
  return 1;
}

/* Push all that a window has. */
static int drain(lua_State *L, window *open, acknowledge *used) {
  struct tp_tls *tls = check_end(L);
  luaL_Buffer text;
  size_t length;
  luaL_buffinit(L, &text);
  for (unsigned char *bytes; (bytes = open(tls, &length)) && length;) {
    luaL_addlstring(&text, (char *)bytes, length);
    used(tls, length);
  }
  luaL_pushresult(&text);
  return 1;
}

/* end:feed(records) -> bytes taken: fewer when plaintext waits to be read, or the end is closed */
static int l_feed(lua_State *L) {
  return fill(L, tp_tls_records_in, tp_tls_records_in_ack);
}

/* end:take() -> records for the peer, "" when none waits */
static int l_take(lua_State *L) {
  return drain(L, tp_tls_records_out, tp_tls_records_out_ack);
}

/* end:read() -> plaintext, "" when none waits */
static int l_read(lua_State *L) {
  return drain(L, tp_tls_data_in, tp_tls_data_in_ack);
}

/* end:write(plaintext) -> bytes taken: fewer when records wait to be taken, or the end is closed */
static int l_write(lua_State *L) {
  fill(L, tp_tls_data_out, tp_tls_data_out_ack);
  tp_tls_flush(check_end(L));
  return 1;
}

/* end:close(): says close_notify; feed and take what follows until `closed`. */
static int l_close(lua_State *L) {
  tp_tls_close(check_end(L));
  return 0;
}

static void set_flag(lua_State *L, const char *name, bool value) {
  lua_pushboolean(L, value);
  lua_setfield(L, -2, name);
}

static void set_text(lua_State *L, const char *name, const char *value) {
  lua_pushstring(L, value);
  lua_setfield(L, -2, name);
}

/* end:state() -> { writable, readable, closed, resumed, alpn, suite } */
static int l_state(lua_State *L) {
  struct tp_tls *tls = check_end(L);
  unsigned state = tp_tls_state(tls);
  lua_createtable(L, 0, 6);
  set_flag(L, "writable", state & TP_TLS_TAKES_DATA);
  set_flag(L, "readable", state & TP_TLS_HAS_DATA);
  set_flag(L, "closed", state & TP_TLS_CLOSED);
  set_flag(L, "resumed", tp_tls_resumed(tls));
  set_text(L, "alpn", tp_tls_alpn(tls));
  set_text(L, "suite", tp_tls_suite(tls));
  return 1;
}

/* end:failure() -> true when nothing failed | nil, message, code */
static int l_failure(lua_State *L) {
  struct tp_error err;
  if (tp_tls_failure(check_end(L), &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, true);
  return 1;
}

/* The C library reads the time zone's file at its first look at a calendar, which verification
 * takes. By then the process may be unable to open files, so look now. */
static void read_time_zone(void) {
  time_t now = time(NULL);
  struct tm broken;
  gmtime_r(&now, &broken);
}

int tp_open_tls(lua_State *L) {
  static const luaL_Reg methods[] = {{"feed", l_feed},       {"take", l_take},   {"read", l_read},
                                     {"write", l_write},     {"close", l_close}, {"state", l_state},
                                     {"failure", l_failure}, {"free", l_free},   {NULL, NULL}};
  static const luaL_Reg functions[] = {
      {"trust", l_trust}, {"server", l_server}, {"client", l_client}, {NULL, NULL}};
  read_time_zone();
  tp_define_class(L, TRUST_TYPE, l_trust_gc, NULL);
  tp_define_class(L, END_TYPE, l_free, methods);
  return tp_push_functions(L, functions);
}

/* proxy.resolver: names to addresses, without blocking. Lua waits on resolver:number(). */
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../../proxy/resolver.h"
#include "proxy.h"

#define RESOLVER_TYPE "tidepool.Resolver"

static struct tp_resolver *check_resolver(lua_State *L) {
  struct tp_resolver **resolver = luaL_checkudata(L, 1, RESOLVER_TYPE);
  luaL_argcheck(L, *resolver, 1, "resolver is closed");
  return *resolver;
}

static double number_field(lua_State *L, const char *name, double otherwise) {
  lua_getfield(L, 1, name);
  double value = luaL_optnumber(L, -1, otherwise);
  lua_pop(L, 1);
  return value;
}

/* As libc does with resolv.conf and hosts, what is no address is passed over; but not all servers. */
static bool is_fatal(int outcome, const struct tp_error *err) {
  return outcome < 0 && err->code != EINVAL;
}

static int add_servers(lua_State *L, struct tp_resolver *resolver, struct tp_error *err) {
  int outcome = 0, added = 0;
  lua_getfield(L, 1, "servers");
  if (!lua_isnil(L, -1))
    luaL_checktype(L, -1, LUA_TTABLE);
  size_t count = lua_istable(L, -1) ? lua_objlen(L, -1) : 0;
  for (size_t i = 1; i <= count && !is_fatal(outcome, err); i++) {
    lua_rawgeti(L, -1, (int)i);
    outcome = tp_resolver_add_server(resolver, luaL_checkstring(L, -1), err);
    added += outcome == 0;
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return added ? (is_fatal(outcome, err) ? -1 : 0) : outcome;
}

/* The list of addresses on the top of the stack, of the name below it. */
static int add_host(lua_State *L, struct tp_resolver *resolver, struct tp_error *err) {
  luaL_argcheck(L, lua_type(L, -2) == LUA_TSTRING && lua_istable(L, -1), 1,
                "hosts must map names to lists of addresses");
  const char *name = lua_tostring(L, -2);
  int outcome = 0;
  for (size_t i = 1; i <= lua_objlen(L, -1) && !is_fatal(outcome, err); i++) {
    lua_rawgeti(L, -1, (int)i);
    outcome = tp_resolver_add_host(resolver, name, luaL_checkstring(L, -1), err);
    lua_pop(L, 1);
  }
  return is_fatal(outcome, err) ? -1 : 0;
}

static int add_hosts(lua_State *L, struct tp_resolver *resolver, struct tp_error *err) {
  int outcome = 0;
  lua_getfield(L, 1, "hosts");
  if (!lua_isnil(L, -1))
    luaL_checktype(L, -1, LUA_TTABLE);
  lua_pushnil(L);
  while (outcome == 0 && lua_istable(L, -2) && lua_next(L, -2)) {
    outcome = add_host(L, resolver, err);
    lua_pop(L, 1);
  }
  return outcome;
}

/* proxy.resolver.new{ servers, hosts, timeout, tries } -> resolver | nil, message, code */
static int l_new(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  double timeout = number_field(L, "timeout", 2), tries = number_field(L, "tries", 3);
  luaL_argcheck(L, timeout > 0 && timeout <= 60, 1, "timeout must be 0 to 60 seconds");
  luaL_argcheck(L, tries >= 1 && tries <= 10, 1, "tries must be 1 to 10");
  struct tp_resolver **resolver = lua_newuserdata(L, sizeof *resolver);
  *resolver = NULL;
  luaL_getmetatable(L, RESOLVER_TYPE);
  lua_setmetatable(L, -2);
  struct tp_error err;
  int millis = timeout * 1000 < 1 ? 1 : (int)(timeout * 1000);
  *resolver = tp_resolver_new(millis, (int)tries, &err);
  if (!*resolver || add_servers(L, *resolver, &err) < 0 || add_hosts(L, *resolver, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_settop(L, 2);
  return 1;
}

/* resolver:number() -> integer */
static int l_number(lua_State *L) {
  lua_pushinteger(L, tp_resolver_number(check_resolver(L)));
  return 1;
}

/* resolver:timeout() -> seconds until run is due even if number() isn't readable, or nil */
static int l_timeout(lua_State *L) {
  int millis = tp_resolver_timeout(check_resolver(L));
  if (millis < 0)
    return 0;
  lua_pushnumber(L, millis / 1000.0);
  return 1;
}

/* resolver:query(name) -> id | nil, message, code */
static int l_query(lua_State *L) {
  struct tp_resolver *resolver = check_resolver(L);
  size_t length;
  const char *name = luaL_checklstring(L, 2, &length);
  struct tp_error err;
  uint32_t id;
  /* An embedded zero would cut the name. */
  if (lua_objlen(L, 2) != strlen(name))
    name = "";
  if (tp_resolver_query(resolver, name, &id, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushnumber(L, id);
  return 1;
}

static void push_address(lua_State *L, const struct tp_address *address) {
  char text[INET6_ADDRSTRLEN];
  inet_ntop(address->family, address->bytes, text, sizeof text);
  lua_pushstring(L, text);
}

/* One { id, { addresses }, ttl } or { id, nil, message, code }. */
static void push_answer(lua_State *L, const struct tp_resolver_answer *answer) {
  lua_createtable(L, 4, 0);
  lua_pushnumber(L, answer->id);
  lua_rawseti(L, -2, 1);
  if (answer->error.code) {
    lua_pushstring(L, answer->error.message);
    lua_rawseti(L, -2, 3);
    lua_pushstring(L, tp_error_name(answer->error.code));
    lua_rawseti(L, -2, 4);
    return;
  }
  lua_createtable(L, (int)answer->count, 0);
  for (unsigned i = 0; i < answer->count; i++) {
    push_address(L, &answer->addresses[i]);
    lua_rawseti(L, -2, (int)i + 1);
  }
  lua_rawseti(L, -2, 2);
  lua_pushinteger(L, answer->ttl);
  lua_rawseti(L, -2, 3);
}

/* resolver:run() -> { { id, { addresses }, ttl } or { id, nil, message, code }, ... } */
static int l_run(lua_State *L) {
  struct tp_resolver_answer *list = tp_resolver_run(check_resolver(L));
  lua_newtable(L);
  for (int i = 1; list; i++) {
    struct tp_resolver_answer *answer = list;
    list = answer->next;
    push_answer(L, answer);
    free(answer);
    lua_rawseti(L, -2, i);
  }
  return 1;
}

/* resolver:close(); what runs is given up. Closing twice is harmless. */
static int l_close(lua_State *L) {
  struct tp_resolver **resolver = luaL_checkudata(L, 1, RESOLVER_TYPE);
  tp_resolver_free(*resolver);
  *resolver = NULL;
  return 0;
}

/* proxy.resolver.classify(address) -> kind | nil, message, code */
static int l_classify(lua_State *L) {
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  struct tp_address address;
  if (strlen(text) != length || tp_address_parse(text, &address) < 0) {
    struct tp_error err;
    tp_fail(&err, EINVAL, "not an address");
    return tp_lua_fail(L, &err);
  }
  lua_pushstring(L, tp_address_kind(&address));
  return 1;
}

int tp_open_resolver(lua_State *L) {
  static const luaL_Reg methods[] = {{"number", l_number}, {"timeout", l_timeout},
                                     {"query", l_query},   {"run", l_run},
                                     {"close", l_close},   {NULL, NULL}};
  static const luaL_Reg functions[] = {{"new", l_new}, {"classify", l_classify}, {NULL, NULL}};
  tp_define_class(L, RESOLVER_TYPE, l_close, methods);
  return tp_push_functions(L, functions);
}

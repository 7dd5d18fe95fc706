/* proxy.dns: queries of a sandbox, and the answers to them. */
#include "../../proxy/dns.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "proxy.h"

enum { RECORDS = 32, NEGATIVE_TTL = 5 /* seconds: policies change while it runs */ };

static const struct {
  unsigned number;
  const char *name;
} types[] = {{1, "A"},      {2, "NS"},    {5, "CNAME"},  {6, "SOA"},   {12, "PTR"},  {13, "HINFO"},
             {15, "MX"},    {16, "TXT"},  {28, "AAAA"},  {33, "SRV"},  {35, "NAPTR"}, {43, "DS"},
             {48, "DNSKEY"}, {64, "SVCB"}, {65, "HTTPS"}, {251, "IXFR"}, {252, "AXFR"}, {255, "ANY"},
             {257, "CAA"}};

static const struct {
  int number;
  const char *name;
} rcodes[] = {{TP_DNS_NOERROR, "NOERROR"},   {TP_DNS_FORMERR, "FORMERR"},
              {TP_DNS_SERVFAIL, "SERVFAIL"}, {TP_DNS_NXDOMAIN, "NXDOMAIN"},
              {TP_DNS_NOTIMP, "NOTIMP"},     {TP_DNS_REFUSED, "REFUSED"},
              {TP_DNS_BADVERS, "BADVERS"}};

static void push_type(lua_State *L, unsigned type) {
  char text[16];
  snprintf(text, sizeof text, "TYPE%u", type);
  const char *name = text;
  for (unsigned i = 0; i < sizeof types / sizeof *types; i++)
    if (types[i].number == type)
      name = types[i].name;
  lua_pushstring(L, name);
}

static void push_class(lua_State *L, unsigned class) {
  if (class == 1)
    lua_pushliteral(L, "IN");
  else
    lua_pushfstring(L, "CLASS%d", (int)class);
}

static void set_number(lua_State *L, const char *name, unsigned value) {
  lua_pushinteger(L, (lua_Integer)value);
  lua_setfield(L, -2, name);
}

/* proxy.dns.parse(bytes) -> { id, opcode, name, type, class, rd, edns_size, rcode } | nil, message, code */
static int l_parse(lua_State *L) {
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  struct tp_dns_query query;
  struct tp_error err;
  if (tp_dns_parse((const uint8_t *)bytes, length, &query, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_createtable(L, 0, 8);
  set_number(L, "id", query.id);
  set_number(L, "opcode", query.opcode);
  lua_pushboolean(L, query.recursion);
  lua_setfield(L, -2, "rd");
  if (query.edns)
    set_number(L, "edns_size", query.edns_size);
  for (unsigned i = 1; i < sizeof rcodes / sizeof *rcodes; i++)
    if (rcodes[i].number == query.rcode) {
      lua_pushstring(L, rcodes[i].name);
      lua_setfield(L, -2, "rcode");
    }
  if (query.question_end) {
    lua_pushstring(L, query.name);
    lua_setfield(L, -2, "name");
    push_type(L, query.type);
    lua_setfield(L, -2, "type");
    push_class(L, query.class);
    lua_setfield(L, -2, "class");
  }
  return 1;
}

static const char *text_in(lua_State *L, int table, const char *name) {
  lua_getfield(L, table, name);
  if (lua_type(L, -1) != LUA_TSTRING)
    luaL_error(L, "%s is not a string", name);
  const char *text = lua_tostring(L, -1);
  lua_pop(L, 1); /* the table keeps it */
  return text;
}

static int check_rcode(lua_State *L, int reply) {
  const char *name = text_in(L, reply, "rcode");
  for (unsigned i = 0; i < sizeof rcodes / sizeof *rcodes; i++)
    if (strcmp(rcodes[i].name, name) == 0)
      return rcodes[i].number;
  return luaL_error(L, "unknown rcode %s", name);
}

static uint32_t seconds_in(lua_State *L, int table, const char *name, uint32_t otherwise) {
  lua_getfield(L, table, name);
  lua_Number value = luaL_optnumber(L, -1, otherwise);
  luaL_argcheck(L, value >= 0 && value <= INT32_MAX, table, "seconds out of range");
  lua_pop(L, 1);
  return (uint32_t)value;
}

static void check_address(lua_State *L, int family, size_t length, struct tp_dns_record *record) {
  if (inet_pton(family, text_in(L, -1, "address"), record->data) != 1)
    luaL_error(L, "a record's address is none of its type");
  record->length = length;
}

static void check_record(lua_State *L, struct tp_dns_record *record) {
  luaL_checktype(L, -1, LUA_TTABLE);
  const char *type = text_in(L, -1, "type");
  record->ttl = seconds_in(L, lua_gettop(L), "ttl", 0);
  if (strcmp(type, "A") == 0) {
    record->type = TP_DNS_A;
    check_address(L, AF_INET, 4, record);
  } else if (strcmp(type, "AAAA") == 0) {
    record->type = TP_DNS_AAAA;
    check_address(L, AF_INET6, 16, record);
  } else if (strcmp(type, "PTR") == 0) {
    struct tp_error err;
    record->type = TP_DNS_PTR;
    ssize_t length = tp_dns_name(text_in(L, -1, "name"), record->data, &err);
    if (length < 0)
      luaL_error(L, "a record's name is no host name");
    record->length = (size_t)length;
  } else {
    luaL_error(L, "a record of type %s can't be written", type);
  }
}

static unsigned check_records(lua_State *L, int reply, struct tp_dns_record *records) {
  lua_getfield(L, reply, "records");
  unsigned count = lua_isnoneornil(L, -1) ? 0 : (unsigned)lua_objlen(L, -1);
  luaL_argcheck(L, count <= RECORDS, reply, "too many records");
  for (unsigned i = 0; i < count; i++) {
    lua_rawgeti(L, -1, (int)i + 1);
    check_record(L, &records[i]);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return count;
}

/* proxy.dns.answer(query_bytes, { rcode, records, soa, negative_ttl }, max_bytes) -> bytes
 * | nil, message, code */
static int l_answer(lua_State *L) {
  size_t length;
  const char *query = luaL_checklstring(L, 1, &length);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_Integer most = luaL_checkinteger(L, 3);
  luaL_argcheck(L, most > 0, 3, "no room");
  struct tp_dns_record records[RECORDS];
  struct tp_dns_reply reply = {.rcode = check_rcode(L, 2), .records = records};
  reply.count = check_records(L, 2, records);
  reply.negative_ttl = seconds_in(L, 2, "negative_ttl", NEGATIVE_TTL);
  lua_getfield(L, 2, "soa");
  reply.soa = lua_toboolean(L, -1);
  size_t room = 512 + reply.count * sizeof *records; /* more than it can ever need */
  if (room > (size_t)most)
    room = (size_t)most;
  uint8_t *out = lua_newuserdata(L, room);
  struct tp_error err;
  ssize_t used = tp_dns_answer((const uint8_t *)query, length, &reply, out, room, &err);
  if (used < 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, (const char *)out, (size_t)used);
  return 1;
}

int tp_open_dns(lua_State *L) {
  static const luaL_Reg functions[] = {{"parse", l_parse}, {"answer", l_answer}, {NULL, NULL}};
  return tp_push_functions(L, functions);
}

/* proxy.ca: a sandbox's certificate authority and the identities that it signs. core/proxy/ca.h. */
#include "../../proxy/ca.h"

#include <string.h>

#include "../../proxy/tls_parts.h"
#include "proxy.h"

#define CA_TYPE "tidepool.Ca"
#define IDENTITY_TYPE "tidepool.Identity"

/* proxy.ca.generate(common_name) -> certificate as PEM, key as DER | nil, message, code */
static int l_generate(lua_State *L) {
  struct tp_ca_material material;
  struct tp_error err;
  if (tp_ca_generate(luaL_checkstring(L, 1), &material, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushstring(L, material.certificate);
  lua_pushlstring(L, (const char *)material.key, material.key_length);
  explicit_bzero(&material, sizeof material);
  return 2;
}

/* proxy.ca.open(pem, der) -> ca | nil, message, code ("EBADMSG", "EKEYREJECTED") */
static int l_open(lua_State *L) {
  size_t pem_length, key_length;
  const char *pem = luaL_checklstring(L, 1, &pem_length);
  const char *key = luaL_checklstring(L, 2, &key_length);
  struct tp_ca **ca = lua_newuserdata(L, sizeof *ca);
  struct tp_error err;
  *ca = NULL;
  luaL_getmetatable(L, CA_TYPE);
  lua_setmetatable(L, -2);
  *ca = tp_ca_open(pem, pem_length, (const unsigned char *)key, key_length, &err);
  return *ca ? 1 : tp_lua_fail(L, &err);
}

static int l_ca_gc(lua_State *L) {
  struct tp_ca **ca = luaL_checkudata(L, 1, CA_TYPE);
  tp_ca_release(*ca);
  *ca = NULL;
  return 0;
}

/* ca:identity(host) -> identity | nil, message, code ("EINVAL": no host name) */
static int l_identity(lua_State *L) {
  struct tp_ca **ca = luaL_checkudata(L, 1, CA_TYPE);
  const char *host = luaL_checkstring(L, 2);
  struct tp_tls_identity **identity = lua_newuserdata(L, sizeof *identity);
  struct tp_error err;
  *identity = NULL;
  luaL_getmetatable(L, IDENTITY_TYPE);
  lua_setmetatable(L, -2);
  *identity = tp_ca_identity(*ca, host, &err);
  return *identity ? 1 : tp_lua_fail(L, &err);
}

struct tp_tls_identity *tp_check_identity(lua_State *L, int index) {
  struct tp_tls_identity **identity = luaL_checkudata(L, index, IDENTITY_TYPE);
  return *identity;
}

static int l_identity_gc(lua_State *L) {
  struct tp_tls_identity **identity = luaL_checkudata(L, 1, IDENTITY_TYPE);
  tp_tls_identity_release(*identity);
  *identity = NULL;
  return 0;
}

/* identity:expires() -> seconds since 1970 */
static int l_expires(lua_State *L) {
  lua_pushnumber(L, (lua_Number)tp_ca_identity_expires(tp_check_identity(L, 1)));
  return 1;
}

/* identity:certificate() -> the leaf as DER */
static int l_certificate(lua_State *L) {
  const struct tp_tls_identity *identity = tp_check_identity(L, 1);
  lua_pushlstring(L, (const char *)identity->chain[0].data, identity->chain[0].data_len);
  return 1;
}

int tp_open_ca(lua_State *L) {
  static const luaL_Reg ca_methods[] = {{"identity", l_identity}, {NULL, NULL}};
  static const luaL_Reg identity_methods[] = {
      {"expires", l_expires}, {"certificate", l_certificate}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"generate", l_generate}, {"open", l_open}, {NULL, NULL}};
  tp_define_class(L, CA_TYPE, l_ca_gc, ca_methods);
  tp_define_class(L, IDENTITY_TYPE, l_identity_gc, identity_methods);
  return tp_push_functions(L, functions);
}

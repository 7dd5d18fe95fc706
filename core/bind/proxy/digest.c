/* proxy.digest: hashes, encodings, randomness and sealing. All bytes are strings. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "../../proxy/digest.h"
#include "../../scope.h"
#include "proxy.h"

#define RANDOM_LIMIT 4096u

/* Room that the collector frees: an error on the way leaks nothing. */
static void *new_room(lua_State *L, size_t size) {
  return lua_newuserdata(L, size ? size : 1);
}

/* proxy.digest.sha256(bytes) -> 32 bytes */
static int l_sha256(lua_State *L) {
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  unsigned char out[TP_DIGEST_SHA256];
  struct tp_error err;
  if (tp_digest_sha256(bytes, length, out, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, (const char *)out, sizeof out);
  return 1;
}

/* proxy.digest.hmac_sha256(key, bytes) -> 32 bytes */
static int l_hmac(lua_State *L) {
  size_t key_length, length;
  const char *key = luaL_checklstring(L, 1, &key_length);
  const char *bytes = luaL_checklstring(L, 2, &length);
  unsigned char out[TP_DIGEST_SHA256];
  struct tp_error err;
  if (tp_digest_hmac(key, key_length, bytes, length, out, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, (const char *)out, sizeof out);
  return 1;
}

/* proxy.digest.hex(bytes) -> lower-case hex */
static int l_hex(lua_State *L) {
  static const char digits[] = "0123456789abcdef";
  size_t length;
  const unsigned char *bytes = (const unsigned char *)luaL_checklstring(L, 1, &length);
  char *out = new_room(L, length * 2);
  for (size_t i = 0; i < length; i++) {
    out[2 * i] = digits[bytes[i] >> 4];
    out[2 * i + 1] = digits[bytes[i] & 15];
  }
  lua_pushlstring(L, out, length * 2);
  return 1;
}

static int encode(lua_State *L, bool url) {
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  char *out = new_room(L, tp_base64_room(length));
  lua_pushlstring(L, out, tp_base64_encode(bytes, length, url, out));
  return 1;
}

static int decode(lua_State *L, bool url) {
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  unsigned char *out = new_room(L, length);
  long decoded = tp_base64_decode(text, length, url, out);
  if (decoded < 0)
    return 0;
  lua_pushlstring(L, (const char *)out, (size_t)decoded);
  return 1;
}

/* proxy.digest.base64(bytes) -> text */
static int l_base64(lua_State *L) {
  return encode(L, false);
}

/* proxy.digest.unbase64(text) -> bytes | nothing */
static int l_unbase64(lua_State *L) {
  return decode(L, false);
}

/* proxy.digest.base64url(bytes) -> text without padding */
static int l_base64url(lua_State *L) {
  return encode(L, true);
}

/* proxy.digest.unbase64url(text) -> bytes | nothing */
static int l_unbase64url(lua_State *L) {
  return decode(L, true);
}

/* proxy.digest.random(count) -> bytes of the kernel's | nil, message, code */
static int l_random(lua_State *L) {
  lua_Integer count = luaL_checkinteger(L, 1);
  luaL_argcheck(L, count >= 0 && count <= (lua_Integer)RANDOM_LIMIT, 1, "0 to 4096");
  unsigned char bytes[RANDOM_LIMIT];
  for (ssize_t done = 0; done < count;) {
    ssize_t got = getrandom(bytes + done, (size_t)(count - done), 0);
    if (got < 0 && errno != EINTR)
      return tp_lua_fail_errno(L, "get random bytes");
    done += got > 0 ? got : 0;
  }
  lua_pushlstring(L, (const char *)bytes, (size_t)count);
  return 1;
}

/* proxy.digest.equal(a, b) -> boolean, in a time that doesn't tell where they differ */
static int l_equal(lua_State *L) {
  size_t one_length, other_length;
  const volatile unsigned char *one = (const unsigned char *)luaL_checklstring(L, 1, &one_length);
  const volatile unsigned char *other =
      (const unsigned char *)luaL_checklstring(L, 2, &other_length);
  unsigned char different = one_length != other_length;
  for (size_t i = 0; i < one_length && one_length == other_length; i++)
    different |= one[i] ^ other[i];
  lua_pushboolean(L, !different);
  return 1;
}

static const unsigned char *check_key(lua_State *L) {
  size_t length;
  const char *key = luaL_checklstring(L, 1, &length);
  luaL_argcheck(L, length == TP_SEAL_KEY, 1, "a key has 32 bytes");
  return (const unsigned char *)key;
}

/* proxy.digest.seal(key, bytes, context) -> sealed | nil, message, code */
static int l_seal(lua_State *L) {
  const unsigned char *key = check_key(L);
  size_t length, context_length;
  const char *bytes = luaL_checklstring(L, 2, &length);
  const char *context = luaL_checklstring(L, 3, &context_length);
  unsigned char *out = new_room(L, length + TP_SEAL_OVERHEAD);
  struct tp_error err;
  if (tp_seal(key, bytes, length, context, context_length, out, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, (const char *)out, length + TP_SEAL_OVERHEAD);
  return 1;
}

/* proxy.digest.unseal(key, sealed, context) -> bytes | nil, message, code ("EBADMSG") */
static int l_unseal(lua_State *L) {
  const unsigned char *key = check_key(L);
  size_t length, context_length;
  const char *sealed = luaL_checklstring(L, 2, &length);
  const char *context = luaL_checklstring(L, 3, &context_length);
  size_t room = length > TP_SEAL_OVERHEAD ? length - TP_SEAL_OVERHEAD : 0;
  unsigned char *out = new_room(L, room);
  struct tp_error err;
  if (tp_unseal(key, sealed, length, context, context_length, out, &err) < 0)
    return tp_lua_fail(L, &err);
  lua_pushlstring(L, (const char *)out, room);
  explicit_bzero(out, room);
  return 1;
}

int tp_open_digest(lua_State *L) {
  static const luaL_Reg functions[] = {{"sha256", l_sha256},
                                       {"hmac_sha256", l_hmac},
                                       {"hex", l_hex},
                                       {"base64", l_base64},
                                       {"unbase64", l_unbase64},
                                       {"base64url", l_base64url},
                                       {"unbase64url", l_unbase64url},
                                       {"random", l_random},
                                       {"equal", l_equal},
                                       {"seal", l_seal},
                                       {"unseal", l_unseal},
                                       {NULL, NULL}};
  return tp_push_functions(L, functions);
}

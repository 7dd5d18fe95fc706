/* Hashes, encodings and sealing: see digest.h. */
#include "digest.h"

#include <errno.h>
#include <mbedtls/gcm.h>
#include <mbedtls/md.h>
#include <mbedtls/sha256.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "../scope.h"

#define VERSION "TPS1" /* AES-256-GCM; 12 bytes of nonce, 16 of tag */
#define VERSION_LENGTH 4u
#define NONCE 12u
#define TAG 16u

int tp_digest_sha256(const void *bytes, size_t length, unsigned char out[TP_DIGEST_SHA256],
                     struct tp_error *err) {
  if (mbedtls_sha256_ret(bytes, length, out, 0) != 0)
    return tp_fail(err, EIO, "sha256");
  return 0;
}

int tp_digest_hmac(const void *key, size_t key_length, const void *bytes, size_t length,
                   unsigned char out[TP_DIGEST_SHA256], struct tp_error *err) {
  const mbedtls_md_info_t *info = mbedtls_md_info_from_type(MBEDTLS_MD_SHA256);
  if (!info || mbedtls_md_hmac(info, key, key_length, bytes, length, out) != 0)
    return tp_fail(err, EIO, "hmac");
  return 0;
}

static const char alphabets[2][65] = {
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
};

size_t tp_base64_room(size_t length) {
  return (length + 2) / 3 * 4;
}

size_t tp_base64_encode(const void *bytes, size_t length, bool url, char *out) {
  const unsigned char *in = bytes;
  const char *alphabet = alphabets[url];
  char *start = out;
  for (size_t at = 0; at < length; at += 3) {
    size_t left = length - at;
    uint32_t word = (uint32_t)in[at] << 16 | (left > 1 ? (uint32_t)in[at + 1] << 8 : 0) |
                    (left > 2 ? in[at + 2] : 0);
    *out++ = alphabet[word >> 18];
    *out++ = alphabet[word >> 12 & 63];
    if (left > 1)
      *out++ = alphabet[word >> 6 & 63];
    else if (!url)
      *out++ = '=';
    if (left > 2)
      *out++ = alphabet[word & 63];
    else if (!url)
      *out++ = '=';
  }
  return (size_t)(out - start);
}

static int digit_value(char c, bool url) {
  if (c >= 'A' && c <= 'Z')
    return c - 'A';
  if (c >= 'a' && c <= 'z')
    return c - 'a' + 26;
  if (c >= '0' && c <= '9')
    return c - '0' + 52;
  if (c == (url ? '-' : '+'))
    return 62;
  return c == (url ? '_' : '/') ? 63 : -1;
}

long tp_base64_decode(const char *text, size_t length, bool url, unsigned char *out) {
  if (length % 4 == 1 || (!url && length % 4))
    return -1;
  if (length % 4 == 0)
    for (int i = 0; i < 2 && length && text[length - 1] == '='; i++)
      length--;
  if (length % 4 == 1)
    return -1;
  unsigned char *start = out;
  uint32_t word = 0;
  unsigned bits = 0;
  for (size_t at = 0; at < length; at++) {
    int value = digit_value(text[at], url);
    if (value < 0)
      return -1;
    word = word << 6 | (uint32_t)value;
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      *out++ = (unsigned char)(word >> bits);
    }
  }
  return word & ((1u << bits) - 1) ? -1 : (long)(out - start);
}

/* The version and the context are authenticated as one. */
static int authenticated(const void *context, size_t length, unsigned char **bytes,
                         struct tp_error *err) {
  *bytes = malloc(VERSION_LENGTH + length);
  if (!*bytes)
    return tp_fail(err, ENOMEM, "seal");
  memcpy(*bytes, VERSION, VERSION_LENGTH);
  if (length)
    memcpy(*bytes + VERSION_LENGTH, context, length);
  return 0;
}

int tp_seal(const unsigned char key[TP_SEAL_KEY], const void *bytes, size_t length,
            const void *context, size_t context_length, unsigned char *out,
            struct tp_error *err) {
  TP_FREE unsigned char *extra = NULL;
  if (authenticated(context, context_length, &extra, err) < 0)
    return -1;
  unsigned char *nonce = out + VERSION_LENGTH, *tag = nonce + NONCE;
  memcpy(out, VERSION, VERSION_LENGTH);
  if (getrandom(nonce, NONCE, 0) != NONCE)
    return tp_fail(err, errno, "make nonce");

  mbedtls_gcm_context gcm;
  mbedtls_gcm_init(&gcm);
  int outcome = mbedtls_gcm_setkey(&gcm, MBEDTLS_CIPHER_ID_AES, key, TP_SEAL_KEY * 8);
  if (outcome == 0)
    outcome = mbedtls_gcm_crypt_and_tag(&gcm, MBEDTLS_GCM_ENCRYPT, length, nonce, NONCE, extra,
                                        VERSION_LENGTH + context_length, bytes, tag + TAG, TAG,
                                        tag);
  mbedtls_gcm_free(&gcm);
  return outcome == 0 ? 0 : tp_fail(err, EIO, "seal");
}

int tp_unseal(const unsigned char key[TP_SEAL_KEY], const void *sealed, size_t length,
              const void *context, size_t context_length, unsigned char *out,
              struct tp_error *err) {
  const unsigned char *in = sealed, *nonce = in + VERSION_LENGTH, *tag = nonce + NONCE;
  if (length < TP_SEAL_OVERHEAD || memcmp(in, VERSION, VERSION_LENGTH) != 0)
    return tp_fail(err, EBADMSG, "these are no sealed bytes of ours");
  TP_FREE unsigned char *extra = NULL;
  if (authenticated(context, context_length, &extra, err) < 0)
    return -1;

  mbedtls_gcm_context gcm;
  mbedtls_gcm_init(&gcm);
  int outcome = mbedtls_gcm_setkey(&gcm, MBEDTLS_CIPHER_ID_AES, key, TP_SEAL_KEY * 8);
  if (outcome == 0)
    outcome = mbedtls_gcm_auth_decrypt(&gcm, length - TP_SEAL_OVERHEAD, nonce, NONCE, extra,
                                       VERSION_LENGTH + context_length, tag, TAG, tag + TAG, out);
  mbedtls_gcm_free(&gcm);
  if (outcome == MBEDTLS_ERR_GCM_AUTH_FAILED)
    return tp_fail(err, EBADMSG, "sealed bytes were changed, or the key is another one");
  return outcome == 0 ? 0 : tp_fail(err, EIO, "unseal");
}

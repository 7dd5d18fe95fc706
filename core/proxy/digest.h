/* Hashes, encodings and sealing, by mbedTLS.
 *
 * Used by policies in the egress process (signatures, tokens) and by the server for the secrets that it
 * keeps on disk. */
#ifndef TP_DIGEST_H
#define TP_DIGEST_H

#include <stdbool.h>
#include <stddef.h>

#include "../error.h"

#define TP_DIGEST_SHA256 32u
#define TP_SEAL_KEY 32u
#define TP_SEAL_OVERHEAD 32u /* version, nonce, tag */

int tp_digest_sha256(const void *bytes, size_t length, unsigned char out[TP_DIGEST_SHA256],
                     struct tp_error *err);
int tp_digest_hmac(const void *key, size_t key_length, const void *bytes, size_t length,
                   unsigned char out[TP_DIGEST_SHA256], struct tp_error *err);

/* Room for the base64 of `length` bytes. */
size_t tp_base64_room(size_t length);
/* Returns the length written. `url`: the alphabet of URLs, unpadded. */
size_t tp_base64_encode(const void *bytes, size_t length, bool url, char *out);
/* Only what encode would write (so that one text has one reading), except that padding is optional
 * with `url`. The length written, at most 3/4 of `length`, or -1. */
long tp_base64_decode(const char *text, size_t length, bool url, unsigned char *out);

/* Seal with AES-256-GCM under a random nonce. `context` says what the bytes are; opening asks for the
 * same. out has room for length + TP_SEAL_OVERHEAD. */
int tp_seal(const unsigned char key[TP_SEAL_KEY], const void *bytes, size_t length,
            const void *context, size_t context_length, unsigned char *out, struct tp_error *err);
/* out has room for length - TP_SEAL_OVERHEAD, the result's length. EBADMSG when it is not what was
 * sealed with this key and context. */
int tp_unseal(const unsigned char key[TP_SEAL_KEY], const void *sealed, size_t length,
              const void *context, size_t context_length, unsigned char *out,
              struct tp_error *err);

#endif

/* What a TLS client says before anything is encrypted: whom it wants and what it can do. Read in the
 * egress process, of bytes from a sandbox, before it is decided whether to intercept, to pass on or
 * to refuse. No input or output here. */
#ifndef TP_PROXY_HELLO_H
#define TP_PROXY_HELLO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

enum {
  TP_HELLO_LIMIT = 64 * 1024, /* bytes of records; hellos with post-quantum keys have about 2 KiB */
  TP_HELLO_NAME = 253
};

struct tp_hello {
  char sni[TP_HELLO_NAME + 1]; /* lower case, "" when the client names nobody */
  uint16_t version;            /* of the hello itself; 0x0303 also when TLS 1.3 is meant */
  bool has_tls12;              /* TLS 1.2 is among the versions that the client accepts */
  bool ech;                    /* an encrypted hello is inside, so sni may be an outer name */
  unsigned session_id_length;
  /* Views into `message`: protocol names behind their lengths, and big-endian numbers; either empty
   * when the client sent no such extension. */
  const uint8_t *alpn, *versions;
  size_t alpn_length, versions_length;
  uint8_t *message; /* owned; see tp_hello_free */
};

/* 1: complete, free `hello` later; 0: more bytes are needed; -1: EBADMSG, this is no hello of TLS 1.0
 * to 1.3 or a malformed one, the message says why; ENOMEM. `bytes` is all since the connection's
 * start; what follows the hello's last record is left alone. */
int tp_hello_parse(const uint8_t *bytes, size_t length, struct tp_hello *hello,
                   struct tp_error *err);
void tp_hello_free(struct tp_hello *hello);

#endif

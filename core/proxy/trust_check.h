/* One handshake's check of a chain, as trust_chain.c, which collects, and trust_verify.c, which
 * judges, share it. */
#ifndef TP_PROXY_TRUST_CHECK_H
#define TP_PROXY_TRUST_CHECK_H

#include "trust.h"

enum {
  CHAIN_MAX = 16,
  CHAIN_BYTES = 64 << 10,
  KEY_BYTES = 512 + 8,
};

struct tp_trust_check {
  const br_x509_class *vtable;
  struct tp_tls_trust *trust;
  char *host;

  unsigned char *bytes; /* the certificates, one after another */
  size_t used;
  size_t lengths[CHAIN_MAX];
  unsigned count;
  bool oversized;

  mbedtls_x509_crt parsed[CHAIN_MAX];
  unsigned parsed_count;

  br_x509_pkey key;
  unsigned char key_bytes[KEY_BYTES];
  int64_t until;
  struct tp_error failure; /* code 0: none */
};

/* Judge the parsed chain, leaf first, the rest in any order: 0 and `until`, or -1 and why. */
int tp_trust_check_verify(struct tp_trust_check *, struct tp_error *err);

#endif

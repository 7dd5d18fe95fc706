/* What tls.c and ca.c share: a server's identity, made by ca.c, presented by tls.c. */
#ifndef TP_PROXY_TLS_PARTS_H
#define TP_PROXY_TLS_PARTS_H

#include <bearssl.h>

#include "ca.h"
#include "tls.h"

struct tp_tls_identity {
  unsigned references;
  struct tp_ca *ca; /* retained: it owns what the pointers below lead to, but for the leaf */
  br_x509_certificate chain[2];
  const br_ec_private_key *key;
  const br_ssl_session_cache_class **sessions;
  int64_t expires;
  unsigned char leaf[];
};

#endif

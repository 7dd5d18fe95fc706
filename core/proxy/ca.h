/* The certificate authority of one sandbox: made in process, it signs a certificate a host, so that
 * the proxy can stand in for every server that the sandbox talks to.
 *
 * In the egress process, which alone holds the CA's key while it serves; only the certificate
 * enters the sandbox. All keys are P-256. Every leaf has the same key, made when the CA is opened
 * and never written down. The certificates keep to what the strictest clients ask for (python's
 * VERIFY_X509_STRICT, go, node, gnutls): key identifiers, critical basicConstraints and keyUsage,
 * subjectAltName, extendedKeyUsage. They start in the past, for clocks that are behind. */
#ifndef TP_PROXY_CA_H
#define TP_PROXY_CA_H

#include <stddef.h>
#include <stdint.h>

#include "tls.h"

struct tp_ca;

struct tp_ca_material {
  char certificate[2048]; /* PEM */
  unsigned char key[256]; /* DER, SEC 1 */
  size_t key_length;
};

/* A new CA of ten years. The name, 1 to 64 bytes of UTF-8, is what certificate lists show: EINVAL
 * for another length. */
int tp_ca_generate(const char *common_name, struct tp_ca_material *, struct tp_error *err);

/* EBADMSG: the certificate or the key can't be read, EKEYREJECTED: they do not belong together, or
 * are no P-256 CA. */
struct tp_ca *tp_ca_open(const char *pem, size_t pem_length, const unsigned char *key,
                         size_t key_length, struct tp_error *err);
struct tp_ca *tp_ca_retain(struct tp_ca *);
void tp_ca_release(struct tp_ca *);

/* A certificate of 30 days for a DNS name or an address, EINVAL for anything else; it takes a
 * millisecond or two, so the caller caches it. Holds the CA. */
struct tp_tls_identity *tp_ca_identity(struct tp_ca *, const char *host, struct tp_error *err);
/* When the certificate ends, in seconds since 1970: present another well before. */
int64_t tp_ca_identity_expires(const struct tp_tls_identity *);

#endif

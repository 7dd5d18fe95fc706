/* Writing one certificate, a CA's own or a leaf's: ca.c's hands. */
#ifndef TP_PROXY_CA_WRITE_H
#define TP_PROXY_CA_WRITE_H

#include <mbedtls/pk.h>
#include <mbedtls/x509_crt.h>
#include <stdbool.h>
#include <stdint.h>

#include "../error.h"

struct tp_ca_certificate {
  bool is_ca;
  const char *common_name; /* of a leaf: the host, normalised, which becomes its subjectAltName */
  mbedtls_pk_context *subject_key, *issuer_key;
  const mbedtls_x509_name *issuer; /* NULL: the subject itself */
  int64_t begins, expires;         /* seconds since 1970 */
};

/* DER at the END of the buffer; its length. */
int tp_ca_write_der(const struct tp_ca_certificate *, unsigned char *der, size_t size,
                    struct tp_error *err);
int tp_ca_write_pem(const struct tp_ca_certificate *, char *pem, size_t size,
                    struct tp_error *err);

#endif

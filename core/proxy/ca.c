/* The CA of a sandbox and its leaves, by mbedTLS, which BearSSL can't write: see ca.h. */
#include "ca.h"

#include <errno.h>
#include <mbedtls/ecp.h>
#include <mbedtls/pk.h>
#include <mbedtls/x509_crt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ca_write.h"
#include "tls_error.h"
#include "tls_host.h"
#include "tls_parts.h"
#include "tls_random.h"

enum {
  DAY = 24 * 3600,
  CA_BACKDATE = 2 * DAY, /* further than a leaf's, which must not begin before its issuer */
  CA_LIFE = 3650 * DAY,
  LEAF_BACKDATE = 1 * DAY,
  LEAF_LIFE = 30 * DAY,
  SESSION_STORE = 8 << 10, /* about 80 sessions that clients may resume */
  SCALAR = 32,
};

struct tp_ca {
  unsigned references;
  mbedtls_x509_crt certificate;
  mbedtls_pk_context key, leaf_key;
  unsigned char leaf_scalar[SCALAR];
  br_ec_private_key leaf; /* BearSSL's view of leaf_key */
  br_ssl_session_cache_lru sessions;
  unsigned char session_store[SESSION_STORE];
};

static int generate_key(mbedtls_pk_context *key, struct tp_error *err) {
  mbedtls_pk_init(key);
  if (mbedtls_pk_setup(key, mbedtls_pk_info_from_type(MBEDTLS_PK_ECKEY)) ||
      mbedtls_ecp_gen_key(MBEDTLS_ECP_DP_SECP256R1, mbedtls_pk_ec(*key), tp_tls_random, NULL))
    return tp_fail(err, EIO, "generate a P-256 key");
  return 0;
}

/* mbedTLS writes the key at the buffer's end. */
static int export_key(mbedtls_pk_context *key, struct tp_ca_material *material,
                      struct tp_error *err) {
  int length = mbedtls_pk_write_key_der(key, material->key, sizeof material->key);
  if (length < 0)
    return tp_fail(err, EIO, "write the key (mbedTLS error -0x%04x)", (unsigned)-length);
  memmove(material->key, material->key + sizeof material->key - length, (size_t)length);
  material->key_length = (size_t)length;
  return 0;
}

int tp_ca_generate(const char *common_name, struct tp_ca_material *material,
                   struct tp_error *err) {
  size_t length = strlen(common_name);
  if (length < 1 || length > 64)
    return tp_fail(err, EINVAL, "CA name of %zu bytes", length);
  int64_t now = time(NULL);
  mbedtls_pk_context key;
  struct tp_ca_certificate wanted = {
      .is_ca = true,
      .common_name = common_name,
      .subject_key = &key,
      .issuer_key = &key,
      .begins = now - CA_BACKDATE,
      .expires = now + CA_LIFE,
  };
  int result = generate_key(&key, err);
  if (result == 0)
    result = tp_ca_write_pem(&wanted, material->certificate, sizeof material->certificate, err);
  if (result == 0)
    result = export_key(&key, material, err);
  mbedtls_pk_free(&key);
  return result;
}

static bool is_p256(const mbedtls_pk_context *key) {
  return mbedtls_pk_can_do(key, MBEDTLS_PK_ECDSA) &&
         mbedtls_pk_ec(*key)->grp.id == MBEDTLS_ECP_DP_SECP256R1;
}

static int read_ca(struct tp_ca *ca, const char *pem, size_t pem_length, const unsigned char *key,
                   size_t key_length, struct tp_error *err) {
  char text[sizeof((struct tp_ca_material *)0)->certificate * 2];
  if (pem_length >= sizeof text)
    return tp_tls_refuse(err, EBADMSG, "CA certificate of %zu bytes", pem_length);
  memcpy(text, pem, pem_length);
  text[pem_length] = 0;
  if (mbedtls_x509_crt_parse(&ca->certificate, (unsigned char *)text, pem_length + 1))
    return tp_tls_refuse(err, EBADMSG, "CA certificate can't be read");
  if (mbedtls_pk_parse_key(&ca->key, key, key_length, NULL, 0))
    return tp_tls_refuse(err, EBADMSG, "CA key can't be read");
  if (!ca->certificate.ca_istrue || !is_p256(&ca->certificate.pk) || !is_p256(&ca->key))
    return tp_tls_refuse(err, EKEYREJECTED, "certificate is not that of a CA with a P-256 key");
  if (mbedtls_pk_check_pair(&ca->certificate.pk, &ca->key))
    return tp_tls_refuse(err, EKEYREJECTED, "CA key does not belong to the certificate");
  return 0;
}

static int make_leaf_key(struct tp_ca *ca, struct tp_error *err) {
  if (generate_key(&ca->leaf_key, err) < 0)
    return -1;
  if (mbedtls_mpi_write_binary(&mbedtls_pk_ec(ca->leaf_key)->d, ca->leaf_scalar, SCALAR))
    return tp_fail(err, EIO, "export the leaf key");
  ca->leaf = (br_ec_private_key){BR_EC_secp256r1, ca->leaf_scalar, SCALAR};
  return 0;
}

struct tp_ca *tp_ca_open(const char *pem, size_t pem_length, const unsigned char *key,
                         size_t key_length, struct tp_error *err) {
  struct tp_ca *ca = calloc(1, sizeof *ca);
  if (!ca) {
    tp_fail(err, ENOMEM, "open CA");
    return NULL;
  }
  ca->references = 1;
  mbedtls_x509_crt_init(&ca->certificate);
  mbedtls_pk_init(&ca->key);
  mbedtls_pk_init(&ca->leaf_key);
  if (read_ca(ca, pem, pem_length, key, key_length, err) < 0 || make_leaf_key(ca, err) < 0) {
    tp_ca_release(ca);
    return NULL;
  }
  br_ssl_session_cache_lru_init(&ca->sessions, ca->session_store, sizeof ca->session_store);
  return ca;
}

struct tp_ca *tp_ca_retain(struct tp_ca *ca) {
  ca->references++;
  return ca;
}

void tp_ca_release(struct tp_ca *ca) {
  if (!ca || --ca->references)
    return;
  mbedtls_x509_crt_free(&ca->certificate);
  mbedtls_pk_free(&ca->key);
  mbedtls_pk_free(&ca->leaf_key);
  explicit_bzero(ca, sizeof *ca);
  free(ca);
}

struct tp_tls_identity *tp_ca_identity(struct tp_ca *ca, const char *host, struct tp_error *err) {
  char name[TP_TLS_HOST];
  unsigned char der[2048];
  int64_t now = time(NULL);
  struct tp_ca_certificate wanted = {
      .common_name = name,
      .subject_key = &ca->leaf_key,
      .issuer_key = &ca->key,
      .issuer = &ca->certificate.subject,
      .begins = now - LEAF_BACKDATE,
      .expires = now + LEAF_LIFE,
  };
  if (tp_tls_host_normalise(host, name, err) < 0)
    return NULL;
  int length = tp_ca_write_der(&wanted, der, sizeof der, err);
  if (length < 0)
    return NULL;
  struct tp_tls_identity *identity = malloc(sizeof *identity + (size_t)length);
  if (!identity) {
    tp_fail(err, ENOMEM, "make certificate for %s", host);
    return NULL;
  }
  memcpy(identity->leaf, der + sizeof der - length, (size_t)length);
  identity->references = 1;
  identity->ca = tp_ca_retain(ca);
  identity->chain[0] = (br_x509_certificate){identity->leaf, (size_t)length};
  identity->chain[1] = (br_x509_certificate){ca->certificate.raw.p, ca->certificate.raw.len};
  identity->key = &ca->leaf;
  identity->sessions = &ca->sessions.vtable;
  identity->expires = wanted.expires;
  return identity;
}

struct tp_tls_identity *tp_tls_identity_retain(struct tp_tls_identity *identity) {
  identity->references++;
  return identity;
}

void tp_tls_identity_release(struct tp_tls_identity *identity) {
  if (!identity || --identity->references)
    return;
  tp_ca_release(identity->ca);
  free(identity);
}

int64_t tp_ca_identity_expires(const struct tp_tls_identity *identity) {
  return identity->expires;
}

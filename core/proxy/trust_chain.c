/* One peer's chain, collected from BearSSL's handshake, and the key it shows: see trust.h. */
#include <errno.h>
#include <mbedtls/rsa.h>
#include <stdlib.h>
#include <string.h>

#include "tls_error.h"
#include "trust_check.h"

static struct tp_trust_check *of(const br_x509_class **engine) {
  return (struct tp_trust_check *)engine;
}

/* A huge key or exponent would make one verification cost seconds. */
static bool is_affordable(const mbedtls_x509_crt *certificate) {
  if (!mbedtls_pk_can_do(&certificate->pk, MBEDTLS_PK_RSA))
    return true;
  const mbedtls_rsa_context *rsa = mbedtls_pk_rsa(certificate->pk);
  return mbedtls_mpi_bitlen(&rsa->N) <= 4096 && mbedtls_mpi_bitlen(&rsa->E) <= 64;
}

/* Parse what came; whatever can't be read is left out, but the leaf must be there. */
static int parse_chain(struct tp_trust_check *check, struct tp_error *err) {
  size_t offset = 0;
  for (unsigned i = 0; i < check->count; offset += check->lengths[i++]) {
    mbedtls_x509_crt *certificate = &check->parsed[check->parsed_count];
    mbedtls_x509_crt_init(certificate);
    int result = mbedtls_x509_crt_parse_der_with_ext_cb(
        certificate, check->bytes + offset, check->lengths[i], 0, tp_trust_limits_known, NULL);
    if (result == 0 && is_affordable(certificate)) {
      check->parsed_count++;
      continue;
    }
    mbedtls_x509_crt_free(certificate);
    if (i == 0)
      return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s can't be used (%s)", check->host,
                     result ? "malformed, or with a key or a critical extension we don't know"
                            : "its RSA key is too large");
  }
  return 0;
}

static int copy_rsa(struct tp_trust_check *check, const mbedtls_rsa_context *rsa) {
  size_t n = mbedtls_mpi_size(&rsa->N), e = mbedtls_mpi_size(&rsa->E);
  if (mbedtls_mpi_write_binary(&rsa->N, check->key_bytes, n) ||
      mbedtls_mpi_write_binary(&rsa->E, check->key_bytes + n, e))
    return -1;
  check->key.key_type = BR_KEYTYPE_RSA;
  check->key.key.rsa = (br_rsa_public_key){check->key_bytes, n, check->key_bytes + n, e};
  return 0;
}

static int copy_ec(struct tp_trust_check *check, const mbedtls_ecp_keypair *pair) {
  size_t length;
  int curve = pair->grp.id == MBEDTLS_ECP_DP_SECP256R1   ? BR_EC_secp256r1
              : pair->grp.id == MBEDTLS_ECP_DP_SECP384R1 ? BR_EC_secp384r1
              : pair->grp.id == MBEDTLS_ECP_DP_SECP521R1 ? BR_EC_secp521r1
                                                         : 0;
  if (!curve || mbedtls_ecp_point_write_binary(&pair->grp, &pair->Q, MBEDTLS_ECP_PF_UNCOMPRESSED,
                                               &length, check->key_bytes, KEY_BYTES))
    return -1;
  check->key.key_type = BR_KEYTYPE_EC;
  check->key.key.ec = (br_ec_public_key){curve, check->key_bytes, length};
  return 0;
}

/* The leaf's key in BearSSL's form, in memory of its own. */
static int copy_key(struct tp_trust_check *check, struct tp_error *err) {
  const mbedtls_pk_context *key = &check->parsed[0].pk;
  int result = -1;
  if (mbedtls_pk_get_type(key) == MBEDTLS_PK_RSA)
    result = copy_rsa(check, mbedtls_pk_rsa(*key));
  else if (mbedtls_pk_can_do(key, MBEDTLS_PK_ECDSA))
    result = copy_ec(check, mbedtls_pk_ec(*key));
  if (result < 0)
    return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s has a key of a kind we don't know",
                   check->host);
  return 0;
}

static void digest_chain(const struct tp_trust_check *check, unsigned char digest[32]) {
  br_sha256_context hash;
  br_sha256_init(&hash);
  br_sha256_update(&hash, check->host, strlen(check->host) + 1);
  br_sha256_update(&hash, check->lengths, sizeof check->lengths[0] * check->count);
  br_sha256_update(&hash, check->bytes, check->used);
  br_sha256_out(&hash, digest);
}

static int check_chain(struct tp_trust_check *check, struct tp_error *err) {
  unsigned char digest[32];
  if (check->oversized)
    return tp_tls_refuse(err, EKEYREJECTED, "certificate chain of %s is too long", check->host);
  if (check->count == 0)
    return tp_tls_refuse(err, ENOKEY, "%s sent no certificate", check->host);
  if (parse_chain(check, err) < 0)
    return -1;

  digest_chain(check, digest);
  if (tp_trust_verdict_load(check->trust, digest, &check->until))
    return copy_key(check, err);
  if (tp_trust_check_verify(check, err) < 0 || copy_key(check, err) < 0)
    return -1;
  tp_trust_verdict_save(check->trust, digest, check->until);
  return 0;
}

/* The certificates are of use only until the verdict; the key until the handshake's end. */
static void drop_chain(struct tp_trust_check *check) {
  for (unsigned i = 0; i < check->parsed_count; i++)
    check->parsed[i].next = NULL; /* else the first frees them all */
  for (unsigned i = 0; i < check->parsed_count; i++)
    mbedtls_x509_crt_free(&check->parsed[i]);
  free(check->bytes);
  check->bytes = NULL;
  check->used = check->count = check->parsed_count = 0;
}

static void start_chain(const br_x509_class **engine, const char *name) {
  (void)name;
  drop_chain(of(engine));
}

static void start_cert(const br_x509_class **engine, uint32_t length) {
  struct tp_trust_check *check = of(engine);
  unsigned char *bytes = NULL;
  if (check->count < CHAIN_MAX && check->used + length <= CHAIN_BYTES)
    bytes = realloc(check->bytes, check->used + length + 1);
  if (!bytes) {
    check->oversized = true;
    return;
  }
  check->bytes = bytes;
  check->lengths[check->count++] = length;
}

static void append_cert(const br_x509_class **engine, const unsigned char *bytes, size_t length) {
  struct tp_trust_check *check = of(engine);
  if (check->oversized)
    return;
  memcpy(check->bytes + check->used, bytes, length);
  check->used += length;
}

static void end_cert(const br_x509_class **engine) {
  (void)engine;
}

static unsigned end_chain(const br_x509_class **engine) {
  struct tp_trust_check *check = of(engine);
  int good = check_chain(check, &check->failure);
  drop_chain(check);
  return good < 0 ? BR_ERR_X509_NOT_TRUSTED : 0;
}

static const br_x509_pkey *get_pkey(const br_x509_class *const *engine, unsigned *usages) {
  const struct tp_trust_check *check = (const void *)engine;
  if (usages)
    *usages = BR_KEYTYPE_SIGN;
  return &check->key;
}

static const br_x509_class ENGINE = {
    .context_size = sizeof(struct tp_trust_check),
    .start_chain = start_chain,
    .start_cert = start_cert,
    .append = append_cert,
    .end_cert = end_cert,
    .end_chain = end_chain,
    .get_pkey = get_pkey,
};

struct tp_trust_check *tp_trust_check_new(struct tp_tls_trust *trust, const char *host,
                                          struct tp_error *err) {
  struct tp_trust_check *check = calloc(1, sizeof *check);
  if (check)
    check->host = strdup(host);
  if (!check || !check->host) {
    free(check);
    tp_fail(err, ENOMEM, "check certificates");
    return NULL;
  }
  check->vtable = &ENGINE;
  check->trust = tp_tls_trust_retain(trust);
  return check;
}

void tp_trust_check_free(struct tp_trust_check *check) {
  if (!check)
    return;
  drop_chain(check);
  tp_tls_trust_release(check->trust);
  free(check->host);
  free(check);
}

const br_x509_class **tp_trust_check_engine(struct tp_trust_check *check) {
  return &check->vtable;
}

int tp_trust_check_failure(const struct tp_trust_check *check, struct tp_error *err) {
  if (!check->failure.code)
    return 0;
  *err = check->failure;
  return -1;
}

int64_t tp_trust_check_until(const struct tp_trust_check *check) {
  return check->until;
}

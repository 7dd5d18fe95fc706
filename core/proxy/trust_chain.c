/* One peer's chain, collected from BearSSL's handshake and verified by mbedTLS: see trust.h.
 *
 * Verification with mbedTLS takes milliseconds a signature on the NIST curves, so a chain that was
 * found good for a host is remembered by its digest, for an hour at most. */
#include <errno.h>
#include <mbedtls/oid.h>
#include <mbedtls/rsa.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tls_error.h"
#include "trust.h"

enum {
  CHAIN_MAX = 16,
  CHAIN_BYTES = 64 << 10,
  REUSE = 3600, /* seconds */
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

static const mbedtls_x509_crt_profile PROFILE = {
    .allowed_mds = MBEDTLS_X509_ID_FLAG(MBEDTLS_MD_SHA256) |
                   MBEDTLS_X509_ID_FLAG(MBEDTLS_MD_SHA384) |
                   MBEDTLS_X509_ID_FLAG(MBEDTLS_MD_SHA512),
    .allowed_pks = 0xFFFFFFF,
    .allowed_curves = MBEDTLS_X509_ID_FLAG(MBEDTLS_ECP_DP_SECP256R1) |
                      MBEDTLS_X509_ID_FLAG(MBEDTLS_ECP_DP_SECP384R1) |
                      MBEDTLS_X509_ID_FLAG(MBEDTLS_ECP_DP_SECP521R1),
    .rsa_min_bitlen = 2048,
};

static struct tp_trust_check *of(const br_x509_class **engine) {
  return (struct tp_trust_check *)engine;
}

static int64_t seconds_of(const mbedtls_x509_time *when) {
  struct tm broken = {.tm_year = when->year - 1900,
                      .tm_mon = when->mon - 1,
                      .tm_mday = when->day,
                      .tm_hour = when->hour,
                      .tm_min = when->min,
                      .tm_sec = when->sec};
  return timegm(&broken);
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

static bool same_name(const mbedtls_x509_buf *one, const mbedtls_x509_buf *two) {
  return one->len == two->len && memcmp(one->p, two->p, one->len) == 0;
}

/* mbedTLS looks for an issuer only behind the certificate that it issued, and servers send chains in
 * any order, so link them: the leaf, then whoever may have issued what is linked already. */
static void order_chain(struct tp_trust_check *check) {
  mbedtls_x509_crt *last = &check->parsed[0];
  bool linked[CHAIN_MAX] = {true};
  for (mbedtls_x509_crt *child = last; child; child = child->next)
    for (unsigned i = 1; i < check->parsed_count; i++) {
      mbedtls_x509_crt *candidate = &check->parsed[i];
      if (linked[i] || !same_name(&candidate->subject_raw, &child->issuer_raw))
        continue;
      linked[i] = true;
      last = last->next = candidate;
    }
}

/* What mbedTLS found, by depth, the leaf being 0. */
struct findings {
  const char *host;
  uint32_t flags;
  int64_t until;
  const mbedtls_x509_crt *untimely; /* the one that has expired or is yet to start */
  const mbedtls_x509_crt *untrusted; /* the one whose issuer is not known */
  const mbedtls_x509_crt *limited;   /* the one that may not vouch for the host */
};

static int note(void *context, mbedtls_x509_crt *certificate, int depth, uint32_t *flags) {
  struct findings *findings = context;
  int64_t ends = seconds_of(&certificate->valid_to);
  if (depth > 0 && !tp_trust_limits_allow(certificate, findings->host)) {
    findings->limited = certificate;
    *flags |= MBEDTLS_X509_BADCERT_OTHER;
  }
  if (ends < findings->until)
    findings->until = ends;
  if (*flags & (MBEDTLS_X509_BADCERT_EXPIRED | MBEDTLS_X509_BADCERT_FUTURE))
    findings->untimely = certificate;
  if (*flags & MBEDTLS_X509_BADCERT_NOT_TRUSTED)
    findings->untrusted = certificate;
  findings->flags |= *flags;
  return 0;
}

static int fail_untrusted(const struct tp_trust_check *check, const mbedtls_x509_crt *top,
                          struct tp_error *err) {
  char issuer[128];
  tp_trust_name_of(&top->issuer, issuer, sizeof issuer);
  bool self_issued = same_name(&top->subject_raw, &top->issuer_raw);
  if (self_issued && top == &check->parsed[0])
    return tp_tls_refuse(err, ENOKEY, "certificate of %s is self-signed", check->host);
  if (self_issued)
    return tp_tls_refuse(err, ENOKEY, "certificate of %s leads to \"%s\", which is not trusted",
                   check->host, issuer);
  return tp_tls_refuse(err, ENOKEY,
                 "certificate of %s: its issuer \"%s\" is not known, or the server did not send "
                 "an intermediate certificate",
                 check->host, issuer);
}

static int fail_untimely(const struct tp_trust_check *check, const mbedtls_x509_crt *untimely,
                         struct tp_error *err) {
  bool expired = seconds_of(&untimely->valid_to) <= time(NULL);
  const mbedtls_x509_time *when = expired ? &untimely->valid_to : &untimely->valid_from;
  char whose[160] = "";
  if (untimely != &check->parsed[0]) {
    strcpy(whose, ": that of its issuer ");
    tp_trust_name_of(&untimely->subject, whose + strlen(whose), 128);
  }
  return tp_tls_refuse(err, EKEYEXPIRED, "certificate of %s%s %s %04d-%02d-%02d", check->host, whose,
                 expired ? "expired on" : "is not valid before", when->year, when->mon, when->day);
}

static int fail_chain(const struct tp_trust_check *check, const struct findings *findings,
                      struct tp_error *err) {
  if (findings->untrusted)
    return fail_untrusted(check, findings->untrusted, err);
  if (findings->flags & MBEDTLS_X509_BADCERT_BAD_MD)
    return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s is signed with a weak hash", check->host);
  if (findings->flags & (MBEDTLS_X509_BADCERT_BAD_KEY | MBEDTLS_X509_BADCERT_BAD_PK))
    return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s has a weak key in its chain",
                   check->host);
  if (findings->untimely)
    return fail_untimely(check, findings->untimely, err);
  if (findings->limited) {
    char issuer[128];
    tp_trust_name_of(&findings->limited->subject, issuer, sizeof issuer);
    return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s: \"%s\" may not vouch for this host",
                         check->host, issuer);
  }
  return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s can't be verified", check->host);
}

static int check_purpose(struct tp_trust_check *check, struct tp_error *err) {
  const mbedtls_x509_crt *leaf = &check->parsed[0];
  if (!tp_trust_name_matches(leaf, check->host)) {
    char names[256];
    tp_trust_name_list(leaf, names, sizeof names);
    return tp_tls_refuse(err, EKEYREJECTED, "certificate is for %s, not %s", names, check->host);
  }
  if (mbedtls_x509_crt_check_extended_key_usage(leaf, MBEDTLS_OID_SERVER_AUTH,
                                                MBEDTLS_OID_SIZE(MBEDTLS_OID_SERVER_AUTH)) ||
      mbedtls_x509_crt_check_key_usage(leaf, MBEDTLS_X509_KU_DIGITAL_SIGNATURE))
    return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s is not for a TLS server", check->host);
  return 0;
}

static int verify(struct tp_trust_check *check, struct tp_error *err) {
  struct findings findings = {.host = check->host, .until = time(NULL) + REUSE};
  uint32_t flags;
  order_chain(check);
  int result = mbedtls_x509_crt_verify_with_profile(
      &check->parsed[0], (mbedtls_x509_crt *)tp_trust_roots(check->trust), NULL, &PROFILE, NULL,
      &flags, note, &findings);
  findings.flags |= flags;
  if (result)
    return fail_chain(check, &findings, err);
  if (check_purpose(check, err) < 0)
    return -1;
  check->until = findings.until;
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
  if (verify(check, err) < 0 || copy_key(check, err) < 0)
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

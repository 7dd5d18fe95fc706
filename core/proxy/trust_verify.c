/* The verdict on a chain, by mbedTLS, with its reasons as sentences: see trust.h. */
#include <errno.h>
#include <mbedtls/oid.h>
#include <string.h>
#include <time.h>

#include "tls_error.h"
#include "trust_check.h"

/* Verification with mbedTLS takes milliseconds a signature on the NIST curves, so a chain that was
 * found good for a host is remembered; for this long at most, in seconds. */
enum { REUSE = 3600 };

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

static int64_t seconds_of(const mbedtls_x509_time *when) {
  struct tm broken = {.tm_year = when->year - 1900,
                      .tm_mon = when->mon - 1,
                      .tm_mday = when->day,
                      .tm_hour = when->hour,
                      .tm_min = when->min,
                      .tm_sec = when->sec};
  return timegm(&broken);
}

static bool same_name(const mbedtls_x509_buf *one, const mbedtls_x509_buf *two) {
  return one->len == two->len && memcmp(one->p, two->p, one->len) == 0;
}

/* mbedTLS looks for an issuer only behind the certificate that it issued, and servers send chains
 * in any order, so link them: the leaf, then whoever may have issued what is linked already. */
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
                       "certificate of %s: its issuer \"%s\" is not known, or the server did not "
                       "send an intermediate certificate",
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
  return tp_tls_refuse(err, EKEYEXPIRED, "certificate of %s%s %s %04d-%02d-%02d", check->host,
                       whose, expired ? "expired on" : "is not valid before", when->year,
                       when->mon, when->day);
}

static int fail_chain(const struct tp_trust_check *check, const struct findings *findings,
                      struct tp_error *err) {
  if (findings->untrusted)
    return fail_untrusted(check, findings->untrusted, err);
  if (findings->flags & MBEDTLS_X509_BADCERT_BAD_MD)
    return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s is signed with a weak hash",
                         check->host);
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
    return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s is not for a TLS server",
                         check->host);
  return 0;
}

int tp_trust_check_verify(struct tp_trust_check *check, struct tp_error *err) {
  struct findings findings = {.host = check->host, .until = time(NULL) + REUSE};
  uint32_t flags;
  order_chain(check);
  int result = mbedtls_x509_crt_verify_with_profile(
      &check->parsed[0], (mbedtls_x509_crt *)tp_trust_roots(check->trust), NULL, &PROFILE, NULL,
      &flags, note, &findings);
  if (result == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED)
    return fail_chain(check, &findings, err);
  if (result) /* more than MBEDTLS_X509_MAX_INTERMEDIATE_CA; no certificate was judged */
    return tp_tls_refuse(err, EKEYREJECTED, "certificate of %s can't be verified (-0x%04x)",
                         check->host, (unsigned)-result);
  if (check_purpose(check, err) < 0)
    return -1;
  check->until = findings.until;
  return 0;
}

/* Name constraints: for which hosts a CA may vouch. mbedTLS refuses them where they are critical
 * and passes over them elsewhere, so they are read here. See trust.h.
 *
 * Checked is the host that the handshake is about, against dNSName and iPAddress subtrees, RFC 5280
 * 4.2.1.10; a kind of name that the CA's list has no subtree of is not constrained. Constraints on
 * subjects and mail addresses say nothing about hosts. What can't be parsed allows nothing. */
#include <arpa/inet.h>
#include <mbedtls/asn1.h>
#include <mbedtls/oid.h>
#include <string.h>
#include <strings.h>

#include "trust.h"

enum {
  SEQUENCE = MBEDTLS_ASN1_CONSTRUCTED | MBEDTLS_ASN1_SEQUENCE,
  PERMITTED = MBEDTLS_ASN1_CONTEXT_SPECIFIC | MBEDTLS_ASN1_CONSTRUCTED | 0,
  EXCLUDED = MBEDTLS_ASN1_CONTEXT_SPECIFIC | MBEDTLS_ASN1_CONSTRUCTED | 1,
  DNS_NAME = MBEDTLS_ASN1_CONTEXT_SPECIFIC | MBEDTLS_X509_SAN_DNS_NAME,
  ADDRESS = MBEDTLS_ASN1_CONTEXT_SPECIFIC | MBEDTLS_X509_SAN_IP_ADDRESS,
};

struct span {
  unsigned char *at, *end;
};

struct host {
  const char *name;
  unsigned char address[16];
  size_t address_length; /* 0: a name */
};

/* Take one element with this tag off the front. */
static bool take(struct span *from, int tag, struct span *inner) {
  size_t length;
  if (mbedtls_asn1_get_tag(&from->at, from->end, &length, tag))
    return false;
  *inner = (struct span){from->at, from->at + length};
  from->at += length;
  return true;
}

static bool is_next(const struct span *from, int tag) {
  return from->at < from->end && *from->at == tag;
}

int tp_trust_limits_known(void *context, const mbedtls_x509_crt *certificate,
                          const mbedtls_x509_buf *oid, int critical, const unsigned char *at,
                          const unsigned char *end) {
  (void)context, (void)certificate, (void)critical, (void)at, (void)end;
  return MBEDTLS_OID_CMP(MBEDTLS_OID_NAME_CONSTRAINTS, oid) == 0 ? 0 : -1;
}

/* One Extension off the list; whether it is the one looked for, whose value then is in `value`. */
static int next_extension(struct span *list, struct span *value) {
  struct span extension, oid;
  if (!take(list, SEQUENCE, &extension) || !take(&extension, MBEDTLS_ASN1_OID, &oid))
    return -1;
  struct span critical;
  if (is_next(&extension, MBEDTLS_ASN1_BOOLEAN) &&
      !take(&extension, MBEDTLS_ASN1_BOOLEAN, &critical))
    return -1;
  if (!take(&extension, MBEDTLS_ASN1_OCTET_STRING, value))
    return -1;
  size_t length = (size_t)(oid.end - oid.at);
  return length == MBEDTLS_OID_SIZE(MBEDTLS_OID_NAME_CONSTRAINTS) &&
         memcmp(oid.at, MBEDTLS_OID_NAME_CONSTRAINTS, length) == 0;
}

/* 1: found, 0: the certificate has none, -1: can't be parsed */
static int find_constraints(const mbedtls_x509_crt *certificate, struct span *value) {
  struct span list, all = {certificate->v3_ext.p, certificate->v3_ext.p + certificate->v3_ext.len};
  if (!all.at)
    return 0;
  if (!take(&all, SEQUENCE, &list))
    return -1;
  int found = 0;
  while (found == 0 && list.at < list.end)
    found = next_extension(&list, value);
  return found;
}

/* "example.com" is the host and all below it, ".example.com" what is below, "" everything. */
static bool name_within(const char *host, const struct span *base) {
  size_t length = (size_t)(base->end - base->at), have = strlen(host);
  if (length == 0)
    return true;
  if (length > have || strncasecmp(host + have - length, (char *)base->at, length) != 0)
    return false;
  return length == have ? base->at[0] != '.'
                        : base->at[0] == '.' || host[have - length - 1] == '.';
}

static bool address_within(const struct host *host, const struct span *base) {
  size_t length = host->address_length;
  for (size_t i = 0; i < length; i++)
    if ((host->address[i] ^ base->at[i]) & base->at[length + i])
      return false;
  return true;
}

struct subtrees {
  bool any; /* of the host's kind */
  bool matches;
};

static bool read_subtree(struct span *list, const struct host *host, struct subtrees *found) {
  struct span subtree, base;
  int kind = host->address_length ? ADDRESS : DNS_NAME;
  if (!take(list, SEQUENCE, &subtree))
    return false;
  if (!is_next(&subtree, kind))
    return true;
  if (!take(&subtree, kind, &base))
    return false;
  size_t length = (size_t)(base.end - base.at);
  if (host->address_length && length != 8 && length != 32)
    return false;
  found->any = true;
  if (!host->address_length)
    found->matches |= name_within(host->name, &base);
  else if (length == 2 * host->address_length)
    found->matches |= address_within(host, &base);
  return true;
}

/* The subtrees below one of the two tags, none when it isn't there. */
static bool read_subtrees(struct span *value, int tag, const struct host *host,
                          struct subtrees *found) {
  struct span list;
  if (!is_next(value, tag))
    return true;
  if (!take(value, tag, &list))
    return false;
  while (list.at < list.end)
    if (!read_subtree(&list, host, found))
      return false;
  return true;
}

bool tp_trust_limits_allow(const mbedtls_x509_crt *issuer, const char *name) {
  struct span value, constraints;
  int found = find_constraints(issuer, &value);
  if (found <= 0)
    return found == 0;

  struct host host = {.name = name};
  if (inet_pton(AF_INET, name, host.address) == 1)
    host.address_length = 4;
  else if (inet_pton(AF_INET6, name, host.address) == 1)
    host.address_length = 16;
  struct subtrees permitted = {0}, excluded = {0};
  if (!take(&value, SEQUENCE, &constraints) ||
      !read_subtrees(&constraints, PERMITTED, &host, &permitted) ||
      !read_subtrees(&constraints, EXCLUDED, &host, &excluded))
    return false;
  return !excluded.matches && (!permitted.any || permitted.matches);
}

/* Which hosts a certificate is for: see trust.h. */
#include <arpa/inet.h>
#include <ctype.h>
#include <mbedtls/oid.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "trust.h"

/* How mbedTLS tags an entry of subjectAltName: context-specific, with the number of its kind. */
static bool is_kind(const mbedtls_x509_sequence *entry, int kind) {
  return entry->buf.p && (entry->buf.tag & MBEDTLS_ASN1_TAG_VALUE_MASK) == kind;
}

static bool has_alt_names(const mbedtls_x509_crt *certificate) {
  return certificate->ext_types & MBEDTLS_X509_EXT_SUBJECT_ALT_NAME;
}

/* `*` stands for one whole label, the leftmost, and at least two labels follow it. Lengths are
 * compared first, so an embedded NUL never shortens a pattern. */
static bool pattern_matches(const char *pattern, size_t length, const char *host) {
  if (length == strlen(host) && strncasecmp(pattern, host, length) == 0)
    return true;
  if (length < 3 || pattern[0] != '*' || pattern[1] != '.')
    return false;
  if (!memchr(pattern + 2, '.', length - 2))
    return false;
  const char *rest = strchr(host, '.');
  if (!rest || rest == host)
    return false;
  return strlen(rest) == length - 1 && strncasecmp(pattern + 1, rest, length - 1) == 0;
}

static bool address_matches(const mbedtls_x509_crt *certificate, const unsigned char *address,
                            size_t length) {
  for (const mbedtls_x509_sequence *entry = &certificate->subject_alt_names; entry;
       entry = entry->next)
    if (is_kind(entry, MBEDTLS_X509_SAN_IP_ADDRESS) && entry->buf.len == length &&
        memcmp(entry->buf.p, address, length) == 0)
      return true;
  return false;
}

/* What clients did before subjectAltName, and curl, git and node still do without one. */
static bool common_name_matches(const mbedtls_x509_crt *certificate, const char *host) {
  for (const mbedtls_x509_name *part = &certificate->subject; part; part = part->next)
    if (MBEDTLS_OID_CMP(MBEDTLS_OID_AT_CN, &part->oid) == 0)
      return pattern_matches((const char *)part->val.p, part->val.len, host);
  return false;
}

bool tp_trust_name_matches(const mbedtls_x509_crt *certificate, const char *host) {
  unsigned char address[16];
  if (inet_pton(AF_INET, host, address) == 1)
    return address_matches(certificate, address, 4);
  if (inet_pton(AF_INET6, host, address) == 1)
    return address_matches(certificate, address, 16);
  if (!has_alt_names(certificate))
    return common_name_matches(certificate, host);
  for (const mbedtls_x509_sequence *entry = &certificate->subject_alt_names; entry;
       entry = entry->next)
    if (is_kind(entry, MBEDTLS_X509_SAN_DNS_NAME) &&
        pattern_matches((const char *)entry->buf.p, entry->buf.len, host))
      return true;
  return false;
}

/* Append bytes that a stranger chose to a message: printable ones as they are. */
static void append(char *text, size_t size, const unsigned char *bytes, size_t length) {
  size_t used = strlen(text);
  for (size_t i = 0; i < length && used + 1 < size; i++)
    text[used++] = bytes[i] < 0x80 && isprint(bytes[i]) ? (char)bytes[i] : '?';
  text[used] = 0;
}

static void append_text(char *text, size_t size, const char *more) {
  append(text, size, (const unsigned char *)more, strlen(more));
}

static bool append_entry(const mbedtls_x509_sequence *entry, char *text, size_t size) {
  char address[INET6_ADDRSTRLEN];
  if (is_kind(entry, MBEDTLS_X509_SAN_DNS_NAME))
    append(text, size, entry->buf.p, entry->buf.len);
  else if (!is_kind(entry, MBEDTLS_X509_SAN_IP_ADDRESS))
    return false;
  else if (entry->buf.len == 4)
    append_text(text, size, inet_ntop(AF_INET, entry->buf.p, address, sizeof address));
  else if (entry->buf.len == 16)
    append_text(text, size, inet_ntop(AF_INET6, entry->buf.p, address, sizeof address));
  return true;
}

void tp_trust_name_list(const mbedtls_x509_crt *certificate, char *text, size_t size) {
  if (!has_alt_names(certificate)) {
    tp_trust_name_of(&certificate->subject, text, size);
    return;
  }
  unsigned shown = 0, left = 0;
  char entry_text[80], rest[32];
  text[0] = 0;
  for (const mbedtls_x509_sequence *entry = &certificate->subject_alt_names; entry;
       entry = entry->next) {
    entry_text[0] = 0;
    if (!append_entry(entry, entry_text, sizeof entry_text))
      continue;
    if (shown == 3) {
      left++;
      continue;
    }
    append_text(text, size, shown++ ? ", " : "");
    append_text(text, size, entry_text);
  }
  if (shown == 0)
    append_text(text, size, "no host");
  if (left) {
    snprintf(rest, sizeof rest, " and %u more", left);
    append_text(text, size, rest);
  }
}

void tp_trust_name_of(const mbedtls_x509_name *name, char *text, size_t size) {
  const mbedtls_x509_name *best = NULL;
  for (const mbedtls_x509_name *part = name; part; part = part->next) {
    if (MBEDTLS_OID_CMP(MBEDTLS_OID_AT_CN, &part->oid) == 0)
      best = part;
    else if (!best && MBEDTLS_OID_CMP(MBEDTLS_OID_AT_ORGANIZATION, &part->oid) == 0)
      best = part;
  }
  text[0] = 0;
  if (best)
    append(text, size, best->val.p, best->val.len);
  if (!text[0])
    append_text(text, size, "an unnamed issuer");
}

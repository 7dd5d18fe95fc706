/* Certificates, field by field: see ca_write.h.
 *
 * Two things mbedTLS 2.28 can't do alone: subjectAltName, and a critical basicConstraints. */
#include "ca_write.h"

#include <arpa/inet.h>
#include <errno.h>
#include <mbedtls/asn1write.h>
#include <mbedtls/oid.h>
#include <mbedtls/pem.h>
#include <string.h>
#include <time.h>

#include "tls_random.h"

enum { COMMON_NAME_MAX = 64, HOST_MAX = 253 };

#define EXTENSION(oid) MBEDTLS_OID_##oid, MBEDTLS_OID_SIZE(MBEDTLS_OID_##oid)

/* mbedTLS keeps a name with its last part first, and writes it backwards. */
static int add_name_part(mbedtls_asn1_named_data **name, const mbedtls_x509_name *part) {
  mbedtls_asn1_named_data *added = mbedtls_asn1_store_named_data(
      name, (const char *)part->oid.p, part->oid.len, part->val.p, part->val.len);
  if (!added)
    return -1;
  added->val.tag = part->val.tag;
  return 0;
}

static int set_common_name(mbedtls_asn1_named_data **name, const char *text) {
  mbedtls_x509_name part = {
      .oid = {.p = (unsigned char *)MBEDTLS_OID_AT_CN, .len = MBEDTLS_OID_SIZE(MBEDTLS_OID_AT_CN)},
      .val = {.tag = MBEDTLS_ASN1_UTF8_STRING, .len = strlen(text), .p = (unsigned char *)text},
  };
  return add_name_part(name, &part);
}

static int copy_name(mbedtls_asn1_named_data **name, const mbedtls_x509_name *from) {
  for (; from; from = from->next)
    if (add_name_part(name, from) < 0)
      return -1;
  return 0;
}

/* A host's name in full is in subjectAltName; a subject must not be empty, or it would have to be
 * critical there, nor longer than 64. */
static int set_names(mbedtls_x509write_cert *writer, const struct tp_ca_certificate *wanted) {
  bool fits = strlen(wanted->common_name) <= COMMON_NAME_MAX;
  if (set_common_name(&writer->subject, fits ? wanted->common_name : "long host name") < 0)
    return -1;
  return wanted->issuer ? copy_name(&writer->issuer, wanted->issuer)
                        : set_common_name(&writer->issuer, wanted->common_name);
}

static int set_serial(mbedtls_x509write_cert *writer) {
  unsigned char bytes[16];
  mbedtls_mpi serial;
  if (tp_tls_random(NULL, bytes, sizeof bytes) < 0)
    return -1;
  bytes[0] = (bytes[0] & 0x7f) | 0x40; /* positive, and of full length */
  mbedtls_mpi_init(&serial);
  int result = mbedtls_mpi_read_binary(&serial, bytes, sizeof bytes);
  if (result == 0)
    result = mbedtls_x509write_crt_set_serial(writer, &serial);
  mbedtls_mpi_free(&serial);
  return result;
}

static void format_time(int64_t seconds, char text[16]) {
  time_t when = seconds;
  struct tm broken;
  gmtime_r(&when, &broken);
  strftime(text, 16, "%Y%m%d%H%M%S", &broken);
}

static int set_validity(mbedtls_x509write_cert *writer, const struct tp_ca_certificate *wanted) {
  char begins[16], expires[16];
  format_time(wanted->begins, begins);
  format_time(wanted->expires, expires);
  return mbedtls_x509write_crt_set_validity(writer, begins, expires);
}

/* SEQUENCE { one GeneralName }: all lengths are below 256 + 4. */
static int set_alt_name(mbedtls_x509write_cert *writer, const char *host) {
  unsigned char address[16], buffer[HOST_MAX + 16];
  const unsigned char *name = (const unsigned char *)host;
  size_t length = strlen(host);
  unsigned char kind = MBEDTLS_ASN1_CONTEXT_SPECIFIC | MBEDTLS_X509_SAN_DNS_NAME;
  if (inet_pton(AF_INET, host, address) == 1)
    name = address, length = 4;
  else if (inet_pton(AF_INET6, host, address) == 1)
    name = address, length = 16;
  if (name == address)
    kind = MBEDTLS_ASN1_CONTEXT_SPECIFIC | MBEDTLS_X509_SAN_IP_ADDRESS;

  unsigned char *at = buffer + sizeof buffer;
  int used = mbedtls_asn1_write_raw_buffer(&at, buffer, name, length);
  used += mbedtls_asn1_write_len(&at, buffer, length);
  used += mbedtls_asn1_write_tag(&at, buffer, kind);
  used += mbedtls_asn1_write_len(&at, buffer, (size_t)used);
  used += mbedtls_asn1_write_tag(&at, buffer, MBEDTLS_ASN1_CONSTRUCTED | MBEDTLS_ASN1_SEQUENCE);
  return mbedtls_x509write_crt_set_extension(writer, EXTENSION(SUBJECT_ALT_NAME), 0, at,
                                             (size_t)used);
}

static int set_ca_extensions(mbedtls_x509write_cert *writer) {
  /* SEQUENCE { BOOLEAN true, INTEGER 0 }: a CA, with nothing but leaves below it */
  static const unsigned char constraints[] = {0x30, 6, 0x01, 1, 0xff, 0x02, 1, 0};
  if (mbedtls_x509write_crt_set_extension(writer, EXTENSION(BASIC_CONSTRAINTS), 1, constraints,
                                          sizeof constraints))
    return -1;
  return mbedtls_x509write_crt_set_key_usage(
      writer, MBEDTLS_X509_KU_KEY_CERT_SIGN | MBEDTLS_X509_KU_CRL_SIGN);
}

static int set_leaf_extensions(mbedtls_x509write_cert *writer, const char *host) {
  static const unsigned char constraints[] = {0x30, 0};
  /* SEQUENCE { OID serverAuth } */
  static const unsigned char usage[] = {0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1};
  if (mbedtls_x509write_crt_set_extension(writer, EXTENSION(BASIC_CONSTRAINTS), 1, constraints,
                                          sizeof constraints) ||
      mbedtls_x509write_crt_set_extension(writer, EXTENSION(EXTENDED_KEY_USAGE), 0, usage,
                                          sizeof usage) ||
      mbedtls_x509write_crt_set_key_usage(writer, MBEDTLS_X509_KU_DIGITAL_SIGNATURE))
    return -1;
  return set_alt_name(writer, host);
}

static int fill(mbedtls_x509write_cert *writer, const struct tp_ca_certificate *wanted) {
  mbedtls_x509write_crt_set_version(writer, MBEDTLS_X509_CRT_VERSION_3);
  mbedtls_x509write_crt_set_md_alg(writer, MBEDTLS_MD_SHA256);
  mbedtls_x509write_crt_set_subject_key(writer, wanted->subject_key);
  mbedtls_x509write_crt_set_issuer_key(writer, wanted->issuer_key);
  if (set_names(writer, wanted) || set_serial(writer) || set_validity(writer, wanted) ||
      mbedtls_x509write_crt_set_subject_key_identifier(writer) ||
      mbedtls_x509write_crt_set_authority_key_identifier(writer))
    return -1;
  return wanted->is_ca ? set_ca_extensions(writer)
                       : set_leaf_extensions(writer, wanted->common_name);
}

int tp_ca_write_der(const struct tp_ca_certificate *wanted, unsigned char *der, size_t size,
                    struct tp_error *err) {
  mbedtls_x509write_cert writer;
  mbedtls_x509write_crt_init(&writer);
  int length = fill(&writer, wanted);
  if (length == 0)
    length = mbedtls_x509write_crt_der(&writer, der, size, tp_tls_random, NULL);
  mbedtls_x509write_crt_free(&writer);
  if (length < 0)
    return tp_fail(err, EIO, "write certificate of %s (mbedTLS error -0x%04x)",
                   wanted->common_name, (unsigned)-length);
  return length;
}

int tp_ca_write_pem(const struct tp_ca_certificate *wanted, char *pem, size_t size,
                    struct tp_error *err) {
  unsigned char der[2048];
  size_t written;
  int length = tp_ca_write_der(wanted, der, sizeof der, err);
  if (length < 0)
    return -1;
  if (mbedtls_pem_write_buffer("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n",
                               der + sizeof der - length, (size_t)length, (unsigned char *)pem,
                               size, &written))
    return tp_fail(err, EIO, "write certificate as PEM");
  return 0;
}

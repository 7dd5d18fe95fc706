/* DNS queries: see dns.h. Whoever sends one is a sandbox, so a query is taken only in the form that
 * resolvers send: one question, no compression in it, no answers, at most one OPT record. */
#include "dns.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { LABEL = 63, UDP_LEAST = 512 };

static int malformed(const char *what, struct tp_error *err) {
  return tp_fail(err, EBADMSG, "malformed query: %s", what);
}

static unsigned number(const uint8_t *at) {
  return (unsigned)at[0] << 8 | at[1];
}

static bool is_host_byte(uint8_t byte) {
  return (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') || byte == '-' ||
         byte == '_';
}

/* Appends a label in lower case; what no host name has becomes \DDD. False when there was such. */
static bool add_label(const uint8_t *label, unsigned length, char *text, size_t *used) {
  bool fine = true;
  if (*used)
    text[(*used)++] = '.';
  for (unsigned i = 0; i < length; i++) {
    uint8_t byte = label[i] >= 'A' && label[i] <= 'Z' ? (uint8_t)(label[i] + 'a' - 'A') : label[i];
    if (is_host_byte(byte)) {
      text[(*used)++] = (char)byte;
      continue;
    }
    *used += (size_t)snprintf(text + *used, 5, "\\%03u", byte);
    fine = false;
  }
  return fine;
}

/* The question's name, from *at on. */
static int read_name(const uint8_t *bytes, size_t length, size_t *at, struct tp_dns_query *query,
                     struct tp_error *err) {
  size_t start = *at, used = 0;
  for (;;) {
    if (*at >= length)
      return malformed("its name ends early", err);
    unsigned label = bytes[(*at)++];
    if (label > LABEL)
      return malformed("a compressed name or a label of an unknown kind", err);
    if (*at + label > length)
      return malformed("its name ends early", err);
    if (*at + label + (label > 0) - start > TP_DNS_NAME)
      return malformed("its name is too long", err);
    if (label == 0)
      break;
    if (!add_label(bytes + *at, label, query->name, &used))
      query->rcode = TP_DNS_FORMERR;
    *at += label;
  }
  if (used == 0)
    query->name[used++] = '.';
  query->name[used] = '\0';
  return 0;
}

static int read_question(const uint8_t *bytes, size_t length, size_t *at,
                         struct tp_dns_query *query, struct tp_error *err) {
  if (read_name(bytes, length, at, query, err) < 0)
    return -1;
  if (length - *at < 4)
    return malformed("its question ends early", err);
  query->type = (uint16_t)number(bytes + *at);
  query->class = (uint16_t)number(bytes + *at + 2);
  *at += 4;
  query->question_end = *at;
  if (query->type == TP_DNS_OPT || query->type == 0)
    query->rcode = TP_DNS_FORMERR;
  return 0;
}

/* Names of additional records mean nothing to us. They may end with a pointer backwards. */
static int skip_name(const uint8_t *bytes, size_t length, size_t *at, struct tp_error *err) {
  size_t start = *at;
  while (*at < length && bytes[*at] >= 1 && bytes[*at] <= LABEL)
    *at += 1u + bytes[*at];
  size_t last = *at < length && bytes[*at] >= 0xc0 ? 2 : 1;
  if (*at + last > length || (last == 1 && bytes[*at] != 0))
    return malformed("a record's name", err);
  if (last == 2 && (number(bytes + *at) & 0x3fff) >= start)
    return malformed("a name that points forwards", err);
  *at += last;
  return *at - start > TP_DNS_NAME ? malformed("a record's name is too long", err) : 0;
}

static int read_options(const uint8_t *record, unsigned name, struct tp_dns_query *query,
                        struct tp_error *err) {
  if (query->edns)
    return malformed("two OPT records", err);
  if (name != 0)
    return malformed("an OPT record of a name", err);
  query->edns = true;
  query->edns_size = (uint16_t)number(record + 2);
  if (query->edns_size < UDP_LEAST)
    query->edns_size = UDP_LEAST;
  query->dnssec = (record[6] & 0x80) != 0;
  if (record[5] != 0 && query->rcode == TP_DNS_NOERROR)
    query->rcode = TP_DNS_BADVERS;
  return 0;
}

static int read_additional(const uint8_t *bytes, size_t length, size_t *at,
                           struct tp_dns_query *query, struct tp_error *err) {
  unsigned name = *at < length ? bytes[*at] : 0;
  if (skip_name(bytes, length, at, err) < 0)
    return -1;
  if (length - *at < 10)
    return malformed("a record ends early", err);
  const uint8_t *record = bytes + *at;
  size_t data = number(record + 8);
  if (length - *at - 10 < data)
    return malformed("a record's data ends early", err);
  *at += 10 + data;
  return number(record) == TP_DNS_OPT ? read_options(record, name, query, err) : 0;
}

int tp_dns_parse(const uint8_t *bytes, size_t length, struct tp_dns_query *query,
                 struct tp_error *err) {
  *query = (struct tp_dns_query){0};
  if (length < TP_DNS_HEADER)
    return malformed("no header", err);
  query->id = (uint16_t)number(bytes);
  query->opcode = bytes[2] >> 3 & 15;
  query->recursion = (bytes[2] & 1) != 0;
  if (bytes[2] & 0x80)
    return tp_fail(err, EBADMSG, "an answer where a query is due");
  if (query->opcode != 0) { /* whose sections may mean anything */
    query->rcode = TP_DNS_NOTIMP;
    return 0;
  }
  if (number(bytes + 4) != 1)
    return malformed("not exactly one question", err);
  if (number(bytes + 6) || number(bytes + 8))
    return malformed("it holds answers", err);
  size_t at = TP_DNS_HEADER;
  if (read_question(bytes, length, &at, query, err) < 0)
    return -1;
  for (unsigned i = number(bytes + 10); i > 0; i--)
    if (read_additional(bytes, length, &at, query, err) < 0)
      return -1;
  return at == length ? 0 : malformed("something follows it", err);
}

/* DNS answers: see dns.h. The question goes back byte for byte, since resolvers compare it with what
 * they asked, the case of its letters included. */
#include <errno.h>
#include <string.h>

#include "dns.h"

enum { QR = 0x80, TC = 0x02, RD = 0x01, RA = 0x80, CD = 0x10, SOA = 6, CLASS_IN = 1, LEAST = 512 };

struct writer {
  uint8_t *bytes;
  size_t used, size;
  bool full;
};

static void put(struct writer *out, const void *bytes, size_t length) {
  out->full = out->full || length > out->size - out->used;
  if (out->full)
    return;
  memcpy(out->bytes + out->used, bytes, length);
  out->used += length;
}

static void put16(struct writer *out, unsigned number) {
  put(out, (uint8_t[]){(uint8_t)(number >> 8), (uint8_t)number}, 2);
}

static void put32(struct writer *out, uint32_t number) {
  put16(out, number >> 16);
  put16(out, number & 0xffff);
}

ssize_t tp_dns_name(const char *text, uint8_t out[TP_DNS_NAME], struct tp_error *err) {
  size_t used = 0;
  while (*text) {
    size_t label = strcspn(text, ".");
    if (label == 0 || label > 63 || used + 1 + label + 1 > TP_DNS_NAME)
      return tp_fail(err, EINVAL, "not a host name");
    out[used++] = (uint8_t)label;
    memcpy(out + used, text, label);
    used += label;
    text += label + (text[label] == '.');
  }
  out[used++] = 0;
  return (ssize_t)used;
}

static void put_record(struct writer *out, const struct tp_dns_record *record) {
  put16(out, 0xc000 | TP_DNS_HEADER); /* the question's name */
  put16(out, record->type);
  put16(out, CLASS_IN);
  put32(out, record->ttl);
  put16(out, (unsigned)record->length);
  put(out, record->data, record->length);
}

/* Of the root, which every name is below: the answer is no longer true when a policy changes, so the
 * last number, how long it may be remembered (RFC 2308), is what this record is for. */
static void put_soa(struct writer *out, uint32_t ttl) {
  put(out, "", 1);
  put16(out, SOA);
  put16(out, CLASS_IN);
  put32(out, ttl);
  put16(out, 2 + 5 * 4);
  put(out, "\0", 2); /* the names of a server and of a mailbox, both the root */
  put32(out, 1);
  put32(out, 3600);
  put32(out, 600);
  put32(out, 86400);
  put32(out, ttl);
}

static void put_options(struct writer *out, int rcode, bool dnssec) {
  put(out, "", 1);
  put16(out, TP_DNS_OPT);
  put16(out, TP_DNS_EDNS_SIZE);
  put(out, (uint8_t[]){(uint8_t)(rcode >> 4), 0, dnssec ? 0x80 : 0, 0}, 4);
  put16(out, 0);
}

/* With the first `count` of the reply's records; says that it is cut when these are not all. */
static bool write_answer(struct writer *out, const uint8_t *query,
                         const struct tp_dns_query *parsed, const struct tp_dns_reply *reply,
                         unsigned count) {
  bool question = parsed->question_end > 0, whole = count == reply->count;
  unsigned soa = whole && question && reply->soa;
  count = question ? count : 0;
  put(out, query, 2);
  put(out,
      (uint8_t[]){(uint8_t)(QR | (query[2] & 0x78) | (whole ? 0 : TC) | (query[2] & RD)),
                  (uint8_t)(RA | (query[3] & CD) | (reply->rcode & 15))},
      2);
  put16(out, question);
  put16(out, count);
  put16(out, soa);
  put16(out, parsed->edns);
  if (question)
    put(out, query + TP_DNS_HEADER, parsed->question_end - TP_DNS_HEADER);
  for (unsigned i = 0; i < count; i++)
    put_record(out, &reply->records[i]);
  if (soa)
    put_soa(out, reply->negative_ttl);
  if (parsed->edns)
    put_options(out, reply->rcode, parsed->dnssec);
  return !out->full;
}

ssize_t tp_dns_answer(const uint8_t *query, size_t length, const struct tp_dns_reply *reply,
                      uint8_t *out, size_t most, struct tp_error *err) {
  struct tp_dns_query parsed;
  if (length < TP_DNS_HEADER || (query[2] & 0x80))
    return tp_fail(err, EBADMSG, "nothing to answer");
  if (most < LEAST)
    return tp_fail(err, EMSGSIZE, "an answer of %zu bytes", most);
  if (tp_dns_parse(query, length, &parsed, err) < 0)
    parsed = (struct tp_dns_query){0}; /* then not a word of it is repeated */
  for (unsigned count = reply->count;; count--) {
    struct writer writer = {.bytes = out, .size = most};
    /* Some resolvers don't come by TCP, and make do with the records that fit. */
    if (write_answer(&writer, query, &parsed, reply, count) || count == 0)
      return (ssize_t)writer.used;
  }
}

/* DNS queries and the answers to them. A name survives being written and read; an answer is never
 * longer than it may be, repeats the question and is itself no query. */
#include "../proxy/dns.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

static uint8_t lower(uint8_t byte) {
  return byte >= 'A' && byte <= 'Z' ? (uint8_t)(byte + 'a' - 'A') : byte;
}

static void check_name(const uint8_t *bytes, const struct tp_dns_query *query) {
  uint8_t name[TP_DNS_NAME];
  struct tp_error err;
  if (strlen(query->name) >= TP_DNS_TEXT - 1)
    abort();
  if (!query->question_end || query->rcode == TP_DNS_FORMERR || strcmp(query->name, ".") == 0)
    return;
  ssize_t length = tp_dns_name(query->name, name, &err);
  if (length < 0 || TP_DNS_HEADER + (size_t)length + 4 != query->question_end)
    abort();
  for (ssize_t i = 0; i < length; i++)
    if (name[i] != lower(bytes[TP_DNS_HEADER + i]))
      abort();
}

static void check_answer(const uint8_t *bytes, size_t length, const struct tp_dns_query *query,
                         size_t most) {
  struct tp_dns_record records[20] = {0};
  struct tp_dns_reply reply = {.records = records, .count = length % 20, .soa = length % 3 == 0};
  for (unsigned i = 0; i < reply.count; i++)
    records[i] = (struct tp_dns_record){.type = TP_DNS_AAAA, .length = 16};
  uint8_t *out = malloc(most);
  if (!out)
    abort();
  struct tp_dns_query again;
  struct tp_error err;
  ssize_t used = tp_dns_answer(bytes, length, &reply, out, most, &err);
  if (used < TP_DNS_HEADER) {
    if (length >= TP_DNS_HEADER && !(bytes[2] & 0x80))
      abort();
  } else {
    if ((size_t)used > most || memcmp(out, bytes, 2) != 0 ||
        tp_dns_parse(out, (size_t)used, &again, &err) == 0)
      abort();
    if (query && query->question_end &&
        memcmp(out + TP_DNS_HEADER, bytes + TP_DNS_HEADER, query->question_end - TP_DNS_HEADER))
      abort();
  }
  free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  struct tp_dns_query query;
  struct tp_error err;
  int parsed = tp_dns_parse(bytes, length, &query, &err);
  if (parsed == 0)
    check_name(bytes, &query);
  check_answer(bytes, length, parsed == 0 ? &query : NULL, 512);
  check_answer(bytes, length, parsed == 0 ? &query : NULL, 1232);
  return 0;
}

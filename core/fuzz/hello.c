/* ClientHellos: what a part of one says, the whole doesn't take back; cut into other records it means
 * the same. The first byte says where it is cut. */
#include "../proxy/hello.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

static void same(const struct tp_hello *one, const struct tp_hello *two) {
  if (strcmp(one->sni, two->sni) != 0 || one->version != two->version ||
      one->has_tls12 != two->has_tls12 || one->ech != two->ech ||
      one->session_id_length != two->session_id_length || one->alpn_length != two->alpn_length ||
      one->versions_length != two->versions_length)
    abort();
  if ((one->alpn && memcmp(one->alpn, two->alpn, one->alpn_length) != 0) ||
      (one->versions && memcmp(one->versions, two->versions, one->versions_length) != 0))
    abort();
}

/* Of a copy of its own, so that a byte read too much is one of nobody's. */
static int parse(const uint8_t *bytes, size_t length, struct tp_hello *hello,
                 struct tp_error *err) {
  uint8_t *copy = malloc(length + (length == 0));
  if (!copy)
    abort();
  memcpy(copy, bytes, length);
  int got = tp_hello_parse(copy, length, hello, err);
  free(copy);
  return got;
}

static void check_part(const uint8_t *bytes, size_t part, int whole, const struct tp_hello *hello,
                       const struct tp_error *why) {
  struct tp_hello again;
  struct tp_error err;
  int got = parse(bytes, part, &again, &err);
  if (got != 0 && got != whole)
    abort();
  if (got < 0 && strcmp(err.message, why->message) != 0)
    abort();
  if (got > 0)
    same(hello, &again);
  tp_hello_free(&again);
}

static void check_records(size_t most, const struct tp_hello *hello) {
  size_t length = 4 + ((size_t)hello->message[1] << 16 | (size_t)hello->message[2] << 8 |
                       hello->message[3]);
  if ((length + most - 1) / most * 5 + length > TP_HELLO_LIMIT)
    return;
  uint8_t *records = malloc(length * 6), *at = records;
  if (!records)
    abort();
  for (size_t done = 0; done < length;) {
    size_t part = length - done < most ? length - done : most;
    memcpy(at, (uint8_t[]){22, 3, 1, (uint8_t)(part >> 8), (uint8_t)part}, 5);
    memcpy(at + 5, hello->message + done, part);
    at += 5 + part;
    done += part;
  }
  struct tp_hello again;
  struct tp_error err;
  if (parse(records, (size_t)(at - records), &again, &err) != 1)
    abort();
  same(hello, &again);
  tp_hello_free(&again);
  free(records);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  if (length < 2)
    return 0;
  unsigned cut = bytes[0] + 1u;
  bytes++, length--;
  struct tp_hello hello;
  struct tp_error err;
  int whole = parse(bytes, length, &hello, &err);
  check_part(bytes, length < cut ? length / 2 : cut, whole, &hello, &err);
  check_part(bytes, length - 1, whole, &hello, &err);
  if (whole > 0)
    check_records(cut, &hello);
  tp_hello_free(&hello);
  return 0;
}

/* Chunked bodies; the first byte says in which pieces. However one is cut it means the same, and what
 * is accepted means to the plainest of decoders what it means to us, up to the last byte. */
#include <stdlib.h>
#include <string.h>

#include "../proxy/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

struct seen {
  uint8_t *body;
  size_t length, consumed;
  unsigned trailers;
  bool complete, refused;
  struct tp_error err;
};

static struct tp_http_reader *start(void) {
  static const char text[] = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  const struct tp_http_head *head;
  struct tp_error err;
  struct tp_http_reader *reader = tp_http_reader_new(TP_HTTP_REQUEST);
  if (!reader || tp_http_head(reader, text, sizeof text - 1, &head, &err) != sizeof text - 1)
    abort();
  if (!head || head->body != TP_HTTP_CHUNKED)
    abort();
  return reader;
}

static void feed(struct tp_http_reader *reader, const char *bytes, size_t length,
                 struct seen *seen) {
  size_t at = 0, body_length = 1;
  while (!seen->complete && !seen->refused && (at < length || body_length)) {
    const char *body;
    ssize_t used = tp_http_body(reader, bytes + at, length - at, &body, &body_length,
                                &seen->complete, &seen->err);
    seen->refused = used < 0;
    if (seen->refused)
      return;
    if ((size_t)used > length - at)
      abort();
    if (body_length)
      memcpy(seen->body + seen->length, body, body_length);
    seen->length += body_length;
    seen->consumed += (size_t)used;
    at += (size_t)used;
  }
  if (!seen->complete && at != length)
    abort();
}

static struct seen read_body(const uint8_t *bytes, size_t length, size_t piece) {
  struct tp_http_reader *reader = start();
  struct seen seen = {.body = malloc(length)};
  while (length && !seen.complete && !seen.refused) {
    size_t part = length < piece ? length : piece;
    char *copy = malloc(part);
    if (!copy || !seen.body)
      abort();
    memcpy(copy, bytes, part);
    feed(reader, copy, part, &seen);
    free(copy);
    bytes += part, length -= part;
  }
  tp_http_trailers(reader, &seen.trailers);
  tp_http_reader_free(reader);
  return seen;
}

static const char *line_end(const char *at, const char *end) {
  while (at + 1 < end && !(at[0] == '\r' && at[1] == '\n'))
    at++;
  return at + 1 < end ? at + 2 : NULL;
}

/* The plainest of decoders. Returns where the message ends, or NULL. */
static const char *decode(const char *at, const char *end, uint8_t *body, size_t *length) {
  for (;;) {
    size_t size = (size_t)strtoull(at, NULL, 16);
    at = line_end(at, end);
    if (!at || size > (size_t)(end - at))
      return NULL;
    if (size == 0)
      break;
    memcpy(body + *length, at, size);
    *length += size;
    at += size + 2;
  }
  for (const char *line = at; (at = line_end(line, end)); line = at)
    if (at == line + 2)
      return at;
  return NULL;
}

static void check_meaning(const uint8_t *bytes, size_t length, const struct seen *seen) {
  char *text = malloc(length + 1);
  uint8_t *body = malloc(length + 1);
  size_t got = 0;
  if (!text || !body)
    abort();
  memcpy(text, bytes, length);
  text[length] = '\0'; /* for strtoull */
  const char *end = decode(text, text + length, body, &got);
  if (end != text + seen->consumed || got != seen->length || memcmp(body, seen->body, got) != 0)
    abort();
  free(text);
  free(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  if (length < 2)
    return 0;
  size_t piece = bytes[0] % 64 + 1u;
  bytes++, length--;
  struct seen whole = read_body(bytes, length, length), cut = read_body(bytes, length, piece);
  if (whole.length != cut.length || memcmp(whole.body, cut.body, whole.length) != 0 ||
      whole.complete != cut.complete || whole.refused != cut.refused ||
      whole.trailers != cut.trailers)
    abort();
  if (whole.refused && strcmp(whole.err.message, cut.err.message) != 0)
    abort();
  if (!whole.refused && whole.consumed != cut.consumed)
    abort();
  if (whole.complete)
    check_meaning(bytes, length, &whole);
  free(whole.body);
  free(cut.body);
  return 0;
}

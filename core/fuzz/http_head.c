/* HTTP heads. The first byte says whose and in which pieces: however a head is cut it means the same,
 * or is refused with the same words; what comes out holds no character that ends a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../proxy/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

struct seen {
  char story[1 << 18]; /* the heads, written out */
  size_t used, consumed;
  unsigned heads;
};

static void note(struct seen *seen, const char *text, size_t length) {
  if (length != strlen(text) || strpbrk(text, "\r\n"))
    abort();
  if (seen->used + length + 1 > sizeof seen->story)
    abort();
  memcpy(seen->story + seen->used, text, length);
  seen->used += length;
  seen->story[seen->used++] = '\n';
}

static void note_head(struct seen *seen, const struct tp_http_head *head) {
  char facts[96];
  snprintf(facts, sizeof facts, "%u %u %d %llu %d%d%d", head->status, head->minor, head->body,
           (unsigned long long)head->length, head->keep_alive, head->upgrade,
           head->expect_continue);
  note(seen, facts, strlen(facts));
  const char *texts[] = {head->method, head->target, head->reason};
  for (unsigned i = 0; i < 3; i++)
    if (texts[i])
      note(seen, texts[i], strlen(texts[i]));
  if (head->header_count > TP_HTTP_HEADER_LIMIT)
    abort();
  for (unsigned i = 0; i < head->header_count; i++) {
    note(seen, head->headers[i].name, head->headers[i].name_length);
    note(seen, head->headers[i].value, head->headers[i].value_length);
  }
}

/* Reads one head out of pieces of `piece` bytes, each a copy of its own. */
static void read_head(enum tp_http_side side, const uint8_t *bytes, size_t length, size_t piece,
                      struct seen *seen) {
  struct tp_http_reader *reader = tp_http_reader_new(side);
  const struct tp_http_head *head = NULL;
  while (reader && length && !head) {
    size_t part = length < piece ? length : piece;
    char *copy = malloc(part);
    struct tp_error err;
    if (!copy)
      abort();
    memcpy(copy, bytes, part);
    ssize_t used = tp_http_head(reader, copy, part, &head, &err);
    if (used < 0) {
      note(seen, err.message, strlen(err.message));
      free(copy);
      break;
    }
    if ((size_t)used > part || (!head && (size_t)used < part))
      abort();
    seen->consumed += (size_t)used;
    if (head)
      note_head(seen, head);
    bytes += part, length -= part;
    free(copy);
  }
  tp_http_reader_free(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  static struct seen whole, cut;
  if (length < 2)
    return 0;
  enum tp_http_side side = bytes[0] & 1 ? TP_HTTP_RESPONSE : TP_HTTP_REQUEST;
  size_t piece = (bytes[0] >> 1) + 1u;
  whole.used = whole.consumed = cut.used = cut.consumed = 0;
  read_head(side, bytes + 1, length - 1, length, &whole);
  read_head(side, bytes + 1, length - 1, piece, &cut);
  /* Bytes of a head that is refused later are counted in pieces. */
  if (whole.used != cut.used || memcmp(whole.story, cut.story, whole.used) != 0)
    abort();
  return 0;
}

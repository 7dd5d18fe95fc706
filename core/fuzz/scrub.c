/* The scrubber against a slow one that decodes from every position, and against itself with the stream
 * cut otherwise. The input is two secrets and operations that write a text. */
#include "../proxy/scrub.h"

#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../proxy/scrub_table.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

#define MOST 6000u

struct input {
  const uint8_t *bytes;
  size_t length;
};

static unsigned take(struct input *input) {
  if (!input->length)
    return 0;
  input->length--;
  return *input->bytes++;
}

static void put(char *text, size_t *length, const void *bytes, size_t size) {
  if (size > MOST - *length)
    size = MOST - *length;
  memcpy(text + *length, bytes, size);
  *length += size;
}

static void put_escaped(char *text, size_t *length, unsigned char byte, unsigned kind) {
  static const char digits[] = "0123456789ABCDEFabcdef";
  unsigned high = byte >> 4, low = byte & 15;
  char percent[] = {'%', digits[high], digits[low > 9 ? low + 6 : low]};
  char json[] = {'\\', 'u', '0', '0', digits[high], digits[low]};
  if (kind == 1)
    put(text, length, percent, sizeof percent);
  else if (kind == 2 && byte < 128)
    put(text, length, json, sizeof json);
  else
    put(text, length, &byte, 1);
}

/* One operation: part of a pattern with some bytes escaped, bytes of the input, or much of nothing. */
static void write_some(const struct tp_scrub *scrub, struct input *input, char *text,
                       size_t *length) {
  unsigned op = take(input), kinds = take(input);
  if (op >= 250) {
    static const char filler[2048];
    put(text, length, filler, 1900 + op % 8);
    return;
  }
  if (op >= 200) {
    for (unsigned i = 0; i < op - 199 && input->length; i++)
      put_escaped(text, length, (unsigned char)take(input), 0);
    return;
  }
  const struct tp_scrub_entry *entry = &scrub->entries[op % scrub->count];
  size_t from = op & 32 ? kinds % 5 : 0, to = op & 64 ? kinds % entry->length : entry->length;
  for (size_t i = from; i < to; i++)
    put_escaped(text, length, entry->bytes[i], (kinds >> i % 4 & 1) * (1 + (op >> 4 & 1)));
}

/* The width of one decoded byte. */
static size_t decode(const char *text, size_t length, unsigned char *value) {
  char hex[3] = {0};
  *value = (unsigned char)*text;
  if (*text == '%' && length >= 3 && isxdigit((unsigned char)text[1]) &&
      isxdigit((unsigned char)text[2])) {
    memcpy(hex, text + 1, 2);
    *value = (unsigned char)strtoul(hex, NULL, 16);
    return 3;
  }
  if (*text != '\\' || length < 2)
    return 1;
  switch (text[1]) {
  case '"': case '\\': case '/': *value = (unsigned char)text[1]; return 2;
  case 'b': *value = '\b'; return 2;
  case 'f': *value = '\f'; return 2;
  case 'n': *value = '\n'; return 2;
  case 'r': *value = '\r'; return 2;
  case 't': *value = '\t'; return 2;
  default: break;
  }
  if (length < 6 || memcmp(text, "\\u00", 4) != 0 || text[4] < '0' || text[4] > '7' ||
      !isxdigit((unsigned char)text[5]))
    return 1;
  memcpy(hex, text + 4, 2);
  *value = (unsigned char)strtoul(hex, NULL, 16);
  return 6;
}

static void slow(const struct tp_scrub *scrub, const char *text, size_t length, char *out) {
  memcpy(out, text, length);
  for (size_t at = 0; at < length; at++) {
    for (unsigned i = 0; i < scrub->count; i++) {
      const struct tp_scrub_entry *entry = &scrub->entries[i];
      if (entry->length <= length - at && memcmp(text + at, entry->bytes, entry->length) == 0)
        memset(out + at, '*', entry->length);
      size_t to = at, done = 0;
      unsigned char value;
      while (done < entry->length && to < length) {
        size_t width = decode(text + to, length - to, &value);
        if (value != entry->bytes[done])
          break;
        done++, to += width;
      }
      if (done == entry->length)
        memset(out + at, '*', to - at);
    }
  }
}

static void cut(struct tp_scrub *scrub, const char *text, size_t length, unsigned most, char *out) {
  static char buffer[2 * MOST];
  struct tp_scrub_stream stream = {0};
  size_t held = 0, done = 0, sent = 0;
  unsigned found, seed = most;
  do {
    seed = seed * 1103515245u + 12345u;
    size_t piece = (seed >> 16) % most;
    if (piece > length - done)
      piece = length - done;
    memcpy(buffer + held, text + done, piece);
    done += piece;
    size_t size = held + piece;
    tp_scrub_run(scrub, &stream, buffer, size, done == length, &held, &found);
    if (held > tp_scrub_holds(scrub) || held > size || (done == length && held))
      abort();
    memcpy(out + sent, buffer, size - held);
    sent += size - held;
    memmove(buffer, buffer + size - held, held);
  } while (done < length);
  if (sent != length)
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  static char text[MOST], once[MOST], other[MOST];
  struct input input = {bytes, length};
  struct tp_scrub_pattern patterns[2];
  for (unsigned i = 0; i < 2; i++) {
    size_t size = TP_SCRUB_SHORTEST + take(&input) % 12;
    if (input.length < size)
      return 0;
    patterns[i] = (struct tp_scrub_pattern){(const char *)input.bytes, size, i + 1};
    input.bytes += size, input.length -= size;
  }
  struct tp_error err;
  struct tp_scrub *scrub = tp_scrub_new(patterns, 2, TP_SCRUB_MASK, &err);
  if (!scrub)
    abort();
  size_t size = 0;
  while (input.length && size < MOST)
    write_some(scrub, &input, text, &size);

  slow(scrub, text, size, other);
  cut(scrub, text, size, MOST + 1, once);
  if (memcmp(once, other, size) != 0)
    abort();
  unsigned most[] = {2, 7, 40, 4100};
  for (unsigned i = 0; i < 4; i++) {
    cut(scrub, text, size, most[i], once);
    if (memcmp(once, other, size) != 0)
      abort();
  }
  tp_scrub_release(scrub);
  return 0;
}

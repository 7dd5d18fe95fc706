/* The scrubber's patterns: see scrub.h. Made when a policy or a secret changes, in the egress process.
 *
 * Base64 of a text that contains the secret shows the secret at one of three alignments. Its first and
 * last character there may mix in bits of the neighbours, so that only those between are a pattern. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../scope.h"
#include "scrub_table.h"

#define FORMS 7u /* plain, base64 and base64url at three alignments */
#define LEAST_BITS 12u
#define MOST_BITS 16u

static const char alphabets[2][65] = {
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
};

static unsigned char bit_at(const struct tp_scrub_pattern *pattern, size_t bit) {
  return (unsigned char)pattern->bytes[bit / 8] >> (7 - bit % 8) & 1;
}

/* The characters that `shift` bytes in front of the secret leave to it alone. */
static size_t encode(const struct tp_scrub_pattern *pattern, unsigned shift, const char *alphabet,
                     unsigned char *out) {
  size_t bits = pattern->length * 8, length = 0;
  for (size_t bit = (6 - shift * 8 % 6) % 6; bit + 6 <= bits; bit += 6) {
    unsigned value = 0;
    for (unsigned i = 0; i < 6; i++)
      value = value << 1 | bit_at(pattern, bit + i);
    out[length++] = (unsigned char)alphabet[value];
  }
  return length;
}

static bool is_known(const struct tp_scrub *scrub, const unsigned char *bytes, size_t length) {
  for (unsigned i = 0; i < scrub->count; i++)
    if (scrub->entries[i].length == length && memcmp(scrub->entries[i].bytes, bytes, length) == 0)
      return true;
  return false;
}

static int add_entry(struct tp_scrub *scrub, const void *bytes, size_t length, unsigned id,
                     struct tp_error *err) {
  if (is_known(scrub, bytes, length))
    return 0;
  unsigned char *copy = malloc(length);
  if (!copy)
    return tp_fail(err, ENOMEM, "copy a secret of %zu bytes", length);
  memcpy(copy, bytes, length);
  scrub->entries[scrub->count++] = (struct tp_scrub_entry){
      .bytes = copy,
      .length = length,
      .id = id,
      .leads = memchr(copy, '%', length) || memchr(copy, '\\', length),
  };
  if (length > scrub->longest)
    scrub->longest = length;
  return 0;
}

static int add_forms(struct tp_scrub *scrub, const struct tp_scrub_pattern *pattern,
                     struct tp_error *err) {
  if (pattern->length < TP_SCRUB_SHORTEST || pattern->length > TP_SCRUB_LONGEST)
    return tp_fail(err, EINVAL, "a secret of %zu bytes, it must have %u to %u", pattern->length,
                   TP_SCRUB_SHORTEST, TP_SCRUB_LONGEST);
  if (pattern->id == 0)
    return tp_fail(err, EINVAL, "a secret with the id 0");
  if (add_entry(scrub, pattern->bytes, pattern->length, pattern->id, err) < 0)
    return -1;

  unsigned char encoded[TP_SCRUB_LONGEST * 8 / 6];
  for (unsigned form = 0; form < FORMS - 1; form++) {
    size_t length = encode(pattern, form % 3, alphabets[form / 3], encoded);
    if (add_entry(scrub, encoded, length, pattern->id, err) < 0)
      return -1;
  }
  explicit_bzero(encoded, sizeof encoded);
  return 0;
}

static int by_bytes(const void *left, const void *right) {
  const struct tp_scrub_entry *a = left, *b = right;
  int order = memcmp(a->bytes, b->bytes, a->length < b->length ? a->length : b->length);
  return order ? order : (a->length > b->length) - (a->length < b->length);
}

static void index_entries(struct tp_scrub *scrub) {
  qsort(scrub->entries, scrub->count, sizeof *scrub->entries, by_bytes);
  for (unsigned i = 0; i < scrub->count; i++) {
    const unsigned char *bytes = scrub->entries[i].bytes;
    scrub->bucket[bytes[0] + 1] = i + 1;
    for (unsigned k = 0; k < TP_SCRUB_SHORTEST; k++)
      scrub->early[bytes[k]] |= (unsigned char)(1u << k);
    for (unsigned k = 0; k < TP_SCRUB_WINDOWS; k++) {
      unsigned char window[4] = {bytes[k], bytes[k + 1], bytes[k + 2], 0};
      scrub->windows[tp_scrub_hash(window, scrub->shift)] |= (unsigned char)(1u << k);
    }
  }
  for (unsigned b = 1; b <= 256; b++)
    if (scrub->bucket[b] < scrub->bucket[b - 1])
      scrub->bucket[b] = scrub->bucket[b - 1];
}

/* So large that a chance hit stays rare, so small that it stays in the nearest cache. */
static unsigned table_bits(unsigned count) {
  unsigned bits = LEAST_BITS;
  while (bits < MOST_BITS && (1u << bits) < count * FORMS * TP_SCRUB_WINDOWS * 64)
    bits++;
  return bits;
}

struct tp_scrub *tp_scrub_new(const struct tp_scrub_pattern *patterns, unsigned count,
                              unsigned flags, struct tp_error *err) {
  if (count > TP_SCRUB_SECRETS) {
    tp_fail(err, EINVAL, "%u secrets, the limit is %u", count, TP_SCRUB_SECRETS);
    return NULL;
  }
  struct tp_scrub *scrub = calloc(1, sizeof *scrub);
  if (!scrub) {
    tp_fail(err, ENOMEM, "make scrubber");
    return NULL;
  }
  unsigned bits = table_bits(count);
  *scrub = (struct tp_scrub){.references = 1, .flags = flags, .shift = 32 - bits};
  scrub->entries = calloc(count * FORMS + 1, sizeof *scrub->entries);
  scrub->windows = calloc(1, (size_t)1 << bits);
  int outcome = scrub->entries && scrub->windows ? 0 : tp_fail(err, ENOMEM, "make scrubber");
  for (unsigned i = 0; i < count && outcome == 0; i++)
    outcome = add_forms(scrub, &patterns[i], err);
  if (outcome < 0) {
    tp_scrub_release(scrub);
    return NULL;
  }
  index_entries(scrub);
  return scrub;
}

struct tp_scrub *tp_scrub_retain(struct tp_scrub *scrub) {
  scrub->references++;
  return scrub;
}

void tp_scrub_release(struct tp_scrub *scrub) {
  if (!scrub || --scrub->references > 0)
    return;
  for (unsigned i = 0; i < scrub->count; i++) {
    explicit_bzero(scrub->entries[i].bytes, scrub->entries[i].length);
    free(scrub->entries[i].bytes);
  }
  free(scrub->entries);
  free(scrub->windows);
  free(scrub);
}

size_t tp_scrub_holds(const struct tp_scrub *scrub) {
  return scrub->longest ? scrub->longest * TP_SCRUB_ESCAPE : 0;
}

unsigned tp_scrub_flags(const struct tp_scrub *scrub) {
  return scrub->flags;
}

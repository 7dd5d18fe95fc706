/* What scrub_compile.c makes and scrub.c reads. */
#ifndef TP_SCRUB_TABLE_H
#define TP_SCRUB_TABLE_H

#include <stdint.h>
#include <string.h>

#include "scrub.h"

#define TP_SCRUB_WINDOWS 6u /* windows of 3 bytes in a pattern's first 8 */
#define TP_SCRUB_ESCAPE 6u  /* the longest escape: \u00XX */

struct tp_scrub_entry {
  unsigned char *bytes;
  size_t length;
  unsigned id;
  bool leads; /* holds a '%' or '\' */
};

struct tp_scrub {
  unsigned references, flags, count;
  struct tp_scrub_entry *entries; /* by first byte */
  unsigned bucket[257];           /* entries with first byte b: bucket[b] up to bucket[b + 1] */
  unsigned char early[256];       /* bit n: some pattern has this byte at offset n, n < 8 */
  unsigned shift;
  unsigned char *windows; /* by hash of 3 bytes; bit n: some pattern has them at offset n */
  size_t longest;
};

/* Reads 4 bytes, of which 3 count. */
static inline uint32_t tp_scrub_hash(const unsigned char *bytes, unsigned shift) {
  uint32_t word;
  memcpy(&word, bytes, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap32(word);
#endif
  return (word << 8) * 2654435761u >> shift;
}

#endif

/* The output ring against a plain list of all bytes that ever were: operations are pairs of bytes. */
#include "../init/ring.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

#define LIMIT 4096
#define MOST (64u << 10)

static uint8_t all[MOST], streams[MOST];

static void check(const struct tp_ring *ring, uint64_t at) {
  while (at < ring->end) {
    struct iovec part[2];
    unsigned stream;
    size_t got = tp_ring_peek(ring, at, 777, &stream, part);
    if (got == 0 || part[0].iov_len + part[1].iov_len != got)
      abort();
    if (memcmp(part[0].iov_base, all + at, part[0].iov_len) != 0 ||
        memcmp(part[1].iov_base, all + at + part[0].iov_len, part[1].iov_len) != 0)
      abort();
    for (size_t i = 0; i < got; i++)
      if (streams[at + i] != stream)
        abort();
    at += got;
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  struct tp_ring ring;
  uint64_t reader = 0;
  tp_ring_init(&ring, LIMIT);
  for (; length >= 2; bytes += 2, length -= 2) {
    unsigned stream = 1 + (bytes[0] & 1);
    int lossless = bytes[0] & 2, advance = bytes[0] & 4;
    size_t want = bytes[0] & 8 ? bytes[1] * 16u : bytes[1] & 7;
    if (reader < ring.start)
      reader = ring.start;
    if (advance)
      reader += (ring.end - reader) / 2;
    if (ring.end + want > MOST || want == 0)
      continue;
    struct iovec room[2];
    int parts = tp_ring_room(&ring, stream, lossless ? reader : TP_RING_FREE, want, room);
    if (parts < 0)
      abort();
    check(&ring, ring.start);
    if (parts == 0) {
      if (!lossless)
        abort();
      continue;
    }
    size_t size = room[0].iov_len + (parts > 1 ? room[1].iov_len : 0);
    size = size > 1 && bytes[0] & 16 ? size / 2 : size;
    for (size_t i = 0; i < size; i++) {
      uint8_t value = (uint8_t)(ring.end + i + bytes[0]);
      all[ring.end + i] = value;
      streams[ring.end + i] = (uint8_t)stream;
      ((uint8_t *)(i < room[0].iov_len ? room[0].iov_base : room[1].iov_base))
          [i < room[0].iov_len ? i : i - room[0].iov_len] = value;
    }
    tp_ring_commit(&ring, stream, size);
    if ((lossless && ring.start > reader) || ring.end - ring.start > LIMIT)
      abort();
    check(&ring, ring.start);
  }
  tp_ring_free(&ring);
  return 0;
}

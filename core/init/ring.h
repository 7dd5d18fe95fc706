/* A process's output: the newest `limit` bytes, which stream each span came from, and offsets that
 * count every byte there ever was.
 *
 * The memory is one mapping of `limit` bytes, so that the kernel grows it page by page as output
 * arrives; it is left out of forks, since the file agents are forks of init. Stream spans (runs) are
 * bounded too: a process that alternates streams byte by byte loses history sooner, not memory. */
#ifndef TP_INIT_RING_H
#define TP_INIT_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define TP_RING_RUNS 4096u /* most spans */
#define TP_RING_FREE UINT64_MAX /* "nobody waits": everything may be overwritten */

struct tp_ring {
  uint8_t *bytes; /* NULL until the first output */
  size_t limit;
  uint64_t start, end;
  uint64_t *runs; /* offset << 2 | stream, oldest first, circular */
  uint32_t first, count, size;
};

void tp_ring_init(struct tp_ring *ring, size_t limit);
void tp_ring_free(struct tp_ring *ring);

/* Where the next bytes of `stream` may be read into, at most `want`: fills one or two spans and
 * returns their count, 0 when the ring must wait for the reader at offset `keep`, -1 out of memory.
 * What is there stays intact until tp_ring_commit says how many bytes came. */
int tp_ring_room(struct tp_ring *ring, unsigned stream, uint64_t keep, size_t want,
                 struct iovec room[2]);
void tp_ring_commit(struct tp_ring *ring, unsigned stream, size_t got);

/* The bytes from offset `at` (start <= at <= end) on that belong to one stream, at most `most`:
 * their length, 0 at the end. */
size_t tp_ring_peek(const struct tp_ring *ring, uint64_t at, size_t most, unsigned *stream,
                    struct iovec bytes[2]);

/* Forget the contents, keep the offsets. */
void tp_ring_trim(struct tp_ring *ring);

/* Bytes of memory in use. */
size_t tp_ring_memory(const struct tp_ring *ring);

#endif

/* Output rings: see ring.h. The only system calls are those for the mapping. */
#include "ring.h"

#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096u

void tp_ring_init(struct tp_ring *ring, size_t limit) {
  *ring = (struct tp_ring){.limit = (limit + PAGE - 1) / PAGE * PAGE};
}

void tp_ring_free(struct tp_ring *ring) {
  if (ring->bytes)
    munmap(ring->bytes, ring->limit);
  free(ring->runs);
  ring->bytes = NULL;
  ring->runs = NULL;
  ring->first = ring->count = ring->size = 0;
}

void tp_ring_trim(struct tp_ring *ring) {
  tp_ring_free(ring);
  ring->start = ring->end;
}

size_t tp_ring_memory(const struct tp_ring *ring) {
  if (!ring->bytes)
    return 0;
  return (ring->end < ring->limit ? (size_t)ring->end : ring->limit) + ring->size * sizeof(uint64_t);
}

static uint64_t run_at(const struct tp_ring *ring, uint32_t index) {
  return ring->runs[(ring->first + index) % ring->size];
}

static uint64_t run_offset(const struct tp_ring *ring, uint32_t index) {
  return index < ring->count ? run_at(ring, index) >> 2 : ring->end;
}

static void drop_until(struct tp_ring *ring, uint64_t start) {
  ring->start = start;
  while (ring->count && run_offset(ring, 1) <= start) {
    ring->first = (ring->first + 1) % ring->size;
    ring->count--;
  }
}

static int grow_runs(struct tp_ring *ring) {
  uint32_t size = ring->size ? ring->size * 2 : 8;
  uint64_t *runs = malloc(size * sizeof *runs);
  if (!runs)
    return -1;
  for (uint32_t i = 0; i < ring->count; i++)
    runs[i] = run_at(ring, i);
  free(ring->runs);
  ring->runs = runs;
  ring->first = 0;
  ring->size = size;
  return 0;
}

static bool needs_run(const struct tp_ring *ring, unsigned stream) {
  return ring->count == 0 || (run_at(ring, ring->count - 1) & 3) != stream;
}

static void span(const struct tp_ring *ring, uint64_t at, size_t length, struct iovec out[2]) {
  size_t begin = (size_t)(at % ring->limit), first = ring->limit - begin;
  if (first > length)
    first = length;
  out[0] = (struct iovec){ring->bytes + begin, first};
  out[1] = (struct iovec){ring->bytes, length - first};
}

int tp_ring_room(struct tp_ring *ring, unsigned stream, uint64_t keep, size_t want,
                 struct iovec room[2]) {
  if (!ring->bytes) {
    void *bytes = mmap(NULL, ring->limit, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED)
      return -1;
    madvise(bytes, ring->limit, MADV_DONTFORK);
    ring->bytes = bytes;
  }

  if (needs_run(ring, stream) && ring->count == ring->size) {
    if (ring->size < TP_RING_RUNS) {
      if (grow_runs(ring) < 0)
        return -1;
    } else if (run_offset(ring, 1) > keep) {
      return 0;
    } else {
      drop_until(ring, run_offset(ring, 1));
    }
  }

  if (keep > ring->end)
    keep = ring->end;
  else if (keep < ring->start)
    keep = ring->start;
  size_t most = ring->limit - (size_t)(ring->end - keep);
  if (want > most)
    want = most;
  if (want == 0)
    return 0;
  span(ring, ring->end, want, room);
  return room[1].iov_len ? 2 : 1;
}

void tp_ring_commit(struct tp_ring *ring, unsigned stream, size_t got) {
  if (got == 0)
    return;
  if (needs_run(ring, stream)) {
    ring->runs[(ring->first + ring->count) % ring->size] = ring->end << 2 | stream;
    ring->count++;
  }
  ring->end += got;
  if (ring->end - ring->start > ring->limit)
    drop_until(ring, ring->end - ring->limit);
}

size_t tp_ring_peek(const struct tp_ring *ring, uint64_t at, size_t most, unsigned *stream,
                    struct iovec bytes[2]) {
  if (at < ring->start || at >= ring->end)
    return 0;
  uint32_t low = 0, high = ring->count; /* the last run that begins at or before `at` */
  while (high - low > 1) {
    uint32_t middle = low + (high - low) / 2;
    if (run_offset(ring, middle) <= at)
      low = middle;
    else
      high = middle;
  }
  uint64_t left = run_offset(ring, low + 1) - at;
  if (left < most)
    most = (size_t)left;
  *stream = (unsigned)(run_at(ring, low) & 3);
  span(ring, at, most, bytes);
  return most;
}

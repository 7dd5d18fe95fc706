/* Bytes that were read and not yet taken: what our stream decoders keep. No system calls. */
#ifndef TP_BUFFER_H
#define TP_BUFFER_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct tp_buffer {
  uint8_t *bytes;
  size_t start, end, size; /* what waits is bytes[start..end) */
};

void tp_buffer_free(struct tp_buffer *buffer);

/* Room to read into, at least `want` bytes; commit what was read. ENOMEM. */
int tp_buffer_reserve(struct tp_buffer *buffer, size_t want, uint8_t **room, size_t *size,
                      struct tp_error *err);
void tp_buffer_commit(struct tp_buffer *buffer, size_t got);

#endif

/* See buffer.h. */
#include "buffer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void tp_buffer_free(struct tp_buffer *buffer) {
  free(buffer->bytes);
  *buffer = (struct tp_buffer){0};
}

int tp_buffer_reserve(struct tp_buffer *buffer, size_t want, uint8_t **room, size_t *size,
                      struct tp_error *err) {
  if (buffer->start == buffer->end)
    buffer->start = buffer->end = 0;
  if (buffer->size - buffer->end < want && buffer->start > 0) {
    memmove(buffer->bytes, buffer->bytes + buffer->start, buffer->end - buffer->start);
    buffer->end -= buffer->start;
    buffer->start = 0;
  }
  if (buffer->size - buffer->end < want) {
    uint8_t *grown = realloc(buffer->bytes, buffer->end + want);
    if (!grown)
      return tp_fail(err, ENOMEM, "grow buffer to %zu bytes", buffer->end + want);
    buffer->bytes = grown;
    buffer->size = buffer->end + want;
  }
  *room = buffer->bytes + buffer->end;
  *size = buffer->size - buffer->end;
  return 0;
}

void tp_buffer_commit(struct tp_buffer *buffer, size_t got) {
  buffer->end += got;
}

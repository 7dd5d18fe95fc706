/* What init sends to attached clients; the first byte says in which pieces it comes. Joined frames
 * carry the same bytes as single ones. */
#include <stdlib.h>
#include <string.h>

#include "../stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

static size_t decode(const uint8_t *bytes, size_t length, size_t piece, int coalesce) {
  struct tp_buffer decoder = {0};
  struct tp_error err;
  size_t carried = 0;
  int found = 0;
  while (length && found >= 0) {
    size_t part = piece < length ? piece : length, size;
    uint8_t *room;
    if (tp_buffer_reserve(&decoder, part, &room, &size, &err) < 0)
      abort();
    memcpy(room, bytes, part);
    tp_buffer_commit(&decoder, part);
    bytes += part, length -= part;
    struct tp_stream_frame frame;
    while ((found = tp_stream_next(&decoder, coalesce, &frame, &err)) > 0) {
      volatile uint8_t sum = 0;
      for (size_t i = 0; i < frame.length; i++)
        sum = (uint8_t)(sum + frame.bytes[i]);
      carried += frame.length;
    }
  }
  tp_buffer_free(&decoder);
  return carried;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  if (length < 2)
    return 0;
  size_t piece = bytes[0] + 1u;
  if (decode(bytes + 1, length - 1, piece, 0) != decode(bytes + 1, length - 1, length, 1))
    abort();
  return 0;
}

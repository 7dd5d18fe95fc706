/* Frames, fed in pieces of the sizes that the input itself names. */
#include <stdlib.h>
#include <string.h>

#include "../frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  struct tp_frame_decoder decoder;
  struct tp_error err;
  tp_frame_decoder_init(&decoder, 4096);
  while (length > 1) {
    size_t part = bytes[0] + 1u, size;
    bytes++, length--;
    if (part > length)
      part = length;
    uint8_t *room;
    if (tp_buffer_reserve(&decoder.input, part, &room, &size, &err) < 0)
      break;
    memcpy(room, bytes, part);
    tp_buffer_commit(&decoder.input, part);
    bytes += part, length -= part;

    struct tp_frame frame;
    int found;
    while ((found = tp_frame_next(&decoder, &frame, &err)) > 0) {
      volatile uint8_t sum = 0;
      for (size_t i = 0; i < frame.length; i++)
        sum = (uint8_t)(sum + frame.payload[i]);
      if (frame.length > 4096 || frame.fds > TP_FRAME_FDS)
        abort();
    }
    if (found < 0)
      break;
  }
  tp_frame_decoder_free(&decoder);
  return 0;
}

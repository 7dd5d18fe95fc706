/* Framing: see frame.h. No system calls here. */
#include "frame.h"

#include <errno.h>

void tp_frame_decoder_init(struct tp_frame_decoder *decoder, size_t limit) {
  *decoder = (struct tp_frame_decoder){.limit = limit};
}

void tp_frame_decoder_free(struct tp_frame_decoder *decoder) {
  tp_buffer_free(&decoder->input);
}

int tp_frame_next(struct tp_frame_decoder *decoder, struct tp_frame *frame, struct tp_error *err) {
  struct tp_buffer *input = &decoder->input;
  size_t have = input->end - input->start;
  if (have < TP_FRAME_HEADER)
    return 0;

  const uint8_t *at = input->bytes + input->start;
  size_t length = at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
  unsigned fds = at[4] | (unsigned)at[5] << 8;
  if (length > decoder->limit)
    return tp_fail(err, EMSGSIZE, "frame of %zu bytes, the limit is %zu", length, decoder->limit);
  if (fds > TP_FRAME_FDS)
    return tp_fail(err, EBADMSG, "frame with %u descriptors, the limit is %d", fds, TP_FRAME_FDS);
  if (at[6] || at[7])
    return tp_fail(err, EBADMSG, "frame header with reserved bits set");
  if (have - TP_FRAME_HEADER < length)
    return 0;

  *frame = (struct tp_frame){.payload = at + TP_FRAME_HEADER, .length = length, .fds = fds};
  input->start += TP_FRAME_HEADER + length;
  return 1;
}

void tp_frame_header(uint8_t header[TP_FRAME_HEADER], size_t length, unsigned fds) {
  header[0] = (uint8_t)length;
  header[1] = (uint8_t)(length >> 8);
  header[2] = (uint8_t)(length >> 16);
  header[3] = (uint8_t)(length >> 24);
  header[4] = (uint8_t)fds;
  header[5] = (uint8_t)(fds >> 8);
  header[6] = header[7] = 0;
}

/* The framing of every byte stream of ours between processes, as a sans-I/O machine.
 *
 *   [u32 length][u16 descriptors][u16 zero] payload        little endian, length <= the stream's limit
 *
 * Used by the server, its clients, the spawner and init. A decoder is fed what was read and hands
 * out whole payloads; whatever is not a frame is an error that ends the stream. */
#ifndef TP_FRAME_H
#define TP_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

#define TP_FRAME_HEADER 8
#define TP_FRAME_LIMIT (4u << 20) /* largest payload, bytes */
#define TP_FRAME_FDS 8            /* most descriptors with one frame */

struct tp_frame_decoder {
  struct tp_buffer input; /* read into it, then ask for frames */
  size_t limit;           /* largest payload, bytes */
};

struct tp_frame {
  const uint8_t *payload; /* valid until the decoder is fed or freed */
  size_t length;
  unsigned fds; /* how many descriptors belong to it */
};

void tp_frame_decoder_init(struct tp_frame_decoder *decoder, size_t limit);
void tp_frame_decoder_free(struct tp_frame_decoder *decoder);

/* 1: *frame is the next one; 0: feed more; -1: not a frame (EMSGSIZE, EBADMSG). */
int tp_frame_next(struct tp_frame_decoder *decoder, struct tp_frame *frame, struct tp_error *err);

void tp_frame_header(uint8_t header[TP_FRAME_HEADER], size_t length, unsigned fds);

#endif

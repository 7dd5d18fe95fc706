/* The client's side of an attach socket, sans-I/O: frames of protocol.h out of a byte stream.
 *
 * The bytes come from init, which is inside a sandbox: nothing of them is believed. Used by the
 * Lua client through core/bind/stream.c. */
#ifndef TP_STREAM_H
#define TP_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "init/protocol.h"

struct tp_stream_frame {
  unsigned type;   /* enum tp_attach_output */
  unsigned stream; /* DATA */
  uint64_t offset;
  const uint8_t *bytes; /* DATA; valid until the decoder is fed */
  size_t length;
  uint64_t lost;           /* LOST: how many */
  uint32_t kind;           /* EXIT */
  int32_t code;            /* EXIT */
  uint64_t wall;           /* EXIT: ns */
};

/* Takes from what was read into `input`. 1: *frame is the next one; 0: feed more; -1: not a frame. DATA frames that follow each other
 * come as one when `coalesce`: the bytes are moved together in place. */
int tp_stream_next(struct tp_buffer *input, int coalesce, struct tp_stream_frame *frame,
                   struct tp_error *err);

void tp_stream_input_header(uint8_t header[TP_ATTACH_INPUT_HEADER], unsigned type, size_t length);

#endif

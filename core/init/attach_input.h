/* Parser of what attached clients send: [u8 type][u8 zero][u16 zero][u32 length] payload, sans-I/O.
 *
 * It keeps no payload but a RESIZE's four bytes: stdin is handed on as it comes, so that a frame
 * needs no buffer and back pressure is the socket's. */
#ifndef TP_INIT_ATTACH_INPUT_H
#define TP_INIT_ATTACH_INPUT_H

#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

struct tp_attach_parser {
  uint8_t head[TP_ATTACH_INPUT_HEADER];
  uint8_t have; /* of head; all of it: inside a payload */
  uint8_t small[4];
  uint8_t small_have;
  uint32_t left;
};

/* Called for each piece of STDIN, for EOF (length 0) and RESIZE (4 bytes). */
typedef void tp_attach_taker(void *context, unsigned type, const uint8_t *bytes, size_t length);

/* 0, or -1: not our protocol. */
int tp_attach_parse(struct tp_attach_parser *parser, const uint8_t *bytes, size_t length,
                    tp_attach_taker *take, void *context);

#endif

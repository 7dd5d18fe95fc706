/* See stream.h. No system calls here. */
#include "stream.h"

#include <errno.h>
#include <string.h>

static uint64_t number(const uint8_t *at, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; i++)
    value |= (uint64_t)at[i] << 8 * i;
  return value;
}

static int parse(struct tp_buffer *input, struct tp_stream_frame *frame,
                 struct tp_error *err) {
  size_t have = input->end - input->start;
  if (have < TP_ATTACH_HEADER)
    return 0;
  uint8_t *at = input->bytes + input->start, *payload = at + TP_ATTACH_HEADER;
  size_t length = (size_t)number(at + 4, 4);
  *frame = (struct tp_stream_frame){.type = at[0], .stream = at[1], .offset = number(at + 8, 8)};
  size_t least = 0, most = 0;
  switch (frame->type) {
  case TP_ATTACH_DATA: least = 1, most = TP_ATTACH_LIMIT; break;
  case TP_ATTACH_LOST: least = most = 8; break;
  case TP_ATTACH_EXIT: least = most = 16; break;
  case TP_ATTACH_END:
  case TP_ATTACH_STDIN_CLOSED: break;
  default: return tp_fail(err, EBADMSG, "stream frame of type %u", frame->type);
  }
  if (length < least || length > most || at[2] || at[3] ||
      (frame->type == TP_ATTACH_DATA && frame->stream != 1 && frame->stream != 2))
    return tp_fail(err, EBADMSG, "malformed stream frame of type %u", frame->type);
  if (have - TP_ATTACH_HEADER < length)
    return 0;

  if (frame->type == TP_ATTACH_LOST) {
    frame->lost = number(payload, 8);
  } else if (frame->type == TP_ATTACH_EXIT) {
    frame->kind = (uint32_t)number(payload, 4);
    frame->code = (int32_t)number(payload + 4, 4);
    frame->wall = number(payload + 8, 8);
    if (frame->kind != TP_EXIT_CODE && frame->kind != TP_EXIT_SIGNAL)
      return tp_fail(err, EBADMSG, "exit of kind %u", frame->kind);
  } else if (frame->type == TP_ATTACH_DATA) {
    frame->bytes = payload;
    frame->length = length;
  }
  input->start += TP_ATTACH_HEADER + length;
  return 1;
}

int tp_stream_next(struct tp_buffer *input, int coalesce, struct tp_stream_frame *frame,
                   struct tp_error *err) {
  int found = parse(input, frame, err);
  if (found <= 0 || !coalesce || frame->type != TP_ATTACH_DATA)
    return found;
  for (;;) {
    size_t before = input->start;
    struct tp_stream_frame more;
    struct tp_error ignored; /* met again by the next call */
    if (parse(input, &more, &ignored) <= 0)
      break;
    if (more.type != TP_ATTACH_DATA || more.stream != frame->stream ||
        more.offset != frame->offset + frame->length) {
      input->start = before;
      break;
    }
    memmove((uint8_t *)frame->bytes + frame->length, more.bytes, more.length);
    frame->length += more.length;
  }
  return 1;
}

void tp_stream_input_header(uint8_t header[TP_ATTACH_INPUT_HEADER], unsigned type, size_t length) {
  memset(header, 0, TP_ATTACH_INPUT_HEADER);
  header[0] = (uint8_t)type;
  for (unsigned i = 0; i < 4; i++)
    header[4 + i] = (uint8_t)(length >> 8 * i);
}

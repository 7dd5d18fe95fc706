/* Bodies of HTTP messages: see http.h. The bytes of a body are never copied; what frames them is. */
#include <errno.h>
#include <string.h>

#include "http_reader.h"

struct input {
  const char *bytes, *body;
  size_t length, body_length;
};

static void hand_out(struct tp_http_reader *reader, struct input *in, bool bounded) {
  size_t length = in->length;
  if (bounded && length > reader->remaining)
    length = (size_t)reader->remaining;
  in->body = in->bytes;
  in->body_length = length;
  in->bytes += length;
  in->length -= length;
  if (bounded)
    reader->remaining -= length;
}

static int take_chunk_size(struct tp_http_reader *reader, struct input *in, struct tp_error *err) {
  struct tp_http_line line;
  size_t digits;
  int got = tp_http_take_line(&reader->tail, TP_HTTP_CHUNK_LINE_LIMIT, &in->bytes, &in->length,
                              &line, err);
  if (got < 0)
    return tp_wrap(err, "chunk size");
  if (got == 0)
    return 0;
  if (tp_http_check_chunk_line(line, &digits, err) < 0)
    return -1;
  reader->extensions += line.length - digits;
  if (reader->extensions > TP_HTTP_EXTENSION_LIMIT)
    return tp_fail(err, EMSGSIZE, "more than %d bytes of chunk extensions",
                   TP_HTTP_EXTENSION_LIMIT);
  if (tp_http_parse_chunk_line(reader, digits, err) < 0)
    return -1;
  reader->tail.used = reader->tail.line = 0;
  reader->stage = reader->remaining ? TP_HTTP_CHUNK_DATA : TP_HTTP_TRAILERS;
  return 1;
}

static int take_chunk_data(struct tp_http_reader *reader, struct input *in, struct tp_error *err) {
  if (in->length == 0)
    return 0;
  hand_out(reader, in, true);
  if (reader->remaining == 0)
    reader->stage = TP_HTTP_CHUNK_END;
  return tp_http_parse_chunk_data(reader, in->body, in->body_length, err);
}

static int take_chunk_end(struct tp_http_reader *reader, struct input *in, struct tp_error *err) {
  while (in->length && reader->line_end < 2) {
    if (*in->bytes != "\r\n"[reader->line_end])
      return tp_fail(err, EBADMSG, "no CRLF behind a chunk");
    reader->line_end++;
    in->bytes++;
    in->length--;
  }
  if (reader->line_end < 2)
    return 0;
  reader->line_end = 0;
  reader->stage = TP_HTTP_CHUNK_SIZE;
  return tp_http_parse_chunk_end(reader, err) < 0 ? -1 : 1;
}

static int take_trailer(struct tp_http_reader *reader, struct input *in, struct tp_error *err) {
  struct tp_http_line line;
  int got = tp_http_take_line(&reader->tail, TP_HTTP_TRAILER_LIMIT, &in->bytes, &in->length, &line,
                              err);
  if (got < 0)
    return tp_wrap(err, "trailers");
  if (got == 0)
    return 0;
  if (line.length) {
    if (++reader->lines > TP_HTTP_HEADER_LIMIT)
      return tp_fail(err, EMSGSIZE, "more than %d trailers", TP_HTTP_HEADER_LIMIT);
    return tp_http_check_trailer_line(line, err) < 0 ? -1 : 1;
  }
  if (tp_http_parse_trailers(reader, err) < 0)
    return -1;
  reader->stage = TP_HTTP_COMPLETE;
  return 1;
}

/* One step: 1 when another may be made with what is left, 0 when not, -1. */
static int step(struct tp_http_reader *reader, struct input *in, struct tp_error *err) {
  switch (reader->stage) {
  case TP_HTTP_IN_BODY:
    hand_out(reader, in, reader->head.body == TP_HTTP_LENGTH);
    if (reader->head.body == TP_HTTP_LENGTH && reader->remaining == 0)
      reader->stage = TP_HTTP_COMPLETE;
    return 0;
  case TP_HTTP_CHUNK_SIZE:
    return take_chunk_size(reader, in, err);
  case TP_HTTP_CHUNK_DATA:
    return take_chunk_data(reader, in, err);
  case TP_HTTP_CHUNK_END:
    return take_chunk_end(reader, in, err);
  case TP_HTTP_TRAILERS:
    return take_trailer(reader, in, err);
  case TP_HTTP_BROKEN:
    return tp_fail(err, EBADMSG, "the message was refused");
  case TP_HTTP_AT_HEAD:
    return tp_fail(err, EINVAL, "no head was read");
  default:
    return 0;
  }
}

ssize_t tp_http_body(struct tp_http_reader *reader, const char *bytes, size_t length,
                     const char **body, size_t *body_length, bool *complete, struct tp_error *err) {
  struct input in = {.bytes = bytes, .length = length};
  int more = 1;
  while (more > 0 && in.body_length == 0)
    more = step(reader, &in, err);
  if (more < 0) {
    if (reader->stage != TP_HTTP_AT_HEAD)
      reader->stage = TP_HTTP_BROKEN;
    return -1;
  }
  *body = in.body_length ? in.body : NULL;
  *body_length = in.body_length;
  *complete = reader->stage == TP_HTTP_COMPLETE || reader->stage == TP_HTTP_ELSEWHERE;
  return in.bytes - bytes;
}

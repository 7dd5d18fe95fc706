/* llhttp over what the guard let through: see http_reader.h. It is given a whole section at once
 * (head, size line, trailers), so that each span it reports is one piece of our own buffer; when the
 * section is parsed, a NUL replaces the separator behind each. It stops after the head and at the
 * end of the message. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "http_reader.h"

static int on_method(llhttp_t *parser, const char *at, size_t length) {
  struct tp_http_reader *reader = parser->data;
  reader->head.method = at;
  reader->method_length = length;
  return 0;
}

static int on_url(llhttp_t *parser, const char *at, size_t length) {
  struct tp_http_reader *reader = parser->data;
  reader->head.target = at;
  reader->target_length = length;
  return 0;
}

static int on_status(llhttp_t *parser, const char *at, size_t length) {
  struct tp_http_reader *reader = parser->data;
  reader->head.reason = at;
  reader->reason_length = length;
  return 0;
}

static struct tp_http_fields *fields_of(struct tp_http_reader *reader) {
  return reader->stage == TP_HTTP_TRAILERS ? &reader->trailers : &reader->fields;
}

static int on_header_field(llhttp_t *parser, const char *at, size_t length) {
  struct tp_http_reader *reader = parser->data;
  struct tp_http_fields *fields = fields_of(reader);
  if (fields->count == fields->size) {
    unsigned size = fields->size ? fields->size * 2 : 16;
    struct tp_http_header *list = realloc(fields->list, size * sizeof *list);
    if (!list) {
      reader->starved = true;
      return -1;
    }
    fields->list = list;
    fields->size = size;
  }
  fields->list[fields->count++] =
      (struct tp_http_header){.name = at, .name_length = length, .value = ""};
  return 0;
}

/* Not called for some empty values, and never twice for one: lines are not folded. */
static int on_header_value(llhttp_t *parser, const char *at, size_t length) {
  struct tp_http_fields *fields = fields_of(parser->data);
  while (length && (at[length - 1] == ' ' || at[length - 1] == '\t'))
    length--;
  if (fields->count == 0 || fields->list[fields->count - 1].value_length)
    return -1;
  if (length) {
    fields->list[fields->count - 1].value = at;
    fields->list[fields->count - 1].value_length = length;
  }
  return 0;
}

static int on_announced(llhttp_t *parser) {
  ((struct tp_http_reader *)parser->data)->announced = true;
  return HPE_PAUSED;
}

static int on_body(llhttp_t *parser, const char *at, size_t length) {
  (void)at;
  ((struct tp_http_reader *)parser->data)->passed += length;
  return 0;
}

static const llhttp_settings_t settings = {
    .on_method = on_method,
    .on_url = on_url,
    .on_status = on_status,
    .on_header_field = on_header_field,
    .on_header_value = on_header_value,
    .on_headers_complete = on_announced,
    .on_chunk_header = on_announced,
    .on_body = on_body,
    .on_message_complete = on_announced,
};

void tp_http_parser_start(struct tp_http_reader *reader) {
  llhttp_init(&reader->parser, reader->side == TP_HTTP_REQUEST ? HTTP_REQUEST : HTTP_RESPONSE,
              &settings);
  reader->parser.data = reader;
}

/* Gives llhttp all of a section. It must take every byte, and stop at the last when `stops`. */
static int parse(struct tp_http_reader *reader, const char *bytes, size_t length, bool stops,
                 struct tp_error *err) {
  llhttp_t *parser = &reader->parser;
  reader->announced = false;
  llhttp_resume(parser);
  llhttp_errno_t got = llhttp_execute(parser, bytes, length);
  if (reader->starved)
    return tp_fail(err, ENOMEM, "headers");
  if (got == HPE_OK && !stops)
    return 0;
  if (got == HPE_PAUSED && stops && reader->announced &&
      llhttp_get_error_pos(parser) == bytes + length)
    return 0;
  if (got == HPE_OK || got == HPE_PAUSED)
    return tp_fail(err, EBADMSG, "where a part of the message ends can be read in two ways");
  const char *reason = llhttp_get_error_reason(parser);
  return tp_fail(err, EBADMSG, "%s", reason ? reason : llhttp_errno_name(got));
}

static void terminate(const char *text, size_t length) {
  if (text && length)
    ((char *)text)[length] = '\0';
}

static void terminate_fields(struct tp_http_fields *fields) {
  for (unsigned i = 0; i < fields->count; i++) {
    terminate(fields->list[i].name, fields->list[i].name_length);
    terminate(fields->list[i].value, fields->list[i].value_length);
  }
}

int tp_http_parse_head(struct tp_http_reader *reader, struct tp_error *err) {
  struct tp_http_head *head = &reader->head;
  *head = (struct tp_http_head){.reason = reader->side == TP_HTTP_RESPONSE ? "" : NULL};
  reader->method_length = reader->target_length = reader->reason_length = 0;
  tp_http_parser_start(reader);
  if (parse(reader, reader->text.bytes, reader->text.used, true, err) < 0)
    return -1;
  terminate(head->method, reader->method_length);
  terminate(head->target, reader->target_length);
  terminate(head->reason, reader->reason_length);
  terminate_fields(&reader->fields);
  head->status = reader->parser.status_code;
  head->minor = reader->parser.http_minor;
  head->headers = reader->fields.list;
  head->header_count = reader->fields.count;
  if (reader->fields.count != reader->lines)
    return tp_fail(err, EBADMSG, "the headers can be read in two ways");
  reader->parser.upgrade = 0; /* a chunked body ends where it ends, whatever follows it */
  return 0;
}

/* Only the digits and a line end: nobody of us reads extensions. Leaves the size in `remaining`. */
int tp_http_parse_chunk_line(struct tp_http_reader *reader, size_t digits, struct tp_error *err) {
  char line[18];
  uint64_t size = 0;
  for (size_t i = 0; i < digits; i++) {
    char c = reader->tail.bytes[i];
    size = size << 4 | (unsigned)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  memcpy(line, reader->tail.bytes, digits);
  memcpy(line + digits, "\r\n", 2);
  if (parse(reader, line, digits + 2, true, err) < 0)
    return -1;
  if (reader->parser.content_length != size || size > INT64_MAX)
    return tp_fail(err, EBADMSG, "a chunk's size is too large");
  reader->remaining = size;
  return 0;
}

int tp_http_parse_chunk_data(struct tp_http_reader *reader, const char *bytes, size_t length,
                             struct tp_error *err) {
  reader->passed = 0;
  if (parse(reader, bytes, length, false, err) < 0)
    return -1;
  if (reader->passed != length)
    return tp_fail(err, EBADMSG, "where a chunk ends can be read in two ways");
  return 0;
}

int tp_http_parse_chunk_end(struct tp_http_reader *reader, struct tp_error *err) {
  reader->passed = 0;
  if (parse(reader, "\r\n", 2, false, err) < 0)
    return -1;
  return reader->passed ? tp_fail(err, EBADMSG, "a chunk's end can be read in two ways") : 0;
}

int tp_http_parse_trailers(struct tp_http_reader *reader, struct tp_error *err) {
  if (parse(reader, reader->tail.bytes, reader->tail.used, true, err) < 0)
    return -1;
  if (reader->trailers.count != reader->lines)
    return tp_fail(err, EBADMSG, "the trailers can be read in two ways");
  terminate_fields(&reader->trailers);
  return 0;
}

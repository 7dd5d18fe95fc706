/* The HTTP reader: see http.h. Collects lines, has each judged, and hands whole sections to llhttp. */
#include "http.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "http_reader.h"

/* There is one a connection, and most connections wait. */
_Static_assert(sizeof(struct tp_http_reader) < 1024, "what a reader that waits may hold");

struct tp_http_reader *tp_http_reader_new(enum tp_http_side side) {
  struct tp_http_reader *reader = calloc(1, sizeof *reader);
  if (reader)
    reader->side = side;
  return reader;
}

static void free_fields(struct tp_http_fields *fields) {
  free(fields->list);
  *fields = (struct tp_http_fields){0};
}

void tp_http_reader_free(struct tp_http_reader *reader) {
  if (!reader)
    return;
  tp_http_text_free(&reader->text);
  tp_http_text_free(&reader->tail);
  free_fields(&reader->fields);
  free_fields(&reader->trailers);
  free(reader);
}

void tp_http_forget(struct tp_http_reader *reader) {
  if (reader->stage == TP_HTTP_AT_HEAD && reader->text.used)
    return; /* half a head */
  tp_http_text_free(&reader->text);
  free_fields(&reader->fields);
  if (reader->stage == TP_HTTP_AT_HEAD || reader->stage == TP_HTTP_COMPLETE) {
    tp_http_text_free(&reader->tail);
    free_fields(&reader->trailers);
  }
}

void tp_http_expect(struct tp_http_reader *reader, const char *method) {
  reader->for_head = strcmp(method, "HEAD") == 0;
  reader->for_connect = strcmp(method, "CONNECT") == 0;
}

static int broken(struct tp_http_reader *reader) {
  reader->stage = TP_HTTP_BROKEN;
  return -1;
}

/* 1: that was the head's last line. */
static int take_head_line(struct tp_http_reader *reader, struct tp_http_line line,
                          struct tp_error *err) {
  bool first = line.bytes == reader->text.bytes;
  if (first && line.length == 0) {
    if (reader->blank || reader->side == TP_HTTP_RESPONSE)
      return tp_fail(err, EBADMSG, "an empty line where a message should start");
    reader->blank = true; /* some old clients end a body with a line end too much */
    reader->text.used = reader->text.line = 0;
    return 0;
  }
  if (line.length == 0)
    return 1;
  if (first)
    return reader->side == TP_HTTP_REQUEST ? tp_http_check_request_line(line, err)
                                           : tp_http_check_status_line(line, err);
  if (++reader->lines > TP_HTTP_HEADER_LIMIT)
    return tp_fail(err, EMSGSIZE, "more than %d headers", TP_HTTP_HEADER_LIMIT);
  return tp_http_check_field_line(line, err);
}

static int take_head(struct tp_http_reader *reader, const char **bytes, size_t *length,
                     struct tp_error *err) {
  int got = 1;
  while (got > 0) {
    struct tp_http_line line;
    got = tp_http_take_line(&reader->text, TP_HTTP_HEAD_LIMIT, bytes, length, &line, err);
    if (got <= 0)
      return got;
    int last = take_head_line(reader, line, err);
    if (last != 0)
      return last;
  }
  return got;
}

static int start_head(struct tp_http_reader *reader, struct tp_error *err) {
  if (reader->stage == TP_HTTP_AT_HEAD)
    return 0;
  if (reader->stage == TP_HTTP_BROKEN)
    return tp_fail(err, EBADMSG, "the message before was refused");
  if (reader->stage != TP_HTTP_COMPLETE)
    return tp_fail(err, EINVAL, "the last message is not over");
  tp_http_forget(reader);
  reader->stage = TP_HTTP_AT_HEAD;
  reader->lines = 0;
  reader->blank = false;
  return 0;
}

/* What tp_http_body is to read. */
static void start_body(struct tp_http_reader *reader) {
  const struct tp_http_head *head = &reader->head;
  reader->lines = 0;
  reader->extensions = 0;
  reader->remaining = head->length;
  if (head->body == TP_HTTP_CHUNKED)
    reader->stage = TP_HTTP_CHUNK_SIZE;
  else if (head->body == TP_HTTP_UPGRADE)
    reader->stage = TP_HTTP_ELSEWHERE;
  else if (head->body == TP_HTTP_EOF || (head->body == TP_HTTP_LENGTH && head->length))
    reader->stage = TP_HTTP_IN_BODY;
  else
    reader->stage = TP_HTTP_COMPLETE;
}

ssize_t tp_http_head(struct tp_http_reader *reader, const char *bytes, size_t length,
                     const struct tp_http_head **head, struct tp_error *err) {
  const char *at = bytes;
  *head = NULL;
  if (start_head(reader, err) < 0)
    return -1;
  int complete = take_head(reader, &at, &length, err);
  if (complete < 0)
    return broken(reader);
  if (complete > 0) {
    if (tp_http_parse_head(reader, err) < 0 || tp_http_decide(reader, err) < 0)
      return broken(reader);
    start_body(reader);
    *head = &reader->head;
  }
  return at - bytes;
}

const struct tp_http_header *tp_http_trailers(const struct tp_http_reader *reader,
                                              unsigned *count) {
  *count = reader->stage == TP_HTTP_COMPLETE ? reader->trailers.count : 0;
  return reader->trailers.list;
}

int tp_http_end(struct tp_http_reader *reader, struct tp_error *err) {
  switch (reader->stage) {
  case TP_HTTP_AT_HEAD:
    if (reader->text.used)
      return tp_fail(err, EBADMSG, "the connection ended in the middle of a head");
    return 0;
  case TP_HTTP_IN_BODY:
    if (reader->head.body != TP_HTTP_EOF)
      break;
    reader->stage = TP_HTTP_COMPLETE;
    return 0;
  case TP_HTTP_COMPLETE:
  case TP_HTTP_ELSEWHERE:
    return 0;
  case TP_HTTP_BROKEN:
    return tp_fail(err, EBADMSG, "the message was refused");
  default:
    break;
  }
  reader->stage = TP_HTTP_BROKEN;
  return tp_fail(err, EBADMSG, "the connection ended in the middle of a body");
}

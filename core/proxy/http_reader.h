/* What the parts of the HTTP reader share; nobody else includes this. */
#ifndef TP_PROXY_HTTP_READER_H
#define TP_PROXY_HTTP_READER_H

#include <llhttp.h>

#include "http.h"

/* Whole lines, kept until they are parsed: llhttp gets them at once, so its spans stay in one piece. */
struct tp_http_text {
  char *bytes;
  size_t used, size;
  size_t line; /* where the line that is not complete starts */
};

struct tp_http_fields {
  struct tp_http_header *list;
  unsigned count, size;
};

enum tp_http_stage {
  TP_HTTP_AT_HEAD,
  TP_HTTP_IN_BODY, /* one that is not chunked */
  TP_HTTP_CHUNK_SIZE,
  TP_HTTP_CHUNK_DATA,
  TP_HTTP_CHUNK_END,
  TP_HTTP_TRAILERS,
  TP_HTTP_COMPLETE,
  TP_HTTP_ELSEWHERE, /* the connection has changed its protocol */
  TP_HTTP_BROKEN
};

struct tp_http_reader {
  llhttp_t parser;
  enum tp_http_side side;
  enum tp_http_stage stage;
  bool for_head, for_connect; /* what the next final response answers */
  bool blank;                 /* an empty line before this request was skipped */
  bool announced;             /* llhttp has called on_headers_complete, on_chunk_header... */
  bool starved;               /* no memory for what llhttp found */
  struct tp_http_text text;   /* the head */
  struct tp_http_text tail;   /* a chunk's size line, then the trailers */
  struct tp_http_fields fields, trailers;
  unsigned lines; /* of the section that is read */
  struct tp_http_head head;
  size_t method_length, target_length, reason_length;
  size_t passed; /* bytes that llhttp saw as body */
  unsigned line_end;  /* bytes seen of the CRLF behind a chunk */
  uint64_t remaining; /* bytes of the body or chunk that are still to come */
  size_t extensions;  /* bytes of chunk extensions so far */
};

struct tp_http_line {
  const char *bytes;
  size_t length; /* without its line end */
};

/* http_line.c: takes bytes up to the end of a line. 1 and *line when there is one, else 0. */
int tp_http_take_line(struct tp_http_text *text, size_t limit, const char **bytes, size_t *length,
                      struct tp_http_line *line, struct tp_error *err);
void tp_http_text_free(struct tp_http_text *text);

/* http_grammar.c: the guard. */
int tp_http_check_request_line(struct tp_http_line line, struct tp_error *err);
int tp_http_check_status_line(struct tp_http_line line, struct tp_error *err);
int tp_http_check_field_line(struct tp_http_line line, struct tp_error *err);
int tp_http_check_trailer_line(struct tp_http_line line, struct tp_error *err);
int tp_http_check_chunk_line(struct tp_http_line line, size_t *digits, struct tp_error *err);
bool tp_http_name_is(const struct tp_http_header *header, const char *lower);
bool tp_http_text_is(const char *text, size_t length, const char *lower);

/* http_parse.c: llhttp over what the guard let through. */
void tp_http_parser_start(struct tp_http_reader *reader);
int tp_http_parse_head(struct tp_http_reader *reader, struct tp_error *err);
int tp_http_parse_chunk_line(struct tp_http_reader *reader, size_t digits, struct tp_error *err);
int tp_http_parse_chunk_data(struct tp_http_reader *reader, const char *bytes, size_t length,
                             struct tp_error *err);
int tp_http_parse_chunk_end(struct tp_http_reader *reader, struct tp_error *err);
int tp_http_parse_trailers(struct tp_http_reader *reader, struct tp_error *err);

/* http_frame.c: where the message ends, and whether all that says so agrees. */
int tp_http_decide(struct tp_http_reader *reader, struct tp_error *err);

#endif

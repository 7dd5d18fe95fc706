/* Reads HTTP/1.0 and 1.1 messages, in the egress process, of bytes that somebody else sent. No input
 * or output here: bytes go in, what they mean comes out, however they are cut.
 *
 * llhttp parses. In front of it stands a guard that refuses whatever two readers could understand
 * differently (RFC 9112 without its leniences), since a message that we and the peer behind us cut
 * in different places carries a request past the policy. After an error a reader is of no use. */
#ifndef TP_PROXY_HTTP_H
#define TP_PROXY_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../error.h"

enum {
  TP_HTTP_HEAD_LIMIT = 64 * 1024, /* bytes of one head, start line and line ends included */
  TP_HTTP_HEADER_LIMIT = 256,     /* header lines of one head */
  TP_HTTP_TRAILER_LIMIT = 16 * 1024,
  TP_HTTP_CHUNK_LINE_LIMIT = 256,        /* one chunk size with its extensions */
  TP_HTTP_EXTENSION_LIMIT = 16 * 1024    /* extensions of all chunks of one body */
};

enum tp_http_side { TP_HTTP_REQUEST, TP_HTTP_RESPONSE };

enum tp_http_body {
  TP_HTTP_NONE,
  TP_HTTP_LENGTH,  /* Content-Length, also 0 */
  TP_HTTP_CHUNKED,
  TP_HTTP_EOF,     /* a response that lasts until its connection ends */
  TP_HTTP_UPGRADE  /* a response after which the connection speaks another protocol */
};

struct tp_http_header {
  const char *name, *value; /* NUL-terminated too; no value holds a control character but tab */
  size_t name_length, value_length;
};

struct tp_http_head {
  const char *method, *target; /* of a request */
  const char *reason;          /* of a response; "" when it has none */
  unsigned status, minor;
  const struct tp_http_header *headers;
  unsigned header_count;
  enum tp_http_body body;
  uint64_t length; /* when body is TP_HTTP_LENGTH */
  bool keep_alive; /* the sender means to go on after this message */
  bool upgrade;    /* "Connection: upgrade" with "Upgrade": asked for, or (status 101) done */
  bool expect_continue;
};

struct tp_http_reader;

/* NULL when there is no memory. */
struct tp_http_reader *tp_http_reader_new(enum tp_http_side side);
void tp_http_reader_free(struct tp_http_reader *reader);

/* Names the method of the request that the next final response answers: HEAD and CONNECT change
 * where it ends. Interim (1xx) responses before it don't use it up. */
void tp_http_expect(struct tp_http_reader *reader, const char *method);

/* Takes bytes of a head; returns how many, never one past its end. *head is set when it is complete
 * (NULL until then) and lives until the next head, or until tp_http_forget. EBADMSG, the message
 * saying what is wrong in words for a person; EMSGSIZE: too large; ENOMEM; EINVAL: the body of the
 * last message was not read to its end. */
ssize_t tp_http_head(struct tp_http_reader *reader, const char *bytes, size_t length,
                     const struct tp_http_head **head, struct tp_error *err);

/* Takes bytes of the body that the last head announced; returns how many. *body is at most one span
 * of it, inside `bytes`, so call again while there are bytes and not *complete; a message without a
 * body is complete at once. EBADMSG, EMSGSIZE (trailers, extensions), ENOMEM. */
ssize_t tp_http_body(struct tp_http_reader *reader, const char *bytes, size_t length,
                     const char **body, size_t *body_length, bool *complete, struct tp_error *err);

/* Trailers of the body that just became complete, until the next head. */
const struct tp_http_header *tp_http_trailers(const struct tp_http_reader *reader, unsigned *count);

/* The connection ended here. 0 where a message may end (between two, or in a TP_HTTP_EOF body, which
 * is complete now), else EBADMSG: it was cut off. */
int tp_http_end(struct tp_http_reader *reader, struct tp_error *err);

/* Gives the memory of the last head and trailers back. A reader that waits then holds < 1 KiB. */
void tp_http_forget(struct tp_http_reader *reader);

#endif

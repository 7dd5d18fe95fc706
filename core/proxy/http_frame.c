/* Where a message ends: see http_reader.h. RFC 9112 section 6.3, but what it resolves by precedence
 * (both lengths, repeated lengths, codings on top of chunked) is refused: the next hop may resolve it
 * otherwise. Our own reading of the headers must agree with llhttp's. */
#include <errno.h>
#include <string.h>
#include <strings.h>

#include "http_reader.h"

struct framing {
  const struct tp_http_header *length, *coding, *host;
  unsigned lengths, codings, hosts;
  bool close, keep_alive, upgrade; /* named by Connection */
  bool has_upgrade, has_continue;
};

static bool lists(const struct tp_http_header *header, const char *lower) {
  const char *at = header->value, *end = at + header->value_length;
  while (at < end) {
    const char *comma = memchr(at, ',', (size_t)(end - at));
    const char *stop = comma ? comma : end, *last = stop;
    while (at < last && (*at == ' ' || *at == '\t'))
      at++;
    while (last > at && (last[-1] == ' ' || last[-1] == '\t'))
      last--;
    if (tp_http_text_is(at, (size_t)(last - at), lower))
      return true;
    at = comma ? stop + 1 : end;
  }
  return false;
}

static void gather(const struct tp_http_head *head, struct framing *seen) {
  for (unsigned i = 0; i < head->header_count; i++) {
    const struct tp_http_header *header = &head->headers[i];
    if (tp_http_name_is(header, "content-length")) {
      seen->length = header;
      seen->lengths++;
    } else if (tp_http_name_is(header, "transfer-encoding")) {
      seen->coding = header;
      seen->codings++;
    } else if (tp_http_name_is(header, "host")) {
      seen->host = header;
      seen->hosts++;
    } else if (tp_http_name_is(header, "connection")) {
      seen->close = seen->close || lists(header, "close");
      seen->keep_alive = seen->keep_alive || lists(header, "keep-alive");
      seen->upgrade = seen->upgrade || lists(header, "upgrade");
    } else if (tp_http_name_is(header, "upgrade")) {
      seen->has_upgrade = seen->has_upgrade || header->value_length > 0;
    } else if (tp_http_name_is(header, "expect")) {
      seen->has_continue = tp_http_text_is(header->value, header->value_length, "100-continue");
    }
  }
}

static int read_length(const struct framing *seen, uint64_t *length, struct tp_error *err) {
  const struct tp_http_header *header = seen->length;
  if (seen->lengths > 1)
    return tp_fail(err, EBADMSG, "more than one Content-Length");
  if (header->value_length == 0)
    return tp_fail(err, EBADMSG, "Content-Length is empty");
  *length = 0;
  for (size_t i = 0; i < header->value_length; i++) {
    unsigned digit = (unsigned)(header->value[i] - '0');
    if (header->value[i] < '0' || header->value[i] > '9')
      return tp_fail(err, EBADMSG, "Content-Length is not one plain number");
    if (*length > ((uint64_t)INT64_MAX - digit) / 10)
      return tp_fail(err, EBADMSG, "Content-Length is too large");
    *length = *length * 10 + digit;
  }
  return 0;
}

static int check_coding(const struct framing *seen, unsigned minor, struct tp_error *err) {
  if (seen->lengths)
    return tp_fail(err, EBADMSG, "both Content-Length and Transfer-Encoding");
  if (seen->codings > 1)
    return tp_fail(err, EBADMSG, "more than one Transfer-Encoding");
  if (!tp_http_text_is(seen->coding->value, seen->coding->value_length, "chunked"))
    return tp_fail(err, EBADMSG, "Transfer-Encoding is not exactly \"chunked\"");
  if (minor == 0)
    return tp_fail(err, EBADMSG, "Transfer-Encoding in an HTTP/1.0 message");
  return 0;
}

static int check_host(const struct framing *seen, unsigned minor, struct tp_error *err) {
  if (seen->hosts > 1)
    return tp_fail(err, EBADMSG, "more than one Host");
  if (seen->hosts == 0)
    return minor == 0 ? 0 : tp_fail(err, EBADMSG, "no Host in an HTTP/1.1 request");
  for (size_t i = 0; i < seen->host->value_length; i++) {
    char c = seen->host->value[i];
    if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
          strchr("-._~:[]", c)))
      return tp_fail(err, EBADMSG, "byte 0x%02x in Host", (unsigned char)c);
  }
  return 0;
}

/* What the length headers say, before the kind of message changes it. */
static int read_framing(struct tp_http_reader *reader, const struct framing *seen,
                        struct tp_error *err) {
  struct tp_http_head *head = &reader->head;
  head->body = TP_HTTP_NONE;
  if (seen->codings) {
    if (check_coding(seen, head->minor, err) < 0)
      return -1;
    head->body = TP_HTTP_CHUNKED;
  } else if (seen->lengths) {
    if (read_length(seen, &head->length, err) < 0)
      return -1;
    head->body = TP_HTTP_LENGTH;
  }
  bool chunked = (reader->parser.flags & F_CHUNKED) != 0;
  if (chunked != (head->body == TP_HTTP_CHUNKED) ||
      reader->parser.content_length != (head->body == TP_HTTP_LENGTH ? head->length : 0))
    return tp_fail(err, EBADMSG, "the length of the message can be read in two ways");
  return 0;
}

static int decide_request(struct tp_http_reader *reader, const struct framing *seen,
                          struct tp_error *err) {
  struct tp_http_head *head = &reader->head;
  if (strcmp(head->method, "CONNECT") == 0 && head->body != TP_HTTP_NONE)
    return tp_fail(err, EBADMSG, "CONNECT with a body");
  head->expect_continue = seen->has_continue && head->minor > 0;
  return check_host(seen, head->minor, err);
}

static int decide_response(struct tp_http_reader *reader, const struct framing *seen,
                           struct tp_error *err) {
  struct tp_http_head *head = &reader->head;
  bool tunnel = reader->for_connect && head->status / 100 == 2;
  if (head->status == 101 && !head->upgrade)
    return tp_fail(err, EBADMSG, "status 101 without Connection: upgrade and Upgrade");
  if (head->status / 100 == 1 || head->status == 204 || tunnel) {
    if (head->body == TP_HTTP_CHUNKED || (head->body == TP_HTTP_LENGTH && head->length))
      return tp_fail(err, EBADMSG, "status %u announces a body, which it can't have", head->status);
    head->body = head->status == 101 || tunnel ? TP_HTTP_UPGRADE : TP_HTTP_NONE;
  } else if (head->status == 304 || reader->for_head) {
    head->body = TP_HTTP_NONE;
  } else if (!seen->codings && !seen->lengths) {
    head->body = TP_HTTP_EOF;
    head->keep_alive = false;
  }
  if (head->status / 100 != 1)
    reader->for_head = reader->for_connect = false;
  return 0;
}

int tp_http_decide(struct tp_http_reader *reader, struct tp_error *err) {
  struct tp_http_head *head = &reader->head;
  struct framing seen = {0};
  gather(head, &seen);
  if (read_framing(reader, &seen, err) < 0)
    return -1;
  head->keep_alive = !seen.close && (head->minor > 0 || seen.keep_alive);
  head->upgrade = seen.upgrade && seen.has_upgrade && head->minor > 0;
  if (reader->side == TP_HTTP_REQUEST)
    return decide_request(reader, &seen, err);
  return decide_response(reader, &seen, err);
}

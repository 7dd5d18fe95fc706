/* Lines of HTTP: see http_reader.h. Where one ends has to be beyond doubt: CRLF and nothing else, no
 * control character on the way. Judged byte by byte as they come, so that a cut changes nothing. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "http_reader.h"

void tp_http_text_free(struct tp_http_text *text) {
  free(text->bytes);
  *text = (struct tp_http_text){0};
}

static int grow(struct tp_http_text *text, size_t want, struct tp_error *err) {
  if (want <= text->size)
    return 0;
  size_t size = text->size ? text->size : 512;
  while (size < want)
    size *= 2;
  char *bytes = realloc(text->bytes, size);
  if (!bytes)
    return tp_fail(err, ENOMEM, "%zu bytes of a head", size);
  text->bytes = bytes;
  text->size = size;
  return 0;
}

/* `before` is the byte in front of these in the same line, 0 at its start. */
static int check(unsigned char before, const char *bytes, size_t length, struct tp_error *err) {
  for (size_t i = 0; i < length; i++) {
    unsigned char byte = (unsigned char)bytes[i];
    if (before == '\r' && byte != '\n')
      return tp_fail(err, EBADMSG, "CR in the middle of a line");
    if (byte == '\n' && before != '\r')
      return tp_fail(err, EBADMSG, "a line ends with LF alone");
    if ((byte < ' ' && byte != '\t' && byte != '\r' && byte != '\n') || byte == 0x7f)
      return tp_fail(err, EBADMSG, "control character 0x%02x", byte);
    before = byte;
  }
  return 0;
}

int tp_http_take_line(struct tp_http_text *text, size_t limit, const char **bytes, size_t *length,
                      struct tp_http_line *line, struct tp_error *err) {
  const char *end = memchr(*bytes, '\n', *length);
  size_t want = end ? (size_t)(end - *bytes) + 1 : *length, room = limit - text->used;
  size_t take = want < room ? want : room;
  unsigned char before = text->used > text->line ? (unsigned char)text->bytes[text->used - 1] : 0;
  if (check(before, *bytes, take, err) < 0)
    return -1;
  if (take < want)
    return tp_fail(err, EMSGSIZE, "more than %zu bytes", limit);
  if (take && grow(text, text->used + take, err) < 0)
    return -1;
  if (take)
    memcpy(text->bytes + text->used, *bytes, take);
  text->used += take;
  *bytes += take;
  *length -= take;
  if (!end)
    return 0;
  *line = (struct tp_http_line){text->bytes + text->line, text->used - text->line - 2};
  text->line = text->used;
  return 1;
}

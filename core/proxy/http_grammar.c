/* The guard in front of llhttp: see http_reader.h. Each line must be what RFC 9112 calls well-formed;
 * what that document lets a recipient forgive (spaces, folding, odd targets) is refused instead. */
#include <errno.h>
#include <string.h>
#include <strings.h>

#include "http_reader.h"

static bool is_token(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
         (c && strchr("!#$%&'*+-.^_`|~", c));
}

static size_t token_length(const char *bytes, size_t length) {
  size_t n = 0;
  while (n < length && is_token(bytes[n]))
    n++;
  return n;
}

static bool starts(const char *bytes, size_t length, const char *with) {
  size_t n = strlen(with);
  return length >= n && memcmp(bytes, with, n) == 0;
}

bool tp_http_text_is(const char *text, size_t length, const char *lower) {
  return strlen(lower) == length && strncasecmp(text, lower, length) == 0;
}

bool tp_http_name_is(const struct tp_http_header *header, const char *lower) {
  return tp_http_text_is(header->name, header->name_length, lower);
}

static int check_version(const char *bytes, size_t length, struct tp_error *err) {
  if (length == 8 && (memcmp(bytes, "HTTP/1.1", 8) == 0 || memcmp(bytes, "HTTP/1.0", 8) == 0))
    return 0;
  if (length == 8 && memcmp(bytes, "HTTP/2.0", 8) == 0)
    return tp_fail(err, EBADMSG, "HTTP/2");
  return tp_fail(err, EBADMSG, "the version is not HTTP/1.0 or HTTP/1.1");
}

static int check_target(const char *bytes, size_t length, bool options, bool connect,
                        struct tp_error *err) {
  for (size_t i = 0; i < length; i++) {
    if ((unsigned char)bytes[i] >= 0x80)
      return tp_fail(err, EBADMSG, "byte 0x%02x in the request target is not percent-encoded",
                     (unsigned char)bytes[i]);
    if (bytes[i] == '\t' || bytes[i] == '#')
      return tp_fail(err, EBADMSG, "the request target holds a %s", bytes[i] == '#' ? "#" : "tab");
  }
  if (length == 0)
    return tp_fail(err, EBADMSG, "the request target is empty");
  if (connect ? bytes[0] != '/' : bytes[0] == '/')
    return 0;
  if (options && length == 1 && bytes[0] == '*')
    return 0;
  if (!connect && (length > 7 && strncasecmp(bytes, "http://", 7) == 0))
    return 0;
  if (!connect && (length > 8 && strncasecmp(bytes, "https://", 8) == 0))
    return 0;
  return tp_fail(err, EBADMSG, "the request target is neither a path nor a URL");
}

/* METHOD SP TARGET SP HTTP/1.x with one space each: more would be a target's for some. */
int tp_http_check_request_line(struct tp_http_line line, struct tp_error *err) {
  size_t method = token_length(line.bytes, line.length);
  if (method == 0 || method == line.length || line.bytes[method] != ' ')
    return tp_fail(err, EBADMSG, "the request line doesn't start with a method and a space");
  const char *target = line.bytes + method + 1, *end = line.bytes + line.length;
  const char *space = memchr(target, ' ', (size_t)(end - target));
  if (!space)
    return tp_fail(err, EBADMSG, "the request line names no version");
  if (check_version(space + 1, (size_t)(end - space - 1), err) < 0)
    return -1;
  return check_target(target, (size_t)(space - target), starts(line.bytes, method, "OPTIONS"),
                      starts(line.bytes, method, "CONNECT"), err);
}

/* HTTP/1.x SP 3DIGIT, then nothing or SP REASON; many servers leave the last space out. */
int tp_http_check_status_line(struct tp_http_line line, struct tp_error *err) {
  const char *at = line.bytes;
  if (check_version(at, line.length < 8 ? line.length : 8, err) < 0)
    return -1;
  if (line.length < 12 || at[8] != ' ' || (line.length > 12 && at[12] != ' '))
    return tp_fail(err, EBADMSG, "the status line holds no three-digit status");
  for (int i = 9; i < 12; i++)
    if (at[i] < '0' || at[i] > '9')
      return tp_fail(err, EBADMSG, "the status is not a number");
  if (at[9] < '1' || at[9] > '5')
    return tp_fail(err, EBADMSG, "status %.3s is outside 100 to 599", at + 9);
  return 0;
}

int tp_http_check_field_line(struct tp_http_line line, struct tp_error *err) {
  if (line.bytes[0] == ' ' || line.bytes[0] == '\t')
    return tp_fail(err, EBADMSG, "a header line starts with a space (folded lines are obsolete)");
  size_t name = token_length(line.bytes, line.length);
  if (name < line.length && line.bytes[name] == ':')
    return name > 0 ? 0 : tp_fail(err, EBADMSG, "a header has no name");
  const char *colon = memchr(line.bytes, ':', line.length);
  if (!colon)
    return tp_fail(err, EBADMSG, "a header line has no colon");
  if (line.bytes[name] == ' ' || line.bytes[name] == '\t')
    return tp_fail(err, EBADMSG, "a space in a header's name or before its colon");
  return tp_fail(err, EBADMSG, "byte 0x%02x in a header's name", (unsigned char)line.bytes[name]);
}

int tp_http_check_trailer_line(struct tp_http_line line, struct tp_error *err) {
  static const char *const banned[] = {"content-length", "transfer-encoding", "host", "connection",
                                       "upgrade", "trailer", "te", "proxy-connection"};
  if (tp_http_check_field_line(line, err) < 0)
    return -1;
  size_t name = token_length(line.bytes, line.length);
  for (unsigned i = 0; i < sizeof banned / sizeof *banned; i++)
    if (tp_http_text_is(line.bytes, name, banned[i]))
      return tp_fail(err, EBADMSG, "%s in the trailers", banned[i]);
  return 0;
}

/* Up to 16 hexadecimal digits, then nothing or extensions, which nobody of us reads. */
int tp_http_check_chunk_line(struct tp_http_line line, size_t *digits, struct tp_error *err) {
  size_t n = 0;
  while (n < line.length && line.bytes[n] && strchr("0123456789abcdefABCDEF", line.bytes[n]))
    n++;
  if (n == 0)
    return tp_fail(err, EBADMSG, "a chunk's size is not a hexadecimal number");
  if (n > 16)
    return tp_fail(err, EBADMSG, "a chunk's size has more than 16 digits");
  if (n < line.length && line.bytes[n] != ';')
    return tp_fail(err, EBADMSG, "byte 0x%02x after a chunk's size", (unsigned char)line.bytes[n]);
  for (size_t i = n; i < line.length; i++)
    if ((unsigned char)line.bytes[i] >= 0x80 || line.bytes[i] == '\t')
      return tp_fail(err, EBADMSG, "byte 0x%02x in a chunk extension", (unsigned char)line.bytes[i]);
  *digits = n;
  return 0;
}

/* ClientHello: see hello.h. RFC 8446 section 4.1.2, RFC 6066 for the name, RFC 7301 for protocols.
 * Each length is checked against the vector that holds it, and each vector has to end where its
 * parent says: a hello that could be cut in two ways may mean another host to the server. */
#include "hello.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { RECORD_HANDSHAKE = 22, RECORD_MOST = 16384, HELLO = 1, EXTENSIONS = 128 };
enum { EXT_NAME = 0, EXT_PROTOCOLS = 16, EXT_VERSIONS = 43, EXT_ECH = 0xfe0d };

/* A vector that is being read. */
struct view {
  const uint8_t *at;
  size_t left;
};

static bool take(struct view *from, size_t length, struct view *part) {
  if (length > from->left)
    return false;
  *part = (struct view){from->at, length};
  from->at += length;
  from->left -= length;
  return true;
}

static bool take_number(struct view *from, unsigned bytes, size_t *number) {
  struct view part;
  if (!take(from, bytes, &part))
    return false;
  *number = 0;
  for (unsigned i = 0; i < bytes; i++)
    *number = *number << 8 | part.at[i];
  return true;
}

/* A vector behind its length, which takes `bytes`. */
static bool take_vector(struct view *from, unsigned bytes, struct view *part) {
  size_t length;
  return take_number(from, bytes, &length) && take(from, length, part);
}

static int malformed(const char *what, struct tp_error *err) {
  return tp_fail(err, EBADMSG, "malformed ClientHello: %s", what);
}

/* A record's header, as far as it is there: refuse strangers at their first byte. */
static int check_record(const uint8_t *at, size_t length, struct tp_error *err) {
  if (length > 0 && at[0] != RECORD_HANDSHAKE)
    return tp_fail(err, EBADMSG, at[0] & 0x80 ? "a hello of SSL 2" : "not a TLS handshake");
  if (length > 1 && at[1] != 3)
    return tp_fail(err, EBADMSG, "TLS record of version %u", at[1]);
  if (length < 5)
    return 0;
  size_t size = (size_t)at[3] << 8 | at[4];
  if (size == 0 || size > RECORD_MOST)
    return tp_fail(err, EBADMSG, "TLS record of %zu bytes", size);
  return 0;
}

/* Joins the fragments of the first handshake message. 1: it is whole and `joined` long. */
static int join(const uint8_t *bytes, size_t length, uint8_t *message, size_t *joined,
                struct tp_error *err) {
  size_t want = 4;
  *joined = 0;
  while (*joined < want) {
    if (check_record(bytes, length, err) < 0)
      return -1;
    if (length < 5)
      return 0;
    size_t size = (size_t)bytes[3] << 8 | bytes[4], have = length - 5;
    size_t part = size < have ? size : have;
    memcpy(message + *joined, bytes + 5, part);
    *joined += part;
    bytes += 5 + part;
    length -= 5 + part;
    if (*joined > 0 && message[0] != HELLO)
      return tp_fail(err, EBADMSG, "TLS handshake message %u where a ClientHello is due", message[0]);
    if (*joined >= 4)
      want = 4 + ((size_t)message[1] << 16 | (size_t)message[2] << 8 | message[3]);
    if (want > TP_HELLO_LIMIT)
      return tp_fail(err, EBADMSG, "a ClientHello of more than %d bytes", TP_HELLO_LIMIT);
    /* Another message in its last record would be one that the client sends unasked. */
    if (*joined > want || (*joined == want && part < size))
      return malformed("something follows in its record", err);
    if (part < size)
      return 0;
  }
  return 1;
}

static bool is_name_byte(uint8_t byte) {
  return (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') || byte == '-' || byte == '_';
}

/* What some would take for an address: digits, or hexadecimal ones behind 0x. */
static bool is_number(const char *label) {
  bool hexadecimal = label[0] == '0' && label[1] == 'x';
  const char *digits = hexadecimal ? "0123456789abcdef" : "0123456789";
  label += hexadecimal ? 2 : 0;
  return label[strspn(label, digits)] == '\0';
}

/* A host name: labels of letters, digits, "-" and "_", the last of which is not a number. */
static int check_name(const char *name, struct tp_error *err) {
  const char *label = name;
  for (const char *at = name; *at; at++) {
    if (*at == '.' && at == label)
      return malformed("an empty label in the server's name", err);
    if (*at == '.')
      label = at + 1;
    else if (!is_name_byte((uint8_t)*at))
      return malformed("the server's name holds a byte that no host name has", err);
    else if (at - label >= 63)
      return malformed("a label of the server's name is too long", err);
  }
  if (*label == '\0')
    return malformed("the server's name ends with a dot", err);
  return is_number(label) ? malformed("the server's name is an address", err) : 0;
}

static bool is_address(const char *name) {
  unsigned char address[16];
  return inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1;
}

static int read_name(struct view data, struct tp_hello *hello, struct tp_error *err) {
  struct view list, name;
  size_t type;
  if (!take_vector(&data, 2, &list) || data.left || !take_number(&list, 1, &type) ||
      !take_vector(&list, 2, &name) || list.left)
    return malformed("server_name", err);
  if (type != 0)
    return malformed("server_name of an unknown kind", err);
  if (name.left == 0 || name.left > TP_HELLO_NAME)
    return malformed("the server's name is empty or too long", err);
  if (memchr(name.at, 0, name.left))
    return malformed("the server's name holds a byte that no host name has", err);
  for (size_t i = 0; i < name.left; i++) {
    uint8_t byte = name.at[i];
    hello->sni[i] = (char)(byte >= 'A' && byte <= 'Z' ? byte + 'a' - 'A' : byte);
  }
  hello->sni[name.left] = '\0';
  /* RFC 6066 forbids it and clients do it: it names nothing that the connection does not. */
  if (is_address(hello->sni)) {
    hello->sni[0] = '\0';
    return 0;
  }
  return check_name(hello->sni, err);
}

static int read_protocols(struct view data, struct tp_hello *hello, struct tp_error *err) {
  struct view list, rest, name;
  if (!take_vector(&data, 2, &list) || data.left || list.left == 0)
    return malformed("protocol list", err);
  for (rest = list; rest.left;)
    if (!take_vector(&rest, 1, &name) || name.left == 0)
      return malformed("protocol list", err);
  hello->alpn = list.at;
  hello->alpn_length = list.left;
  return 0;
}

static int read_versions(struct view data, struct tp_hello *hello, struct tp_error *err) {
  struct view list;
  if (!take_vector(&data, 1, &list) || data.left || list.left == 0 || list.left % 2)
    return malformed("supported_versions", err);
  hello->versions = list.at;
  hello->versions_length = list.left;
  for (size_t i = 0; i < list.left; i += 2)
    if (list.at[i] == 3 && list.at[i + 1] == 3)
      hello->has_tls12 = true;
  return 0;
}

static int read_extension(size_t type, struct view data, struct tp_hello *hello,
                          struct tp_error *err) {
  if (type == EXT_NAME)
    return read_name(data, hello, err);
  if (type == EXT_PROTOCOLS)
    return read_protocols(data, hello, err);
  if (type == EXT_VERSIONS)
    return read_versions(data, hello, err);
  if (type == EXT_ECH)
    hello->ech = true;
  return 0;
}

static int read_extensions(struct view list, struct tp_hello *hello, struct tp_error *err) {
  uint16_t seen[EXTENSIONS];
  for (unsigned count = 0; list.left; count++) {
    size_t type;
    struct view data;
    if (!take_number(&list, 2, &type) || !take_vector(&list, 2, &data))
      return malformed("extensions", err);
    if (count == EXTENSIONS)
      return malformed("too many extensions", err);
    for (unsigned i = 0; i < count; i++)
      if (seen[i] == type)
        return malformed("an extension twice", err);
    seen[count] = (uint16_t)type;
    if (read_extension(type, data, hello, err) < 0)
      return -1;
  }
  return 0;
}

static int read_hello(struct view body, struct tp_hello *hello, struct tp_error *err) {
  struct view random, session, suites, compression, extensions = {0};
  size_t version;
  if (!take_number(&body, 2, &version) || !take(&body, 32, &random) ||
      !take_vector(&body, 1, &session) || !take_vector(&body, 2, &suites) ||
      !take_vector(&body, 1, &compression))
    return malformed("it ends early", err);
  if (version < 0x0301 || version > 0x03ff)
    return tp_fail(err, EBADMSG, "a ClientHello of version 0x%04zx", version);
  if (session.left > 32 || suites.left == 0 || suites.left % 2 || compression.left == 0)
    return malformed("session, cipher suites or compression", err);
  hello->version = (uint16_t)version;
  hello->session_id_length = (unsigned)session.left;
  if (body.left && (!take_vector(&body, 2, &extensions) || body.left))
    return malformed("extensions", err);
  if (read_extensions(extensions, hello, err) < 0)
    return -1;
  if (hello->versions_length == 0)
    hello->has_tls12 = version >= 0x0303;
  return 0;
}

int tp_hello_parse(const uint8_t *bytes, size_t length, struct tp_hello *hello,
                   struct tp_error *err) {
  *hello = (struct tp_hello){0};
  if (length > TP_HELLO_LIMIT)
    length = TP_HELLO_LIMIT; /* then it had better be complete within */
  uint8_t *message = malloc(length + 1);
  if (!message)
    return tp_fail(err, ENOMEM, "%zu bytes of a ClientHello", length);
  hello->message = message;
  size_t joined;
  int whole = join(bytes, length, message, &joined, err);
  if (whole == 0 && length == TP_HELLO_LIMIT)
    whole = tp_fail(err, EBADMSG, "a ClientHello of more than %d bytes", TP_HELLO_LIMIT);
  if (whole > 0 && read_hello((struct view){message + 4, joined - 4}, hello, err) < 0)
    whole = -1;
  if (whole <= 0)
    tp_hello_free(hello);
  return whole;
}

void tp_hello_free(struct tp_hello *hello) {
  free(hello->message);
  *hello = (struct tp_hello){0};
}

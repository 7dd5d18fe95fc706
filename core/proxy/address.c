/* What kind of place an address is: see resolver.h. By the special-purpose registries of the IANA.
 *
 * A policy that lets a sandbox reach a name must not thereby let it reach this host, its network or a
 * cloud's metadata service, so everything that can stand for such an address is judged as that. */
#include <arpa/inet.h>
#include <ctype.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "resolver.h"

struct range {
  const char *prefix; /* bytes */
  unsigned bits;
  const char *kind;
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* The first that fits counts. */
static const struct range v4[] = {
    {"\0\0\0\0", 32, "unspecified"},
    {"\xa9\xfe\xa9\xfe", 32, "metadata"}, /* 169.254.169.254: most clouds */
    {"\xa9\xfe\xaa\x02", 32, "metadata"}, /* 169.254.170.2: credentials of ECS tasks */
    {"\xa9\xfe\xaa\x17", 32, "metadata"}, /* 169.254.170.23: of EKS pods */
    {"\xa9\xfe\x00\x17", 32, "metadata"}, /* 169.254.0.23: Tencent */
    {"\x64\x64\x64\xc8", 32, "metadata"}, /* 100.100.100.200: Alibaba */
    {"\xc0\x00\x00\xc0", 32, "metadata"}, /* 192.0.0.192: Oracle, of old */
    {"\xa8\x3f\x81\x10", 32, "metadata"}, /* 168.63.129.16: Azure's host */
    {"\x00", 8, "reserved"},
    {"\x0a", 8, "private"},
    {"\x64\x40", 10, "private"}, /* carrier-grade NAT */
    {"\x7f", 8, "loopback"},
    {"\xa9\xfe", 16, "link-local"},
    {"\xac\x10", 12, "private"},
    {"\xc0\x00\x00", 24, "reserved"},
    {"\xc0\x00\x02", 24, "documentation"},
    {"\xc0\x58\x63", 24, "reserved"}, /* 192.88.99/24: relays of 6to4, gone */
    {"\xc0\xa8", 16, "private"},
    {"\xc6\x12", 15, "private"}, /* benchmarks; our own pool of names */
    {"\xc6\x33\x64", 24, "documentation"},
    {"\xcb\x00\x71", 24, "documentation"},
    {"\xe0", 4, "multicast"},
    {"\xf0", 4, "reserved"}, /* broadcast too */
};

static const struct range v6[] = {
    {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 128, "unspecified"},
    {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 128, "loopback"},
    {"\xfd\x00\x0e\xc2\0\0\0\0\0\0\0\0\0\0\x02\x54", 128, "metadata"},       /* fd00:ec2::254 */
    {"\xfd\x00\x0e\xc2\0\0\0\0\0\0\0\0\0\0\0\x23", 128, "metadata"},         /* fd00:ec2::23 */
    {"\xfd\x20\x00\xce\0\0\0\0\0\0\0\0\0\0\x02\x54", 128, "metadata"},       /* fd20:ce::254 */
    {"\xfe\x80\0\0\0\0\0\0\0\0\0\0\xa9\xfe\xa9\xfe", 128, "metadata"},       /* fe80::a9fe:a9fe */
    {"\xfe\x80", 10, "link-local"},
    {"\xfe\xc0", 10, "private"}, /* site-local, of old */
    {"\xfc", 7, "private"},
    {"\xff", 8, "multicast"},
    {"\x01\x00\0\0\0\0\0\0", 64, "reserved"}, /* discard */
    {"\x00\x64\xff\x9b\x00\x01", 48, "private"}, /* local translation to IPv4 */
    {"\x20\x01\x0d\xb8", 32, "documentation"},
    {"\x3f\xff\x00", 20, "documentation"},
    {"\x20\x01\x00", 23, "reserved"}, /* protocol assignments; Teredo is seen before */
    {"\x5f\x00", 16, "reserved"},     /* segment routing */
    {"\x20", 3, "public"},            /* 2000::/3, all that is given out */
};

static bool within(const unsigned char *bytes, const char *prefix, unsigned bits) {
  const unsigned char *want = (const unsigned char *)prefix;
  if (memcmp(bytes, want, bits / 8) != 0)
    return false;
  unsigned rest = bits % 8;
  return rest == 0 || ((bytes[bits / 8] ^ want[bits / 8]) >> (8 - rest)) == 0;
}

static const char *kind_of(const struct range *ranges, size_t count, const unsigned char *bytes,
                           const char *otherwise) {
  for (size_t i = 0; i < count; i++)
    if (within(bytes, ranges[i].prefix, ranges[i].bits))
      return ranges[i].kind;
  return otherwise;
}

static const char *kind_v4(const unsigned char *bytes) {
  return kind_of(v4, COUNT(v4), bytes, "public");
}

const char *tp_address_kind(const struct tp_address *address) {
  const unsigned char *bytes = address->bytes;
  if (address->family == AF_INET)
    return kind_v4(bytes);

  static const char zeros[16];
  if (within(bytes, zeros, 80) && bytes[10] == 0xff && bytes[11] == 0xff)
    return kind_v4(bytes + 12); /* ::ffff:a.b.c.d */
  if (within(bytes, "\0\0\0\0\0\0\0\0\xff\xff\0\0", 96))
    return kind_v4(bytes + 12); /* ::ffff:0:a.b.c.d, translated */
  if (within(bytes, zeros, 96) && !within(bytes, zeros, 120))
    return kind_v4(bytes + 12); /* ::a.b.c.d, of old */
  if (within(bytes, "\x00\x64\xff\x9b\0\0\0\0\0\0\0\0", 96))
    return kind_v4(bytes + 12); /* 64:ff9b::a.b.c.d, NAT64 */
  if (within(bytes, "\x20\x02", 16))
    return kind_v4(bytes + 2); /* 6to4 */
  if (within(bytes, "\x20\x01\0\0", 32)) {
    /* Teredo: the client's address, inverted; the server's is in the clear before it. */
    unsigned char client[4];
    for (unsigned i = 0; i < 4; i++)
      client[i] = bytes[12 + i] ^ 0xff;
    const char *server = kind_v4(bytes + 4);
    return strcmp(server, "public") != 0 ? server : kind_v4(client);
  }
  return kind_of(v6, COUNT(v6), bytes, "reserved");
}

int tp_address_parse(const char *text, struct tp_address *address) {
  memset(address, 0, sizeof *address);
  /* inet_pton takes four decimal numbers and nothing else; a leading zero it refuses as well. */
  address->family = strchr(text, ':') ? AF_INET6 : AF_INET;
  return inet_pton(address->family, text, address->bytes) == 1 ? 0 : -1;
}

/* Split "[address]:port", "address:port" or "address". */
int tp_address_parse_server(const char *text, struct tp_address *address, int *port) {
  char host[64];
  size_t length = strlen(text);
  if (length >= sizeof host)
    return -1;
  memcpy(host, text, length + 1);
  char *colon = strchr(host, ':'), *digits = NULL, *start = host;
  if (*host == '[') {
    char *end = strchr(host, ']');
    if (!end || (end[1] && end[1] != ':'))
      return -1;
    digits = end[1] ? end + 2 : NULL;
    *end = '\0';
    start++;
  } else if (colon && !strchr(colon + 1, ':')) {
    *colon = '\0';
    digits = colon + 1;
  }
  *port = 53;
  if (digits) {
    char *end;
    long value = isdigit((unsigned char)*digits) ? strtol(digits, &end, 10) : 0;
    if (value < 1 || value > 65535 || *end)
      return -1;
    *port = (int)value;
  }
  return tp_address_parse(start, address);
}

/* One whose last label reads as a number
 * is what some libraries take for an address (127.1, 0x7f000001), so it is no name. */
bool tp_name_valid(const char *name, size_t length) {
  if (length == 0 || length > TP_NAME_LIMIT)
    return false;
  size_t label = 0;
  for (size_t i = 0; i <= length; i++) {
    unsigned char c = i < length ? (unsigned char)name[i] : '.';
    if (c == '.') {
      if (i == label || i - label > 63 || name[label] == '-' || name[i - 1] == '-')
        return false;
      if (i < length)
        label = i + 1;
    } else if (c >= 128 || (!isalnum(c) && c != '-' && c != '_')) {
      return false;
    }
  }
  const char *last = name + label;
  size_t size = length - label, digits = strspn(last, "0123456789");
  if (last[0] == '0' && (last[1] == 'x' || last[1] == 'X'))
    digits = 2 + strspn(last + 2, "0123456789abcdefABCDEF");
  return digits < size;
}

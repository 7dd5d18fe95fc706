/* DNS messages, RFC 1035 with EDNS (RFC 6891): reads a sandbox's queries and writes the answers, in
 * the egress process. No input or output here; over TCP the caller adds the two bytes of length. */
#ifndef TP_PROXY_DNS_H
#define TP_PROXY_DNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../error.h"

enum {
  TP_DNS_HEADER = 12,
  TP_DNS_NAME = 255,            /* bytes of a name as it is sent */
  TP_DNS_TEXT = 4 * 255 + 1,    /* of one as text, every byte of it escaped */
  TP_DNS_EDNS_SIZE = 1232       /* what we say to receive over UDP: it fits every path */
};

enum { TP_DNS_A = 1, TP_DNS_PTR = 12, TP_DNS_AAAA = 28, TP_DNS_OPT = 41 };
enum {
  TP_DNS_NOERROR = 0,
  TP_DNS_FORMERR = 1,
  TP_DNS_SERVFAIL = 2,
  TP_DNS_NXDOMAIN = 3,
  TP_DNS_NOTIMP = 4,
  TP_DNS_REFUSED = 5,
  TP_DNS_BADVERS = 16
};

struct tp_dns_query {
  uint16_t id, type, class;
  unsigned opcode;
  bool recursion;         /* RD */
  int rcode;              /* the only thing to answer with when not TP_DNS_NOERROR */
  bool edns, dnssec;      /* it has an OPT record, with DO set */
  uint16_t edns_size;     /* bytes that the asker can receive over UDP, at least 512 */
  size_t question_end;    /* the question is bytes TP_DNS_HEADER to here; 0 when there is none */
  char name[TP_DNS_TEXT]; /* lower case, without the last dot; "." for the root. Bytes that no host
                           * name has are \DDD, and rcode is FORMERR then. */
};

/* EBADMSG: not a query, or malformed; the message says how. */
int tp_dns_parse(const uint8_t *bytes, size_t length, struct tp_dns_query *query,
                 struct tp_error *err);

struct tp_dns_record {
  uint16_t type;
  uint32_t ttl; /* seconds */
  size_t length;
  uint8_t data[TP_DNS_NAME];
};

/* The bytes that a host name is sent as; returns how many. EINVAL: it is none. */
ssize_t tp_dns_name(const char *text, uint8_t out[TP_DNS_NAME], struct tp_error *err);

struct tp_dns_reply {
  int rcode;
  const struct tp_dns_record *records; /* all of the name that was asked for */
  unsigned count;
  bool soa;              /* add the record that lets "no" be remembered */
  uint32_t negative_ttl; /* seconds that it may be */
};

/* Writes the answer to a query, which may be malformed when the rcode says so; returns its length,
 * at most `most`. Records that don't fit are left out, and the asker told to come by TCP. EBADMSG:
 * nothing can be said, it has no header or is an answer itself; EMSGSIZE: `most` is below 512. */
ssize_t tp_dns_answer(const uint8_t *query, size_t length, const struct tp_dns_reply *reply,
                      uint8_t *out, size_t most, struct tp_error *err);

#endif

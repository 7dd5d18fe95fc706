/* Resolves names with given nameservers, without blocking and without files.
 *
 * Runs in the egress process. c-ares does the protocol (retries, several servers, TCP when an answer is
 * truncated); nameservers and the host's own names come from outside, as values. Both A and AAAA are
 * asked for; when one has come and the other is late, the caller gets what is there. */
#ifndef TP_RESOLVER_H
#define TP_RESOLVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

#define TP_RESOLVER_QUERIES 1024u  /* at once */
#define TP_RESOLVER_ADDRESSES 32u  /* of a family, in one answer */
#define TP_NAME_LIMIT 253u
#define TP_RESOLVER_HOST_TTL 60    /* seconds; of the host's own names */
#define TP_RESOLVER_LITERAL_TTL 3600

struct tp_address {
  int family; /* AF_INET or AF_INET6 */
  unsigned char bytes[16];
};

struct tp_resolver_answer {
  struct tp_resolver_answer *next;
  uint32_t id;
  int ttl; /* the least of all, seconds */
  unsigned count;
  struct tp_error error; /* code 0 when there are addresses */
  struct tp_address addresses[]; /* IPv4 first */
};

struct tp_resolver;

/* `timeout` in milliseconds for the first try of a server, more for the next ones. */
struct tp_resolver *tp_resolver_new(int timeout, int tries, struct tp_error *err);
void tp_resolver_free(struct tp_resolver *resolver);
/* "192.0.2.1", "192.0.2.1:53", "2001:db8::1", "[2001:db8::1]:53". EINVAL. Before any query. */
int tp_resolver_add_server(struct tp_resolver *resolver, const char *text, struct tp_error *err);
/* A name that is answered from here; again for each further address. EINVAL. */
int tp_resolver_add_host(struct tp_resolver *resolver, const char *name, const char *address,
                         struct tp_error *err);

/* An epoll descriptor, readable when tp_resolver_run has work. */
int tp_resolver_number(const struct tp_resolver *resolver);
/* Milliseconds until tp_resolver_run is due even so, or -1. */
int tp_resolver_timeout(struct tp_resolver *resolver);
/* Start; the answer comes by tp_resolver_run. -1: EINVAL (not a name, nor an address in its usual
 * form), EAGAIN (too many at once), ENETUNREACH (no nameserver), ENOMEM. */
int tp_resolver_query(struct tp_resolver *resolver, const char *name, uint32_t *id,
                      struct tp_error *err);
/* What has been answered by now, a list that the caller frees one by one, or NULL. Errors in it: ENOENT
 * (no such name), ENODATA (a name without address), ETIMEDOUT, EIO (no nameserver could be reached or
 * would answer), EBADMSG (nonsense came). */
struct tp_resolver_answer *tp_resolver_run(struct tp_resolver *resolver);

/* Read an address in its one usual form ("1.2.3", "0x7f.1" and the like are none). */
int tp_address_parse(const char *text, struct tp_address *address);
/* The same for a nameserver, "address", "address:port" or "[address]:port". */
int tp_address_parse_server(const char *text, struct tp_address *address, int *port);
/* A host name as the DNS takes it, without a dot at its end. */
bool tp_name_valid(const char *name, size_t length);
/* What kind of place it is: "public", "private", "loopback", "link-local", "metadata", "multicast",
 * "unspecified", "reserved" or "documentation". An IPv6 address that carries an IPv4 one is of its
 * kind. */
const char *tp_address_kind(const struct tp_address *address);

#endif

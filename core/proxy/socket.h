/* Sockets that were steered here: whom a client meant to reach, and datagrams that are answered
 * from the address they were sent to. Runs in the egress process, on sockets it was handed. */
#ifndef TP_PROXY_SOCKET_H
#define TP_PROXY_SOCKET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "../error.h"

struct tp_endpoint {
  char address[INET6_ADDRSTRLEN]; /* ::ffff:1.2.3.4 is 1.2.3.4; "" for what is no IP socket */
  unsigned port;
};

/* The next connection of a listener, non-blocking, the caller's; `local` is what the client asked
 * for. -1: EAGAIN when none waits; ECONNABORTED: one that has gone already. */
int tp_socket_accept(int listener, struct tp_endpoint *local, struct tp_endpoint *peer,
                     struct tp_error *err);

/* Where a datagram came from and which of our addresses it was sent to. */
struct tp_datagram {
  struct sockaddr_storage peer;
  socklen_t peer_size;
  int family;                /* AF_INET or AF_INET6 of the address below, 0: not known */
  struct in_addr local4;
  struct in6_addr local6;
};

/* Have the kernel tell which address each datagram was sent to. */
int tp_socket_want_address(int fd, struct tp_error *err);
/* One datagram; its length, cut to `room`. EAGAIN: none waits. */
ssize_t tp_socket_receive(int fd, void *bytes, size_t room, struct tp_datagram *from,
                          struct tp_error *err);
int tp_socket_send(int fd, const void *bytes, size_t length, const struct tp_datagram *to,
                   struct tp_error *err);

#endif

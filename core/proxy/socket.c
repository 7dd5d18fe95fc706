/* Steered sockets: see socket.h. */
#include "socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

static void name(const struct sockaddr_storage *from, struct tp_endpoint *to) {
  const struct sockaddr_in *four = (const struct sockaddr_in *)from;
  const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)from;
  *to = (struct tp_endpoint){0};
  if (from->ss_family == AF_INET) {
    inet_ntop(AF_INET, &four->sin_addr, to->address, sizeof to->address);
    to->port = ntohs(four->sin_port);
  } else if (from->ss_family == AF_INET6) {
    if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr))
      inet_ntop(AF_INET, &six->sin6_addr.s6_addr[12], to->address, sizeof to->address);
    else
      inet_ntop(AF_INET6, &six->sin6_addr, to->address, sizeof to->address);
    to->port = ntohs(six->sin6_port);
  }
}

int tp_socket_accept(int listener, struct tp_endpoint *local, struct tp_endpoint *peer,
                     struct tp_error *err) {
  struct sockaddr_storage address = {0};
  socklen_t size = sizeof address;
  int fd;
  do
    fd = accept4(listener, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
  while (fd < 0 && errno == EINTR);
  if (fd < 0)
    return tp_fail(err, errno, "accept");
  name(&address, peer);
  size = sizeof address;
  if (getsockname(fd, (struct sockaddr *)&address, &size) < 0)
    address.ss_family = AF_UNSPEC;
  name(&address, local);
  return fd;
}

int tp_socket_want_address(int fd, struct tp_error *err) {
  int one = 1, family = 0;
  socklen_t size = sizeof family;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) < 0)
    return tp_fail(err, errno, "ask for a socket's family");
  if (family == AF_INET6 &&
      setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one) < 0)
    return tp_fail(err, errno, "ask for the address of datagrams");
  if (setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one) < 0 && family == AF_INET)
    return tp_fail(err, errno, "ask for the address of datagrams");
  return 0;
}

/* Room for one of the two, aligned as the kernel writes it. */
union control {
  struct cmsghdr header;
  char bytes[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(struct in_pktinfo))];
};

ssize_t tp_socket_receive(int fd, void *bytes, size_t room, struct tp_datagram *from,
                          struct tp_error *err) {
  *from = (struct tp_datagram){0};
  union control control;
  struct iovec part = {bytes, room};
  struct msghdr message = {.msg_name = &from->peer,
                           .msg_namelen = sizeof from->peer,
                           .msg_iov = &part,
                           .msg_iovlen = 1,
                           .msg_control = &control,
                           .msg_controllen = sizeof control};
  ssize_t got;
  do
    got = recvmsg(fd, &message, MSG_DONTWAIT);
  while (got < 0 && errno == EINTR);
  if (got < 0)
    return tp_fail(err, errno, "receive datagram");
  from->peer_size = message.msg_namelen;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
      from->family = AF_INET;
      from->local4 = ((struct in_pktinfo *)CMSG_DATA(c))->ipi_addr;
    } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
      from->family = AF_INET6;
      from->local6 = ((struct in6_pktinfo *)CMSG_DATA(c))->ipi6_addr;
    }
  }
  return got;
}

/* The source address goes along; the interface does not, routing knows it. */
static void set_source(struct msghdr *message, union control *control,
                       const struct tp_datagram *to) {
  struct in_pktinfo four = {.ipi_spec_dst = to->local4};
  struct in6_pktinfo six = {.ipi6_addr = to->local6};
  bool is_four = to->family == AF_INET;
  size_t length = is_four ? sizeof four : sizeof six;
  memset(control, 0, sizeof *control);
  message->msg_control = control;
  message->msg_controllen = CMSG_SPACE(length);
  struct cmsghdr *c = CMSG_FIRSTHDR(message);
  c->cmsg_level = is_four ? IPPROTO_IP : IPPROTO_IPV6;
  c->cmsg_type = is_four ? IP_PKTINFO : IPV6_PKTINFO;
  c->cmsg_len = CMSG_LEN(length);
  memcpy(CMSG_DATA(c), is_four ? (void *)&four : (void *)&six, length);
}

int tp_socket_send(int fd, const void *bytes, size_t length, const struct tp_datagram *to,
                   struct tp_error *err) {
  union control control;
  struct iovec part = {(void *)bytes, length};
  struct msghdr message = {.msg_name = (void *)&to->peer,
                           .msg_namelen = to->peer_size,
                           .msg_iov = &part,
                           .msg_iovlen = 1};
  if (to->family)
    set_source(&message, &control, to);
  ssize_t put;
  do
    put = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (put < 0 && errno == EINTR);
  return put < 0 ? tp_fail(err, errno, "send datagram") : 0;
}

/* What steering needs in a namespace: lo, addresses, routes and our sockets. See steer.h; runs
 * in the spawner, as root, while it has entered the sandbox's network namespace. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "scope.h"
#include "steer.h"

#define BACKLOG 4096
#define LO 1 /* the index of lo in every network namespace */

/* --- netlink: all requests in one message, all answers after it ------------------------------- */

struct batch {
  _Alignas(NLMSG_ALIGNTO) uint8_t bytes[512];
  size_t length;
  struct nlmsghdr *last;
  unsigned count;
};

static void *append(struct batch *batch, size_t length) {
  void *at = batch->bytes + batch->length;
  batch->length += NLMSG_ALIGN(length);
  return at;
}

static void begin(struct batch *batch, uint16_t type, uint16_t flags, const void *head,
                  size_t length) {
  batch->last = append(batch, NLMSG_LENGTH(length));
  *batch->last = (struct nlmsghdr){.nlmsg_len = (uint32_t)NLMSG_LENGTH(length),
                                   .nlmsg_type = type,
                                   .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags),
                                   .nlmsg_seq = ++batch->count};
  memcpy(NLMSG_DATA(batch->last), head, length);
}

static void attribute(struct batch *batch, uint16_t type, const void *value, size_t length) {
  struct rtattr *at = append(batch, RTA_LENGTH(length));
  *at = (struct rtattr){.rta_len = (uint16_t)RTA_LENGTH(length), .rta_type = type};
  memcpy(RTA_DATA(at), value, length);
  batch->last->nlmsg_len = (uint32_t)(batch->bytes + batch->length - (uint8_t *)batch->last);
}

static void add_address(struct batch *batch, uint8_t family, const void *address, uint8_t size) {
  struct ifaddrmsg head = {.ifa_family = family,
                           .ifa_prefixlen = (uint8_t)(8 * size),
                           .ifa_flags = IFA_F_PERMANENT | IFA_F_NODAD,
                           .ifa_scope = RT_SCOPE_HOST,
                           .ifa_index = LO};
  begin(batch, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof head);
  attribute(batch, IFA_LOCAL, address, size);
  attribute(batch, IFA_ADDRESS, address, size);
}

/* local default dev lo src ADDRESS: every address there is, is this machine's. */
static void add_route(struct batch *batch, uint8_t family, const void *address, uint8_t size) {
  struct rtmsg head = {.rtm_family = family,
                       .rtm_table = RT_TABLE_LOCAL,
                       .rtm_protocol = RTPROT_STATIC,
                       .rtm_scope = family == AF_INET ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE,
                       .rtm_type = RTN_LOCAL};
  uint32_t lo = LO;
  begin(batch, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof head);
  attribute(batch, RTA_OIF, &lo, sizeof lo);
  attribute(batch, RTA_PREFSRC, address, size);
}

/* Answers the first failure's code, and in *failed its number from 1; 0: none. */
static int read_answers(int fd, const struct batch *batch, unsigned *failed) {
  _Alignas(NLMSG_ALIGNTO) uint8_t bytes[4096];
  unsigned seen = 0;
  int code = 0;
  while (seen < batch->count) {
    ssize_t got = recv(fd, bytes, sizeof bytes, 0);
    if (got < 0)
      return *failed = seen + 1, errno;
    size_t rest = (size_t)got;
    for (struct nlmsghdr *at = (void *)bytes; NLMSG_OK(at, rest); at = NLMSG_NEXT(at, rest)) {
      int error = at->nlmsg_type == NLMSG_ERROR ? -((struct nlmsgerr *)NLMSG_DATA(at))->error : 0;
      seen++;
      if (error && error != EEXIST && !code)
        code = error, *failed = at->nlmsg_seq;
    }
  }
  return code;
}

static int send_batch(int fd, const struct batch *batch, unsigned *failed) {
  *failed = 1;
  if (send(fd, batch->bytes, batch->length, 0) < 0)
    return errno;
  return read_answers(fd, batch, failed);
}

/* Else the sandbox's own kernel answers pings to the whole world. */
static int ignore_pings(bool ipv6, struct tp_error *err) {
  static const char *const switches[] = {"/proc/sys/net/ipv4/icmp_echo_ignore_all",
                                         "/proc/sys/net/ipv6/icmp/echo_ignore_all"};
  for (unsigned i = 0; i < (ipv6 ? 2 : 1); i++) {
    TP_CLOSE int fd = open(switches[i], O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "1", 1) != 1)
      return tp_fail(err, errno, "write %s", switches[i]);
  }
  return 0;
}

int tp_steer_network(bool *ipv6, struct tp_error *err) {
  uint32_t own4 = htonl(TP_STEER_OWN4), own6[4] = TP_STEER_OWN6;
  for (unsigned i = 0; i < 4; i++)
    own6[i] = htonl(own6[i]);
  TP_CLOSE int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (fd < 0)
    return tp_fail(err, errno, "make netlink socket");

  struct batch batch = {.length = 0};
  struct ifinfomsg up = {.ifi_index = LO, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
  begin(&batch, RTM_NEWLINK, 0, &up, sizeof up);
  add_address(&batch, AF_INET, &own4, sizeof own4);
  add_route(&batch, AF_INET, &own4, sizeof own4);
  unsigned of_ipv4 = batch.count, failed;
  add_address(&batch, AF_INET6, own6, sizeof own6);
  add_route(&batch, AF_INET6, own6, sizeof own6);
  int code = send_batch(fd, &batch, &failed);
  /* A host that has IPv6 switched off has nothing that could go past us either. */
  *ipv6 = code == 0;
  if (code && (failed <= of_ipv4 || (code != EOPNOTSUPP && code != EAFNOSUPPORT && code != EACCES)))
    return tp_fail(err, code, "set up lo, request %u", failed);
  return ignore_pings(*ipv6, err);
}

/* --- the sockets ------------------------------------------------------------------------------ */

static bool is_stream(int i) {
  return i == TP_STEER_TCP4 || i == TP_STEER_TCP6;
}

static bool is_ipv4(int i) {
  return i == TP_STEER_TCP4 || i == TP_STEER_UDP4;
}

static int enable(int fd, int level, int option) {
  int one = 1;
  return setsockopt(fd, level, option, &one, sizeof one);
}

/* Free bind, since the address is none of the namespace's own. What is accepted inherits the shared
 * bind: without it a connection to some port 80 outside would keep servers inside from theirs. */
static int bind_socket(int fd, int i) {
  bool v4 = is_ipv4(i);
  int level = v4 ? IPPROTO_IP : IPPROTO_IPV6;
  if (enable(fd, SOL_SOCKET, SO_REUSEADDR) < 0 ||
      enable(fd, level, v4 ? IP_FREEBIND : IPV6_FREEBIND) < 0 ||
      (!v4 && enable(fd, level, IPV6_V6ONLY) < 0) ||
      (!is_stream(i) && enable(fd, level, v4 ? IP_PKTINFO : IPV6_RECVPKTINFO) < 0))
    return -1;

  in_port_t port = htons(is_stream(i) ? TP_STEER_PORT : TP_STEER_DNS);
  struct sockaddr_in in4 = {.sin_family = AF_INET, .sin_port = port};
  struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = port};
  in4.sin_addr.s_addr = htonl(0xc0000201);                     /* 192.0.2.1 */
  in6.sin6_addr = (struct in6_addr){.s6_addr = {1, [15] = 1}}; /* 100::1 */
  return v4 ? bind(fd, (struct sockaddr *)&in4, sizeof in4)
            : bind(fd, (struct sockaddr *)&in6, sizeof in6);
}

/* Listens from the start, so that the port is nobody else's. */
static int make_socket(int i) {
  int type = (is_stream(i) ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC;
  TP_CLOSE int fd = socket(is_ipv4(i) ? AF_INET : AF_INET6, type, 0);
  if (fd < 0 || bind_socket(fd, i) < 0 || (is_stream(i) && listen(fd, BACKLOG) < 0))
    return -1;
  return tp_take_fd(&fd);
}

int tp_steer_sockets(bool ipv6, int sockets[TP_STEER_SOCKETS], struct tp_error *err) {
  for (int i = 0; i < TP_STEER_SOCKETS; i++) {
    sockets[i] = -1;
    if (!ipv6 && !is_ipv4(i))
      continue;
    sockets[i] = make_socket(i);
    if (sockets[i] < 0)
      return tp_fail(err, errno, "make steering socket %d", i);
  }
  return 0;
}

/* --- open and shut ---------------------------------------------------------------------------- */

/* The rules of mode tproxy pass over a socket that isn't transparent. */
static int set_transparent(int fd, int i, int on) {
  return is_ipv4(i) ? setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, sizeof on)
                    : setsockopt(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, &on, sizeof on);
}

int tp_steer_open(enum tp_steer_mode mode, int map, const int sockets[TP_STEER_SOCKETS],
                  struct tp_error *err) {
  if (mode == TP_STEER_BPF)
    return tp_steer_fill(map, sockets, err);
  for (int i = 0; i < TP_STEER_SOCKETS; i++)
    if (sockets[i] >= 0 && set_transparent(sockets[i], i, 1) < 0)
      return tp_fail(err, errno, "open steering socket %d", i);
  return 0;
}

/* Disconnected, a listener drops its queue and keeps its address. Not by shutdown, for root
 * inside may have destroyed it (SOCK_DESTROY), and then it would listen again and accept what
 * is shut already. */
static int drop_queue(int fd) {
  struct sockaddr nobody = {.sa_family = AF_UNSPEC};
  return connect(fd, &nobody, sizeof nobody) < 0 ? -1 : listen(fd, BACKLOG);
}

int tp_steer_shut(enum tp_steer_mode mode, int map, const int sockets[TP_STEER_SOCKETS],
                  struct tp_error *err) {
  if (mode == TP_STEER_BPF && tp_steer_clear(map, err) < 0)
    return -1;
  for (int i = 0; i < TP_STEER_SOCKETS; i++) {
    int fd = sockets[i];
    if (fd < 0)
      continue;
    if ((mode == TP_STEER_TPROXY && set_transparent(fd, i, 0) < 0) ||
        (is_stream(i) && drop_queue(fd) < 0))
      return tp_fail(err, errno, "shut steering socket %d", i);
  }
  return 0;
}

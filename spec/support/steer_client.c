/* What a program inside a sandbox does with the network, one try a run: prints "ok", "ok LINE" when
 * the other side said something, or the name of the error. Compiled statically by specs.
 *
 *   tcp ADDRESS PORT [SOURCE]      connects, prints what comes
 *   fast ADDRESS PORT              the same, with data in the first packet
 *   mptcp ADDRESS PORT             the same, by several paths
 *   udp ADDRESS PORT [SOURCE]      sends a datagram, prints the answer
 *   ping ADDRESS                   waits for an echo
 *   self LISTEN ADDRESS PORT       listens, connects to itself by that address
 *   bind tcp|udp ADDRESS PORT [shared|transparent]
 *   raw ADDRESS PORT [PROTOCOL]    a packet of its own making: ok when it was answered
 *   destroy ADDRESS PORT           ends the listener there, whoever's it is, as ss -K does */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

union name {
  struct sockaddr any;
  struct sockaddr_in in4;
  struct sockaddr_in6 in6;
};

static union name address(const char *text, int port) {
  union name name = {.in4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}};
  if (inet_pton(AF_INET, text, &name.in4.sin_addr) == 1)
    return name;
  name.in6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
  if (inet_pton(AF_INET6, text, &name.in6.sin6_addr) != 1)
    exit(2);
  return name;
}

static socklen_t size(const union name *name) {
  return name->any.sa_family == AF_INET ? sizeof name->in4 : sizeof name->in6;
}

static int end(void) {
  puts(strerrorname_np(errno));
  return 1;
}

static int open_socket(const union name *name, int type, int protocol, int milliseconds) {
  int fd = socket(name->any.sa_family, type, protocol);
  struct timeval limit = {.tv_sec = milliseconds / 1000, .tv_usec = milliseconds % 1000 * 1000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  return fd;
}

static int tell(int fd) {
  char line[512];
  ssize_t got = recv(fd, line, sizeof line - 1, 0);
  if (got < 0)
    return end();
  line[got] = '\0';
  printf("ok %s\n", line);
  return 0;
}

static int enable(int fd, int level, int option) {
  int one = 1;
  return setsockopt(fd, level, option, &one, sizeof one);
}

static int bind_from(int fd, const char *source, const union name *to) {
  if (!source)
    return 0;
  union name from = address(source, 0);
  if (from.any.sa_family != to->any.sa_family)
    exit(2);
  return bind(fd, &from.any, size(&from));
}

static int tcp(const char *text, int port, const char *source, int protocol, bool fast) {
  union name to = address(text, port);
  int fd = open_socket(&to, SOCK_STREAM, protocol, 3000);
  if (fd < 0 || bind_from(fd, source, &to) < 0)
    return end();
  if (fast ? sendto(fd, "hello", 5, MSG_FASTOPEN, &to.any, size(&to)) < 0
           : connect(fd, &to.any, size(&to)) < 0)
    return end();
  return tell(fd);
}

static int udp(const char *text, int port, const char *source) {
  union name to = address(text, port);
  int fd = open_socket(&to, SOCK_DGRAM, 0, 1000);
  if (fd < 0 || bind_from(fd, source, &to) < 0 || connect(fd, &to.any, size(&to)) < 0 ||
      send(fd, "question", 8, 0) < 0)
    return end();
  return tell(fd);
}

static int ping(const char *text) {
  union name to = address(text, 0);
  bool v4 = to.any.sa_family == AF_INET;
  unsigned char echo[8] = {v4 ? 8 : 128, 0, 0, 0, 0x12, 0x34, 0, 1};
  unsigned sum = 0x0800 + 0x1234 + 1;
  echo[2] = (unsigned char)(~sum >> 8);
  echo[3] = (unsigned char)~sum;
  int fd = open_socket(&to, SOCK_RAW, v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6, 300);
  if (fd < 0 || sendto(fd, echo, sizeof echo, 0, &to.any, size(&to)) < 0)
    return end();
  for (;;) {
    unsigned char got[256];
    ssize_t length = recv(fd, got, sizeof got, 0);
    if (length < 0)
      return end();
    size_t head = v4 ? (got[0] & 15) * 4u : 0;
    if ((size_t)length > head && got[head] == (v4 ? 0 : 129))
      return puts("ok"), 0;
  }
}

static int self(const char *at, const char *text, int port) {
  union name here = address(at, port);
  int fd = open_socket(&here, SOCK_STREAM, 0, 1000);
  if (fd < 0 || enable(fd, SOL_SOCKET, SO_REUSEADDR) < 0 ||
      bind(fd, &here.any, size(&here)) < 0 || listen(fd, 1) < 0)
    return end();
  pid_t server = fork();
  if (server == 0) {
    int one = accept(fd, NULL, NULL);
    _exit(one < 0 || write(one, "inside", 6) < 0);
  }
  int outcome = tcp(text, port, NULL, 0, false);
  kill(server, SIGKILL);
  waitpid(server, NULL, 0);
  return outcome;
}

static int try_bind(const char *kind, const char *text, int port, const char *how) {
  bool stream = strcmp(kind, "tcp") == 0;
  union name name = address(text, port);
  bool v4 = name.any.sa_family == AF_INET;
  int fd = open_socket(&name, stream ? SOCK_STREAM : SOCK_DGRAM, 0, 1000);
  if (how && (enable(fd, SOL_SOCKET, SO_REUSEADDR) < 0 ||
              (stream && enable(fd, SOL_SOCKET, SO_REUSEPORT) < 0)))
    return end();
  if (how && strcmp(how, "transparent") == 0 &&
      enable(fd, v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT) < 0)
    return end();
  if (bind(fd, &name.any, size(&name)) < 0 || (stream && listen(fd, 1) < 0))
    return end();
  return puts("ok"), 0;
}

static unsigned short fold(unsigned sum) {
  while (sum >> 16)
    sum = (sum & 0xffff) + (sum >> 16);
  return (unsigned short)~sum;
}

/* From 10.200.0.2 with everything written by hand. A TCP packet is a SYN, another protocol is
 * empty. */
static int raw(const char *text, int port, int protocol) {
  union name to = address(text, port);
  struct {
    struct iphdr ip;
    struct tcphdr tcp;
  } packet = {.ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = (uint8_t)protocol,
                     .tot_len = htons(sizeof packet), .saddr = inet_addr("10.200.0.2"),
                     .daddr = to.in4.sin_addr.s_addr},
              .tcp = {.source = htons(40404), .dest = htons((uint16_t)port), .seq = htonl(7),
                      .doff = 5, .syn = 1, .window = htons(1024)}};
  unsigned sum = htons(IPPROTO_TCP) + htons(sizeof packet.tcp);
  const uint16_t *words = (const void *)&packet.ip.saddr;
  for (unsigned i = 0; i < 4; i++)
    sum += words[i];
  words = (const void *)&packet.tcp;
  for (unsigned i = 0; i < sizeof packet.tcp / 2; i++)
    sum += words[i];
  packet.tcp.check = fold(sum);
  int fd = open_socket(&to, SOCK_RAW, IPPROTO_RAW, 300);
  int ear = open_socket(&to, SOCK_RAW, protocol, 300);
  if (fd < 0 || ear < 0 || sendto(fd, &packet, sizeof packet, 0, &to.any, size(&to)) < 0)
    return end();
  for (;;) {
    unsigned char got[256];
    if (recv(ear, got, sizeof got, 0) < 0)
      return end();
    if (memcmp(got + 12, &packet.ip.daddr, 4) == 0)
      return puts("ok"), 0;
  }
}

static int destroy(const char *text, int port) {
  union name name = address(text, port);
  bool v4 = name.any.sa_family == AF_INET;
  struct {
    struct nlmsghdr head;
    struct inet_diag_req_v2 what;
  } request = {.head = {.nlmsg_len = sizeof request, .nlmsg_type = 21, /* SOCK_DESTROY */
                        .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
               .what = {.sdiag_family = (uint8_t)name.any.sa_family,
                        .sdiag_protocol = IPPROTO_TCP,
                        .idiag_states = ~0u,
                        .id = {.idiag_sport = htons((uint16_t)port), .idiag_cookie = {~0u, ~0u}}}};
  memcpy(request.what.id.idiag_src, v4 ? (void *)&name.in4.sin_addr : (void *)&name.in6.sin6_addr,
         v4 ? 4 : 16);
  struct {
    struct nlmsghdr head;
    struct nlmsgerr error;
  } reply;
  int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
  if (fd < 0 || send(fd, &request, sizeof request, 0) < 0 || recv(fd, &reply, sizeof reply, 0) < 0)
    return end();
  errno = -reply.error.error;
  return errno ? end() : (puts("ok"), 0);
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "", *third = argc > 4 ? argv[4] : NULL;
  if (strcmp(what, "ping") == 0 && argc == 3)
    return ping(argv[2]);
  if (argc < 4)
    return 2;
  int port = atoi(argv[3]);
  if (strcmp(what, "tcp") == 0)
    return tcp(argv[2], port, third, 0, false);
  if (strcmp(what, "fast") == 0)
    return tcp(argv[2], port, third, 0, true);
  if (strcmp(what, "mptcp") == 0)
    return tcp(argv[2], port, third, 262, false);
  if (strcmp(what, "udp") == 0)
    return udp(argv[2], port, third);
  if (strcmp(what, "destroy") == 0)
    return destroy(argv[2], port);
  if (strcmp(what, "raw") == 0)
    return raw(argv[2], port, third ? atoi(third) : IPPROTO_TCP);
  if (strcmp(what, "self") == 0 && argc == 5)
    return self(argv[2], argv[3], atoi(argv[4]));
  if (strcmp(what, "bind") == 0 && argc >= 5)
    return try_bind(argv[2], argv[3], atoi(argv[4]), argc > 5 ? argv[5] : NULL);
  return 2;
}

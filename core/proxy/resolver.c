/* The resolver: see resolver.h. */
#include "resolver.h"

#include <ares.h>
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "hosts.h"

#define LATE 300 /* milliseconds that one family waits for the other */
#define SERVERS 8

struct query {
  struct query *next, **at;
  struct tp_resolver *resolver;
  uint32_t id;
  unsigned waiting; /* answers of c-ares to come */
  bool told;
  int64_t due; /* when to tell what is there, or 0 */
  int ttl, status; /* status: the worst failure so far */
  unsigned v4_count, v6_count;
  struct tp_address v4[TP_RESOLVER_ADDRESSES], v6[TP_RESOLVER_ADDRESSES];
};

struct tp_resolver {
  ares_channel channel;
  bool made;
  int epoll, event; /* event: readable while answers wait that no socket announces */
  unsigned running;
  uint32_t last_id;
  struct query *queries;
  struct tp_resolver_answer *first, **last;
  struct tp_hosts hosts;
  struct ares_addr_port_node servers[SERVERS];
  unsigned server_count;
};

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void announce(struct tp_resolver *resolver) {
  uint64_t one = 1;
  ssize_t wrote = write(resolver->event, &one, sizeof one);
  (void)wrote; /* full is as good */
}

static int add_answer(struct tp_resolver *resolver, struct tp_resolver_answer *answer) {
  answer->next = NULL;
  *resolver->last = answer;
  resolver->last = &answer->next;
  announce(resolver);
  return 0;
}

static struct tp_resolver_answer *new_answer(uint32_t id, unsigned room) {
  struct tp_resolver_answer *answer =
      calloc(1, sizeof *answer + room * sizeof answer->addresses[0]);
  if (answer)
    answer->id = id;
  return answer;
}

static const struct {
  int status, code;
  const char *text;
} failures[] = {
    {ARES_ENOTFOUND, ENOENT, "there is no such name"},
    {ARES_ENODATA, ENODATA, "the name has no address"},
    {ARES_ETIMEOUT, ETIMEDOUT, "no nameserver answered"},
    /* That is also what c-ares says when each server failed or refused. */
    {ARES_ECONNREFUSED, EIO, "no nameserver could be reached or would answer"},
    {ARES_EBADRESP, EBADMSG, "the nameserver's answer is malformed"},
    {ARES_ENOMEM, ENOMEM, "resolve"},
    {ARES_EBADNAME, EINVAL, "not a name"},
};

static void fail_answer(struct tp_resolver_answer *answer, int status) {
  for (unsigned i = 0; i < sizeof failures / sizeof *failures; i++) {
    if (failures[i].status == status) {
      tp_fail(&answer->error, failures[i].code, "%s", failures[i].text);
      return;
    }
  }
  tp_fail(&answer->error, EIO, "the nameserver failed (%s)", ares_strerror(status));
}

/* Hand over what there is. Without memory there is no answer: the caller's own time limit ends it. */
static void tell(struct query *query) {
  query->told = true;
  unsigned count = query->v4_count + query->v6_count;
  struct tp_resolver_answer *answer = new_answer(query->id, count);
  if (!answer)
    return;
  answer->count = count;
  answer->ttl = count ? query->ttl : 0;
  memcpy(answer->addresses, query->v4, query->v4_count * sizeof *query->v4);
  memcpy(answer->addresses + query->v4_count, query->v6, query->v6_count * sizeof *query->v6);
  if (!count)
    fail_answer(answer, query->status);
  add_answer(query->resolver, answer);
}

static void forget(struct query *query) {
  *query->at = query->next;
  if (query->next)
    query->next->at = query->at;
  query->resolver->running--;
  free(query);
}

static void note_ttl(struct query *query, int ttl) {
  if (ttl < 0)
    ttl = 0;
  if (query->ttl < 0 || ttl < query->ttl)
    query->ttl = ttl;
}

static int keep_v4(struct query *query, const unsigned char *reply, int length) {
  struct ares_addrttl found[TP_RESOLVER_ADDRESSES];
  int count = TP_RESOLVER_ADDRESSES;
  int status = ares_parse_a_reply(reply, length, NULL, found, &count);
  for (int i = 0; status == ARES_SUCCESS && i < count; i++) {
    struct tp_address *address = &query->v4[query->v4_count++];
    address->family = AF_INET;
    memcpy(address->bytes, &found[i].ipaddr, 4);
    note_ttl(query, found[i].ttl);
  }
  return status;
}

static int keep_v6(struct query *query, const unsigned char *reply, int length) {
  struct ares_addr6ttl found[TP_RESOLVER_ADDRESSES];
  int count = TP_RESOLVER_ADDRESSES;
  int status = ares_parse_aaaa_reply(reply, length, NULL, found, &count);
  for (int i = 0; status == ARES_SUCCESS && i < count; i++) {
    struct tp_address *address = &query->v6[query->v6_count++];
    address->family = AF_INET6;
    memcpy(address->bytes, &found[i].ip6addr, 16);
    note_ttl(query, found[i].ttl);
  }
  return status;
}

/* NXDOMAIN is about the name; "no data" only about a family, so any other failure says more. */
static int worse(int one, int other) {
  if (one == ARES_ENOTFOUND || other == ARES_ENOTFOUND)
    return ARES_ENOTFOUND;
  return one == ARES_SUCCESS || one == ARES_ENODATA ? other : one;
}

static void finish_half(struct query *query, int status) {
  query->waiting--;
  bool some = query->v4_count + query->v6_count > 0;
  query->status = worse(query->status, status == ARES_SUCCESS ? ARES_ENODATA : status);
  if (status == ARES_EDESTRUCTION)
    query->told = true;
  if (!query->told && query->waiting == 0)
    tell(query);
  else if (!query->told && some)
    query->due = now_ms() + LATE;
  if (query->waiting == 0)
    forget(query);
}

static void on_v4(void *context, int status, int timeouts, unsigned char *reply, int length) {
  (void)timeouts;
  struct query *query = context;
  if (status == ARES_SUCCESS)
    status = keep_v4(query, reply, length);
  finish_half(query, status);
}

static void on_v6(void *context, int status, int timeouts, unsigned char *reply, int length) {
  (void)timeouts;
  struct query *query = context;
  if (status == ARES_SUCCESS)
    status = keep_v6(query, reply, length);
  finish_half(query, status);
}

static void on_socket(void *context, ares_socket_t fd, int readable, int writable) {
  struct tp_resolver *resolver = context;
  struct epoll_event event = {.data.fd = fd};
  if (!readable && !writable) {
    epoll_ctl(resolver->epoll, EPOLL_CTL_DEL, fd, NULL);
    return;
  }
  event.events = (readable ? (uint32_t)EPOLLIN : 0) | (writable ? (uint32_t)EPOLLOUT : 0);
  if (epoll_ctl(resolver->epoll, EPOLL_CTL_MOD, fd, &event) < 0)
    epoll_ctl(resolver->epoll, EPOLL_CTL_ADD, fd, &event);
}

/* All that c-ares would else look for in files is given. */
static int make_channel(struct tp_resolver *resolver, int timeout, int tries,
                        struct tp_error *err) {
  struct in_addr nowhere = {0};
  struct ares_options options = {
      .flags = ARES_FLAG_NOSEARCH | ARES_FLAG_NOALIASES | ARES_FLAG_EDNS,
      .timeout = timeout,
      .tries = tries,
      .ndots = 1,
      .servers = &nowhere,
      .nservers = 1,
      .lookups = (char *)"b",
      .ednspsz = 1232, /* passes every path without fragments */
      .sock_state_cb = on_socket,
      .sock_state_cb_data = resolver,
  };
  /* It keys its query ids from a file that a confined process can't open, and otherwise by rand(). */
  unsigned seed;
  if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
    return tp_fail(err, errno, "seed resolver");
  srand(seed);
  int status = ares_init_options(&resolver->channel, &options,
                                 ARES_OPT_FLAGS | ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES |
                                     ARES_OPT_NDOTS | ARES_OPT_SERVERS | ARES_OPT_DOMAINS |
                                     ARES_OPT_LOOKUPS | ARES_OPT_SORTLIST | ARES_OPT_EDNSPSZ |
                                     ARES_OPT_SOCK_STATE_CB | ARES_OPT_NOROTATE);
  if (status != ARES_SUCCESS)
    return tp_fail(err, status == ARES_ENOMEM ? ENOMEM : EIO, "make resolver");
  resolver->made = true;
  return 0;
}

static int make_descriptors(struct tp_resolver *resolver, struct tp_error *err) {
  resolver->epoll = epoll_create1(EPOLL_CLOEXEC);
  if (resolver->epoll < 0)
    return tp_fail(err, errno, "make epoll descriptor");
  resolver->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (resolver->event < 0)
    return tp_fail(err, errno, "make event descriptor");
  struct epoll_event event = {.events = EPOLLIN, .data.fd = resolver->event};
  if (epoll_ctl(resolver->epoll, EPOLL_CTL_ADD, resolver->event, &event) < 0)
    return tp_fail(err, errno, "watch event descriptor");
  return 0;
}

struct tp_resolver *tp_resolver_new(int timeout, int tries, struct tp_error *err) {
  struct tp_resolver *resolver = calloc(1, sizeof *resolver);
  if (!resolver) {
    tp_fail(err, ENOMEM, "make resolver");
    return NULL;
  }
  resolver->epoll = resolver->event = -1;
  resolver->last = &resolver->first;
  if (make_descriptors(resolver, err) < 0 || make_channel(resolver, timeout, tries, err) < 0) {
    tp_resolver_free(resolver);
    return NULL;
  }
  return resolver;
}

void tp_resolver_free(struct tp_resolver *resolver) {
  if (!resolver)
    return;
  if (resolver->made)
    ares_destroy(resolver->channel); /* calls back for each query that runs */
  while (resolver->first) {
    struct tp_resolver_answer *answer = resolver->first;
    resolver->first = answer->next;
    free(answer);
  }
  tp_hosts_free(&resolver->hosts);
  if (resolver->epoll >= 0)
    close(resolver->epoll);
  if (resolver->event >= 0)
    close(resolver->event);
  free(resolver);
}

int tp_resolver_number(const struct tp_resolver *resolver) {
  return resolver->epoll;
}

int tp_resolver_add_server(struct tp_resolver *resolver, const char *text, struct tp_error *err) {
  struct tp_address address;
  int port;
  if (tp_address_parse_server(text, &address, &port) < 0)
    return tp_fail(err, EINVAL, "%s is not a nameserver's address", text);
  if (resolver->server_count == SERVERS)
    return 0; /* libc takes three */
  struct ares_addr_port_node *node = &resolver->servers[resolver->server_count++];
  node->family = address.family;
  node->udp_port = node->tcp_port = port;
  if (address.family == AF_INET)
    memcpy(&node->addr.addr4, address.bytes, 4);
  else
    memcpy(&node->addr.addr6, address.bytes, 16);
  if (resolver->server_count > 1)
    node[-1].next = node;
  int status = ares_set_servers_ports(resolver->channel, resolver->servers);
  if (status != ARES_SUCCESS)
    return tp_fail(err, status == ARES_ENOMEM ? ENOMEM : EINVAL, "set nameserver %s", text);
  return 0;
}

int tp_resolver_add_host(struct tp_resolver *resolver, const char *name, const char *address,
                         struct tp_error *err) {
  return tp_hosts_add(&resolver->hosts, name, address, err);
}

static int answer_now(struct tp_resolver *resolver, uint32_t id, const struct tp_host *hosts,
                      unsigned count, const struct tp_address *literal, struct tp_error *err) {
  struct tp_resolver_answer *answer = new_answer(id, literal ? 1 : count);
  if (!answer)
    return tp_fail(err, ENOMEM, "resolve");
  answer->count = literal ? 1 : count;
  answer->ttl = literal ? TP_RESOLVER_LITERAL_TTL : TP_RESOLVER_HOST_TTL;
  for (unsigned i = 0; i < answer->count; i++)
    answer->addresses[i] = literal ? *literal : hosts[i].address;
  return add_answer(resolver, answer);
}

static int ask(struct tp_resolver *resolver, const char *name, uint32_t id, struct tp_error *err) {
  if (resolver->server_count == 0)
    return tp_fail(err, ENETUNREACH, "resolve %s: no nameserver is known", name);
  if (resolver->running >= TP_RESOLVER_QUERIES)
    return tp_fail(err, EAGAIN, "resolve %s: %u queries run", name, resolver->running);
  struct query *query = calloc(1, sizeof *query);
  if (!query)
    return tp_fail(err, ENOMEM, "resolve %s", name);
  *query = (struct query){.next = resolver->queries, .at = &resolver->queries,
                          .resolver = resolver, .id = id, .waiting = 2, .ttl = -1};
  if (query->next)
    query->next->at = &query->next;
  resolver->queries = query;
  resolver->running++;
  /* Either may call back at once, the second one thereby freeing the query. */
  ares_query(resolver->channel, name, 1 /* IN */, 1 /* A */, on_v4, query);
  ares_query(resolver->channel, name, 1, 28 /* AAAA */, on_v6, query);
  return 0;
}

int tp_resolver_query(struct tp_resolver *resolver, const char *text, uint32_t *id,
                      struct tp_error *err) {
  struct tp_address literal;
  char name[TP_NAME_LIMIT + 1];
  size_t length = strlen(text);
  *id = ++resolver->last_id ? resolver->last_id : ++resolver->last_id;
  if (tp_address_parse(text, &literal) == 0)
    return answer_now(resolver, *id, NULL, 0, &literal, err);
  if (length > 0 && text[length - 1] == '.')
    length--;
  if (!tp_name_valid(text, length))
    return tp_fail(err, EINVAL, "resolve: not a name or an address");
  memcpy(name, text, length);
  name[length] = '\0';

  unsigned count;
  const struct tp_host *hosts = tp_hosts_find(&resolver->hosts, name, &count);
  if (count)
    return answer_now(resolver, *id, hosts, count, NULL, err);
  return ask(resolver, name, *id, err);
}

int tp_resolver_timeout(struct tp_resolver *resolver) {
  struct timeval room, *next = ares_timeout(resolver->channel, NULL, &room);
  int64_t least = next ? (int64_t)next->tv_sec * 1000 + (next->tv_usec + 999) / 1000 : -1;
  int64_t now = now_ms();
  for (struct query *query = resolver->queries; query; query = query->next) {
    if (query->told || !query->due)
      continue;
    int64_t left = query->due > now ? query->due - now : 0;
    if (least < 0 || left < least)
      least = left;
  }
  return least > 3600000 ? 3600000 : (int)least;
}

struct tp_resolver_answer *tp_resolver_run(struct tp_resolver *resolver) {
  struct epoll_event events[64];
  int count = epoll_wait(resolver->epoll, events, 64, 0);
  for (int i = 0; i < count; i++) {
    int fd = events[i].data.fd;
    if (fd == resolver->event)
      continue;
    bool in = events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP);
    bool out = events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP);
    ares_process_fd(resolver->channel, in ? fd : ARES_SOCKET_BAD, out ? fd : ARES_SOCKET_BAD);
  }
  ares_process_fd(resolver->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
  int64_t now = now_ms();
  for (struct query *query = resolver->queries; query; query = query->next)
    if (!query->told && query->due && query->due <= now)
      tell(query);

  uint64_t many;
  ssize_t got = read(resolver->event, &many, sizeof many);
  (void)got;
  struct tp_resolver_answer *list = resolver->first;
  resolver->first = NULL;
  resolver->last = &resolver->first;
  return list;
}

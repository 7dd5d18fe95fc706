/* The host's own names: see hosts.h. */
#include "hosts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

int tp_hosts_add(struct tp_hosts *hosts, const char *name, const char *address,
                 struct tp_error *err) {
  struct tp_host host = {.order = (unsigned)hosts->count};
  if (tp_address_parse(address, &host.address) < 0)
    return tp_fail(err, EINVAL, "host %s: %s is not an address", name, address);
  if (hosts->count == hosts->room) {
    size_t room = hosts->room ? hosts->room * 2 : 16;
    struct tp_host *grown = realloc(hosts->list, room * sizeof *grown);
    if (!grown)
      return tp_fail(err, ENOMEM, "add host %s", name);
    hosts->list = grown;
    hosts->room = room;
  }
  host.name = strdup(name);
  if (!host.name)
    return tp_fail(err, ENOMEM, "add host %s", name);
  hosts->list[hosts->count++] = host;
  hosts->sorted = false;
  return 0;
}

/* By name; a name's IPv4 addresses first, and those of one family as they were added. */
static int by_name(const void *left, const void *right) {
  const struct tp_host *a = left, *b = right;
  int order = strcasecmp(a->name, b->name);
  if (order == 0)
    order = (a->address.family == AF_INET6) - (b->address.family == AF_INET6);
  return order ? order : (a->order > b->order) - (a->order < b->order);
}

const struct tp_host *tp_hosts_find(struct tp_hosts *hosts, const char *name, unsigned *count) {
  if (!hosts->sorted && hosts->count)
    qsort(hosts->list, hosts->count, sizeof *hosts->list, by_name);
  hosts->sorted = true;
  size_t low = 0, high = hosts->count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (strcasecmp(hosts->list[middle].name, name) < 0)
      low = middle + 1;
    else
      high = middle;
  }
  *count = 0;
  while (low + *count < hosts->count && *count < 2 * TP_RESOLVER_ADDRESSES &&
         strcasecmp(hosts->list[low + *count].name, name) == 0)
    ++*count;
  return hosts->list + low;
}

void tp_hosts_free(struct tp_hosts *hosts) {
  for (size_t i = 0; i < hosts->count; i++)
    free(hosts->list[i].name);
  free(hosts->list);
  *hosts = (struct tp_hosts){0};
}

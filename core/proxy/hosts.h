/* The host's own names (its /etc/hosts, read by the server), for the resolver. */
#ifndef TP_HOSTS_H
#define TP_HOSTS_H

#include <stdbool.h>
#include <stddef.h>

#include "resolver.h"

struct tp_host {
  char *name;
  unsigned order; /* in which they were added */
  struct tp_address address;
};

struct tp_hosts {
  struct tp_host *list;
  size_t count, room;
  bool sorted;
};

int tp_hosts_add(struct tp_hosts *hosts, const char *name, const char *address,
                 struct tp_error *err);
/* The first of that name, whatever its case; *count of them follow one another. */
const struct tp_host *tp_hosts_find(struct tp_hosts *hosts, const char *name, unsigned *count);
void tp_hosts_free(struct tp_hosts *hosts);

#endif

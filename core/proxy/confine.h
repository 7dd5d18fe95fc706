/* The egress process gives up all that it does not need: see confine.c. */
#ifndef TP_PROXY_CONFINE_H
#define TP_PROXY_CONFINE_H

#include <stddef.h>
#include <sys/types.h>

#include "../error.h"

struct tp_confinement {
  uid_t uid; /* of nobody else, and not 0 */
  gid_t gid;
  size_t memory; /* bytes that it may map beyond what it has, 0: no limit */
  size_t files;  /* descriptors, 0: as many as the kernel grants, up to a million */
};

/* For good, by a process of one thread that is root and has loaded all that it will run. EPERM: it is
 * not root; EBUSY: it has threads. After a failure it is half confined and must end. */
int tp_confine_self(const struct tp_confinement *confinement, struct tp_error *err);

#endif

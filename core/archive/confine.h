/* The jail of the workers that unpack and pack.
 *
 * The worker's root directory is the target alone, seen through an idmapped mount, in a mount
 * namespace that it has no power over; its ids are those of the sandbox's range; it keeps the
 * capabilities to give files owners and modes, within that range, and a filter without sockets,
 * exec, mounts and new namespaces. A bug in a decompressor gets this and no more. */
#ifndef TP_CONFINE_H
#define TP_CONFINE_H

#include <stdint.h>

#include "../error.h"
#include "../userns.h"

/* A detached mount of the directory, its on-disk ids 0..count-1 shifted into the range of `userns`; not
 * shifted when that is -1, or when it is an overlay, which can't be: whoever mounted it has shifted the
 * layers below. */
int tp_confine_mount(int directory, int userns, struct tp_error *err);

/* What a worker in there does: change the tree, or read it and compress in threads. */
enum tp_confine_kind { TP_CONFINE_WRITE, TP_CONFINE_READ };

/* In the child, after fork from a process that has unshared CLONE_NEWPID: enter the jail. Closes
 * `mount` and `userns`. `max_bytes` bounds each file. There is no way back. */
int tp_confine_enter(enum tp_confine_kind kind, int mount, int userns, uint64_t max_bytes,
                     struct tp_error *err);

#endif

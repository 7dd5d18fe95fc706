/* Control groups: what the server does itself, because it is fast, and plan steps for the rest. */
#ifndef TP_CGROUP_H
#define TP_CGROUP_H

#include <stdbool.h>
#include <sys/types.h>

#include "error.h"

/* A group below `parent` for one process, new or there already: its directory, and cgroup.procs owned
 * by `owner`, so that the sandbox's init may put a child there (clone3's CLONE_INTO_CGROUP). The
 * caller owns the fd. */
int tp_cgroup_leaf(int parent, const char *name, uid_t owner, struct tp_error *err);

/* Kill all that is in the v2 group behind `directory`, and below. */
int tp_cgroup_kill(int directory, struct tp_error *err);

/* Send a signal to each process in the group; never to one that has left it. For SIGKILL there is
 * tp_cgroup_kill, which misses none. */
int tp_cgroup_signal(int directory, int signal, struct tp_error *err);

/* 1 when some process is in the v2 group or below, 0, -1. */
int tp_cgroup_populated(int directory, struct tp_error *err);

/* Remove a group and the groups below, which must be empty. Gone already is fine. */
int tp_cgroup_remove(const char *path, struct tp_error *err);

#endif

/* Snapshots that stand side by side in a plan are taken at once: see snapshot.c. */
#ifndef TP_SNAPSHOT_H
#define TP_SNAPSHOT_H

#include "spawn.h"

#define TP_SNAPSHOTS 64 /* at once */

/* How many of the plan's steps from `first` on are snapshots that must succeed, TP_SNAPSHOTS at most. */
unsigned tp_snapshots_beside(const struct tp_plan *plan, unsigned first);

/* Takes so many. Where one fails, run->made says which are there, run->failed which is the first that isn't. */
int tp_snapshots_take(struct tp_run *run, unsigned first, unsigned count, struct tp_error *err);

#endif

/* Stopping all that runs in a cgroup (v2), with a time limit, and letting it go on. */
#ifndef TP_FREEZE_H
#define TP_FREEZE_H

#include "error.h"

/* Ask the kernel to stop all in the group and wait until it has: at most `milliseconds`, since a task
 * in uninterruptible sleep (a FUSE file, a dead disk) can't be stopped. Then "ETIMEDOUT", and all go
 * on again. */
int tp_freeze_begin(const char *group, unsigned milliseconds, struct tp_error *err);
/* A group that is gone, or isn't frozen, is fine. */
int tp_freeze_end(const char *group, struct tp_error *err);

#endif

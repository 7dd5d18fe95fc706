/* POSIX message queues, which CRIU doesn't know of: it would forget them without a word. */
#ifndef TP_CRIU_QUEUES_H
#define TP_CRIU_QUEUES_H

#include <sys/types.h>

#include "../error.h"

/* 0 when the ipc namespace of this process has no message queue; -1 and ENOTSUP, with the name of one,
 * when it has. Enters that namespace for a moment. */
int tp_criu_no_queues(pid_t pid, struct tp_error *err);

#endif

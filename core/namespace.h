/* Namespaces. The server calls unshare_mounts; the rest are plan steps, see spawn.h. */
#ifndef TP_NAMESPACE_H
#define TP_NAMESPACE_H

#include "error.h"

/* A mount namespace of the calling thread's own that still receives the host's mounts, made once a
 * process: later calls do nothing. Children and threads started from here inherit it. */
int tp_namespace_unshare_mounts(struct tp_error *err);

#endif

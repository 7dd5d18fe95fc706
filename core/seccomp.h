/* The system call filter of a sandbox's processes, as the kernel takes it. */
#ifndef TP_SECCOMP_H
#define TP_SECCOMP_H

#include <stddef.h>

#include "error.h"

/* The struct sock_filter[] of what processes inside may not do; *filter is the caller's to free. */
int tp_seccomp_filter(void **filter, size_t *length, struct tp_error *err);

#endif

#ifndef TP_CONFINE_FILTER_H
#define TP_CONFINE_FILTER_H

#include "../error.h"

/* Load the list of system calls that the egress process may make; all others fail with EPERM. */
int tp_confine_filter(struct tp_error *err);

#endif

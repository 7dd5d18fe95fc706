/* A user namespace that maps a range of ids, for mounts to be mapped by. */
#ifndef TP_USERNS_H
#define TP_USERNS_H

#include <stdint.h>

#include "error.h"

struct tp_range {
  uint32_t base, count;
};

/* 0..count-1 inside is base.. outside, users and groups. The descriptor is the caller's. */
int tp_userns_open(const struct tp_range *range, struct tp_error *err);

#endif

/* Subvolumes of a btrfs pool by direct ioctls. Each may wait for a transaction: in the spawner only. */
#ifndef TP_BTRFS_H
#define TP_BTRFS_H

#include "error.h"

/* Delete the subvolume `name` in `directory`; the space comes back later. Gone already is fine. */
int tp_btrfs_destroy(const char *directory, const char *name, struct tp_error *err);

#endif

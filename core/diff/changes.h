/* What a send stream adds up to: which paths may differ between the two snapshots.
 *
 * The commands' paths hold at their moment (a file is made under a temporary name, its directory is
 * renamed later), so the tree of paths that were named is kept as it changes, and each one's path in
 * the old snapshot beside it. What comes out are candidates: whoever can look decides. */
#ifndef TP_CHANGES_H
#define TP_CHANGES_H

#include "stream.h"

enum { /* of a candidate */
  TP_CHANGE_WAS = 1,   /* it was there, and is not, or is another */
  TP_CHANGE_IS = 2,    /* it is there, and was not, or was another */
  TP_CHANGE_DATA = 4,  /* contents */
  TP_CHANGE_META = 8,  /* mode, owner, extended attributes */
  TP_CHANGE_TIMES = 16 /* times alone; of directories, that something in them changed */
};

struct tp_changes;

struct tp_changes *tp_changes_new(struct tp_error *err);
void tp_changes_free(struct tp_changes *changes);
/* -1: EBADMSG, a path that can't be; E2BIG, ENOMEM. */
int tp_changes_apply(struct tp_changes *changes, const struct tp_send_command *command,
                     struct tp_error *err);
/* Calls `each` with every candidate, in no order, a path maybe more than once; ends with its -1. */
int tp_changes_each(struct tp_changes *changes,
                    int (*each)(void *context, const char *path, unsigned change), void *context,
                    struct tp_error *err);

#endif

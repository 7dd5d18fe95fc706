/* Comparing two trees by walking both: for file systems that can't tell what differs.
 *
 * What nobody touched has its inode number and change time in both. Where these differ and nothing
 * else does, the contents are read: so much and no more. Extended attributes are not looked at. */
#ifndef TP_WALK_H
#define TP_WALK_H

#include "../error.h"

/* Calls `each` with what may differ, as tp_changes_each does (changes.h). */
int tp_walk_each(int from, int to,
                 int (*each)(void *context, const char *path, unsigned change), void *context,
                 struct tp_error *err);

#endif

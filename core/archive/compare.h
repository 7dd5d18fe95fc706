/* Walking a tree, alone or against the tree that it comes from, by metadata.
 *
 * Both are read-only snapshots of one family, so that what nobody touched has the inode number, the
 * birth and the change time that it had. Runs in the confined worker: names are single components as
 * the kernel gives them, and links are never followed. */
#ifndef TP_COMPARE_H
#define TP_COMPARE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "../error.h"

/* Numbers (inodes) that were noted. */
struct tp_numbers {
  uint64_t *slots;
  size_t size, used;
};
int tp_numbers_add(struct tp_numbers *numbers, uint64_t number, struct tp_error *err);
bool tp_numbers_has(const struct tp_numbers *numbers, uint64_t number);
void tp_numbers_free(struct tp_numbers *numbers);

struct tp_compare {
  int tree, base;        /* base -1: everything is new */
  int64_t taken;  /* when `base` was snapshotted, in nanoseconds; 0: it is no snapshot. The clock may not
                     tell a change right before from one right after, so both count as changes */
  struct tp_numbers written; /* inodes that belong into the layer for the sake of others: directories
                                above a change, all names of a changed file */
  char path[PATH_MAX];   /* of what is being visited; "" is the tree itself */

  /* Each returns 0 or -1. `name` is relative to `directory`, the path is in `compare`. */
  int (*found)(struct tp_compare *compare, int directory, const char *name, const struct statx *st,
               struct tp_error *err); /* new or changed; a directory before what is in it */
  int (*gone)(struct tp_compare *compare, struct tp_error *err);
  void *data;
};

/* First pass: fill `written` and add up the `bytes` of content that the second will find. */
int tp_compare_scan(struct tp_compare *compare, uint64_t *bytes, struct tp_error *err);

/* Second pass: call `found` and `gone`. */
int tp_compare_run(struct tp_compare *compare, struct tp_error *err);

#endif

/* Removing what a layer hides: whiteouts, opaque directories, things replaced by another type.
 *
 * Runs in the confined worker, whose root directory is the target: a path can't lead outside.
 * A whiteout hides what *lower* layers brought, wherever it stands among the entries of its own
 * layer, so the paths that the current layer has written are remembered. */
#ifndef TP_REMOVE_H
#define TP_REMOVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

/* A set of paths, as 64-bit hashes: a collision could only spare a file of the same image. */
struct tp_paths {
  uint64_t *slots;
  size_t used, size;
};

/* Remember the path and each directory above it. 0, or -1 (ENOMEM). */
int tp_paths_add(struct tp_paths *paths, const char *path, struct tp_error *err);
bool tp_paths_has(const struct tp_paths *paths, const char *path);
void tp_paths_free(struct tp_paths *paths);

/* Remove `path` and all below, except for what is in `kept` (may be NULL). Nothing there is no
 * error. `path` must be shorter than PATH_MAX. */
int tp_remove(const char *path, const struct tp_paths *kept, struct tp_error *err);

/* The same for what is in the directory, keeping the directory itself. */
int tp_remove_inside(const char *path, const struct tp_paths *kept, struct tp_error *err);

#endif

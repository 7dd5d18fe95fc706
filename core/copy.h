/* Bytes and directory entries of the host's side of a copy between host and sandbox.
 *
 * Runs in the client, with the client's privilege, on names that an untrusted sandbox chose. So an
 * entry is always one name below an open directory: "", ".", "..", and whatever holds a "/" or a NUL
 * is refused, and no call follows a symlink. Nothing outside that directory can be reached, whatever
 * the other side swaps while we work. */
#ifndef TP_COPY_H
#define TP_COPY_H

#include <stdint.h>
#include <sys/stat.h>

#include "error.h"

/* Copy up to `length` bytes between regular files: shared extents where the file system can, else in
 * the kernel, else by read and write. Returns the count, short only at the end of `in`. */
int64_t tp_copy_range(int in, int64_t in_offset, int out, int64_t out_offset, int64_t length,
                      struct tp_error *err);

/* The next stretch of data of a sparse file at or after `from`: 1 with [*start, *stop), 0 when only a
 * hole is left. A file system that knows no holes answers with the whole file. */
int tp_copy_extent(int fd, int64_t from, int64_t *start, int64_t *stop, struct tp_error *err);

/* Open an entry; `flags` as for openat, O_NOFOLLOW and O_CLOEXEC are added. */
int tp_copy_open(int directory, const char *name, int flags, mode_t mode, struct tp_error *err);

int tp_copy_mkdir(int directory, const char *name, mode_t mode, struct tp_error *err);
int tp_copy_symlink(int directory, const char *name, const char *target, struct tp_error *err);
int tp_copy_unlink(int directory, const char *name, struct tp_error *err);
int tp_copy_rename(int directory, const char *from, const char *to, struct tp_error *err);
int tp_copy_stat(int directory, const char *name, struct stat *st, struct tp_error *err);

/* Set the modification time of what a descriptor names. */
int tp_copy_touch(int fd, int64_t mtime_ns, struct tp_error *err);

#endif

/* Host side of a copy: see copy.h. */
#include "copy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "scope.h"

#define CHUNK (1 << 20)

static int64_t copy_by_hand(int in, int64_t in_offset, int out, int64_t out_offset, int64_t length,
                            struct tp_error *err) {
  TP_FREE char *buffer = malloc(CHUNK);
  if (!buffer)
    return tp_fail(err, ENOMEM, "copy");

  int64_t done = 0;
  while (done < length) {
    size_t want = length - done < CHUNK ? (size_t)(length - done) : CHUNK;
    ssize_t got = pread(in, buffer, want, in_offset + done);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0)
      return tp_fail(err, errno, "read");
    if (got == 0)
      break;
    for (ssize_t put = 0; put < got;) {
      ssize_t n = pwrite(out, buffer + put, (size_t)(got - put), out_offset + done + put);
      if (n < 0 && errno == EINTR)
        continue;
      if (n < 0)
        return tp_fail(err, errno, "write");
      put += n;
    }
    done += got;
  }
  return done;
}

/* What copy_file_range says when it can't serve this pair of files, as opposed to a real failure. */
static bool unsuited(int code) {
  return code == EXDEV || code == EINVAL || code == ENOSYS || code == EOPNOTSUPP || code == EPERM ||
         code == EBADF || code == ETXTBSY;
}

int64_t tp_copy_range(int in, int64_t in_offset, int out, int64_t out_offset, int64_t length,
                      struct tp_error *err) {
  int64_t done = 0;
  while (done < length) {
    off_t from = in_offset + done, to = out_offset + done;
    ssize_t n = copy_file_range(in, &from, out, &to, (size_t)(length - done), 0);
    if (n < 0 && errno == EINTR)
      continue;
    /* A pair that it can't serve fails at the first call; 0 may also be /proc's way of saying so. */
    if (done == 0 && (n == 0 || (n < 0 && unsuited(errno))))
      return copy_by_hand(in, in_offset, out, out_offset, length, err);
    if (n < 0)
      return tp_fail(err, errno, "copy");
    if (n == 0)
      break;
    done += n;
  }
  return done;
}

int tp_copy_extent(int fd, int64_t from, int64_t *start, int64_t *stop, struct tp_error *err) {
  off_t data = lseek(fd, from, SEEK_DATA);
  if (data < 0 && errno == ENXIO)
    return 0;
  if (data < 0 && errno != EINVAL)
    return tp_fail(err, errno, "find data");

  struct stat st;
  if (data < 0) {
    if (fstat(fd, &st) < 0)
      return tp_fail(err, errno, "stat");
    *start = from;
    *stop = st.st_size;
    return from < st.st_size;
  }
  off_t hole = lseek(fd, data, SEEK_HOLE);
  if (hole < 0)
    return tp_fail(err, errno, "find hole");
  *start = data;
  *stop = hole;
  return 1;
}

/* An entry, never a path. */
static int check_name(const char *name, struct tp_error *err) {
  if (!*name || !strcmp(name, ".") || !strcmp(name, "..") || strchr(name, '/'))
    return tp_fail(err, EINVAL, "not the name of an entry: \"%s\"", name);
  return 0;
}

int tp_copy_open(int directory, const char *name, int flags, mode_t mode, struct tp_error *err) {
  if (check_name(name, err) < 0)
    return -1;
  int fd = openat(directory, name, flags | O_NOFOLLOW | O_CLOEXEC, mode);
  return fd < 0 ? tp_fail(err, errno, "open %s", name) : fd;
}

int tp_copy_mkdir(int directory, const char *name, mode_t mode, struct tp_error *err) {
  if (check_name(name, err) < 0)
    return -1;
  return mkdirat(directory, name, mode) < 0 ? tp_fail(err, errno, "make directory %s", name) : 0;
}

int tp_copy_symlink(int directory, const char *name, const char *target, struct tp_error *err) {
  if (check_name(name, err) < 0)
    return -1;
  return symlinkat(target, directory, name) < 0 ? tp_fail(err, errno, "make link %s", name) : 0;
}

int tp_copy_unlink(int directory, const char *name, struct tp_error *err) {
  if (check_name(name, err) < 0)
    return -1;
  return unlinkat(directory, name, 0) < 0 ? tp_fail(err, errno, "remove %s", name) : 0;
}

int tp_copy_rename(int directory, const char *from, const char *to, struct tp_error *err) {
  if (check_name(from, err) < 0 || check_name(to, err) < 0)
    return -1;
  return renameat(directory, from, directory, to) < 0 ? tp_fail(err, errno, "rename to %s", to) : 0;
}

int tp_copy_stat(int directory, const char *name, struct stat *st, struct tp_error *err) {
  if (check_name(name, err) < 0)
    return -1;
  if (fstatat(directory, name, st, AT_SYMLINK_NOFOLLOW) < 0)
    return tp_fail(err, errno, "stat %s", name);
  return 0;
}

int tp_copy_touch(int fd, int64_t mtime_ns, struct tp_error *err) {
  struct timespec times[2] = {
      {.tv_nsec = UTIME_OMIT},
      {.tv_sec = mtime_ns / 1000000000, .tv_nsec = mtime_ns % 1000000000},
  };
  return futimens(fd, times) < 0 ? tp_fail(err, errno, "set time") : 0;
}

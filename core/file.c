/* Plan steps on files and directories. Executed by the spawner, on either side of a clone.
 *
 * Inside a sandbox's root nothing is trusted: whoever lived there before may have left a link
 * anywhere. `dir` and `replace` follow none; the others are for paths that we have just made. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

#define PREFETCH_LIMIT (4 << 20)

/* mkdir PATH MODE. Undone. */
int tp_step_mkdir(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  return mkdir(path, (mode_t)step->args[1].number) < 0 ? tp_fail(err, errno, "mkdir %s", path) : 0;
}

/* ensure PATH MODE: the directory, made unless it is there. Not undone: others may use it by then. */
int tp_step_ensure(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  if (mkdir(path, (mode_t)step->args[1].number) < 0 && errno != EEXIST)
    return tp_fail(err, errno, "mkdir %s", path);
  return 0;
}

/* dir PATH MODE: a directory at this path of one component, whatever was there. */
int tp_step_dir(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  mode_t mode = (mode_t)step->args[1].number;
  struct stat st;
  if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
    return 0;
  unlink(path);
  return mkdir(path, mode) < 0 ? tp_fail(err, errno, "mkdir %s", path) : 0;
}

static int write_all(int fd, const char *bytes, size_t length) {
  while (length) {
    ssize_t wrote = write(fd, bytes, length);
    if (wrote < 0 && errno == EINTR)
      continue;
    if (wrote < 0)
      return -1;
    bytes += wrote;
    length -= (size_t)wrote;
  }
  return 0;
}

/* write PATH BYTES: in one write, as control files want it. */
int tp_step_write(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const struct tp_arg *args = step->args;
  TP_CLOSE int fd = open(args[0].bytes, O_WRONLY | O_CLOEXEC);
  if (fd < 0)
    return tp_fail(err, errno, "open %s", args[0].bytes);
  if (write(fd, args[1].bytes, args[1].length) != (ssize_t)args[1].length)
    return tp_fail(err, errno, "write %s to %s", args[1].bytes, args[0].bytes);
  return 0;
}

/* file PATH MODE BYTES: a new file. Undone. */
int tp_step_file(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const struct tp_arg *args = step->args;
  mode_t mode = (mode_t)args[1].number;
  TP_CLOSE int fd = open(args[0].bytes, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
  if (fd < 0)
    return tp_fail(err, errno, "create %s", args[0].bytes);
  if (write_all(fd, args[2].bytes, args[2].length) < 0 || fchmod(fd, mode) < 0) {
    int code = errno;
    unlink(args[0].bytes);
    return tp_fail(err, code, "write %s", args[0].bytes);
  }
  return 0;
}

/* The directory of path, opened without following a link, and the name in it. */
static int open_parent(const char *path, const char **name, struct tp_error *err) {
  const char *slash = strrchr(path, '/');
  if (!slash || slash[1] == '\0')
    return tp_fail(err, EINVAL, "%s has no name", path);
  char parent[4096];
  snprintf(parent, sizeof parent, "%.*s", slash == path ? 1 : (int)(slash - path), path);
  *name = slash + 1;
  struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
                         .resolve = RESOLVE_NO_SYMLINKS};
  int fd = (int)syscall(SYS_openat2, AT_FDCWD, parent, &how, sizeof how);
  return fd < 0 ? tp_fail(err, errno, "open %s", parent) : fd;
}

static int same_content(int parent, const char *name, const struct tp_arg *content) {
  char have[1024];
  struct stat st;
  TP_CLOSE int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 || content->length >= sizeof have || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
    return 0;
  return read(fd, have, sizeof have) == (ssize_t)content->length &&
         memcmp(have, content->bytes, content->length) == 0;
}

/* replace PATH MODE BYTES: the file, whatever was there, in one rename and through no link; nothing
 * is written where the content is right already. */
int tp_step_replace(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const struct tp_arg *args = step->args;
  const char *name;
  TP_CLOSE int parent = open_parent(args[0].bytes, &name, err);
  if (parent < 0)
    return -1;
  if (same_content(parent, name, &args[2]))
    return 0;

  static const char temporary[] = ".tidepool-new";
  mode_t mode = (mode_t)args[1].number;
  unlinkat(parent, temporary, 0);
  TP_CLOSE int fd =
      openat(parent, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
  if (fd < 0)
    return tp_fail(err, errno, "create beside %s", args[0].bytes);
  if (write_all(fd, args[2].bytes, args[2].length) < 0 || fchmod(fd, mode) < 0 ||
      renameat(parent, temporary, parent, name) < 0) {
    int code = errno;
    unlinkat(parent, temporary, 0);
    return tp_fail(err, code, "write %s", args[0].bytes);
  }
  return 0;
}

/* symlink TARGET PATH. Undone. */
int tp_step_symlink(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *target = step->args[0].bytes, *path = step->args[1].bytes;
  return symlink(target, path) < 0 ? tp_fail(err, errno, "link %s", path) : 0;
}

/* rename FROM TO: onto nothing that is there. Undone. */
int tp_step_rename(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *from = step->args[0].bytes, *to = step->args[1].bytes;
  if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) < 0)
    return tp_fail(err, errno, "rename %s to %s", from, to);
  return 0;
}

/* unlink PATH, rmdir PATH: gone already is fine. */
int tp_step_unlink(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  return unlink(path) < 0 && errno != ENOENT ? tp_fail(err, errno, "unlink %s", path) : 0;
}

int tp_step_rmdir(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  return rmdir(path) < 0 && errno != ENOENT ? tp_fail(err, errno, "rmdir %s", path) : 0;
}

/* chown PATH UID GID, a link itself and not its target. */
int tp_step_chown(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const struct tp_arg *args = step->args;
  if (lchown(args[0].bytes, (uid_t)args[1].number, (gid_t)args[2].number) < 0)
    return tp_fail(err, errno, "chown %s", args[0].bytes);
  return 0;
}

int tp_step_chmod(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  return chmod(path, (mode_t)step->args[1].number) < 0 ? tp_fail(err, errno, "chmod %s", path) : 0;
}

/* open SLOT PATH: for reading; never waits for a FIFO's other end. */
int tp_step_open(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  const char *path = step->args[1].bytes;
  int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd < 0)
    return tp_fail(err, errno, "open %s", path);
  tp_run_fill(run, &step->args[0], fd);
  return 0;
}

/* copy SLOT PATH MODE: a new file with what the slot's file holds. */
int tp_step_copy(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  int from = tp_run_slot(run, &step->args[0], err);
  if (from < 0)
    return -1;
  const char *path = step->args[1].bytes;
  TP_CLOSE int to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (to < 0)
    return tp_fail(err, errno, "create %s", path);
  off_t at = 0;
  ssize_t sent;
  while ((sent = sendfile(to, from, &at, 1 << 20)) > 0)
    ;
  if (sent < 0)
    return tp_fail(err, errno, "copy to %s", path);
  if (fchmod(to, (mode_t)step->args[2].number) < 0)
    return tp_fail(err, errno, "chmod %s", path);
  return 0;
}

/* prefetch ROOT PATH: reads a regular file below ROOT into the page cache, found as from inside. Links
 * are followed there, for programs and libraries hide behind some, but never out of it. */
int tp_step_prefetch(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[1].bytes;
  TP_CLOSE int root = open(step->args[0].bytes, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (root < 0)
    return tp_fail(err, errno, "open %s", step->args[0].bytes);
  struct open_how how = {.flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
                         .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
  struct stat st;
  TP_CLOSE int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
  if (fd < 0 || fstat(fd, &st) < 0)
    return tp_fail(err, errno, "open %s", path);
  if (!S_ISREG(st.st_mode))
    return tp_fail(err, EINVAL, "prefetch %s", path);
  if (readahead(fd, 0, st.st_size < PREFETCH_LIMIT ? (size_t)st.st_size : PREFETCH_LIMIT) < 0)
    return tp_fail(err, errno, "prefetch %s", path);
  return 0;
}

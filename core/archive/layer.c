/* Applying one tar stream: see layer.h. */
#include "layer.h"

#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "../scope.h"
#include "remove.h"
#include "supervise.h"

/* What one layer has written. */
struct written {
  struct tp_paths paths;
  struct tp_times {
    struct tp_time {
      char *path;
      struct timespec mtime;
    } *list;
    size_t count, room;
  } times;
};

#define WHITEOUT ".wh."
#define OPAQUE ".wh..wh..opq"

/* "./a//b/" -> "a/b", "/" -> ""; EBADMSG for "..", ENAMETOOLONG. `size` is that of `clean`. */
static int clean_name(const char *name, char *clean, size_t size, struct tp_error *err) {
  size_t used = 0;
  while (*name) {
    size_t part = strcspn(name, "/");
    if (part == 2 && name[0] == '.' && name[1] == '.')
      return tp_fail(err, EBADMSG, "name leads upwards");
    if (part && !(part == 1 && *name == '.')) {
      /* A whiteout is longer than the name that it hides. */
      if (used + part + 2 > size || part > NAME_MAX + strlen(WHITEOUT))
        return tp_fail(err, ENAMETOOLONG, "name of an entry");
      if (used)
        clean[used++] = '/';
      memcpy(clean + used, name, part);
      used += part;
    }
    name += part + (name[part] == '/');
  }
  clean[used] = '\0';
  return 0;
}

static void tell_progress(struct tp_unpack *unpack, const struct tp_source *source) {
  unpack->report.done = unpack->stored + source->read;
  tp_report_progress(&unpack->report, unpack->report_fd, &unpack->reported);
}

/* 1 when `path` is a whiteout, which is then applied; 0 when it is an ordinary name. */
static int whiteout(char *path, const struct tp_paths *written, struct tp_error *err) {
  char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  if (strncmp(name, WHITEOUT, strlen(WHITEOUT)) != 0)
    return 0;
  if (strcmp(name, OPAQUE) == 0) {
    if (slash)
      *slash = '\0';
    return tp_remove_inside(slash ? path : "", written, err) < 0 ? -1 : 1;
  }
  char *hidden = name + strlen(WHITEOUT);
  if (strncmp(hidden, WHITEOUT, strlen(WHITEOUT)) == 0)
    return 1; /* .wh..wh.plnk and the like: AUFS's own bookkeeping */
  if (!*hidden || strcmp(hidden, ".") == 0 || strcmp(hidden, "..") == 0)
    return tp_fail(err, EBADMSG, "whiteout of no name");
  memmove(name, hidden, strlen(hidden) + 1);
  return tp_remove(path, written, err) < 0 ? -1 : 1;
}

/* An entry replaces what is at its place, except for a directory by a directory. */
static int clear_place(const char *path, bool directory, struct tp_error *err) {
  struct stat st;
  if (lstat(path, &st) < 0)
    return errno == ENOENT || errno == ENOTDIR ? 0 : tp_fail(err, errno, "look at place");
  if (directory && S_ISDIR(st.st_mode))
    return 0;
  return tp_remove(path, NULL, err);
}

/* Only what means something in a sandbox: file capabilities and user attributes. */
static void filter_attributes(struct tp_unpack *unpack, struct archive_entry *entry) {
  struct kept {
    struct kept *next;
    size_t size;
    const char *name;
    char value[];
  } *kept = NULL;
  const char *name;
  const void *value;
  size_t size;

  if (archive_entry_xattr_reset(entry) == 0)
    return;
  while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
    struct kept *one = NULL;
    if (!unpack->plain && name && size <= 65536 &&
        (strcmp(name, "security.capability") == 0 || strncmp(name, "user.", 5) == 0))
      one = malloc(sizeof *one + size + strlen(name) + 1);
    if (!one) {
      unpack->report.skipped++;
      continue;
    }
    memcpy(one->value, value, size);
    one->name = strcpy(one->value + size, name);
    one->size = size;
    one->next = kept;
    kept = one;
  }
  archive_entry_xattr_clear(entry);
  while (kept) {
    struct kept *one = kept;
    archive_entry_xattr_add_entry(entry, one->name, one->value, one->size);
    kept = one->next;
    free(one);
  }
}

/* libarchive sets the times of directories that it made, not of those that were there: and what a
 * layer puts into one would leave a new time. */
static int note_directory(struct tp_times *times, struct archive_entry *entry, const char *path,
                          struct tp_error *err) {
  if (!archive_entry_mtime_is_set(entry))
    return 0;
  if (times->count == times->room) {
    size_t room = times->room ? times->room * 2 : 256;
    struct tp_time *list = realloc(times->list, room * sizeof *list);
    if (!list)
      return tp_fail(err, ENOMEM, "remember directories");
    times->list = list;
    times->room = room;
  }
  struct tp_time *time = &times->list[times->count];
  time->mtime = (struct timespec){archive_entry_mtime(entry), archive_entry_mtime_nsec(entry)};
  time->path = strdup(*path ? path : ".");
  if (!time->path)
    return tp_fail(err, ENOMEM, "remember directories");
  times->count++;
  return 0;
}

/* A directory that a later entry replaced is passed over. */
static void set_times(const struct tp_times *times) {
  for (size_t i = 0; i < times->count; i++) {
    struct stat st;
    struct timespec both[2] = {{.tv_nsec = UTIME_OMIT}, times->list[i].mtime};
    if (lstat(times->list[i].path, &st) == 0 && S_ISDIR(st.st_mode))
      utimensat(AT_FDCWD, times->list[i].path, both, AT_SYMLINK_NOFOLLOW);
  }
}

static void free_times(struct tp_times *times) {
  for (size_t i = 0; i < times->count; i++)
    free(times->list[i].path);
  free(times->list);
}

/* libarchive has no errno for what it refuses by itself. */
static int disk_fail(struct archive *disk, struct tp_error *err) {
  int code = archive_errno(disk);
  const char *why = archive_error_string(disk);
  return tp_fail(err, code > 0 ? code : EBADMSG, "%s", why ? why : "write");
}

static int copy_content(struct tp_unpack *unpack, struct tp_source *source, struct archive *disk,
                        struct tp_error *err) {
  const void *block;
  size_t size;
  la_int64_t offset;
  int result;
  while ((result = archive_read_data_block(source->tar, &block, &size, &offset)) == ARCHIVE_OK) {
    unpack->report.bytes += size;
    if (unpack->report.bytes > unpack->max_bytes)
      return tp_fail(err, EFBIG, "more than %llu bytes in all", (unsigned long long)unpack->max_bytes);
    if (archive_write_data_block(disk, block, size, offset) != ARCHIVE_OK)
      return disk_fail(disk, err);
    tell_progress(unpack, source);
  }
  return result == ARCHIVE_EOF ? 0 : tp_source_fail(source, err);
}

/* 1 when the entry's type is one that is left out. */
static bool left_out(const struct tp_unpack *unpack, struct archive_entry *entry) {
  if (archive_entry_hardlink(entry))
    return false;
  switch (archive_entry_filetype(entry)) {
  case AE_IFREG:
  case AE_IFDIR:
  case AE_IFLNK: return false;
  case AE_IFIFO: return unpack->plain;
  default: return true;
  }
}

/* What a directory's default ACL gave to what was made in it, and an older directory's own. */
static void drop_acls(struct archive_entry *entry, const char *path) {
  int types = archive_entry_acl_types(entry);
  if (archive_entry_hardlink(entry) || archive_entry_filetype(entry) == AE_IFLNK)
    return;
  if (!(types & ARCHIVE_ENTRY_ACL_TYPE_ACCESS))
    lremovexattr(path, "system.posix_acl_access");
  if (!(types & ARCHIVE_ENTRY_ACL_TYPE_DEFAULT) && archive_entry_filetype(entry) == AE_IFDIR)
    lremovexattr(path, "system.posix_acl_default");
}

static int restore(struct tp_unpack *unpack, struct tp_source *source, struct archive *disk,
                   struct archive_entry *entry, const char *path, struct tp_error *err) {
  bool directory = archive_entry_filetype(entry) == AE_IFDIR && !archive_entry_hardlink(entry);
  if (!*path && !directory)
    return tp_fail(err, EBADMSG, "the root is not a directory");
  if (!unpack->plain && (archive_entry_uid(entry) < 0 || archive_entry_gid(entry) < 0 ||
                         archive_entry_uid(entry) > unpack->max_id ||
                         archive_entry_gid(entry) > unpack->max_id))
    return tp_fail(err, ERANGE, "owner %lld:%lld is beyond the %u ids of a sandbox",
                   (long long)archive_entry_uid(entry), (long long)archive_entry_gid(entry),
                   unpack->max_id + 1);
  if (*path && clear_place(path, directory, err) < 0)
    return -1;

  archive_entry_copy_pathname(entry, *path ? path : ".");
  if (archive_entry_hardlink(entry)) {
    char target[PATH_MAX];
    if (clean_name(archive_entry_hardlink(entry), target, sizeof target, err) < 0)
      return tp_wrap(err, "hard link's target");
    archive_entry_copy_hardlink(entry, target);
    archive_entry_set_size(entry, 0); /* the content is the target's; a FIFO would block us */
  }
  if (unpack->plain)
    archive_entry_set_perm(entry, directory ? 0700 : 0600);
  filter_attributes(unpack, entry);

  if (archive_write_header(disk, entry) != ARCHIVE_OK)
    return disk_fail(disk, err);
  if (!archive_entry_hardlink(entry) && archive_entry_filetype(entry) == AE_IFREG &&
      copy_content(unpack, source, disk, err) < 0)
    return -1;
  if (archive_write_finish_entry(disk) != ARCHIVE_OK)
    return disk_fail(disk, err);
  if (!unpack->plain)
    drop_acls(entry, *path ? path : ".");
  return 0;
}

static int apply_entry(struct tp_unpack *unpack, struct tp_source *source, struct archive *disk,
                       struct archive_entry *entry, struct written *written,
                       struct tp_error *err) {
  const char *name = archive_entry_pathname(entry);
  char path[PATH_MAX];
  if (++unpack->report.entries > unpack->max_entries)
    return tp_fail(err, EFBIG, "more than %llu entries", (unsigned long long)unpack->max_entries);
  tell_progress(unpack, source);
  if (!name)
    return tp_fail(err, EBADMSG, "entry %llu has no name",
                   (unsigned long long)unpack->report.entries);
  if (clean_name(name, path, sizeof path, err) < 0)
    return tp_wrap(err, "%.200s", name);

  int hidden = unpack->plain ? 0 : whiteout(path, &written->paths, err);
  if (hidden < 0)
    return tp_wrap(err, "%.200s", name);
  if (hidden)
    return 0;
  if (left_out(unpack, entry)) {
    unpack->report.skipped++;
    return 0;
  }
  if (restore(unpack, source, disk, entry, path, err) < 0)
    return tp_wrap(err, "%.200s", path);
  if (!unpack->plain && archive_entry_filetype(entry) == AE_IFDIR &&
      note_directory(&written->times, entry, path, err) < 0)
    return -1;
  return tp_paths_add(&written->paths, path, err);
}

/* A symbolic link of the image may stand in the way to a file (bin -> usr/bin): it is followed, as
 * the root directory is the target itself. A plain archive has no use for that. */
static struct archive *new_disk(const struct tp_unpack *unpack) {
  int flags = ARCHIVE_EXTRACT_SECURE_NODOTDOT | ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS |
              ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME;
  if (unpack->plain)
    flags |= ARCHIVE_EXTRACT_SECURE_SYMLINKS;
  else
    flags |= ARCHIVE_EXTRACT_OWNER | ARCHIVE_EXTRACT_XATTR | ARCHIVE_EXTRACT_ACL;
  struct archive *disk = archive_write_disk_new();
  if (disk)
    archive_write_disk_set_options(disk, flags);
  return disk;
}

/* A PAX header promises UTF-8 and holds other bytes: the entry then has these, which is right. */
static bool name_as_it_is(struct archive *tar) {
  const char *why = archive_error_string(tar);
  return why && strstr(why, "can't be converted");
}

static int apply(struct tp_unpack *unpack, struct tp_source *source, struct archive *disk,
                 struct written *written, struct tp_error *err) {
  struct archive_entry *entry;
  int result;
  while ((result = archive_read_next_header(source->tar, &entry)) == ARCHIVE_OK ||
         (result == ARCHIVE_WARN && name_as_it_is(source->tar)))
    if (apply_entry(unpack, source, disk, entry, written, err) < 0)
      return -1;
  if (result != ARCHIVE_EOF)
    return tp_source_fail(source, err);
  /* Times and modes of directories are set here, after what is in them. */
  if (archive_write_close(disk) != ARCHIVE_OK)
    return disk_fail(disk, err);
  set_times(&written->times);
  return 0;
}

int tp_layer_apply(struct tp_unpack *unpack, const struct tp_layer *layer, struct tp_error *err) {
  struct written written = {0};
  struct archive *disk = new_disk(unpack);
  TP_FREE struct tp_source *source = calloc(1, sizeof *source);
  if (!source || !disk) {
    archive_write_free(disk);
    return tp_fail(err, ENOMEM, "%s", layer->name);
  }

  int result = tp_source_open(source, layer, unpack->max_bytes, err);
  if (result == 0) {
    result = apply(unpack, source, disk, &written, err);
    if (result == 0)
      result = tp_source_verify(source, err);
  }
  if (result < 0)
    tp_wrap(err, "%s", layer->name);
  unpack->stored += source->read;
  archive_write_free(disk);
  tp_source_close(source);
  tp_paths_free(&written.paths);
  free_times(&written.times);
  return result;
}

/* Entries of a layer: see entry.h. In the confined worker. */
#include "entry.h"

#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../scope.h"
#include "supervise.h"

#define WHITEOUT ".wh."
#define BLOCK (512 * 1024)
#define MAX_EXTENTS 65536
#define MAX_HOLES (1ull << 60) /* bytes of an archive, which take half a minute */

static void free_entry(struct archive_entry **entry) {
  archive_entry_free(*entry);
}
#define TP_ENTRY __attribute__((cleanup(free_entry)))

static struct tp_link *slot_of(const struct tp_links *links, uint64_t inode) {
  size_t slot = (size_t)((inode * 0x9e3779b97f4a7c15u) >> 20) & (links->size - 1);
  while (links->slots[slot].path && links->slots[slot].inode != inode)
    slot = (slot + 1) & (links->size - 1);
  return &links->slots[slot];
}

static int grow(struct tp_links *links) {
  struct tp_links larger = {.size = links->size ? links->size * 2 : 256, .used = links->used};
  larger.slots = calloc(larger.size, sizeof *larger.slots);
  if (!larger.slots)
    return -1;
  for (size_t i = 0; i < links->size; i++)
    if (links->slots[i].path)
      *slot_of(&larger, links->slots[i].inode) = links->slots[i];
  free(links->slots);
  *links = larger;
  return 0;
}

/* The path under which the inode was written first; NULL when this is the first time. */
static int link_target(struct tp_links *links, uint64_t inode, const char *path, const char **target,
                       struct tp_error *err) {
  if (links->used * 2 >= links->size && grow(links) < 0)
    return tp_fail(err, ENOMEM, "remember links");
  struct tp_link *link = slot_of(links, inode);
  *target = link->path;
  if (link->path)
    return 0;
  link->inode = inode;
  link->path = strdup(path);
  if (!link->path)
    return tp_fail(err, ENOMEM, "remember links");
  links->used++;
  return 0;
}

void tp_links_free(struct tp_links *links) {
  for (size_t i = 0; i < links->size; i++)
    free(links->slots[i].path);
  free(links->slots);
  *links = (struct tp_links){0};
}

/* The kernel's own form of an ACL: a version, then entries of tag, permissions and id. */
static int add_acl(struct archive_entry *entry, int type, const char *value, size_t length,
                   struct tp_error *err) {
  static const struct {
    uint16_t tag;
    int kind;
  } tags[] = {{0x01, ARCHIVE_ENTRY_ACL_USER_OBJ},  {0x02, ARCHIVE_ENTRY_ACL_USER},
              {0x04, ARCHIVE_ENTRY_ACL_GROUP_OBJ}, {0x08, ARCHIVE_ENTRY_ACL_GROUP},
              {0x10, ARCHIVE_ENTRY_ACL_MASK},      {0x20, ARCHIVE_ENTRY_ACL_OTHER}};
  struct {
    uint16_t tag, permissions;
    uint32_t id;
  } one;
  for (size_t at = 4; at + sizeof one <= length; at += sizeof one) {
    memcpy(&one, value + at, sizeof one);
    for (unsigned i = 0; i < sizeof tags / sizeof *tags; i++)
      if (tags[i].tag == one.tag &&
          archive_entry_acl_add_entry(entry, type, one.permissions & 7, tags[i].kind,
                                      one.tag & 0x0a ? (int)one.id : -1, NULL) != ARCHIVE_OK)
        return tp_fail(err, ENOMEM, "note ACL");
  }
  return 0;
}

/* Only what an unpacker takes: file capabilities, ACLs and user attributes. */
static int add_attributes(struct archive_entry *entry, int fd, struct tp_error *err) {
  char names[65536], value[65536];
  ssize_t size = flistxattr(fd, names, sizeof names);
  if (size < 0)
    return errno == ENOTSUP ? 0 : tp_fail(err, errno, "list attributes");
  for (const char *name = names; name < names + size; name += strlen(name) + 1) {
    int acl = strcmp(name, "system.posix_acl_access") == 0    ? ARCHIVE_ENTRY_ACL_TYPE_ACCESS
              : strcmp(name, "system.posix_acl_default") == 0 ? ARCHIVE_ENTRY_ACL_TYPE_DEFAULT
                                                              : 0;
    if (!acl && strcmp(name, "security.capability") != 0 && strncmp(name, "user.", 5) != 0)
      continue;
    ssize_t length = fgetxattr(fd, name, value, sizeof value);
    if (length < 0)
      return tp_fail(err, errno, "read attribute %.100s", name);
    if (!acl)
      archive_entry_xattr_add_entry(entry, name, value, (size_t)length);
    else if (add_acl(entry, acl, value, (size_t)length, err) < 0)
      return -1;
  }
  return 0;
}

/* Where the data is, so that holes stay holes. What follows the last extent that we note is read as if it
 * were all data, unless that would make much of little. */
static int add_extents(struct archive_entry *entry, int fd, const struct statx *st, struct tp_error *err) {
  off_t end = 0, size = (off_t)st->stx_size;
  for (int i = 0; i < MAX_EXTENTS && end < size; i++) {
    off_t start = lseek(fd, end, SEEK_DATA);
    if (start < 0) {
      if (i == 0)
        archive_entry_sparse_add_entry(entry, size, 0); /* nothing but a hole */
      return 0;
    }
    bool last = i == MAX_EXTENTS - 1;
    if (last && (uint64_t)(size - start) / 8 > st->stx_blocks * 512)
      return tp_fail(err, EFBIG, "pack a file with more than %d holes that would fill %lld bytes", MAX_EXTENTS,
                     (long long)size);
    end = last ? size : lseek(fd, start, SEEK_HOLE);
    if (end < 0 || end > size)
      end = size;
    archive_entry_sparse_add_entry(entry, start, end - start);
  }
  return 0;
}

static int put_header(struct tp_pack *pack, struct archive_entry *entry, struct tp_error *err) {
  int result = archive_write_header(pack->sink.tar, entry);
  pack->report.entries++;
  /* A name that is no UTF-8 is written as it is, with a warning. */
  return result < ARCHIVE_WARN ? tp_sink_fail(&pack->sink, pack->sink.tar, err) : 0;
}

static int put_data(struct tp_pack *pack, const char *bytes, size_t length, struct tp_error *err) {
  if (archive_write_data(pack->sink.tar, bytes, length) != (la_ssize_t)length)
    return tp_sink_fail(&pack->sink, pack->sink.tar, err);
  return 0;
}

/* The writer leaves out what the extents don't name, but wants to be walked through it, in steps of an
 * int: it looks at none of these bytes. A file may claim 8 EiB, and a sandbox have many of those. */
static int put_zeros(struct tp_pack *pack, off_t count, struct tp_error *err) {
  static const off_t step = 1 << 30;
  static char *zeros;
  if (!zeros) {
    void *map = mmap(NULL, (size_t)step, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
      return tp_fail(err, errno, "reserve zeros");
    zeros = map;
  }
  if ((uint64_t)count > MAX_HOLES - pack->holes)
    return tp_fail(err, EFBIG, "pack more than 1 EiB of holes");
  pack->holes += (uint64_t)count;
  for (; count > 0; count -= step) {
    if (put_data(pack, zeros, (size_t)(count < step ? count : step), err) < 0)
      return -1;
    tp_report_progress(&pack->report, pack->report_fd, &pack->reported);
  }
  return 0;
}

static int put_range(struct tp_pack *pack, int fd, off_t start, off_t end, struct tp_error *err) {
  static char buffer[BLOCK];
  while (start < end) {
    size_t want = end - start < BLOCK ? (size_t)(end - start) : BLOCK;
    ssize_t got = pread(fd, buffer, want, start);
    if (got <= 0)
      return tp_fail(err, got < 0 ? errno : EIO, "read");
    if (put_data(pack, buffer, (size_t)got, err) < 0)
      return -1;
    start += got;
    pack->report.bytes += (uint64_t)got;
    pack->report.done += (uint64_t)got;
    tp_report_progress(&pack->report, pack->report_fd, &pack->reported);
  }
  return 0;
}

static int put_content(struct tp_pack *pack, struct archive_entry *entry, int fd, off_t size,
                       struct tp_error *err) {
  if (!archive_entry_sparse_reset(entry))
    return put_range(pack, fd, 0, size, err);
  la_int64_t start, length, at = 0;
  while (archive_entry_sparse_next(entry, &start, &length) == ARCHIVE_OK) {
    if (put_zeros(pack, start - at, err) < 0 || put_range(pack, fd, start, start + length, err) < 0)
      return -1;
    at = start + length;
  }
  return put_zeros(pack, size - at, err);
}

static int put_file(struct tp_pack *pack, struct archive_entry *entry, int directory,
                    const char *name, const struct statx *st, struct tp_error *err) {
  TP_CLOSE int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOATIME | O_CLOEXEC);
  if (fd < 0)
    return tp_fail(err, errno, "open");
  off_t size = (off_t)st->stx_size;
  archive_entry_set_size(entry, size);
  if (add_attributes(entry, fd, err) < 0)
    return -1;
  if (st->stx_blocks * 512 < st->stx_size && add_extents(entry, fd, st, err) < 0)
    return -1;
  /* Writing the header eats the extents. */
  TP_ENTRY struct archive_entry *kept = archive_entry_clone(entry);
  if (!kept)
    return tp_fail(err, ENOMEM, "pack");
  return put_header(pack, entry, err) < 0 ? -1 : put_content(pack, kept, fd, size, err);
}

static int put_directory(struct tp_pack *pack, struct archive_entry *entry, int directory,
                         const char *name, struct tp_error *err) {
  TP_CLOSE int fd = openat(directory, *name ? name : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return tp_fail(err, errno, "open");
  return add_attributes(entry, fd, err) < 0 ? -1 : put_header(pack, entry, err);
}

static int put_symlink(struct tp_pack *pack, struct archive_entry *entry, int directory,
                       const char *name, struct tp_error *err) {
  char target[PATH_MAX + 1];
  ssize_t length = readlinkat(directory, name, target, sizeof target - 1);
  if (length < 0)
    return tp_fail(err, errno, "read link");
  target[length] = '\0';
  archive_entry_copy_symlink(entry, target);
  return put_header(pack, entry, err);
}

int tp_entry_gone(struct tp_compare *compare, struct tp_error *err) {
  struct tp_pack *pack = compare->data;
  const char *slash = strrchr(compare->path, '/'), *name = slash ? slash + 1 : compare->path;
  char path[PATH_MAX + sizeof WHITEOUT];
  snprintf(path, sizeof path, "%.*s" WHITEOUT "%s", (int)(name - compare->path), compare->path, name);
  TP_ENTRY struct archive_entry *entry = archive_entry_new();
  if (!entry)
    return tp_fail(err, ENOMEM, "pack");
  archive_entry_copy_pathname(entry, path);
  archive_entry_set_filetype(entry, AE_IFREG);
  archive_entry_set_perm(entry, 0600);
  archive_entry_set_size(entry, 0);
  archive_entry_set_mtime(entry, 0, 0);
  return put_header(pack, entry, err);
}

static bool left_out(const char *name, const struct statx *st) {
  /* A layer can't hold such a name: it would hide another. */
  if (strncmp(name, WHITEOUT, strlen(WHITEOUT)) == 0)
    return true;
  return !S_ISREG(st->stx_mode) && !S_ISDIR(st->stx_mode) && !S_ISLNK(st->stx_mode) &&
         !S_ISFIFO(st->stx_mode);
}

int tp_entry_found(struct tp_compare *compare, int directory, const char *name,
                   const struct statx *st, struct tp_error *err) {
  struct tp_pack *pack = compare->data;
  const char *target = NULL;
  tp_report_progress(&pack->report, pack->report_fd, &pack->reported);
  if (left_out(name, st)) {
    pack->report.skipped++;
    bool hides = pack->against_base && strncmp(name, WHITEOUT, strlen(WHITEOUT)) != 0;
    return hides ? tp_entry_gone(compare, err) : 0;
  }
  if (!S_ISDIR(st->stx_mode) && st->stx_nlink > 1 &&
      link_target(&pack->links, st->stx_ino, compare->path, &target, err) < 0)
    return -1;

  TP_ENTRY struct archive_entry *entry = archive_entry_new();
  if (!entry)
    return tp_fail(err, ENOMEM, "pack");
  archive_entry_copy_pathname(entry, *compare->path ? compare->path : "./");
  archive_entry_set_mode(entry, st->stx_mode);
  archive_entry_set_uid(entry, st->stx_uid);
  archive_entry_set_gid(entry, st->stx_gid);
  archive_entry_set_mtime(entry, st->stx_mtime.tv_sec, (long)st->stx_mtime.tv_nsec);
  archive_entry_set_size(entry, 0);
  if (target) {
    archive_entry_copy_hardlink(entry, target);
    return put_header(pack, entry, err);
  }
  if (S_ISREG(st->stx_mode))
    return put_file(pack, entry, directory, name, st, err);
  if (S_ISDIR(st->stx_mode))
    return put_directory(pack, entry, directory, name, err);
  return S_ISLNK(st->stx_mode) ? put_symlink(pack, entry, directory, name, err) : put_header(pack, entry, err);
}

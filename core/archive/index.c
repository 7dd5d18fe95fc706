/* The files of a tar: see index.h. */
#include "index.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define MAX_ENTRIES 100000
#define BLOCK (64 * 1024)

static bool plain_name(const char *name) {
  static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-";
  size_t length = name ? strlen(name) : 0;
  return length && length < 512 && strspn(name, allowed) == length;
}

static int print_entries(struct archive *tar, struct tp_error *err) {
  struct archive_entry *entry;
  int result;
  for (unsigned i = 0; (result = archive_read_next_header(tar, &entry)) == ARCHIVE_OK; i++) {
    const char *name = archive_entry_pathname(entry);
    if (i == MAX_ENTRIES)
      return tp_fail(err, EFBIG, "more than %u files", i);
    /* A sparse file's bytes are not where its header ends. */
    if (archive_entry_filetype(entry) == AE_IFREG && !archive_entry_hardlink(entry) &&
        !archive_entry_sparse_count(entry) && plain_name(name))
      printf("%lld %lld %s\n", (long long)archive_filter_bytes(tar, 0),
             (long long)archive_entry_size(entry), strncmp(name, "./", 2) == 0 ? name + 2 : name);
  }
  if (result != ARCHIVE_EOF)
    return tp_fail(err, EBADMSG, "damaged archive (%s)", archive_error_string(tar) ?: "?");
  return 0;
}

int tp_index(int fd, struct tp_error *err) {
  struct archive *tar = archive_read_new();
  if (!tar)
    return tp_fail(err, ENOMEM, "open archive");
  archive_read_support_format_tar(tar);
  int result = archive_read_open_fd(tar, fd, BLOCK) == ARCHIVE_OK
                   ? print_entries(tar, err)
                   : tp_fail(err, EBADMSG, "not a tar (%s)", archive_error_string(tar) ?: "?");
  archive_read_free(tar);
  return result;
}

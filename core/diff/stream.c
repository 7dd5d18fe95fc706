/* Reading a btrfs send stream: see stream.h. No system calls here. */
#include "stream.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

enum { ATTRIBUTE_PATH = 15, ATTRIBUTE_PATH_TO = 16, ATTRIBUTE_PATH_LINK = 17 };

/* By the number of a command, from 1: subvol, snapshot, mkfile, mkdir, mknod, mkfifo, mksock, symlink,
 * rename, link, unlink, rmdir, set_xattr, remove_xattr, write, clone, truncate, chmod, chown, utimes,
 * end, update_extent. */
static const enum tp_send_kind kinds[] = {
    TP_SEND_OTHER,  TP_SEND_OTHER,  TP_SEND_OTHER,  TP_SEND_CREATE, TP_SEND_CREATE, TP_SEND_CREATE,
    TP_SEND_CREATE, TP_SEND_CREATE, TP_SEND_CREATE, TP_SEND_RENAME, TP_SEND_LINK,   TP_SEND_REMOVE,
    TP_SEND_REMOVE, TP_SEND_META,   TP_SEND_META,   TP_SEND_DATA,   TP_SEND_DATA,   TP_SEND_DATA,
    TP_SEND_META,   TP_SEND_META,   TP_SEND_TIMES,  TP_SEND_END,    TP_SEND_DATA};

static uint32_t number(const uint8_t *at, unsigned size) {
  uint32_t value = 0;
  for (unsigned i = 0; i < size; i++)
    value |= (uint32_t)at[i] << (8 * i);
  return value;
}

ssize_t tp_send_begin(const uint8_t *bytes, size_t length, struct tp_error *err) {
  static const char magic[13] = "btrfs-stream";
  size_t known = length < sizeof magic ? length : sizeof magic;
  if (memcmp(bytes, magic, known) != 0)
    return tp_fail(err, EBADMSG, "no btrfs send stream");
  if (length < TP_SEND_HEADER)
    return 0;
  uint32_t version = number(bytes + sizeof magic, 4);
  if (version != 1)
    return tp_fail(err, EPROTONOSUPPORT, "send stream of version %u", version);
  return TP_SEND_HEADER;
}

/* A path is relative, without NUL, "." or ".."; empty for the top itself. */
static bool is_path(const char *path, size_t length) {
  if (length >= PATH_MAX || memchr(path, '\0', length))
    return false;
  for (size_t at = 0; at < length;) {
    const char *slash = memchr(path + at, '/', length - at);
    size_t part = slash ? (size_t)(slash - path) - at : length - at;
    bool dots = part <= 2 && memcmp(path + at, "..", part) == 0;
    if (part == 0 || part > NAME_MAX || dots || (slash && at + part + 1 == length))
      return false;
    at += part + 1;
  }
  return true;
}

static int attribute(struct tp_send_command *command, unsigned type, const char *value,
                     size_t length) {
  if (type != ATTRIBUTE_PATH && type != ATTRIBUTE_PATH_TO && type != ATTRIBUTE_PATH_LINK)
    return 0;
  if (type == ATTRIBUTE_PATH_LINK && command->kind != TP_SEND_LINK)
    return 0; /* of a symlink: what it points to */
  if (!is_path(value, length))
    return -1;
  if (type == ATTRIBUTE_PATH) {
    command->path = value;
    command->path_length = length;
  } else {
    command->to = value;
    command->to_length = length;
  }
  return 0;
}

static bool is_complete(const struct tp_send_command *command) {
  if (command->kind == TP_SEND_OTHER || command->kind == TP_SEND_END)
    return true;
  bool two = command->kind == TP_SEND_RENAME || command->kind == TP_SEND_LINK;
  return command->path && (!two || (command->to && command->path_length && command->to_length));
}

ssize_t tp_send_next(const uint8_t *bytes, size_t length, struct tp_send_command *command,
                     struct tp_error *err) {
  enum { HEAD = 10 };
  if (length < HEAD)
    return 0;
  uint32_t size = number(bytes, 4), what = number(bytes + 4, 2);
  if (size > TP_SEND_COMMAND)
    return tp_fail(err, EBADMSG, "send command of %u bytes", size);
  if (what == 0 || what >= sizeof kinds / sizeof *kinds)
    return tp_fail(err, EBADMSG, "unknown send command %u", what);
  if (length - HEAD < size)
    return 0;
  *command = (struct tp_send_command){.kind = kinds[what]};
  const uint8_t *at = bytes + HEAD, *end = at + size;
  while (at < end) {
    if (end - at < 4 || number(at + 2, 2) > (size_t)(end - at - 4))
      return tp_fail(err, EBADMSG, "attribute beyond its send command");
    size_t part = number(at + 2, 2);
    if (attribute(command, number(at, 2), (const char *)at + 4, part) < 0)
      return tp_fail(err, EBADMSG, "malformed path in a send stream");
    at += 4 + part;
  }
  if (!is_complete(command))
    return tp_fail(err, EBADMSG, "send command %u without its path", what);
  return HEAD + (ssize_t)size;
}

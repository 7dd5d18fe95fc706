/* Reading a btrfs send stream: a sans-I/O machine that says what happened to which path.
 *
 * A stream leads from one snapshot to another by commands such as "rename this", "truncate that".
 * The kernel writes it, the names in it are a sandbox's. Without file data (that is how we ask for
 * it) no command is longer than some attributes. Version 1. */
#ifndef TP_SEND_STREAM_H
#define TP_SEND_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../error.h"

#define TP_SEND_HEADER 17          /* "btrfs-stream", NUL, version */
#define TP_SEND_COMMAND (128 << 10) /* bytes of one command at most; the kernel's own limit is half */

enum tp_send_kind {
  TP_SEND_CREATE, /* something new at `path` */
  TP_SEND_LINK,   /* another name, `path`, of `to` */
  TP_SEND_RENAME, /* `path` is `to` now */
  TP_SEND_REMOVE, /* a name, or an empty directory */
  TP_SEND_DATA,   /* contents or size of `path` */
  TP_SEND_META,   /* mode, owner or extended attributes of `path` */
  TP_SEND_TIMES,
  TP_SEND_OTHER, /* what changes no path */
  TP_SEND_END
};

struct tp_send_command {
  enum tp_send_kind kind;
  const char *path, *to; /* into the bytes; not terminated */
  size_t path_length, to_length;
};

/* The stream's head: its length | 0, more is needed | -1, EBADMSG, EPROTONOSUPPORT (version). */
ssize_t tp_send_begin(const uint8_t *bytes, size_t length, struct tp_error *err);
/* The next command: its length | 0, more is needed | -1, EBADMSG. */
ssize_t tp_send_next(const uint8_t *bytes, size_t length, struct tp_send_command *command,
                     struct tp_error *err);

#endif

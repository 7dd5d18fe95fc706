/* btrfs send streams and what they add up to. However a stream is cut, the same comes out; a path
 * that comes out is relative and leads nowhere else. */
#include "../diff/changes.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

static int check(void *context, const char *path, unsigned change) {
  (void)context;
  size_t used = strlen(path);
  if (!change || path[0] == '/' || strstr(path, "/../") || strncmp(path, "../", 3) == 0 ||
      strcmp(path, "..") == 0 || (used >= 3 && strcmp(path + used - 3, "/..") == 0))
    abort();
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  struct tp_error err;
  struct tp_changes *changes = tp_changes_new(&err);
  struct tp_send_command command;
  size_t at = 0;
  ssize_t used = tp_send_begin(bytes, length, &err);
  if (!changes || used > (ssize_t)length)
    abort();
  while (used > 0) {
    at += (size_t)used;
    used = tp_send_next(bytes + at, length - at, &command, &err);
    if (used > (ssize_t)(length - at))
      abort();
    if (used <= 0 || command.kind == TP_SEND_END || tp_changes_apply(changes, &command, &err) < 0)
      break;
    struct tp_send_command again;
    if (tp_send_next(bytes + at, (size_t)used - 1, &again, &err) != 0)
      abort(); /* cut short, more of it is needed */
  }
  tp_changes_each(changes, check, NULL, &err);
  tp_changes_free(changes);
  return 0;
}

/* Scope attributes: what a function owns goes when the scope ends, on every path.
 *
 * With -fexceptions they also run when lua_error unwinds through the frame. */
#ifndef TP_SCOPE_H
#define TP_SCOPE_H

#include <stdlib.h>
#include <unistd.h>

static inline void tp_scope_close(int *fd) {
  if (*fd >= 0)
    close(*fd);
}

static inline void tp_scope_free(void *pointer) {
  free(*(void **)pointer);
}

#define TP_CLOSE __attribute__((cleanup(tp_scope_close)))
#define TP_FREE __attribute__((cleanup(tp_scope_free)))

/* Move a descriptor out of a TP_CLOSE variable. */
static inline int tp_take_fd(int *fd) {
  int taken = *fd;
  *fd = -1;
  return taken;
}

#endif

/* Random bytes: see tls_random.h. */
#include "tls_random.h"

#include <errno.h>
#include <sys/random.h>

int tp_tls_random(void *context, unsigned char *bytes, size_t length) {
  (void)context;
  while (length) {
    ssize_t got = getrandom(bytes, length, 0);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0)
      return -1;
    bytes += got;
    length -= (size_t)got;
  }
  return 0;
}

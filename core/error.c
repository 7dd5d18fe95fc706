/* Error values: see error.h. */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int tp_fail(struct tp_error *err, int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int used = vsnprintf(err->message, sizeof err->message, format, args);
  va_end(args);

  err->code = code ? code : EIO;
  if (used >= 0 && (size_t)used < sizeof err->message)
    snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", strerror(err->code));
  return -1;
}

int tp_wrap(struct tp_error *err, const char *format, ...) {
  char inner[sizeof err->message];
  memcpy(inner, err->message, sizeof inner);

  va_list args;
  va_start(args, format);
  int used = vsnprintf(err->message, sizeof err->message, format, args);
  va_end(args);

  if (used >= 0 && (size_t)used < sizeof err->message)
    snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", inner);
  return -1;
}

/* strerrorname_np is glibc's alone, and init is built against musl. */
static const struct {
  int code;
  const char *name;
} names[] = {
#define N(code) {code, #code}
    N(E2BIG),      N(EACCES),     N(EADDRINUSE),   N(EADDRNOTAVAIL), N(EAGAIN),     N(EALREADY),
    N(EBADF),      N(EBADMSG),    N(EBUSY),        N(ECANCELED),     N(ECHILD),     N(ECONNABORTED),
    N(ECONNREFUSED), N(ECONNRESET), N(EDEADLK),    N(EDQUOT),        N(EEXIST),     N(EFAULT),
    N(EFBIG),      N(EHOSTUNREACH), N(EILSEQ),     N(EINPROGRESS),   N(EINTR),      N(EINVAL),
    N(EIO),        N(EISCONN),    N(EISDIR),       N(ELOOP),         N(EMFILE),     N(EMLINK),
    N(EMSGSIZE),   N(ENAMETOOLONG), N(ENETUNREACH), N(ENFILE),       N(ENODATA),    N(ENODEV),
    N(ENOENT),     N(ENOEXEC),    N(ENOMEM),       N(ENOSPC),        N(ENOSYS),     N(ENOTBLK),
    N(ENOTCONN),   N(ENOTDIR),    N(ENOTEMPTY),    N(ENOTSOCK),      N(ENOTSUP),    N(ENOTTY),
    N(ENXIO),      N(EOVERFLOW),  N(EPERM),        N(EPIPE),         N(EPROTO),     N(ERANGE),
    N(EROFS),      N(ESPIPE),     N(ESRCH),        N(ESTALE),        N(ETIMEDOUT),  N(ETXTBSY),
    N(EXDEV),      N(ENOBUFS),     N(EUSERS),     N(ENOTUNIQ),     N(EOWNERDEAD),    N(EPROTONOSUPPORT),
    N(EKEYEXPIRED), N(EKEYREJECTED), N(ENOKEY),    N(EDESTADDRREQ), N(ESHUTDOWN),  N(ETIME),
    N(EAFNOSUPPORT), N(EHOSTDOWN), N(ENETDOWN),   N(EUCLEAN),
#undef N
};

const char *tp_error_name(int code) {
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].code == code)
      return names[i].name;
  return "EUNKNOWN";
}

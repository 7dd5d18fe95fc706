/* What went wrong in a handshake, as a code of tls.h and a sentence that a person understands.
 *
 * The sentences end up in the sandbox, in answers of 502, so errno's own words are left out. */
#ifndef TP_PROXY_TLS_ERROR_H
#define TP_PROXY_TLS_ERROR_H

#include <stdbool.h>

#include "../error.h"

/* tp_fail without strerror: fill err, return -1. */
int tp_tls_refuse(struct tp_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* What BearSSL's error number (not 0, none of X.509) means at a client's or a server's end. `peer`
 * is who the other end is; `open` when the handshake was done. */
int tp_tls_explain(int number, bool is_client, bool open, const char *peer, struct tp_error *err);

#endif

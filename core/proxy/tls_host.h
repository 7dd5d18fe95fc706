/* A host as certificates and SNI know it: lower case, no final dot; or an address. */
#ifndef TP_PROXY_TLS_HOST_H
#define TP_PROXY_TLS_HOST_H

#include <stdbool.h>

#include "../error.h"

enum { TP_TLS_HOST = 254 }; /* with its NUL */

/* EINVAL: letters, digits, hyphens, underscores and dots, up to 253, or the text of an address. */
int tp_tls_host_normalise(const char *host, char normal[TP_TLS_HOST], struct tp_error *err);
bool tp_tls_host_is_address(const char *host);

#endif

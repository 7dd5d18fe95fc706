/* Random bytes from getrandom() alone: the egress process opens no file, /dev/urandom included. */
#ifndef TP_PROXY_TLS_RANDOM_H
#define TP_PROXY_TLS_RANDOM_H

#include <stddef.h>

/* 0, or -1 with errno. In the shape of mbedTLS's f_rng; `context` is not used. */
int tp_tls_random(void *context, unsigned char *bytes, size_t length);

#endif

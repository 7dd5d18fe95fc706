/* One end of a TLS 1.2 connection, over BearSSL: bytes in, bytes out, no socket (sans-I/O).
 *
 * Runs in the egress process, unprivileged, and parses what a sandbox or the network sent. Four
 * windows into the engine's own buffers, so that a pump copies nothing: the peer's records in and
 * ours out, the peer's plaintext in and ours out. Whoever fills or empties a window acknowledges
 * how many bytes it used. Not for several threads: ends that share an identity or a trust share its
 * caches. */
#ifndef TP_PROXY_TLS_H
#define TP_PROXY_TLS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../error.h"

struct tp_tls;
struct tp_tls_identity; /* whom a server end presents itself as: ca.h makes them */
struct tp_tls_trust;    /* whom a client end believes: trust.h makes them */

struct tp_tls_identity *tp_tls_identity_retain(struct tp_tls_identity *);
void tp_tls_identity_release(struct tp_tls_identity *); /* NULL is harmless, here and below */
struct tp_tls_trust *tp_tls_trust_retain(struct tp_tls_trust *);
void tp_tls_trust_release(struct tp_tls_trust *);

/* Both retain what they are given. A server answers a client whose ALPN lists no HTTP/1 (one that
 * insists on h2) with the alert no_application_protocol; a client sends its ClientHello first.
 * `host` is a DNS name or the text of an address; it is what the peer's certificate must be for. */
struct tp_tls *tp_tls_server(struct tp_tls_identity *, struct tp_error *);
struct tp_tls *tp_tls_client(struct tp_tls_trust *, const char *host, struct tp_error *);
void tp_tls_free(struct tp_tls *);

enum {
  TP_TLS_TAKES_RECORDS = 1, /* room for bytes of the peer */
  TP_TLS_HAS_RECORDS = 2,   /* bytes for the peer wait */
  TP_TLS_HAS_DATA = 4,      /* plaintext of the peer waits; until it is read no record is taken */
  TP_TLS_TAKES_DATA = 8,    /* room for plaintext. First seen: the handshake is done (which a
                             * record that leaves may complete, as well as one that comes) */
  TP_TLS_CLOSED = 16,       /* nothing more either way: closed by both, or failed */
};
unsigned tp_tls_state(const struct tp_tls *);

/* A window whose state bit is not set is NULL, of 0 bytes. */
unsigned char *tp_tls_records_in(struct tp_tls *, size_t *room);
void tp_tls_records_in_ack(struct tp_tls *, size_t);
unsigned char *tp_tls_records_out(struct tp_tls *, size_t *length);
void tp_tls_records_out_ack(struct tp_tls *, size_t);
unsigned char *tp_tls_data_in(struct tp_tls *, size_t *length);
void tp_tls_data_in_ack(struct tp_tls *, size_t);
unsigned char *tp_tls_data_out(struct tp_tls *, size_t *room);
void tp_tls_data_out_ack(struct tp_tls *, size_t);

/* Make a record of the plaintext that waits for more; without it only full records leave. */
void tp_tls_flush(struct tp_tls *);
/* Say close_notify. TLS 1.2 closes both directions at once: what the peer sends now is dropped. */
void tp_tls_close(struct tp_tls *);

/* 0: nothing failed. -1: err->code is
 *   EKEYEXPIRED      the peer's certificate has expired or is not valid yet
 *   ENOKEY           it is self-signed, or its issuer is unknown or was not sent
 *   EKEYREJECTED     it is for another host or purpose, or its signature or key is weak or wrong
 *   EPROTONOSUPPORT  no version (the peer speaks only TLS 1.3), cipher or ALPN in common
 *   EPROTO           anything else
 * and the message is one that a person understands, with the host's name. An alert that says so
 * may still wait in records_out. */
int tp_tls_failure(const struct tp_tls *, struct tp_error *err);

/* The protocol that ALPN agreed on, or NULL. */
const char *tp_tls_alpn(const struct tp_tls *);
/* The agreed cipher suite's name, or NULL; whether a client resumed an earlier session. */
const char *tp_tls_suite(const struct tp_tls *);
int tp_tls_resumed(const struct tp_tls *);

#endif
